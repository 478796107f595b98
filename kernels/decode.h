// What a decoded token (one row) can do in fewer passes, and what a prompt's attention sums up to; see kernels/bind/ops.h for the meaning.
#pragma once

#include "kernels/attention.h"

#include <cstdint>

namespace keepsight {

// y = [silu(gate) · up of] (norm(x) · Wᵀ + bias) + residual. With gated, W is [2 · rows, width]: gate rows, then up rows.
struct MatvecArgs {
    const void* x = nullptr;       // [width]
    const float* norm = nullptr;   // [width] weight of an RMSNorm of x before the product; null: none
    float eps = 0;
    const void* weight = nullptr;  // [rows or 2 · rows, width], dense
    const void* bias = nullptr;    // like the rows of the weight; null: none
    const void* residual = nullptr; // [rows]; null: none
    void* y = nullptr;             // [rows]
    std::int64_t rows = 0, width = 0;
    bool gated = false;
};

// One new token: queries and keys turned by its position; key, value and position written behind each head's entries, whose number grows by one.
struct RopeAppendArgs {
    const void* qkv = nullptr; // [queryHeads + 2 · kvHeads, dim], dense
    void* q = nullptr;         // [queryHeads, dim]
    void *keys = nullptr, *values = nullptr; // rows of dim dense, entries dense
    std::int64_t keysHead = 0, valuesHead = 0; // elements
    std::int32_t* positions = nullptr;         // [kvHeads, positionsHead]
    std::int64_t positionsHead = 0;
    std::int32_t* lengths = nullptr;           // [kvHeads]
    const std::int32_t* position = nullptr;    // [1]
    const float* inverseFrequencies = nullptr; // [dim / 2]
    std::int64_t queryHeads = 0, kvHeads = 0, dim = 0;
};

// One query over `attention.capacity` chosen entries of every head, renumbered from 0: query and keys, before RoPE, are turned by their rank.
struct SparseAttentionArgs {
    AttentionArgs attention; // k and v: the cache they are chosen from; positions and lengths: the chosen ones', only for the map
    const std::int32_t* chosen = nullptr;      // [capacity] entries, ascending
    const std::int32_t* positions = nullptr;   // [kvHeads, positionsHead], of the cache
    std::int64_t positionsHead = 0;
    const float* inverseFrequencies = nullptr; // [dim / 2]
};

// One query's weights, summed into its row of a map by bins of positions.
struct BinRowArgs {
    const float* weights = nullptr;           // [queryHeads, capacity]
    const std::int32_t* positions = nullptr;  // [kvHeads, capacity], ascending
    const std::int32_t* starts = nullptr;     // [kvHeads]: where each head's positions begin instead
    const std::int32_t* lengths = nullptr;    // [kvHeads]
    const std::int32_t* queryPosition = nullptr; // [1]
    float* map = nullptr;                     // [mapHeads, mapRows, mapColumns], +=; mapHeads are the query heads, or the KV heads: then the mean
    std::int64_t queryHeads = 0, kvHeads = 0, capacity = 0, mapHeads = 0, mapRows = 0, mapColumns = 0, mapRowBegin = 0, rowBin = 1, columnBin = 1;
};

// Sums of a prompt's attention weights exp(scale · q·k − logSumExp), query i at position held − queries + i seeing the keys up to it.
struct AttentionSumsArgs {
    const void *q = nullptr, *k = nullptr; // strides in elements, rows of dim dense
    std::int64_t qHead = 0, qRow = 0, kHead = 0, kRow = 0;
    const float* logSumExp = nullptr; // [queryHeads, queries]
    std::int64_t queryHeads = 0, kvHeads = 0, queries = 0, held = 0, dim = 0;
    float scale = 1;
    float* columnSum = nullptr; // [queryHeads, columnSumHead ≥ held], +=; null: not wanted
    std::int64_t columnSumHead = 0;
    unsigned long long* map = nullptr; // [mapHeads, mapRows, mapColumns] in mapUnit(), +=, the mean of the query heads of a map head; null: not wanted
    std::int64_t mapHeads = 0, mapRows = 0, mapColumns = 0, mapRowBegin = 0, rowBin = 1, columnBin = 1;
};

} // namespace keepsight
