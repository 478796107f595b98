// SnapKV's votes, shared by the policies that choose by them.
#pragma once

#include "engine/policy/policy.h"

namespace keepsight {

// Mean attention of the last `window` queries over the entries before them, reduced by KV group, then pooled over `kernel` neighbours:
// [kvHeads, C] fp32, zero from the window on. pool: "avg" (zero padding counts) | "max".
at::Tensor snapVotes(const LayerView& view, int window, int kernel, const std::string& pool, const std::string& agg);

} // namespace keepsight
