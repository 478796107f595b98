#include "widgets/attention/attention_model.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace keepsight {

AttentionModel::AttentionModel(std::shared_ptr<const Trace> trace, LaneIndex laneIndex, LayerIndex layer, HeadIndex head, bool perQueryHead,
                               Step step, bool cropped) {
    if (!trace) return;
    m_prefillEnd = trace->prefillLength;
    const Lane* lane = laneIndex.value >= 0 && laneIndex.value < static_cast<int>(trace->lanes.size())
                           ? &trace->lanes[static_cast<std::size_t>(laneIndex.value)]
                           : nullptr;
    if (lane) m_evictedAt = evictedFor(*trace, laneIndex, layer, head, perQueryHead);
    const Position all = std::numeric_limits<Position>::max();
    add(trace->map(SharedLane, layer, head, perQueryHead), nullptr, all, cropped);
    if (lane)
        add(trace->map(laneIndex, layer, head, perQueryHead), lane, step.value < 0 ? all : lane->retention.positionsAt(step), cropped);
}

void AttentionModel::add(std::shared_ptr<const AttentionMap> map, const Lane* lane, Position known, bool cropped) {
    if (!map || map->rows <= 0 || map->cols <= 0 || map->rowBin <= 0 || map->colBin <= 0 || map->rowBegin < 0) return;
    if (map->values.size() != static_cast<std::size_t>(map->rows) * static_cast<std::size_t>(map->cols)) return;
    int rows = 0; // whose first query is there
    while (rows < map->rows && map->rowBegin + rows * map->rowBin < known)
        ++rows;
    if (!cropped || rows > 0) {
        m_queries = std::max(m_queries, map->rowBegin + (cropped ? rows : map->rows) * map->rowBin);
        m_keys = std::max(m_keys, map->cols * map->colBin);
    }
    for (const float value : map->values) { // of all rows: colours do not change while the steps go by
        if (std::isnan(value)) continue;
        m_largest = std::max(m_largest, static_cast<double>(value));
        if (value > 0) m_smallest = std::min(m_smallest, static_cast<double>(value));
    }
    if (rows == 0) return;
    Part part;
    part.map = map;
    part.grid.rows = rows;
    part.grid.cols = map->cols;
    const auto cells = static_cast<std::size_t>(rows) * static_cast<std::size_t>(map->cols);
    part.grid.values.assign(map->values.begin(), map->values.begin() + static_cast<std::ptrdiff_t>(cells));
    part.grid.kinds.assign(cells, CellKind::value);
    const auto lastGone = [&](Position begin, Position end) { // when the last key of [begin, end) went
        end = std::min(end, static_cast<Position>(m_evictedAt.size()));
        return begin < end ? *std::max_element(m_evictedAt.begin() + begin, m_evictedAt.begin() + end) : NeverEvicted;
    };
    std::vector<std::int32_t> gone(static_cast<std::size_t>(map->cols), NeverEvicted);
    for (int col = 0; lane && col < map->cols; ++col)
        gone[static_cast<std::size_t>(col)] = lastGone(col * map->colBin, (col + 1) * map->colBin);
    for (int row = 0; row < rows; ++row) {
        const Position firstQuery = map->rowBegin + row * map->rowBin, endQuery = std::min(map->rowEnd, firstQuery + map->rowBin);
        int born = 0; // step that appended the first query: keys evicted at an earlier one are not seen by it
        if (lane && static_cast<std::size_t>(firstQuery) < lane->retention.bornAt().size())
            born = lane->retention.bornAt()[static_cast<std::size_t>(firstQuery)];
        for (int col = 0; col < map->cols; ++col) {
            const std::size_t i = static_cast<std::size_t>(row) * static_cast<std::size_t>(map->cols) + static_cast<std::size_t>(col);
            const Position keyBegin = col * map->colBin, keyEnd = keyBegin + map->colBin;
            const float value = map->values[i];
            if (std::isnan(value)) {
                part.grid.kinds[i] = CellKind::blank;
            } else if (lane && (keyEnd <= endQuery ? gone[static_cast<std::size_t>(col)] : lastGone(keyBegin, endQuery)) < born) {
                part.grid.kinds[i] = CellKind::evicted;
            }
        }
    }
    m_parts.push_back(std::move(part));
}

std::optional<AttentionModel::Hit> AttentionModel::at(Position query, Position key) const {
    if (key < 0) return std::nullopt;
    for (std::size_t p = 0; p < m_parts.size(); ++p) {
        const AttentionMap& map = *m_parts[p].map;
        if (query < map.rowBegin || query >= map.rowBegin + m_parts[p].grid.rows * map.rowBin) continue;
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
    return {plot.left(), plot.top() + map.rowBegin * y, map.cols * map.colBin * x, part.grid.rows * map.rowBin * y};
}

} // namespace keepsight
