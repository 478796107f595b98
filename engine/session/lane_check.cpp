#include "engine/session/lane_check.h"

#include "engine/cache/quantizer.h"
#include "engine/data/error.h"
#include "engine/policy/policy.h"

namespace keepsight {

std::string laneConflict(const PolicySpec& spec) {
    const std::unique_ptr<const Policy> policy = makePolicy(spec);
    const PolicyInfo& info = policyEntry(spec.id).info;
    const Needs needs = policy->needs(1 << 20);
    if (policy->rope() == RopeMode::cacheRelative && needs.lastRows > 1 && !needs.decodeSums && policy->schedule().everySteps > 0)
        return "policy " + info.id + " cannot renumber positions (rope=cache_relative) and evict while decoding: the window's queries would have to be turned anew "
               "at every step; use rope=original or timing=prefill_end.";
    if (spec.quant == QuantSpec()) {
        if (info.id == "layerquant") return "policy layerquant trades bits for tokens layer by layer: choose the quantizer layerquant with it.";
        return {};
    }
    const std::unique_ptr<Quantizer> quantizer = makeQuantizer(spec.quant);
    if (info.id == "layerquant" && quantizer->spec().id != "layerquant")
        return "policy layerquant trades bits for tokens layer by layer: choose the quantizer layerquant with it, not " + quantizer->spec().id + ".";
    if (quantizer->equalMemory() && !info.usesBudget)
        return "quantizer " + quantizer->spec().id + " with equal_memory=on turns a budget into more tokens, and policy " + info.id + " has no budget.";
    return {};
}

void checkLane(const PolicySpec& spec, const ModelConfig* model) {
    checkPolicySpec(spec);
    checkQuantSpec(spec.quant);
    if (const std::string conflict = laneConflict(spec); !conflict.empty()) throw UsageError(conflict);
    if (!model || spec.quant == QuantSpec()) return;
    if (const std::string refused = makeQuantizer(spec.quant)->refuses(*model); !refused.empty()) throw UsageError(refused);
}

} // namespace keepsight
