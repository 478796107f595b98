// Votes of a window of queries on the entries before it; see kernels/bind/ops.h for the meaning.
#pragma once

#include "kernels/attention.h"

namespace keepsight {

struct PooledVotesArgs {
    const float* sums = nullptr;           // [queryHeads, capacity], rows `row` apart
    const std::int32_t* lengths = nullptr; // [kvHeads]
    float* votes = nullptr;                // [kvHeads, capacity], overwritten
    std::int64_t row = 0, queryHeads = 0, kvHeads = 0, capacity = 0, newest = 0;
    float rows = 1;       // sums are divided by
    int kernel = 1;       // odd
    bool largest = false; // of the neighbours; else their mean
    int group = 0;        // as ops::GroupVote
};

} // namespace keepsight
