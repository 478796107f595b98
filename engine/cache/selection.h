// Which entries of a layer stay.
#pragma once

#include <cstdint>
#include <vector>

namespace keepsight {

struct Selection {
    std::vector<std::vector<std::int32_t>> keep; // per KV head: entry indices, ascending, unique
    static Selection all(const std::vector<std::int32_t>& lengths);
};

} // namespace keepsight
