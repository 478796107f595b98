// tova: drops what the newest query attends to least.
//
// Paper: TOVA, arXiv:2401.06104. a[t] = mean over all query heads of A[h, last, t]: one set for all heads of a layer. Memoryless:
// the scores are replaced at every step, never summed. The newest token always stays (the original lets it compete; kvpress forces it).
#include "engine/policy/policy.h"

#include <ATen/ATen.h>

namespace keepsight {
namespace {

class Tova final : public Policy {
public:
    using Policy::Policy;
    Needs needs(std::int64_t) const override { return {.lastRows = 1, .decodeRows = m_schedule.everySteps > 0, .entries = false}; }
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
    at::Tensor score(const LayerView& view, const Plan&, const at::Tensor&) const override {
        return view.lastRows(1).squeeze(1).mean(0, true).expand({view.config.kvHeads, -1}).contiguous(); // [kvHeads, C]
    }

protected:
    Plan plan(const Place&, int budget) const override { return {.keep = budget, .protect = {.sinks = 0, .recent = 1}, .window = 1, .notice = {}}; }
};

} // namespace

PolicyEntry tova_policy();
PolicyEntry tova_policy() {
    PolicyInfo info{"tova",
                    {},
                    PolicyKind::evict,
                    "Drops the token that the newest query attends to least.",
                    "TOVA, arXiv:2401.06104",
                    {granularityParam(), timingParam("each_step"), ropeParam("original")}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<Tova>(i, spec); }};
}

} // namespace keepsight
