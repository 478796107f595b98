// Attention of S queries over the held entries of each KV head; see kernels/bind/ops.h for the meaning.
#pragma once

#include "kernels/stored.h"

namespace keepsight {

#ifdef __CUDACC__
#define KEEPSIGHT_ANYWHERE __host__ __device__
#else
#define KEEPSIGHT_ANYWHERE
#endif

// Strides in elements; rows of dim values are dense.
struct Rows {
    const void* data = nullptr;
    std::int64_t head = 0, row = 0;
    const std::int32_t* starts = nullptr; // in place of `head`: the row where each head begins
    KEEPSIGHT_ANYWHERE std::int64_t of(std::int64_t h) const { return starts ? starts[h] * row : h * head; }
};

struct AttentionArgs {
    Element element = Element::f32;
    Rows q, k, v; // v.data null: weights only
    std::int64_t queryHeads = 0, kvHeads = 0, queries = 0, capacity = 0, dim = 0;
    const std::int32_t* positions = nullptr;      // [kvHeads, capacity], or in rows like k's, if these have starts
    const std::int32_t* lengths = nullptr;        // [kvHeads], each in 0 … capacity
    const std::int32_t* queryPositions = nullptr; // [queries], ascending
    float scale = 1;
    void* out = nullptr; // [queries, queryHeads · dim], dense; null with v

    float* columnSum = nullptr; // [queryHeads, capacity], +=
    float* lastRows = nullptr;  // [queryHeads, lastCount, capacity], overwritten
    std::int64_t lastCount = 0;
    float* map = nullptr; // [mapHeads, mapRows, mapColumns], +=
    std::int64_t mapHeads = 0, mapRows = 0, mapColumns = 0, mapRowBegin = 0, rowBin = 1, columnBin = 1;

    KEEPSIGHT_ANYWHERE const std::int32_t* positionsOf(std::int64_t h) const { return positions + (k.starts ? k.starts[h] : h * capacity); }
};

// Of one query: how much its output would change without each entry; `attention` without out and statistics.
struct OutputChangeArgs {
    AttentionArgs attention;
    int kind = 0;            // as ops::OutputChange
    float* change = nullptr; // [queryHeads, capacity], overwritten; 0 where not visible
};

} // namespace keepsight
