#include "widgets/attention/attention_model.h"

#include <algorithm>
#include <cmath>

namespace keepsight {

AttentionModel::AttentionModel(std::shared_ptr<const Trace> trace, LaneIndex laneIndex, LayerIndex layer, HeadIndex head,
                               bool perQueryHead) {
    if (!trace) return;
    m_prefillEnd = trace->prefillLength;
    const Lane* lane = laneIndex.value >= 0 && laneIndex.value < static_cast<int>(trace->lanes.size())
                           ? &trace->lanes[static_cast<std::size_t>(laneIndex.value)]
                           : nullptr;
    const int group = std::max(1, trace->model.config.groupSize());
    const HeadIndex kvHead{perQueryHead ? head.value / group : head.value};
    if (lane && layer.value >= 0 && layer.value < lane->retention.layers() && kvHead.value >= 0 && kvHead.value < lane->retention.heads()) {
        const auto evicted = lane->retention.evictedAt(layer, kvHead);
        m_evictedAt.assign(evicted.begin(), evicted.end());
    }
    add(trace->map(SharedLane, layer, head, perQueryHead), nullptr);
    if (lane) add(trace->map(laneIndex, layer, head, perQueryHead), lane);
}

void AttentionModel::add(std::shared_ptr<const AttentionMap> map, const Lane* lane) {
    if (!map || map->rows <= 0 || map->cols <= 0 || map->rowBin <= 0 || map->colBin <= 0) return;
    if (map->values.size() != static_cast<std::size_t>(map->rows) * static_cast<std::size_t>(map->cols)) return;
    Part part;
    part.map = map;
    part.grid.rows = map->rows;
    part.grid.cols = map->cols;
    part.grid.values = map->values;
    part.grid.kinds.assign(map->values.size(), CellKind::value);
    // Latest eviction in each column: from then on nothing of the bin is left.
    std::vector<std::int32_t> gone(static_cast<std::size_t>(map->cols), NeverEvicted);
    for (int col = 0; lane && col < map->cols; ++col) {
        const auto begin = std::min(static_cast<std::size_t>(col) * static_cast<std::size_t>(map->colBin), m_evictedAt.size());
        const auto end = std::min(begin + static_cast<std::size_t>(map->colBin), m_evictedAt.size());
        if (begin < end)
            gone[static_cast<std::size_t>(col)] = *std::max_element(m_evictedAt.begin() + static_cast<std::ptrdiff_t>(begin),
                                                                    m_evictedAt.begin() + static_cast<std::ptrdiff_t>(end));
    }
    for (int row = 0; row < map->rows; ++row) {
        int step = 0; // that appended the row's first query: keys evicted at an earlier one are not seen by it
        if (lane) {
            const auto born = lane->retention.bornAt();
            const auto query = static_cast<std::size_t>(map->rowBegin + row * map->rowBin);
            step = query < born.size() ? born[query] : 0;
        }
        for (int col = 0; col < map->cols; ++col) {
            const std::size_t i = static_cast<std::size_t>(row) * static_cast<std::size_t>(map->cols) + static_cast<std::size_t>(col);
            const float value = map->values[i];
            if (std::isnan(value)) {
                part.grid.kinds[i] = CellKind::blank;
            } else if (gone[static_cast<std::size_t>(col)] < step) {
                part.grid.kinds[i] = CellKind::evicted;
            } else {
                m_largest = std::max(m_largest, static_cast<double>(value));
                if (value > 0) m_smallest = std::min(m_smallest, static_cast<double>(value));
            }
        }
    }
    m_queries = std::max(m_queries, map->rowBegin + map->rows * map->rowBin);
    m_keys = std::max(m_keys, map->cols * map->colBin);
    m_parts.push_back(std::move(part));
}

std::optional<AttentionModel::Hit> AttentionModel::at(Position query, Position key) const {
    if (key < 0) return std::nullopt;
    for (std::size_t p = 0; p < m_parts.size(); ++p) {
        const AttentionMap& map = *m_parts[p].map;
        if (query < map.rowBegin || query >= map.rowBegin + map.rows * map.rowBin) continue;
        Hit hit;
        hit.part = static_cast<int>(p);
        hit.row = (query - map.rowBegin) / map.rowBin;
        hit.col = key / map.colBin;
        if (hit.col >= map.cols) return std::nullopt;
        hit.queryBegin = map.rowBegin + hit.row * map.rowBin;
        hit.queryEnd = std::min(hit.queryBegin + map.rowBin, std::max(map.rowEnd, hit.queryBegin + 1));
        hit.keyBegin = hit.col * map.colBin;
        hit.keyEnd = hit.keyBegin + map.colBin;
        hit.kind = m_parts[p].grid.kindAt(hit.row, hit.col);
        hit.value = static_cast<double>(m_parts[p].grid.at(hit.row, hit.col));
        if (hit.kind == CellKind::evicted) hit.evictedAt = m_evictedAt[static_cast<std::size_t>(hit.keyBegin)];
        return hit;
    }
    return std::nullopt;
}

ColorScale AttentionModel::scale(bool logarithmic) const {
    const double top = m_largest > 0 ? m_largest : 1.0;
    if (!logarithmic) return ColorScale(ColorMap::viridis, 0, top);
    return ColorScale(ColorMap::viridis, std::max(top * 1e-4, std::min(m_smallest, top / 10)), top, true);
}

QRectF AttentionModel::rectOf(const Part& part, const QRectF& plot) const {
    const AttentionMap& map = *part.map;
    const double x = plot.width() / std::max(1, m_keys), y = plot.height() / std::max(1, m_queries);
    return {plot.left(), plot.top() + map.rowBegin * y, map.cols * map.colBin * x, map.rows * map.rowBin * y};
}

} // namespace keepsight
