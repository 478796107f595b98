// tokenselect: everything stays stored; each call attends to the first tokens, the best k, and the newest.
//
// Paper: TokenSelect, arXiv:2411.02886. Keys are stored before RoPE. q̄_h: mean of the call's queries, each rotated as if the candidates
// lay `local` behind it (so that the score does not know how far away a token is); u_h = softmax over the candidates of q̄_h · k;
// vote[t] = Σ_h u_h[t], optionally max-pooled over neighbours: a soft vote in which a head that is sure outweighs many that are not. The
// top k of the vote make one set for all heads of the layer. What is attended to is renumbered from 0 (rope = cache_relative).
// Selection cache: while cos(q̄, q̄ at the last selection) ≥ theta, the last set is used again; at most for `local` tokens, because later
// ones would otherwise be neither local nor candidates.
// Where we differ: queries read KV head h / G (the paper's kernel takes h mod Hkv, which is wrong for contiguous groups); votes are summed
// in fp32; the local part always covers the call's own tokens, so that a chunk longer than `local` stays causal; with prefill = shared the
// prompt is read with full attention, which all lanes share, and selection begins with the first call after it; prefill = select is the
// paper's way: blocks of 512 select too, and since positions never exceed what is attended to, a prompt may be longer than the model's
// context (length extrapolation). Memory is not freed.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

struct LastSelection final : LayerMemory {
    at::Tensor query;                 // [queryHeads · headDim] fp32
    at::Tensor votes;                 // [candidates] fp32
    std::vector<std::int32_t> chosen; // the top k, ascending
    std::int64_t seen = -1;           // when it was made
};

class TokenSelect final : public Policy {
public:
    TokenSelect(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_init = params.integer("init");
        m_topK = params.integer("top_k");
        m_local = params.integer("local");
        m_theta = params.real("theta");
        m_kernel = params.integer("kernel");
        m_scaled = params.choice("scale") == "sqrt_d";
        m_ownsPrefill = params.choice("prefill") == "select";
        m_rope = RopeMode::cacheRelative;
    }
    bool ownsPrefill() const override { return m_ownsPrefill; }
    Schedule schedule() const override { return {.afterPrefill = false, .everySteps = 0}; }
    std::unique_ptr<LayerMemory> remember() const override { return std::make_unique<LastSelection>(); }

    std::optional<Attended> attend(const LayerView& view, const Place& place, LayerMemory* memory) const override {
        const Shares shares = sharesOf(place);
        const std::int64_t total = place.held, local = std::max<std::int64_t>(shares.local, place.fresh);
        if (shares.init + shares.topK + local >= total) return std::nullopt;
        const std::int64_t begin = shares.init, count = total - local - begin;

        const at::Tensor steps = at::arange(shares.local, shares.local + place.fresh, view.entries.positions.options());
        const at::Tensor query = ops::rope(view.queries, steps, view.inverseFrequencies).to(at::kFloat).mean(1); // [queryHeads, D]
        auto& last = static_cast<LastSelection&>(*memory);
        const bool again = reusable(last, query, place.seen, shares);
        if (!again) {
            at::Tensor vote = ops::soft_vote(query, view.keys, view.entries.lengths, begin, begin + count, m_scaled ? view.scale : 1.0); // [count]
            if (m_kernel > 1) vote = at::max_pool1d(vote.view({1, 1, count}), m_kernel, 1, m_kernel / 2).view({count});
            last.votes = vote;
            last.chosen = top(vote, shares.topK, static_cast<std::int32_t>(begin));
            last.query = query.reshape({-1});
            last.seen = place.seen;
        }
        Attended attended{{}, last.votes, shares.init, {shares.init, static_cast<int>(local)}, ""};
        if (again) attended.note = "The choice of " + std::to_string(place.seen - last.seen) + " tokens before was used again: the query had hardly changed.";
        std::vector<std::int32_t>& out = attended.entries;
        for (std::int32_t i = 0; i < shares.init; ++i)
            out.push_back(i);
        const auto localBegin = static_cast<std::int32_t>(total - local);
        for (const std::int32_t i : last.chosen)
            if (i >= shares.init && i < localBegin) out.push_back(i); // shares of a ratio grow with the text
        for (std::int32_t i = localBegin; i < total; ++i)
            out.push_back(i);
        return attended;
    }

private:
    struct Shares {
        int init, topK, local;
    };
    Shares sharesOf(const Place& place) const {
        constexpr double Whole = 128 + 2048 + 512; // the paper's shares
        Shares s{128, 2048, 512};
        const bool budgeted = m_spec.budget.kind == Budget::Kind::tokens || m_spec.budget.compressionRatio > 0;
        if (budgeted) {
            const int total = budget(place.seen);
            s.init = m_init > 0 ? m_init : std::max(1, static_cast<int>(total * 128 / Whole));
            s.local = m_local > 0 ? m_local : std::max(1, static_cast<int>(total * 512 / Whole));
            s.topK = std::max(0, total - s.init - s.local);
        }
        if (m_init > 0) s.init = m_init;
        if (m_topK > 0) s.topK = m_topK;
        if (m_local > 0) s.local = m_local;
        return s;
    }

