// The highest scores of a row, and the vote that TokenSelect ranks entries by; see kernels/bind/ops.h for the meaning.
#pragma once

#include <cstdint>

namespace keepsight {

struct TopKArgs {
    const float* scores = nullptr; // [rows, row]
    std::int64_t row = 0;          // elements between rows
    std::int64_t rows = 0, capacity = 0, k = 0;
    const std::int32_t* counts = nullptr; // [rows], each in 0 … capacity
    std::int32_t* out = nullptr;          // [rows, k], dense
};

struct SoftVoteArgs {
    const float* queries = nullptr;       // [queryHeads, dim], dense
    const void* keys = nullptr;           // [kvHeads, ≥ end, dim], rows of dim values dense
    std::int64_t keyHead = 0, keyRow = 0; // strides in elements
    std::int64_t queryHeads = 0, kvHeads = 0, dim = 0;
    const std::int32_t* lengths = nullptr; // [kvHeads]
    std::int64_t begin = 0, end = 0;       // candidates
    float scale = 1;
    float* vote = nullptr; // [end − begin]
};

} // namespace keepsight
