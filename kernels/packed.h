// Attention of one new query over entries of which most are codes; see kernels/bind/ops.h for the meaning and kernels/quant.h for the codes' layout.
#pragma once

#include "kernels/attention.h"

namespace keepsight {

// Keys or values of every KV head, oldest to newest: exact entries, codes, exact entries again. Rows are dense; strides are between heads.
struct PackedSideArgs {
    const void *first = nullptr, *tail = nullptr; // [kvHeads, …, dim] in the query's type; null: none there
    std::int64_t firstHead = 0, tailHead = 0;     // elements
    const std::uint8_t* codes = nullptr;          // [kvHeads, …, packedBytes(dim, bits)]; null: none there
    std::int64_t codesHead = 0;                   // bytes
    int bits = 0;                                 // 2, 4 or 8
    const void *scale = nullptr, *zero = nullptr; // fp16 [kvHeads, …, groups]: x̃ = code · scale + zero
    std::int64_t parametersHead = 0;              // values
    std::int64_t groups = 1;                      // of a row; dim / groups neighbouring channels share a scale
    std::int64_t groupTokens = 1;                 // of consecutive codes share a row of scale and zero
    const std::int32_t* counts = nullptr;         // [3, kvHeads]: entries in first, codes and tail
};

struct PackedAttentionArgs {
    AttentionArgs attention; // one query, the newest; k and v unset, positions and lengths only for the statistics
    PackedSideArgs keys, values;
};

} // namespace keepsight
