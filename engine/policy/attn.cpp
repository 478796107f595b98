// attn: keeps what received most attention so far, less of it in the later layers.
//
// Source: TokenSkipping's AttnPruneCache (no paper), made sound. acc[h, t] = Σ over all queries so far of A[h, q, t], averaged per KV group (or
// over all heads, shared_heads); evicted entries leave acc, new ones start at 0. Layer l of L holds
//   B_l = max(anchors + 1, round(f_l · seen)),  f_l = start + (end − start) · l / (L − 1):
// the first `anchors` tokens, the newest, and of the rest those with the largest acc; after the prefill and after every token.
// start = end = 0 takes f_l from the budget: a line through its mean B, from 1.2·B in the first layer to 0.8·B in the last, the slope of the
// original's 0.75 to 0.50; flatter where the first layer would exceed what was seen.
//
// form = seed is the original as it was, which shows why counts must refer to the tokens seen: nothing is dropped after the prefill, then every
// step keeps the share f_l of what is *held* by the newest query's row alone. The share compounds: 4096 tokens at f = 0.75 are the 8
// anchors after 23 steps, and the newest token may go.
#include "engine/data/error.h"
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {
namespace {

constexpr double Start = 0.75, End = 0.50; // of the original

class Attn final : public Policy {
public:
    Attn(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_seed = params.choice("form") == "seed";
        m_anchors = params.integer("anchors");
        m_start = params.real("start");
        m_end = params.real("end");
        m_explicit = m_start > 0 || m_end > 0;
        if (m_explicit && m_start <= 0) m_start = Start;
        if (m_explicit && m_end <= 0) m_end = End;
        m_sharedHeads = m_seed || params.flag("shared_heads");
        m_perLayer = !params.reals("layers").empty();
        if (m_explicit && m_perLayer) throw UsageError("policy attn: 'start' and 'end' and 'layers' all say how much each layer keeps; give one of them");
        if (params.choice("heads") == "ada" && m_sharedHeads)
            throw UsageError("policy attn: heads=ada wants a set for each head, but " + std::string(m_seed ? "form=seed" : "shared_heads=on") + " keeps one for all");
        if (m_seed && params.choice("timing") != "each_step") throw UsageError("policy attn: form=seed decides after every decoded token; leave 'timing' at each_step");
        if (m_seed) m_schedule = {.afterPrefill = false, .everySteps = 1};
    }
    Needs needs(std::int64_t) const override {
        if (m_seed) return {.lastRows = 1, .decodeRows = true, .entries = false};
        return {.columnSums = true, .decodeSums = m_schedule.everySteps > 0, .entries = false};
    }
    int budget(std::int64_t seen) const override {
        return m_explicit ? std::max(1, static_cast<int>(roundHalfEven((m_start + m_end) / 2 * static_cast<double>(seen)))) : Policy::budget(seen);
    }
    at::Tensor statistic(const LayerView&, const Plan&, const at::Tensor& sums) const override { return m_seed ? at::Tensor() : sums; } // [queryHeads, C]
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
    at::Tensor score(const LayerView& view, const Plan&, const at::Tensor& statistic) const override {
        const at::Tensor received = m_seed ? view.lastRows(1).squeeze(1) : statistic; // [queryHeads, C]
        if (m_sharedHeads) return received.mean(0, true).expand({view.config.kvHeads, -1}).contiguous();
        return reduceGroup(received, view.config.kvHeads, m_agg);
    }

protected:
    Plan plan(const Place& place, int budget) const override {
        const auto seen = static_cast<double>(place.seen), held = static_cast<double>(place.held);
        const double wanted = wantedOf(place, budget);
        Plan p{.keep = 0, .protect = {.sinks = m_anchors, .recent = m_seed ? 0 : 1}, .window = 1, .notice = {}};
        if (m_seed) {
            const double share = m_explicit ? fraction(place) : wanted / seen; // of what is held, not of what was seen
            p.keep = std::max({1, m_anchors, static_cast<int>(roundHalfEven(share * held))});
            return p;
        }
        const int rounded = static_cast<int>(roundHalfEven(wanted));
        p.keep = std::max(m_anchors + 1, rounded);
        if (p.keep > rounded)
            p.notice = "the anchors and the newest token need " + std::to_string(p.keep) + " tokens, more than the " + std::to_string(rounded) + " asked for";
        return p;
    }

private:
    double fraction(const Place& place) const { // f_l
        return place.layers > 1 ? m_start + (m_end - m_start) * place.layer.value / (place.layers - 1) : m_start;
    }
    double wantedOf(const Place& place, int budget) const {
        const auto seen = static_cast<double>(place.seen), mean = static_cast<double>(budget);
        if (m_explicit) return fraction(place) * seen * (mean / this->budget(place.seen)); // the factor is 1 but for quantizers that give room for more
        if (m_perLayer || place.layers < 2) return mean; // the budget is this layer's already
        const double slope = std::clamp((Start - End) / (Start + End) * mean, 0.0, std::max(0.0, seen - mean));
        return mean + slope * (1.0 - 2.0 * place.layer.value / (place.layers - 1));
    }

    bool m_seed = false, m_explicit = false, m_sharedHeads = false, m_perLayer = false;
    int m_anchors = 8;
    double m_start = 0, m_end = 0;
};

} // namespace

PolicyEntry attn_policy();
PolicyEntry attn_policy() {
    PolicyInfo info{
        "attn",
        {},
        PolicyKind::evict,
        "Keeps the first tokens, the newest and those that received most attention, fewer in later layers.",
        "",
        std::vector<ParamInfo>{
            {"anchors", ParamInfo::Type::integer, "8", 0, 1 << 20, {}, "tokens", "First tokens that always stay."},
            {"start", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "Share of all tokens kept in the first layer; 0: from the budget, or 0.75 if 'end' is given."},
            {"end", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "Share of all tokens kept in the last layer; 0: from the budget, or 0.5 if 'start' is given."},
            flagParam("shared_heads", false, "Average over all heads of a layer, so that they keep the same tokens."),
            {"form", ParamInfo::Type::choice, "canonical", 0, 0, {"canonical", "seed"}, "",
             "seed: the original rule, a demonstration of what goes wrong: its share of the shrinking cache compounds at every step."},
            aggParam(),
            timingParam("each_step"),
            ropeParam("original")} +
            sharedParams(Shared::attention)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<Attn>(i, spec); }};
}

} // namespace keepsight
