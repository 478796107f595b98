// Keys and values of a head turn from exact entries to codes and back at places of their own; these cut a head into five segments at most, and
// segments into units, so that a unit has one source of keys and one of values.
#pragma once

#include "kernels/packed.h"

#include <cstdint>

namespace keepsight::cuda {

// Exact entries and queries are copied in words of 16 bytes.
inline bool inTiles(const void* p, std::int64_t head) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && head % 8 == 0; }

constexpr int Segments = 5; // of a head

struct Segment {          // one source of keys, one of values
    int unitsEnd, origin; // units of the head before its end; unit u starts at entry origin + rows · u
    int begin, end;       // entries
};
struct Cuts { // entries of a head before these: exact, then codes
    int keysFirst, keysTail, valuesFirst, valuesTail;
};

// Of one head, by one thread; returns its units. codeRows, exactRows: powers of 2.
__device__ inline int cutHead(const PackedAttentionArgs& a, int head, int codeRows, int exactRows, bool byChannel, Cuts& cuts, Segment* segments) {
    const int heads = static_cast<int>(a.attention.kvHeads);
    int k[3], v[3];
#pragma unroll
    for (int i = 0; i < 3; ++i)
        k[i] = max(a.keys.counts[i * heads + head], 0), v[i] = max(a.values.counts[i * heads + head], 0);
    const int n = min(k[0] + k[1] + k[2], v[0] + v[1] + v[2]);
    cuts = {min(k[0], n), min(k[0] + k[1], n), min(v[0], n), min(v[0] + v[1], n)};
    const int low = max(cuts.keysFirst, cuts.valuesFirst), high = min(cuts.keysTail, cuts.valuesTail);
    const int places[Segments - 1] = {min(cuts.keysFirst, cuts.valuesFirst), min(low, high), max(low, high), max(cuts.keysTail, cuts.valuesTail)};
    int units = 0, begin = 0;
#pragma unroll 1
    for (int i = 0; i < Segments; ++i) {
        const int end = i == 0 ? places[0] : i == 1 ? places[1] : i == 2 ? places[2] : i == 3 ? places[3] : n; // in registers
        const bool keys = begin >= cuts.keysFirst && begin < cuts.keysTail, values = begin >= cuts.valuesFirst && begin < cuts.valuesTail;
        const int rows = keys && values ? codeRows : exactRows;
        const int from = keys && byChannel ? begin - ((begin - cuts.keysFirst) & (rows - 1)) : begin; // within the groups of tokens
        const int origin = from - units * rows;
        if (begin < end) units += (end - from + rows - 1) >> (__ffs(rows) - 1);
        segments[i] = {units, origin, begin, end};
        begin = end;
    }
    return units;
}

} // namespace keepsight::cuda
