// Scores that each head makes of its own keys and values alone, for all entries or chunk by chunk.
#pragma once

#include "engine/policy/policy.h"

#include <functional>

namespace keepsight {

// scored: keys, values [heads, n, headDim] and lengths [heads] int32 on the device, how many of the n are real → [heads, n] fp32, anything behind
// them. It asks the device nothing, so that it can be recorded. chunk > 0: every chunk of that many entries by itself. Returns [kvHeads, C].
using HeadScores = std::function<at::Tensor(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& lengths)>;
at::Tensor scoreInChunks(const LayerView& view, int chunk, const HeadScores& scored);

} // namespace keepsight
