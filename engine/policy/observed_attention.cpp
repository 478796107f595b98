// observed_attention: the attention an entry received, per query that could have given it some.
//
// kvpress 0.5.5, ObservedAttentionPress (no paper): s[t] = Σ_q A[q, t] / |{q : q sees t}|, averaged per KV group, nothing protected. Unlike h2o's
// plain sums this does not favour old tokens for the mere number of rows that saw them; it does favour the newest, which few rows have judged.
// kvpress needs the whole T × T matrix (eager attention) and prunes after the prefill only; here the sums are streamed, and timing = each_step goes on
// summing: an entry at position p has been seen by (newest position − p + 1) queries at any time.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>

namespace keepsight {
namespace {

class ObservedAttention final : public Policy {
public:
    using Policy::Policy;
    Needs needs(std::int64_t) const override { return {.columnSums = true, .decodeSums = m_schedule.everySteps > 0, .entries = false}; }
    at::Tensor statistic(const LayerView&, const Plan&, const at::Tensor& sums) const override { return sums; } // [queryHeads, C]
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
    at::Tensor score(const LayerView& view, const Plan&, const at::Tensor& statistic) const override {
        const at::Tensor& positions = view.entries.positions; // [kvHeads, C]
        const at::Tensor last = (view.entries.lengths.to(at::kLong) - 1).clamp_min(0).unsqueeze(1), newest = positions.gather(1, last);
        const at::Tensor queries = (newest - positions).add_(1).clamp_min_(1).to(at::kFloat); // that saw the entry
        return reduceGroup(statistic, view.config.kvHeads, m_agg) / queries;
    }
};

} // namespace

PolicyEntry observed_attention_policy();
PolicyEntry observed_attention_policy() {
    PolicyInfo info{"observed_attention",
                    {},
                    PolicyKind::evict,
                    "Keeps the tokens that received most attention on average, counted over the queries that could see them.",
                    "kvpress, ObservedAttentionPress",
                    std::vector<ParamInfo>{aggParam(), timingParam("prefill_end"), ropeParam("original")} + sharedParams(Shared::attention)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<ObservedAttention>(i, spec); }};
}

} // namespace keepsight
