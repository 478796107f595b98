// lagkv: a token is kept if its channels stand out against the range that the text right behind it covers.
//
// Paper: LagKV, arXiv:2504.04704; no queries needed, each KV head for itself. The first S₀ tokens are sinks, the rest is cut into partitions of Lg. For
// a token t of partition p and X ∈ {K, V}, with the channels' min and max over partition p + 1:
//   x̂ = (x − min)/(max − min), u_X[t] = softmax over p of std over channels of x̂_t, score = u_K + λ·u_V
// The sinks, the last whole partition (which has nothing behind it) and the remainder always stay.
//   form = kvpress (default, as kvpress 0.5.5: S₀ 4, Lg 128): within a partition scores become ranks/Lg (unless cross_scoring), then the best of all
//       fill the budget, after the prefill. Shorter than S₀ + 2·Lg: sinks and the newest.
//   form = official (the authors' code: S₀ 16, Lg 1024): whenever 2·Lg tokens are uncompressed, after the prefill and while decoding, every partition
//       but the last is cut to its best ⌊ratio·Lg⌋ for good. The protected parts come on top of the ratio. Shorter: nothing is dropped.
// Where we differ: max − min is at least 1e-6 (a constant channel divides by zero in both sources); a budget below the protected parts keeps sinks,
// then the newest (kvpress leaves it to chance); of tied ranks the newer entry stays.
#include "engine/data/error.h"
#include "engine/policy/chunks.h"
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

struct Compressed final : LayerMemory {
    std::int64_t entries = 0; // sinks and what was kept of finished partitions
};

// x [heads, partitions · Lg, D] → [heads, partitions − 1, Lg]
at::Tensor spread(const at::Tensor& x, std::int64_t lag) { return at::softmax(ops::lag_spread(x, lag).unflatten(1, {-1, lag}), 2); }

class LagKv final : public Policy {
public:
    LagKv(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_official = params.choice("form") == "official";
        m_sinks = params.integer("sinks") >= 0 ? params.integer("sinks") : (m_official ? 16 : 4);
        m_lag = params.integer("lag") > 0 ? params.integer("lag") : (m_official ? 1024 : 128);
        m_ratio = params.real("ratio");
        m_valueWeight = params.real("value_weight");
        m_ranks = !params.flag("cross_scoring");
        m_chunked = params.integer("chunk") > 0;
        for (const double layer : params.reals("skip")) m_skipped.push_back(static_cast<int>(layer));
        if (m_official && (m_chunked || params.choice("heads") == "ada"))
            throw UsageError("policy lagkv: form=official cuts every partition by itself; expected heads=uniform and chunk=0");
    }
    Schedule schedule() const override { return m_official ? Schedule{.afterPrefill = true, .everySteps = 1} : m_schedule; }
    bool skips(LayerIndex layer) const override { return std::ranges::find(m_skipped, layer.value) != m_skipped.end(); }

    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor&) const override {
        return scoreInChunks(view, plan.chunk, [this](const at::Tensor& keys, const at::Tensor& values, const at::Tensor& lengths) { return scoreHeads(keys, values, lengths); });
    }
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }

    // The official form waits until two partitions are uncompressed.
    bool decides(const Place& place, const Plan& plan, std::int64_t total, int kvHeads, const LayerMemory* memory) const override {
        return Policy::decides(place, plan, total, kvHeads, memory) && (!m_official || place.held - compressed(memory) >= 2 * m_lag);
    }
    std::unique_ptr<LayerMemory> remember() const override { return m_official ? std::make_unique<Compressed>() : nullptr; }

    Selection choose(const LayerView& view, const Place& place, const Plan& plan, const at::Tensor& scores, LayerMemory* memory, std::string* notice) const override {
        if (!m_official) return Policy::choose(view, place, plan, scores, memory, notice);
        const std::vector<std::int32_t>& held = view.entries.held;
        const std::int64_t base = compressed(memory), n = held.front(), partitions = std::max<std::int64_t>(0, n - base) / m_lag;
        if (partitions < 2) return Selection::all(held);
        const at::Tensor best = scorePartitions(view.keys.narrow(1, base, partitions * m_lag), view.values.narrow(1, base, partitions * m_lag)); // [kvHeads, partitions − 1, Lg]
        const int keep = keptOfPartition(place, plan);
        Selection out;
        out.keep.resize(held.size());
        for (auto& kept : out.keep)
            for (std::int64_t i = 0; i < base; ++i) kept.push_back(static_cast<std::int32_t>(i));
        for (std::int64_t p = 0; p + 1 < partitions; ++p) {
            const Selection part = select(best.select(1, p), std::vector<std::int32_t>(held.size(), m_lag), {.keep = keep, .protect = {}, .window = 0, .notice = {}});
            for (std::size_t h = 0; h < held.size(); ++h)
                for (const std::int32_t i : part.keep[h]) out.keep[h].push_back(static_cast<std::int32_t>(base + p * m_lag) + i);
        }
        for (auto& kept : out.keep)
            for (std::int64_t i = base + (partitions - 1) * m_lag; i < n; ++i) kept.push_back(static_cast<std::int32_t>(i));
        if (memory) static_cast<Compressed&>(*memory).entries = base + (partitions - 1) * keep;
        return out;
    }

    void amend(Explanation& e, const LayerView&, const Place& place, const Plan& plan) const override {
        if (m_official)
            e.note = "Each partition of " + std::to_string(m_lag) + " tokens keeps its own best " + std::to_string(keptOfPartition(place, plan)) +
                     "; the rank compares tokens of all partitions.";
    }

