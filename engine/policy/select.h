// From scores to the entries that stay, and why each of them did.
#pragma once

#include "engine/cache/kv_cache.h"
#include "engine/data/explanation.h"
#include "engine/policy/policy.h"

namespace keepsight {

// Per KV head: the protected entries and the highest scores among the rest, `plan.keep` in all (everything if fewer are held); if
// plan.adaptive, keep × heads in all heads together, if plan.chunk, the same share of every chunk.
// scores [kvHeads, ≥ held] fp32 in any memory, or undefined: the newer the better. Ties: the larger position wins, then the lower head.
// NaN counts as −inf. If the protected entries alone exceed the budget, recents shrink to keep − sinks, then sinks; notice says so.
Selection select(const at::Tensor& scores, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice = nullptr);

// What the selection did with entry `index` of `head`: score, rank, cutoff and who holds the last slot. budgetNeeded is left unset.
Explanation explainEntry(const at::Tensor& scores, const CacheLayer& entries, const Plan& plan, const Selection& selection, HeadIndex head, std::int32_t index);

} // namespace keepsight
