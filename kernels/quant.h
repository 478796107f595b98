// Cache entries stored as codes; see ops::dequantize_entries.
//
// A row of `dim` codes of b bits lies in planes: byte i of the P = ⌈dim · b / 8⌉ holds codes i, P + i, 2P + i … from its low bits up, so
// that a vector of bytes becomes vectors of neighbouring codes. 3 bits: the planes of the two low bits, behind them those of the high bit.
#pragma once

#include "kernels/stored.h"

#include <cstdint>

namespace keepsight {

constexpr std::int64_t planeBytes(std::int64_t dim, int bits) { return (dim * bits + 7) / 8; } // 1, 2, 4, 8 bits
constexpr std::int64_t packedBytes(std::int64_t dim, int bits) {
    return bits == 3 ? planeBytes(dim, 2) + planeBytes(dim, 1) : planeBytes(dim, bits);
}

struct DequantizeEntriesArgs {
    const std::uint8_t* codes = nullptr; // [heads, …, packedBytes], rows dense
    std::int64_t codesHead = 0;          // bytes
    int bits = 8;
    const void *scale = nullptr, *zero = nullptr; // fp16 [heads, …, groups], rows dense
    std::int64_t parametersHead = 0;              // values
    std::int64_t groups = 1;                      // of a row; dim / groups neighbours share a scale
    const std::int32_t* ends =
        nullptr;               // [heads, endsHead]: row r of scale and zero is for entries before ends[r] (the last: for all that follow)
    std::int64_t endsHead = 0; // without ends each entry has its own row
    const float* levels = nullptr;                            // [2^bits] what a code stands for; null: itself
    const std::int64_t *counts = nullptr, *offsets = nullptr; // [heads]
    std::int64_t heads = 0, dim = 0;
    void* out = nullptr;      // [heads, …, dim], rows dense
    std::int64_t outHead = 0; // values
    Element element = Element::f32;
};

// Rows packed by groups of neighbouring values: what ops::pack_groups gives.
struct PackGroupsArgs {
    const float* x = nullptr; // [heads, rows, dim], rows dense
    std::int64_t head = 0;    // values
    std::int64_t heads = 0, rows = 0, dim = 0, group = 1;
    int bits = 4; // 2, 4 or 8
    float leastScale = 0;
    std::uint8_t* codes = nullptr;         // [heads · rows, packedBytes], dense
    void *scale = nullptr, *zero = nullptr; // fp16 [heads · rows, dim / group], dense
};

} // namespace keepsight