protected:
    Plan plan(const Place& place, int budget) const override {
        Plan p{.keep = budget, .protect = {.sinks = m_sinks, .recent = 0}, .window = 0, .notice = {}};
        const std::int64_t length = m_official ? place.seen : place.held, whole = wholePartitions(length);
        const int tail = tailOf(length);
        if (!m_official) {
            if (m_chunked) p.protect = {};
            else if (whole >= 2) p.protect.recent = tail;
            else if (budget < place.held) p.notice = "shorter than " + std::to_string(m_sinks + 2 * m_lag) + " tokens: sinks and the newest stay";
            return p;
        }
        const int keep = wantedOfPartition(place, budget);
        p.keep = static_cast<int>(place.seen);
        if (whole < 2 || keep >= m_lag) return p;
        p.protect.recent = tail;
        p.keep = m_sinks + static_cast<int>(whole - 1) * keep + tail;
        if (p.keep > budget) p.notice = "sinks, the last partition and the remainder come on top of the ratio: " + std::to_string(p.keep) + " tokens stay";
        return p;
    }

private:
    std::int64_t compressed(const LayerMemory* memory) const { // sinks and finished partitions
        return std::max<std::int64_t>(m_sinks, memory ? static_cast<const Compressed*>(memory)->entries : 0);
    }
    std::int64_t wholePartitions(std::int64_t length) const { return std::max<std::int64_t>(0, length - m_sinks) / m_lag; }
    // The last whole partition and the remainder.
    int tailOf(std::int64_t length) const { return static_cast<int>(length - m_sinks - std::max<std::int64_t>(0, wholePartitions(length) - 1) * m_lag); }

    // form=official: how many of a partition's tokens stay, from the plan and before it.
    int keptOfPartition(const Place& place, const Plan& plan) const {
        const std::int64_t whole = wholePartitions(place.seen);
        return whole < 2 ? m_lag : std::max(1, static_cast<int>((plan.keep - m_sinks - tailOf(place.seen)) / (whole - 1)));
    }
    int wantedOfPartition(const Place& place, int budget) const {
        const Budget& b = m_spec.budget;
        double wanted = static_cast<double>(budget) / static_cast<double>(std::max<std::int64_t>(1, place.seen)) * m_lag;
        if (m_ratio > 0) wanted = std::floor(m_ratio * m_lag);
        else if (b.kind == Budget::Kind::ratio && budget == Policy::budget(place.seen)) wanted = std::floor((1 - b.compressionRatio) * m_lag);
        return static_cast<int>(std::clamp(std::round(wanted), 1.0, static_cast<double>(m_lag)));
    }

    // keys, values [heads, partitions · Lg, D] → [heads, partitions − 1, Lg]
    at::Tensor scorePartitions(const at::Tensor& keys, const at::Tensor& values) const {
        return spread(keys, m_lag) + spread(values, m_lag) * m_valueWeight;
    }

    // keys, values [heads, n, D], lengths [heads] of the n are real → [heads, n]; 1 for what always stays, below 1 for the rest.
    at::Tensor scoreHeads(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& lengths) const {
        const std::int64_t n = keys.size(1), partitions = std::max<std::int64_t>(0, n - m_sinks) / m_lag;
        const at::Tensor others = (lengths.unsqueeze(1) - m_sinks).clamp_min(1), index = at::arange(n, others.options()).unsqueeze(0); // [heads, 1], [1, n]
        // Short heads: the newer the better.
        const at::Tensor scores = (index - m_sinks).div(others).masked_fill(index < m_sinks, 1); // [heads, n]
        if (partitions < 2) return scores;
        const std::int64_t scored = (partitions - 1) * m_lag;
        at::Tensor inner = scorePartitions(keys.narrow(1, m_sinks, partitions * m_lag), values.narrow(1, m_sinks, partitions * m_lag)) / (1 + m_valueWeight);
        if (m_ranks) {
            const at::Tensor order = inner.argsort(std::int64_t{2});
            inner.scatter_(2, order, (at::arange(m_lag, inner.options()) / static_cast<double>(m_lag)).expand_as(inner));
        }
        const at::Tensor whole = others.div(m_lag, "floor"); // a partition is scored if one that is whole follows
        const at::Tensor sure = index.narrow(1, 0, scored).div(m_lag, "floor") >= whole - 1;
        at::Tensor parted = at::ones_like(scores);
        parted.narrow(1, m_sinks, scored).copy_(inner.flatten(1).masked_fill(sure, 1));
        return at::where(whole < 2, scores, parted);
    }

    bool m_official = false, m_ranks = true, m_chunked = false;
    int m_sinks = 4, m_lag = 128;
    double m_ratio = 0, m_valueWeight = 1;
    std::vector<int> m_skipped;
};

} // namespace

