// Suffix perplexity in parts, shared by the ppl and suite jobs.
#pragma once

#include "engine/eval/evaluation.h"

namespace keepsight {

struct PplPlan {
    std::vector<TokenId> ids;
    std::int64_t windows = 0, split = 0, tokensPerWindow = 0; // tokens: prefix once, the suffix once per lane and for the baseline
};
PplPlan planPerplexity(EvalContext& context); // checks the job; throws UsageError, EngineError

struct WindowResult {
    double nll = 0;                 // summed, nats
    std::vector<double> kept;       // [layers × kvHeads]
    std::int64_t kvBytes = 0, allocatedBytes = 0;
    double bits = 0, prefillMs = 0, selectMs = 0;
};
struct PplResults {
    std::vector<std::vector<WindowResult>> lanes; // [lanes][windows done]
    std::vector<double> baseline;                 // [windows done] summed NLL of the full cache
    std::vector<std::string> notices;             // [lanes]
    bool cancelled = false;
};
// start: windows that an earlier run has done. Throws Cancelled only if not one window is done.
PplResults scoreWindows(EvalContext& context, const PplPlan& plan, ProgressMeter& meter,
                        const std::function<void(std::int64_t, const PplResults&)>& onWindow = {}, PplResults start = {});
void setPerplexity(EvalContext& context, const PplPlan& plan, const PplResults& results, std::size_t lane, Measurement& row);

} // namespace keepsight
