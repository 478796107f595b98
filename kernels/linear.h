// y = x · Wᵀ for few rows of x, straight from the stored blocks, and the same matrix written out.
#pragma once

#include "kernels/stored.h"

namespace keepsight {

struct StoredMatrix {
    const std::uint8_t* data = nullptr; // [rows, rowBytes], any alignment
    Stored type = Stored::f32;
    std::int64_t rows = 0, columns = 0, rowBytes = 0;
};

// Weights count exactly as the format defines, products are summed in fp32. Where the processor multiplies bytes and weights are blocks of 4 or 8
// bits, each 32 values of x are first rounded to 24-bit integers of one scale, by 2^-23 of the largest of them at most: as much as sums in fp32 lose
// anyway; an infinity or NaN gives NaN. A row's result does not depend on how many rows there are, nor on the threads.
struct LinearArgs {
    StoredMatrix weights;    // [out, in]
    const void* x = nullptr; // [count, in], dense
    void* y = nullptr;       // [count, out], dense
    Element element = Element::f32;
    std::int64_t count = 0;
    const float* bias = nullptr; // [out] or null
};

// Row i of `out` is row ids[i] of the matrix, or row first + i if ids is null.
struct DequantizeArgs {
    StoredMatrix weights;
    const std::int64_t* ids = nullptr;
    std::int64_t first = 0, count = 0;
    void* out = nullptr; // [count, columns], dense
    Element element = Element::f32;
};

} // namespace keepsight
