// Rows of codes as numbers: x̃ = level(code) · scale + zero. Codes are unpacked into bytes first: with planes (quant.h) that is shift and mask on
// whole vectors.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/quant.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

template <int Bits>
KEEPSIGHT_INLINE void unpackPlanes(const std::uint8_t* from, std::int64_t dim, std::uint8_t* to, int shiftTo) { // to |= code << shiftTo
    const std::int64_t bytes = planeBytes(dim, Bits);
    for (int plane = 0; plane < 8 / Bits; ++plane) {
        const std::int64_t first = plane * bytes, count = least(bytes, dim - first);
        for (std::int64_t i = 0; i < count; ++i) {
            const auto code = static_cast<std::uint8_t>((from[i] >> (plane * Bits)) & ((1 << Bits) - 1));
            to[first + i] = shiftTo ? static_cast<std::uint8_t>(to[first + i] | (code << shiftTo)) : code;
        }
    }
}

inline void unpackRow(const std::uint8_t* from, std::int64_t dim, int bits, std::uint8_t* to) {
    switch (bits) {
    case 2:
        return unpackPlanes<2>(from, dim, to, 0);
    case 3:
        unpackPlanes<2>(from, dim, to, 0);
        return unpackPlanes<1>(from + planeBytes(dim, 2), dim, to, 2);
    case 4:
        return unpackPlanes<4>(from, dim, to, 0);
    default:
        std::memcpy(to, from, static_cast<std::size_t>(dim));
    }
}

// What codes stand for, [2^bits]; null: their numbers.
class LevelTable {
public:
    LevelTable(const float* levels, int bits) : m_levels(levels) {
        for (int i = 0; i < 16; ++i)
            m_few[i] = levels && bits <= 4 ? levels[i & ((1 << bits) - 1)] : 0;
        m_isFew = bits <= 4;
    }
    KEEPSIGHT_INLINE float one(std::uint8_t code) const { return m_levels ? m_levels[code] : static_cast<float>(code); }
    KEEPSIGHT_INLINE Floats of(Ints codes) const {
        if (!m_levels) return toFloats(codes);
#if defined(__AVX512F__)
        if (m_isFew) return (Floats)_mm512_permutexvar_ps((__m512i)codes, (__m512)load(m_few));
#elif defined(__AVX2__)
        if (m_isFew) {
            const __m256i by = (__m256i)codes;
            const __m256 low = _mm256_permutevar8x32_ps((__m256)load(m_few), by), high = _mm256_permutevar8x32_ps((__m256)load(m_few + 8), by);
            return (Floats)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(by, 28))); // by bit 3
        }
#endif
        float looked[Lanes];
        for (int k = 0; k < Lanes; ++k)
            looked[k] = m_levels[codes[k]];
        return load(looked);
    }

private:
    const float* m_levels;
    float m_few[16];
    bool m_isFew;
};

// Halves that dim / groups neighbours share, one for each channel.
inline void spreadHalves(const std::uint8_t* from, std::int64_t dim, std::int64_t groups, float* to) {
    const std::int64_t width = dim / groups;
    if (width == 1) {
        std::int64_t d = 0;
        for (; d + Lanes <= dim; d += Lanes)
            store(to + d, loadHalves(from + 2 * d));
        for (; d < dim; ++d)
            to[d] = loadHalf(from + 2 * d);
        return;
    }
    for (std::int64_t g = 0; g < groups; ++g) {
        const float x = loadHalf(from + 2 * g);
        for (std::int64_t i = 0; i < width; ++i)
            to[g * width + i] = x;
    }
}

// Codes in bytes, with scale and zero of each.
inline void scaleRow(const std::uint8_t* codes, const LevelTable& table, const float* scale, const float* zero, std::int64_t dim, float* out) {
    std::int64_t d = 0;
    for (; d + Lanes <= dim; d += Lanes)
        store(out + d, table.of(widen(codes + d)) * load(scale + d) + load(zero + d));
    for (; d < dim; ++d)
        out[d] = table.one(codes[d]) * scale[d] + zero[d];
}

template <int Bits>
KEEPSIGHT_INLINE void decodePlanes(const std::uint8_t* row, const LevelTable& table, const float* scale, const float* zero, std::int64_t dim, float* out) {
    const std::int64_t bytes = planeBytes(dim, Bits);
    for (std::int64_t i = 0; i < bytes; i += Lanes) {
        const Ints x = widen(row + i);
        for (int plane = 0; plane < 8 / Bits; ++plane) {
            const std::int64_t d = plane * bytes + i;
            store(out + d, table.of((x >> (plane * Bits)) & ((1 << Bits) - 1)) * load(scale + d) + load(zero + d));
        }
    }
}

// A row as it is stored. codes: room for dim bytes.
inline void decodeRow(const std::uint8_t* row, int bits, const LevelTable& table, const float* scale, const float* zero, std::int64_t dim, std::uint8_t* codes,
                      float* out) {
    const bool whole = dim * bits % (8 * Lanes) == 0; // planes fill vectors
    if (bits == 4 && whole) return decodePlanes<4>(row, table, scale, zero, dim, out);
    if (bits == 2 && whole) return decodePlanes<2>(row, table, scale, zero, dim, out);
    if (bits == 8) return scaleRow(row, table, scale, zero, dim, out);
    unpackRow(row, dim, bits, codes);
    scaleRow(codes, table, scale, zero, dim, out);
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
