// From scores to the entries that stay.
#pragma once

#include "engine/cache/kv_cache.h"
#include "engine/policy/policy.h"

namespace keepsight {

// Per KV head: the protected entries and the highest scores among the rest, `plan.keep` in all (everything if fewer are held).
// scores [kvHeads, ≥ held] fp32 in any memory, or undefined: the newer the better. Ties: the larger position wins. NaN counts as −inf.
// If the protected entries alone exceed the budget, recents shrink to keep − sinks, then sinks; notice says so.
Selection select(const at::Tensor& scores, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice = nullptr);

} // namespace keepsight
