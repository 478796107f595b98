// Stored blocks to vectors: 32 values at a time, in order, in fp32 exactly as the format defines.
#pragma once

#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr int Unit = 32, UnitVectors = Unit / Lanes;

// values = d·q + offset for the 32 nibbles of a block; d·q is exact in fp32, so there is one rounding, with FMA or without. A vector of 16
// lanes holds all 16 possible values, and nibbles become indices into it.
KEEPSIGHT_INLINE void decodeNibbles(const std::uint8_t* nibbles, Floats d, Floats offset, float zero, Floats (&values)[UnitVectors]) {
#if defined(__AVX512F__)
    const Floats steps = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512 table = (__m512)(d * (steps - zero) + offset);
    const __m512i bytes = (__m512i)widen(nibbles); // the permutation looks at the low 4 bits only
    values[0] = (Floats)_mm512_permutexvar_ps(bytes, table);
    values[1] = (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
#else
    for (int k = 0; k < UnitVectors / 2; ++k) {
        const Ints bytes = widen(nibbles + k * Lanes);
        values[k] = d * (toFloats(bytes & 15) - zero) + offset;
        values[k + UnitVectors / 2] = d * (toFloats(bytes >> 4) - zero) + offset;
    }
#endif
}

template <Stored Type>
constexpr std::int64_t unitBytes = Unit / blockValues(Type) * blockBytes(Type);

template <Stored Type>
KEEPSIGHT_INLINE void prefetchUnit(const std::uint8_t* row, std::int64_t unit) {
    for (std::int64_t line = 0; line < unitBytes<Type>; line += 64)
        __builtin_prefetch(row + unit * unitBytes<Type> + line, 0, 2);
}

template <Stored Type>
KEEPSIGHT_INLINE void decodeUnit(const std::uint8_t* row, std::int64_t unit, Floats (&values)[UnitVectors]) {
    if constexpr (Type == Stored::f32) {
        for (int k = 0; k < UnitVectors; ++k)
            values[k] = loadAs<Floats>(row + unit * 128 + k * Lanes * 4);
    } else if constexpr (Type == Stored::bf16) {
        for (int k = 0; k < UnitVectors; ++k)
            values[k] = loadBf16(row + unit * 64 + k * Lanes * 2);
    } else if constexpr (Type == Stored::f16) {
        for (int k = 0; k < UnitVectors; ++k)
            values[k] = loadHalves(row + unit * 64 + k * Lanes * 2);
    } else if constexpr (Type == Stored::q8_0) {
        const std::uint8_t* block = row + unit * unitBytes<Type>;
        const Floats d = broadcastHalf(block);
        for (int k = 0; k < UnitVectors; ++k)
            values[k] = d * toFloats(widenSigned(block + 2 + k * Lanes));
    } else if constexpr (Type == Stored::q4_0) {
        const std::uint8_t* block = row + unit * unitBytes<Type>;
        decodeNibbles(block + 2, broadcastHalf(block), Floats{}, 8, values);
    } else {
        static_assert(Type == Stored::q4_1);
        const std::uint8_t* block = row + unit * unitBytes<Type>;
        Floats d, m;
        broadcastHalves(block, d, m);
        decodeNibbles(block + 4, d, m, 0, values);
    }
}

// The last, partial unit of a row of f32, f16 or bf16: missing values read as 0.
template <Stored Type>
KEEPSIGHT_INLINE void decodeTail(const std::uint8_t* row, std::int64_t unit, int count, Floats (&values)[UnitVectors]) {
    constexpr int size = static_cast<int>(blockBytes(Type));
    std::uint8_t padded[Unit * 4] = {};
    std::memcpy(padded, row + unit * Unit * size, static_cast<std::size_t>(count * size));
    decodeUnit<Type>(padded, 0, values);
}

// Calls body with the type as a constant.
#define KEEPSIGHT_FOR_STORED(type, Type, ...)                                                                                              \
    switch (type) {                                                                                                                        \
    case Stored::f32: {                                                                                                                    \
        constexpr Stored Type = Stored::f32;                                                                                               \
        __VA_ARGS__;                                                                                                                       \
        break;                                                                                                                             \
    }                                                                                                                                      \
    case Stored::f16: {                                                                                                                    \
        constexpr Stored Type = Stored::f16;                                                                                               \
        __VA_ARGS__;                                                                                                                       \
        break;                                                                                                                             \
    }                                                                                                                                      \
    case Stored::bf16: {                                                                                                                   \
        constexpr Stored Type = Stored::bf16;                                                                                              \
        __VA_ARGS__;                                                                                                                       \
        break;                                                                                                                             \
    }                                                                                                                                      \
    case Stored::q4_0: {                                                                                                                   \
        constexpr Stored Type = Stored::q4_0;                                                                                              \
        __VA_ARGS__;                                                                                                                       \
        break;                                                                                                                             \
    }                                                                                                                                      \
    case Stored::q4_1: {                                                                                                                   \
        constexpr Stored Type = Stored::q4_1;                                                                                              \
        __VA_ARGS__;                                                                                                                       \
        break;                                                                                                                             \
    }                                                                                                                                      \
    case Stored::q8_0: {                                                                                                                   \
        constexpr Stored Type = Stored::q8_0;                                                                                              \
        __VA_ARGS__;                                                                                                                       \
        break;                                                                                                                             \
    }                                                                                                                                      \
    }

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
