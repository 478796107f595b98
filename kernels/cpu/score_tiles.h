// Products of queries with panels of keys: what passes over many queries share. A panel is Kᵀ of Columns entries, [dim][Columns] fp32; queries lie
// as tiles [dim][rows]. Both operands of a tile stay in L1.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/simd.h"

#include <utility>

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr int Columns = 2 * Lanes;              // of a score tile
constexpr int ScoreRows = Lanes == 16 ? 12 : 6; // accumulators: rows × 2 vectors

// scores[r, 0 … Columns) = Σ_d q[d, r] · panel[d, 0 … Columns)
template <int M>
void scoreTile(const float* q, const float* panel, std::int64_t dim, float* scores, std::int64_t stride) {
    Floats acc[M][2] = {};
    for (std::int64_t d = 0; d < dim; ++d) {
        const Floats k0 = load(panel + d * Columns), k1 = load(panel + d * Columns + Lanes);
#pragma GCC unroll 12
        for (int r = 0; r < M; ++r) {
            const Floats a = broadcast(q[d * M + r]);
            acc[r][0] += a * k0;
            acc[r][1] += a * k1;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
        store(scores + r * stride, acc[r][0]);
        store(scores + r * stride + Lanes, acc[r][1]);
    }
}

using ScoreTile = void (*)(const float*, const float*, std::int64_t, float*, std::int64_t);
constexpr ScoreTile scoreTiles[] = {nullptr,      scoreTile<1>, scoreTile<2>, scoreTile<3>,  scoreTile<4>,  scoreTile<5>, scoreTile<6>,
#if defined(__AVX512F__)
                                    scoreTile<7>, scoreTile<8>, scoreTile<9>, scoreTile<10>, scoreTile<11>, scoreTile<12>
#endif
};

// Swaps the off-diagonal blocks of Step × Step: of every Step doubled, these transpose.
template <int Step, int... P>
KEEPSIGHT_INLINE void swapBlocks(Floats& upper, Floats& lower, std::integer_sequence<int, P...>) {
    const Floats a = upper, b = lower;
    upper = __builtin_shufflevector(a, b, (P & Step ? Lanes + P - Step : P)...);
    lower = __builtin_shufflevector(a, b, (P & Step ? Lanes + P : P + Step)...);
}
template <int Step = 1>
KEEPSIGHT_INLINE void transpose(Floats (&rows)[Lanes]) {
#pragma GCC unroll 16
    for (int i = 0; i < Lanes; ++i)
        if (!(i & Step)) swapBlocks<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, Lanes>());
    if constexpr (Step * 2 < Lanes) transpose<Step * 2>(rows);
}

// Row r of a tile of m rows: `row` times factor. buffer: [dim].
KEEPSIGHT_INLINE void packRow(const void* row, Element element, std::int64_t dim, float factor, float* tile, std::int64_t m, std::int64_t r,
                              float* buffer) {
    toFp32(static_cast<const std::uint8_t*>(row), element, dim, buffer);
    for (std::int64_t d = 0; d < dim; ++d)
        tile[d * m + r] = buffer[d] * factor;
}

// The panel of rows [first, first + count) of a head, zero behind count. buffer: [Columns, dim]; rows are copied there even where they could be read in
// place: they come from memory faster one after the other.
inline void packPanel(const Rows& rows, Element element, std::int64_t head, std::int64_t first, std::int64_t count, std::int64_t dim,
                      float* panel, float* buffer) {
    for (std::int64_t j = 0; j < count; ++j)
        toFp32(at(rows.data, element, rows.of(head) + (first + j) * rows.row), element, dim, buffer + j * dim);
    if (count < Columns) std::memset(buffer + count * dim, 0, static_cast<std::size_t>((Columns - count) * dim) * 4);
    std::int64_t d = 0;
    for (; d + Lanes <= dim; d += Lanes)
        for (std::int64_t j = 0; j < Columns; j += Lanes) {
            Floats part[Lanes];
            for (int i = 0; i < Lanes; ++i)
                part[i] = load(buffer + (j + i) * dim + d);
            transpose(part);
            for (int i = 0; i < Lanes; ++i)
                store(panel + (d + i) * Columns + j, part[i]);
        }
    for (; d < dim; ++d)
        for (std::int64_t j = 0; j < Columns; ++j)
            panel[d * Columns + j] = buffer[j * dim + d];
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
