// Index types that cannot be passed one for the other.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>

namespace keepsight {

using TokenId = std::int32_t;
using Position = std::int32_t; // original absolute position of a token in its sequence, from 0

template <class Tag>
struct Index {
    std::int32_t value = 0;
    constexpr Index() = default;
    constexpr explicit Index(std::int32_t v) : value(v) {}
    friend constexpr auto operator<=>(Index, Index) = default;
};

using LayerIndex = Index<struct LayerTag>;
using HeadIndex = Index<struct HeadTag>; // a KV head unless the name says query head
using LaneIndex = Index<struct LaneTag>; // one policy + budget of a run; SharedLane for what all lanes share
using Step = Index<struct StepTag>;      // see StepRecord

inline constexpr LaneIndex SharedLane{-1};
inline constexpr std::int32_t NeverEvicted = std::numeric_limits<std::int32_t>::max();

} // namespace keepsight