    bool reusable(const LastSelection& last, const at::Tensor& query, std::int64_t seen, const Shares& shares) const {
        if (last.seen < 0 || m_theta > 1 || seen - last.seen >= shares.local) return false;
        const at::Tensor now = query.reshape({-1});
        const double cosine = (at::dot(now, last.query) / (now.norm() * last.query.norm()).clamp_min(1e-12)).item<double>();
        return cosine >= m_theta;
    }

    // The `count` highest of vote, ties to the larger position; ascending entry indices.
    static std::vector<std::int32_t> top(const at::Tensor& vote, int count, std::int32_t begin) {
        if (!vote.device().is_cpu()) { // chosen where the votes are: only the indices travel
            const auto chosen = static_cast<std::int64_t>(std::min<std::int64_t>(count, vote.size(0)));
            const at::Tensor counts = at::full({1}, static_cast<std::int32_t>(vote.size(0)), vote.options().dtype(at::kInt));
            const at::Tensor index = ops::top_k(vote.unsqueeze(0), counts, chosen).add(begin).to(at::kCPU).contiguous();
            return {index.const_data_ptr<std::int32_t>(), index.const_data_ptr<std::int32_t>() + chosen};
        }
        const float* v = vote.const_data_ptr<float>();
        std::vector<std::int32_t> order(static_cast<std::size_t>(vote.numel()));
        for (std::size_t i = 0; i < order.size(); ++i)
            order[i] = static_cast<std::int32_t>(i);
        const auto end = order.begin() + std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(order.size()));
        if (end != order.end())
            std::nth_element(order.begin(), end, order.end(),
                             [v](std::int32_t a, std::int32_t b) { return v[a] > v[b] || (v[a] == v[b] && a > b); });
        order.erase(end, order.end());
        std::ranges::sort(order);
        for (std::int32_t& i : order)
            i += begin;
        return order;
    }

    int m_init = 0, m_topK = 0, m_local = 0, m_kernel = 1;
    double m_theta = 0.9;
    bool m_scaled = false, m_ownsPrefill = false;
};

} // namespace

PolicyEntry tokenselect_policy();
PolicyEntry tokenselect_policy() {
    PolicyInfo info{
        "tokenselect",
        {"token_select"},
        PolicyKind::attend,
        "Stores everything and attends, call by call, to the first, the newest and the best-voted tokens.",
        "TokenSelect, arXiv:2411.02886",
        {{"init",
          ParamInfo::Type::integer,
          "0",
          0,
          1 << 20,
          {},
          "tokens",
          "First tokens always attended to; 0: the budget's share, without one 128."},
         {"top_k",
          ParamInfo::Type::integer,
          "0",
          0,
          1 << 24,
          {},
          "tokens",
          "Tokens chosen by the vote; 0: the rest of the budget, without one 2048."},
         {"local",
          ParamInfo::Type::integer,
          "0",
          0,
          1 << 24,
          {},
          "tokens",
          "Newest tokens always attended to; 0: the budget's share, without one 512."},
         {"theta",
          ParamInfo::Type::real,
          "0.9",
          -1,
          2,
          {},
          "cosine",
          "A query at least this similar to the one of the last selection uses its set again; above 1: select every time."},
         {"kernel", ParamInfo::Type::integer, "1", 1, 255, {}, "tokens", "Width of the max pooling of the votes, odd; 1: none.", true},
         {"scale",
          ParamInfo::Type::choice,
          "1",
          0,
          0,
          {"1", "sqrt_d"},
          "",
          "Dot products as they are (the paper's code), or divided by the root of the head size."},
         {"prefill",
          ParamInfo::Type::choice,
          "shared",
          0,
          0,
          {"shared", "select"},
          "",
          "shared: the prompt is read with full attention, once for all lanes; select: by selection too, in blocks of 512, which also "
          "reads prompts longer than the "
          "model's context."}}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> {
                return std::make_unique<TokenSelect>(i, spec);
            }};
}

} // namespace keepsight
