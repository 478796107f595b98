#include "widgets/retained/retained_model.h"

#include <algorithm>

namespace keepsight {

RetainedModel::RetainedModel(std::shared_ptr<const Trace> trace, LaneIndex lane) : m_trace(std::move(trace)), m_lane(lane.value) {}

const Lane* RetainedModel::lane() const {
    if (!m_trace || m_lane < 0 || m_lane >= static_cast<int>(m_trace->lanes.size())) return nullptr;
    return &m_trace->lanes[static_cast<std::size_t>(m_lane)];
}

int RetainedModel::layers() const { return lane() ? lane()->retention.layers() : 0; }
int RetainedModel::heads() const { return lane() ? lane()->retention.heads() : 0; }
Position RetainedModel::positions() const { return lane() ? lane()->retention.positions() : 0; }
int RetainedModel::steps() const { return lane() ? static_cast<int>(lane()->steps.size()) : 0; }
int RetainedModel::seen(Step step) const { return lane() ? lane()->retention.positionsAt(step) : 0; }

namespace {

CellGrid blankGrid(int rows, int cols) {
    CellGrid grid;
    grid.rows = rows;
    grid.cols = cols;
    const std::size_t cells = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    grid.values.assign(cells, 0.0f);
    grid.kinds.assign(cells, CellKind::blank);
    return grid;
}

void fillRow(CellGrid& grid, int row, std::span<const std::int32_t> evictedAt, int seen, int step) {
    const std::size_t base = static_cast<std::size_t>(row) * static_cast<std::size_t>(grid.cols);
    for (std::size_t p = 0; p < static_cast<std::size_t>(seen); ++p) {
        grid.values[base + p] = evictedAt[p] > step ? 1.0f : 0.0f;
        grid.kinds[base + p] = CellKind::value;
    }
}

} // namespace

CellGrid RetainedModel::overview(Step step, HeadIndex head) const {
    CellGrid grid = blankGrid(layers(), positions());
    if (empty() || head.value < 0 || head.value >= heads()) return grid;
    const int count = seen(step);
    for (int layer = 0; layer < grid.rows; ++layer)
        fillRow(grid, layer, lane()->retention.evictedAt(LayerIndex{layer}, head), count, step.value);
    return grid;
}

CellGrid RetainedModel::history(LayerIndex layer, HeadIndex head) const {
    CellGrid grid = blankGrid(steps(), positions());
    if (empty() || layer.value < 0 || layer.value >= layers() || head.value < 0 || head.value >= heads()) return grid;
    const auto evicted = lane()->retention.evictedAt(layer, head);
    for (int step = 0; step < grid.rows; ++step)
        fillRow(grid, step, evicted, seen(Step{step}), step);
    return grid;
}

int RetainedModel::keptCount(Step step, LayerIndex layer, HeadIndex head) const {
    if (empty() || layer.value < 0 || layer.value >= layers() || head.value < 0 || head.value >= heads()) return 0;
    return lane()->retention.countAt(step, layer, head);
}

int RetainedModel::evictedAt(LayerIndex layer, HeadIndex head, Position position) const {
    if (empty() || position < 0 || position >= positions()) return NeverEvicted;
    return lane()->retention.evictedAt(layer, head)[static_cast<std::size_t>(position)];
}

} // namespace keepsight
