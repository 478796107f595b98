// Stored blocks to vectors: 32 values at a time, in order, in fp32 exactly as the format defines.
#pragma once

#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr int Unit = 32, UnitVectors = Unit / Lanes;

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
        const std::uint8_t* block = row + unit * 34;
        const Floats d = broadcast(loadHalf(block));
        for (int k = 0; k < UnitVectors; ++k)
            values[k] = d * toFloats(widenSigned(block + 2 + k * Lanes));
    } else if constexpr (Type == Stored::q4_0) {
        const std::uint8_t* block = row + unit * 18;
        const Floats d = broadcast(loadHalf(block));
        for (int k = 0; k < UnitVectors / 2; ++k) {
            const Ints bytes = widen(block + 2 + k * Lanes);
            values[k] = d * toFloats((bytes & 15) - 8);
            values[k + UnitVectors / 2] = d * toFloats((bytes >> 4) - 8);
        }
    } else {
        static_assert(Type == Stored::q4_1);
        const std::uint8_t* block = row + unit * 20;
        const Floats d = broadcast(loadHalf(block)), m = broadcast(loadHalf(block + 2));
        for (int k = 0; k < UnitVectors / 2; ++k) {
            const Ints bytes = widen(block + 4 + k * Lanes);
            values[k] = d * toFloats(bytes & 15) + m; // d·q is exact in fp32: one rounding, with FMA or without
            values[k + UnitVectors / 2] = d * toFloats(bytes >> 4) + m;
        }
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
#define KEEPSIGHT_FOR_STORED(type, Type, ...)                                                                                               \
    switch (type) {                                                                                                                         \
    case Stored::f32: { constexpr Stored Type = Stored::f32; __VA_ARGS__; break; }                                                          \
    case Stored::f16: { constexpr Stored Type = Stored::f16; __VA_ARGS__; break; }                                                          \
    case Stored::bf16: { constexpr Stored Type = Stored::bf16; __VA_ARGS__; break; }                                                        \
    case Stored::q4_0: { constexpr Stored Type = Stored::q4_0; __VA_ARGS__; break; }                                                        \
    case Stored::q4_1: { constexpr Stored Type = Stored::q4_1; __VA_ARGS__; break; }                                                        \
    case Stored::q8_0: { constexpr Stored Type = Stored::q8_0; __VA_ARGS__; break; }                                                        \
    }

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
