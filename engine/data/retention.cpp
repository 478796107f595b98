#include "engine/data/error.h"
#include "engine/data/trace.h"

#include <algorithm>

namespace keepsight {

namespace {

std::string where(const KeepRecord& record) {
    return "step " + std::to_string(record.step.value) + ", layer " + std::to_string(record.layer.value) + ", head " +
           std::to_string(record.head.value);
}

// Does nobody else hold it? Then whoever did, perhaps in another thread, has read it for the last time: the count alone would not order
// their reads before our writes, a hold of our own that comes and goes does.
template <class Row>
bool isOurs(const std::shared_ptr<Row>& row) {
    if (row.use_count() != 1) return false;
    std::shared_ptr<Row>(row).reset();
    return true;
}

} // namespace

void Retention::reach(std::size_t size) {
    const std::size_t rows = static_cast<std::size_t>(m_layers) * static_cast<std::size_t>(m_heads);
    if (m_evicted.size() != rows) m_evicted.assign(rows, std::make_shared<Row>());
    if (m_evicted.empty() || m_evicted.front()->size() >= size) return;
    size += size / 2;
    std::shared_ptr<Row> before, longer; // of neighbours that are one row
    for (auto& row : m_evicted) {
        if (row != before) {
            before = row;
            longer = std::make_shared<Row>();
            longer->reserve(size);
            *longer = *row;
            longer->resize(size, NeverEvicted);
        }
        row = longer;
    }
}

void Retention::append(Step step, int count) {
    if (count < 0)
        throw EngineError("retention: step " + std::to_string(step.value) + " appends " + std::to_string(count) +
                          " positions; expected 0 or more");
    if (!m_born.empty() && step.value < m_born.back())
        throw EngineError("retention: step " + std::to_string(step.value) + " comes after step " + std::to_string(m_born.back()));
    const std::size_t size = m_born.size() + static_cast<std::size_t>(count);
    reach(size);
    m_born.resize(size, step.value);
}

void Retention::evict(const KeepRecord& record) {
    if (record.layer.value < 0 || record.layer.value >= m_layers || record.head.value < 0 || record.head.value >= m_heads)
        throw EngineError("retention: " + where(record) + " is outside the model's " + std::to_string(m_layers) + " layers × " +
                          std::to_string(m_heads) + " KV heads");
    if (record.evicted.empty()) return;
    if (m_evicted.empty()) throw EngineError("retention: " + where(record) + " evicts before any position was appended");
    auto& shared = m_evicted[static_cast<std::size_t>(record.layer.value) * static_cast<std::size_t>(m_heads) +
                             static_cast<std::size_t>(record.head.value)];
    const Row& row = *shared;
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
    if (!isOurs(shared)) shared = std::make_shared<Row>(*shared);
    for (const Position p : record.evicted)
        (*shared)[static_cast<std::size_t>(p)] = record.step.value;
}

Position Retention::positionsAt(Step step) const {
    return static_cast<Position>(std::upper_bound(m_born.begin(), m_born.end(), step.value) - m_born.begin());
}

std::span<const std::int32_t> Retention::evictedAt(LayerIndex layer, HeadIndex head) const {
    if (layer.value < 0 || layer.value >= m_layers || head.value < 0 || head.value >= m_heads)
        throw EngineError("retention: layer " + std::to_string(layer.value) + ", head " + std::to_string(head.value) +
                          " is outside the model's " + std::to_string(m_layers) + " layers × " + std::to_string(m_heads) + " KV heads");
    if (m_evicted.empty()) return {};
    const Row& row = *m_evicted[static_cast<std::size_t>(layer.value) * static_cast<std::size_t>(m_heads) + static_cast<std::size_t>(head.value)];
    return std::span(row).first(m_born.size());
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
        holders += (*row)[static_cast<std::size_t>(position)] > step.value;
    return holders;
}

std::vector<std::int32_t> Retention::holdersAt(Step step) const {
    const auto n = static_cast<std::size_t>(positionsAt(step));
    std::vector<std::int32_t> holders(n, 0);
    for (const auto& row : m_evicted)
        for (std::size_t i = 0; i < n; ++i)
            holders[i] += (*row)[i] > step.value;
    return holders;
}

} // namespace keepsight
