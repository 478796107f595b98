// Attention of one head as cells in token positions: the shared prefill above, the lane's own rows below.
#pragma once

#include "engine/data/trace.h"
#include "widgets/base/cell_renderer.h"

#include <optional>
#include <vector>

namespace keepsight {

class AttentionModel {
public:
    struct Part {
        std::shared_ptr<const AttentionMap> map;
        CellGrid grid; // rows may be fewer than the map's; blank: no visible pair; evicted: every visible key was dropped before its query
    };
    struct Hit {
        int part = 0, row = 0, col = 0;
        Position queryBegin = 0, queryEnd = 0, keyBegin = 0, keyEnd = 0; // half-open
        CellKind kind = CellKind::value;
        double value = 0;
        int evictedAt = NeverEvicted; // of the first key, if evicted
    };

    AttentionModel() = default;
    // head: KV head, or query head if perQueryHead. Indices outside the trace leave the model empty.
    // step: the lane's rows up to that step (−1: all); the axes keep room for the rest unless `cropped`.
    AttentionModel(std::shared_ptr<const Trace> trace, LaneIndex lane, LayerIndex layer, HeadIndex head, bool perQueryHead = false,
                   Step step = Step{-1}, bool cropped = false);

    bool empty() const { return m_parts.empty(); }
    const std::vector<Part>& parts() const { return m_parts; }
    Position queries() const { return m_queries; } // ends of the axes, whole bins
    Position keys() const { return m_keys; }
    Position prefillEnd() const { return m_prefillEnd; }
    std::optional<Hit> at(Position query, Position key) const;
    double largest() const { return m_largest; } // of the values; 0: none
    double smallestPositive() const { return m_smallest; }

    // Range that shows this head: 0 … largest, or its upper four decades. Locked ranges are the caller's.
    ColorScale scale(bool logarithmic) const;
    // Where a part lies in a plot whose axes run from 0 to keys() and 0 to queries() downwards.
    QRectF rectOf(const Part& part, const QRectF& plot) const;

private:
    void add(std::shared_ptr<const AttentionMap> map, const Lane* lane, Position known, bool cropped);
    std::vector<Part> m_parts;
    std::vector<std::int32_t> m_evictedAt; // of the focused KV head
    Position m_queries = 0, m_keys = 0, m_prefillEnd = 0;
    double m_largest = 0, m_smallest = 1;
};

} // namespace keepsight
