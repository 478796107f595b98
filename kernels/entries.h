// Moving cache entries: plain copies of runs of bytes.
#pragma once

#include <cstdint>

namespace keepsight {

// Entry i < counts[h] of head h of `to` becomes entry index[h, i] of `from`. With from == to the index must ascend strictly.
struct MoveEntriesArgs {
    const std::uint8_t* from = nullptr;
    std::uint8_t* to = nullptr;
    std::int64_t fromHead = 0, toHead = 0, entry = 0; // bytes
    const std::int32_t* index = nullptr;              // [heads, indexHead]
    std::int64_t indexHead = 0;
    const std::int32_t* counts = nullptr; // [heads]
    std::int64_t heads = 0;
    std::int64_t zeroTo = 0; // entries [counts[h], zeroTo) of `to` become 0
};

struct AppendEntriesArgs {
    const std::uint8_t* from = nullptr;
    std::uint8_t* to = nullptr;
    std::int64_t fromHead = 0, fromRow = 0, toHead = 0, entry = 0; // bytes
    const std::int32_t* lengths = nullptr;                         // [heads] entries of `to` before
    std::int64_t heads = 0, rows = 0;
};

} // namespace keepsight
