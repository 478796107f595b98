// What a decoded token (one row) can do in fewer passes; see kernels/bind/ops.h for the meaning.
#pragma once

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

} // namespace keepsight
