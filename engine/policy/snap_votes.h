// SnapKV's votes, shared by the policies that choose by them.
#pragma once

#include "engine/policy/policy.h"

namespace keepsight {

// scores [kvHeads, C], none negative, pooled over `kernel` neighbours among each head's entries before its `newest` ones; 0 from these on, as beyond
// the edges. pool: "avg" (zeros around count) | "max".
at::Tensor pooledBefore(const at::Tensor& scores, const at::Tensor& lengths, std::int64_t newest, std::int64_t kernel, const std::string& pool);

// Mean attention of the last `window` queries over the entries before them, reduced by KV group, then pooled over `kernel` neighbours:
// [kvHeads, C] fp32, zero from the window on. pool: "avg" (zero padding counts) | "max".
at::Tensor snapVotes(const LayerView& view, int window, int kernel, const std::string& pool, const std::string& agg);

} // namespace keepsight
