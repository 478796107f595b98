// h2o: heavy hitters (largest attention received so far) and the newest tokens.
//
// Paper: H2O, arXiv:2306.14048. acc[t] = Σ over all queries so far of A[q, t], averaged per KV group; evicted entries leave acc, new ones
// start at 0. Keeps `recent` newest and the top `heavy` of the older ones, after the prefill and again after every token.
// Sums favour old tokens (more rows saw them); that is the method. history = last sums only the last `recent` prompt rows
// (kv-cache-pruner's form). The sums are streamed during attention: no T × T matrix is ever held.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {
namespace {

class H2o final : public Policy {
public:
    H2o(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_heavy = params.integer("heavy");
        m_recent = params.integer("recent");
        m_full = params.choice("history") == "full";
    }
    Needs needs(std::int64_t prompt) const override {
        Needs n{.columnSums = m_full, .decodeSums = m_schedule.everySteps > 0, .entries = false};
        if (!m_full) n.lastRows = static_cast<int>(std::clamp<std::int64_t>(recentOf(budget(prompt)), 1, prompt));
        return n;
    }
    int budget(std::int64_t seen) const override { return m_heavy > 0 || m_recent > 0 ? std::max(1, explicitOr(seen)) : Policy::budget(seen); }
    at::Tensor statistic(const LayerView& view, const Plan& plan, const at::Tensor& columnSums) const override {
        return m_full ? columnSums : view.lastSums(std::min<std::int64_t>(plan.window, view.queries.size(1))); // [queryHeads, C]
    }
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
    at::Tensor score(const LayerView& view, const Plan&, const at::Tensor& statistic) const override {
        return reduceGroup(statistic, view.config.kvHeads, m_agg);
    }
    std::string scoreKey(const Plan& plan) const override { return m_full ? "" : std::to_string(plan.window); }

protected:
    Plan plan(const Place& place, int budget) const override {
        const int recent = recentOf(budget);
        return {.keep = budget,
                .protect = {.sinks = 0, .recent = recent},
                .window = static_cast<int>(std::clamp<std::int64_t>(recent, 1, place.held)),
                .notice = {}};
    }

private:
    int recentOf(int budget) const { return m_recent > 0 ? m_recent : (m_heavy > 0 ? std::max(0, budget - m_heavy) : budget / 2); }
    // One given, the other from the budget's equal shares.
    int explicitOr(std::int64_t seen) const {
        const int shared = Policy::budget(seen), half = shared / 2;
        return (m_heavy > 0 ? m_heavy : shared - half) + (m_recent > 0 ? m_recent : half);
    }
    int m_heavy = 0, m_recent = 0;
    bool m_full = true;
};

} // namespace

PolicyEntry h2o_policy();
PolicyEntry h2o_policy() {
    PolicyInfo info{"h2o",
                    {"heavy_hitter"},
                    PolicyKind::evict,
                    "Keeps the tokens that received most attention so far, and the newest.",
                    "H2O, arXiv:2306.14048",
                    std::vector<ParamInfo>{{"heavy", ParamInfo::Type::integer, "0", 0, 1 << 24, {}, "tokens", "Heavy hitters kept; 0: half of the budget."},
                     {"recent", ParamInfo::Type::integer, "0", 0, 1 << 24, {}, "tokens", "Newest tokens kept; 0: half of the budget."},
                     {"history", ParamInfo::Type::choice, "full", 0, 0, {"full", "last"}, "", "Prompt queries that count: all of them (the paper), or the last `recent` ones."},
                     aggParam(),
                     timingParam("each_step"),
                     ropeParam("original")} +
                        sharedParams(Shared::attention)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<H2o>(i, spec); }};
}

} // namespace keepsight
