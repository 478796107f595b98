// The highest scores of a row, the vote that TokenSelect ranks entries by, and the entry that a step evicts; see kernels/bind/ops.h for the meaning.
#pragma once

#include <cstdint>

namespace keepsight {

struct TopKArgs {
    const float* scores = nullptr; // [rows, row]
    std::int64_t row = 0;          // elements between rows
    std::int64_t rows = 0, capacity = 0, k = 0;
    const std::int32_t* counts = nullptr; // [rows], each in 0 … capacity
    std::int32_t* out = nullptr;          // [rows, k], dense
};

struct SoftVoteArgs {
    const float* queries = nullptr;       // [queryHeads, dim], dense
    const void* keys = nullptr;           // [kvHeads, capacity, dim], rows of dim values dense
    std::int64_t keyHead = 0, keyRow = 0; // strides in elements
    std::int64_t queryHeads = 0, kvHeads = 0, dim = 0;
    const std::int32_t* lengths = nullptr; // [kvHeads]
    std::int64_t begin = 0, newest = 0, capacity = 0; // candidates: entries begin ≤ t < lengths[h] − newest
    float scale = 1;
    float* vote = nullptr; // [capacity]
};

struct DropLowestArgs {
    static constexpr int MostMoved = 8;
    struct Moved {
        void* data = nullptr;
        std::int64_t head = 0, row = 0; // bytes from one head to the next, and of an entry; entries dense
        std::int64_t heads = 0;         // a multiple of kvHeads
    };
    const std::int32_t* entries = nullptr; // [kvHeads] which go (−1: none); null: those that scores and limits tell
    const float* scores = nullptr; // [kvHeads, scoresHead]; null: the first one offered goes
    std::int64_t scoresHead = 0;
    std::int64_t kvHeads = 0, capacity = 0;
    const std::int32_t* limits = nullptr; // [3] entries kept, first ones and newest ones that are safe
    std::int32_t* lengths = nullptr;      // [kvHeads]
    std::int32_t* gone = nullptr;         // [2, kvHeads] positions and entries; null: not wanted
    Moved moved[MostMoved];               // the first holds the positions, where they are wanted
    int count = 0;
};

} // namespace keepsight