PolicyEntry lagkv_policy();
PolicyEntry lagkv_policy() {
    ParamInfo timing = timingParam("prefill_end");
    timing.help += " form=official works after every token, whatever is given here.";
    PolicyInfo info{"lagkv",
                    {"lag_kv"},
                    PolicyKind::evict,
                    "Keeps tokens whose keys and values stand out against the range of the text behind them.",
                    "LagKV, arXiv:2504.04704",
                    std::vector<ParamInfo>{
                        {"form", ParamInfo::Type::choice, "kvpress", 0, 0, {"kvpress", "official"}, "",
                         "kvpress: the best ranks fill the budget once, after the prefill; official: each partition is cut by itself, also while decoding."},
                        {"sinks", ParamInfo::Type::integer, "-1", -1, 1 << 20, {}, "tokens", "First tokens that always stay; -1: the form's own number, 4 for kvpress and 16 for official."},
                        {"lag", ParamInfo::Type::integer, "0", 0, 1 << 20, {}, "tokens", "Tokens in a partition; 0: the form's own number, 128 for kvpress and 1024 for official."},
                        {"ratio", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "With form=official, the share kept of every partition; 0: what the budget or the compression ratio leaves."},
                        {"value_weight", ParamInfo::Type::real, "1", 0, 100, {}, "", "How much values count beside keys."},
                        flagParam("cross_scoring", false, "Whether the scores themselves are compared between partitions, instead of ranks within each."),
                        {"skip", ParamInfo::Type::reals, "", 0, 4096, {}, "layers", "Layers that keep everything, counted from 0 and separated by '/'."},
                        timing,
                        ropeParam("original")} +
                        sharedParams(Shared::keys)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<LagKv>(i, spec); }};
}

} // namespace keepsight
