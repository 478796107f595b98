// What policies work out of keys and values alone.
#pragma once

#include "kernels/stored.h"

namespace keepsight {

// out[h, t], of the rows of all partitions but the last: the standard deviation over channels (n − 1) of (x[h, t] − low) / (high − low), low and high those
// of each channel over the partition behind t's; high − low is at least LagLeastRange.
struct LagSpreadArgs {
    const void* x = nullptr; // [heads, partitions · lag, dim] by the strides, elements of a row side by side
    std::int64_t xHead = 0, xRow = 0;
    float* out = nullptr; // [heads, (partitions − 1) · lag]
    Element element = Element::f32;
    std::int64_t heads = 0, partitions = 0, lag = 0, dim = 0;
};
constexpr float LagLeastRange = 1e-6f;

// out[h, t] = kᵀFk with the form F of query head h and the key of its KV head at t.
struct QuadraticFormsArgs {
    const void* keys = nullptr; // [kvHeads, count, dim] by the strides, elements of a row side by side
    std::int64_t keyHead = 0, keyRow = 0;
    const float* forms = nullptr; // [queryHeads, dim, dim] dense
    float* out = nullptr;         // [queryHeads, count]
    std::int64_t queryHeads = 0, kvHeads = 0, count = 0, dim = 0;
};

} // namespace keepsight
