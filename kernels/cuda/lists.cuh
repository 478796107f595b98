// Searches in ascending lists.
#pragma once

#include <cstdint>

namespace keepsight::cuda {

// How many of an ascending list are < limit, or, less their number in it, ≤ limit.
__device__ inline int countBelow(const std::int32_t* list, int count, int limit, int rising = 0) {
    int low = 0;
    while (low < count) {
        const int middle = (low + count) / 2;
        if (list[middle] - middle * rising < limit)
            low = middle + 1;
        else
            count = middle;
    }
    return low;
}

} // namespace keepsight::cuda
