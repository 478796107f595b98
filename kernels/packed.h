// Attention of one new query over entries of which most are codes; see kernels/bind/ops.h for the meaning and kernels/quant.h for the codes' layout.
#pragma once

#include "kernels/attention.h"

namespace keepsight {

struct SixteenBits { // values of heads that lie `head` apart
    const void* data = nullptr;
    std::int64_t head = 0;
    bool bf16 = false; // else fp16
};

// Keys or values of every KV head, oldest to newest: exact entries, codes, exact entries again. Rows are dense; strides are between heads.
struct PackedSideArgs {
    const void *first = nullptr, *tail = nullptr; // [kvHeads, …, dim] in the query's type; null: none there
    std::int64_t firstHead = 0, tailHead = 0;     // elements
    const std::uint8_t* codes = nullptr;          // [kvHeads, …, packedBytes(dim, bits)]; null: none there
    std::int64_t codesHead = 0;                   // bytes
    int bits = 0;                                 // 2, 3, 4 or 8
    const void *scale = nullptr, *zero = nullptr; // fp16 [kvHeads, …, groups]: x̃ = code · scale + zero
    std::int64_t parametersHead = 0;              // values
    std::int64_t groups = 1;                      // of a row; dim / groups neighbouring channels share a scale
    std::int64_t groupTokens = 1;                 // of consecutive codes share a row of scale and zero
    const std::int32_t* counts = nullptr;         // [3, kvHeads]: entries in first, codes and tail

    // Less usual forms; null: not these.
    const std::int32_t* ends = nullptr; // [kvHeads, parameterRows] in place of groupTokens: row r is for the codes before ends[r], the last for the rest
    std::int64_t endsHead = 0, parameterRows = 0;
    const float* levels = nullptr; // [2^bits] what a code stands for
    SixteenBits exact;             // [kvHeads, …], of a head the first exactCounts[h]: they take the places channel places % dim of the codes places / dim
    const std::int32_t *places = nullptr, *exactCounts = nullptr; // [kvHeads, …] ascending, [kvHeads]
    std::int64_t placesHead = 0;
    SixteenBits rowExact;              // [kvHeads, …, rowExactCount]: the same of every code, in the channels rowChannels
    const void* rowChannels = nullptr; // uint8 or, if wide, int16
    std::int64_t channelsHead = 0, rowExactCount = 0;
    bool wideChannels = false;
    std::int64_t acrossWidth = 0; // > 0: one array of all heads' codes, [acrossRows, packedBytes(acrossWidth)], scale and zero [acrossWidth]; value
    std::int64_t acrossRows = 0;  // f = (i + codes of the heads before) · dim + channel lies in row f / W, column f % W; acrossColumns() is W

    // Columns in use where all heads together hold that many codes: it changes without the tensors.
    std::int64_t acrossColumns(std::int64_t held, std::int64_t dim) const { return (held * dim + acrossRows - 1) / acrossRows; }

    // What kernels for the usual forms leave to those for all of them.
    bool unusual() const { return bits == 3 || ends || levels || places || rowChannels || acrossWidth; }
};

// Keys that are stored before RoPE.
struct KeyTurnArgs {
    const float* inverseFrequencies = nullptr; // [dim / 2]; null: keys are as they are attended to
    bool byRank = false;                       // by 0, 1, … among the head's entries, else by position
};

struct PackedAttentionArgs {
    AttentionArgs attention; // one query, the newest; k and v unset, positions and lengths only for the statistics and the turn
    PackedSideArgs keys, values;
    KeyTurnArgs turn;

    bool unusual() const { return keys.unusual() || values.unusual() || turn.inverseFrequencies; }
};

} // namespace keepsight
