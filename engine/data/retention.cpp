#include "engine/data/error.h"
#include "engine/data/trace.h"

#include <algorithm>

namespace keepsight {

namespace {

std::string where(const KeepRecord& record) {
    return "step " + std::to_string(record.step.value) + ", layer " + std::to_string(record.layer.value) + ", head " +
           std::to_string(record.head.value);
}

} // namespace

void Retention::append(Step step, int count) {
    if (count < 0)
        throw EngineError("retention: step " + std::to_string(step.value) + " appends " + std::to_string(count) +
                          " positions; expected 0 or more");
    if (!m_born.empty() && step.value < m_born.back())
        throw EngineError("retention: step " + std::to_string(step.value) + " comes after step " + std::to_string(m_born.back()));
    m_evicted.resize(static_cast<std::size_t>(m_layers) * static_cast<std::size_t>(m_heads));
    const std::size_t size = m_born.size() + static_cast<std::size_t>(count);
    m_born.resize(size, step.value);
    for (auto& row : m_evicted)
        row.resize(size, NeverEvicted);
}

void Retention::evict(const KeepRecord& record) {
    if (record.layer.value < 0 || record.layer.value >= m_layers || record.head.value < 0 || record.head.value >= m_heads)
        throw EngineError("retention: " + where(record) + " is outside the model's " + std::to_string(m_layers) + " layers × " +
                          std::to_string(m_heads) + " KV heads");
    if (record.evicted.empty()) return;
    if (m_evicted.empty()) throw EngineError("retention: " + where(record) + " evicts before any position was appended");
    auto& row = m_evicted[static_cast<std::size_t>(record.layer.value) * static_cast<std::size_t>(m_heads) +
                          static_cast<std::size_t>(record.head.value)];
    // Everything is checked before anything changes, so that a refused record leaves the sets as they were.
    Position before = -1;
    for (const Position p : record.evicted) {
        if (p < 0 || p >= positions())
            throw EngineError("retention: " + where(record) + " evicts position " + std::to_string(p) + ", but only " +
                              std::to_string(positions()) + " were appended");
        if (p <= before)
            throw EngineError("retention: " + where(record) + " lists position " + std::to_string(p) + " after " + std::to_string(before));
        const auto at = static_cast<std::size_t>(p);
        if (row[at] != NeverEvicted)
            throw EngineError("retention: " + where(record) + " evicts position " + std::to_string(p) + ", which was evicted at step " +
                              std::to_string(row[at]));
        if (record.step.value < m_born[at])
            throw EngineError("retention: " + where(record) + " evicts position " + std::to_string(p) +
                              ", which was appended later, at step " + std::to_string(m_born[at]));
        before = p;
    }
    for (const Position p : record.evicted)
        row[static_cast<std::size_t>(p)] = record.step.value;
}

Position Retention::positionsAt(Step step) const {
    return static_cast<Position>(std::upper_bound(m_born.begin(), m_born.end(), step.value) - m_born.begin());
}

std::span<const std::int32_t> Retention::evictedAt(LayerIndex layer, HeadIndex head) const {
    if (layer.value < 0 || layer.value >= m_layers || head.value < 0 || head.value >= m_heads)
        throw EngineError("retention: layer " + std::to_string(layer.value) + ", head " + std::to_string(head.value) +
                          " is outside the model's " + std::to_string(m_layers) + " layers × " + std::to_string(m_heads) + " KV heads");
    if (m_evicted.empty()) return {};
    return m_evicted[static_cast<std::size_t>(layer.value) * static_cast<std::size_t>(m_heads) + static_cast<std::size_t>(head.value)];
}

bool Retention::holds(Step step, LayerIndex layer, HeadIndex head, Position position) const {
    const auto row = evictedAt(layer, head);
    if (position < 0 || static_cast<std::size_t>(position) >= row.size()) return false;
    const auto at = static_cast<std::size_t>(position);
    return m_born[at] <= step.value && row[at] > step.value;
}

std::vector<Position> Retention::keptAt(Step step, LayerIndex layer, HeadIndex head) const {
    const auto row = evictedAt(layer, head);
    const std::size_t n = std::min(row.size(), static_cast<std::size_t>(positionsAt(step)));
    std::vector<Position> kept(n);
    std::size_t size = 0;
    for (std::size_t i = 0; i < n; ++i) { // no branch: kept and evicted positions alternate unpredictably
        kept[size] = static_cast<Position>(i);
        size += row[i] > step.value;
    }
    kept.resize(size);
    return kept;
}

int Retention::countAt(Step step, LayerIndex layer, HeadIndex head) const {
    const auto row = evictedAt(layer, head);
    const std::size_t n = std::min(row.size(), static_cast<std::size_t>(positionsAt(step)));
    int count = 0;
    for (std::size_t i = 0; i < n; ++i)
        count += row[i] > step.value;
    return count;
}

int Retention::holdersAt(Step step, Position position) const {
    if (position < 0 || position >= positionsAt(step)) return 0;
    int holders = 0;
    for (const auto& row : m_evicted)
        holders += row[static_cast<std::size_t>(position)] > step.value;
    return holders;
}

std::vector<std::int32_t> Retention::holdersAt(Step step) const {
    const auto n = static_cast<std::size_t>(positionsAt(step));
    std::vector<std::int32_t> holders(n, 0);
    for (const auto& row : m_evicted)
        for (std::size_t i = 0; i < n; ++i)
            holders[i] += row[i] > step.value;
    return holders;
}

} // namespace keepsight
