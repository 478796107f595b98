// Cells of a prompt's map, summed as 64-bit fixed point, which is exact in any order: many blocks add to one cell.
#pragma once

#include "kernels/decode.h"

namespace keepsight::cuda {

constexpr double MapScale = 1099511627776.0; // 2^40

__device__ inline float quadSum(float v) { // of four neighbouring threads
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// What the keys of a warp add. A thread's sums[m][h] are its part, one of four, of key first + m·16 + h·8 + lane/4. Positions fit 32 bits.
template <int Rows> class MapPart {
public:
    __device__ MapPart(const AttentionSumsArgs& a, std::int64_t head, std::int64_t first)
        : m_cells(a.map + head * a.mapHeads / a.queryHeads * a.mapRows * a.mapColumns), m_first(static_cast<unsigned>(first)),
          m_bin(static_cast<unsigned>(min(a.columnBin, std::int64_t{1} << 31))), m_cell(m_first / m_bin), m_together((m_first + Rows * 16 - 1) / m_bin == m_cell),
          m_unit(static_cast<float>(MapScale * static_cast<double>(a.mapHeads) / static_cast<double>(a.queryHeads))) {}

    __device__ void add(const AttentionSumsArgs& a, std::int64_t row, const float (&sums)[Rows][2]) const {
        if (row < 0 || row >= a.mapRows) return;
        const int lane = threadIdx.x % 32;
        const auto addTo = [&](unsigned cell, float sum) {
            if (cell < a.mapColumns) atomicAdd(m_cells + row * a.mapColumns + cell, __float2ull_rn(sum * m_unit));
        };
        if (m_together) { // keys that are not held, or not seen yet, have nothing to add
            float sum = 0;
            for (int m = 0; m < Rows; ++m) sum += sums[m][0] + sums[m][1];
            for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
            if (lane == 0) addTo(m_cell, sum);
            return;
        }
        for (int m = 0; m < Rows; ++m)
            for (int half = 0; half < 2; ++half) {
                const float sum = quadSum(sums[m][half]);
                if (lane % 4 == 0 && sum > 0) addTo((m_first + m * 16 + half * 8 + lane / 4) / m_bin, sum);
            }
    }

private:
    unsigned long long* m_cells; // of the head's map
    unsigned m_first, m_bin, m_cell;
    bool m_together; // all keys belong to m_cell
    float m_unit;    // cells hold the mean of a map head's query heads
};

} // namespace keepsight::cuda
