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

// Groups of consecutive rows of one channel, packed behind what each head holds: what ops::append_channels does.
struct AppendChannelsArgs {
    const float* x = nullptr; // [heads, rows, dim], rows dense
    std::int64_t head = 0;    // values
    std::int64_t heads = 0, rows = 0, dim = 0, group = 1;
    const std::int32_t* counts = nullptr; // [heads] rows to pack; null: all
    int bits = 4;                         // 2, 4 or 8
    float leastScale = 0;
    std::uint8_t* codes = nullptr; // [heads, …, packedBytes], rows dense
    std::int64_t codesHead = 0;
    void *scale = nullptr, *zero = nullptr; // fp16 [heads, …, dim], rows dense
    std::int64_t parametersHead = 0;
    std::int32_t* ends = nullptr; // [heads, endsHead], of groups that are there; null: not wanted
    std::int64_t endsHead = 0;
    const std::int32_t *lengths = nullptr, *groups = nullptr; // [heads] codes and groups so far
};

// One array of all heads' codes, packed anew where entries go and come: what ops::repack_across does. The new array is made beside the old
// one, then takes its place.
struct RepackAcrossArgs {
    std::uint8_t* codes = nullptr;          // [group, packedBytes(width)], dense
    void *scale = nullptr, *zero = nullptr; // fp16 [width]
    std::int32_t* lengths = nullptr;        // [heads]
    std::int64_t heads = 0, dim = 0, group = 1, width = 0;
    int bits = 4; // 2, 4 or 8
    float leastScale = 0;
    const std::int32_t* gone = nullptr; // [heads, goneCount] ascending behind those below 0, which are none; null: none go
    std::int64_t goneCount = 0;
    const float* x = nullptr; // [heads, rows, dim], rows dense; null: none come
    std::int64_t head = 0, rows = 0;
    const std::int32_t* counts = nullptr; // [heads] rows that come; null: all
    // Scratch, as the first four; behind the lengths [heads + 1]: whether anything went or came.
    std::uint8_t* newCodes = nullptr;
    void *newScale = nullptr, *newZero = nullptr;
    std::int32_t* newLengths = nullptr;
};

// Exact values beside codes; see ops::add_beside and drop_beside.
struct AddBesideArgs {
    std::int32_t* places = nullptr;  // [heads, capacity]
    std::uint16_t* values = nullptr; // [heads, capacity], fp16 or bf16
    std::int32_t* counts = nullptr;  // [heads]
    bool half = false;
    std::int64_t heads = 0, capacity = 0, rows = 0, dim = 0;
    const float* x = nullptr;             // [heads, rows, dim]
    const bool* outliers = nullptr;       // [heads, rows, dim]; null: |x| > threshold
    float threshold = 0;
    float* rest = nullptr;                // [heads, rows, dim]
    const std::int32_t* lengths = nullptr; // [heads]
    const std::int32_t* added = nullptr;   // [heads] rows; null: all
};
struct DropBesideArgs {
    std::int32_t* places = nullptr;
    std::uint16_t* values = nullptr;
    std::int32_t* counts = nullptr;
    std::int64_t heads = 0, capacity = 0, dim = 0, gone = 0;
    const std::int32_t* entries = nullptr; // [heads, gone] ascending behind those below 0
};

} // namespace keepsight
