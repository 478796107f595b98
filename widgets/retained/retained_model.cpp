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

// Which cells each pixel shows where they are more than the pixels, as renderCells() divides them; else every cell by itself.
std::vector<int> sharesOf(int cells, int pixels) {
    const int n = std::max(0, pixels > 0 ? std::min(cells, pixels) : cells);
    std::vector<int> at(static_cast<std::size_t>(n) + 1);
    for (int i = 0; i <= n; ++i)
        at[static_cast<std::size_t>(i)] = n == cells ? i : static_cast<int>(static_cast<std::int64_t>(i) * cells / n);
    return at;
}

// A cell of the reduced grid: what most of its cells are, and the mean of those that are seen.
void setShare(CellGrid& grid, std::size_t at, int held, int seen, int all) {
    if (seen == 0 || all - seen > seen) return; // blank
    grid.values[at] = static_cast<float>(static_cast<double>(held) / seen);
    grid.kinds[at] = CellKind::value;
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

CellGrid RetainedModel::overview(Step step, HeadIndex head, const QSize& pixels) const {
    const std::vector<int> ys = sharesOf(layers(), pixels.height()), xs = sharesOf(positions(), pixels.width());
    CellGrid grid = blankGrid(static_cast<int>(ys.size()) - 1, static_cast<int>(xs.size()) - 1);
    if (empty() || head.value < 0 || head.value >= heads()) return grid;
    const int count = seen(step);
    std::vector<int> held(static_cast<std::size_t>(grid.cols));
    for (int row = 0; row < grid.rows; ++row) {
        const int begin = ys[static_cast<std::size_t>(row)], end = ys[static_cast<std::size_t>(row) + 1];
        std::ranges::fill(held, 0);
        for (int layer = begin; layer < end; ++layer) {
            const std::int32_t* evicted = lane()->retention.evictedAt(LayerIndex{layer}, head).data();
            for (std::size_t x = 0; x < held.size(); ++x) {
                int sum = 0;
                for (int p = xs[x], last = std::min(xs[x + 1], count); p < last; ++p)
                    sum += evicted[p] > step.value;
                held[x] += sum;
            }
        }
        const std::size_t base = static_cast<std::size_t>(row) * static_cast<std::size_t>(grid.cols);
        for (std::size_t x = 0; x < held.size(); ++x)
            setShare(grid, base + x, held[x], (end - begin) * std::max(0, std::min(xs[x + 1], count) - xs[x]), (end - begin) * (xs[x + 1] - xs[x]));
    }
    return grid;
}

CellGrid RetainedModel::history(LayerIndex layer, HeadIndex head, const QSize& pixels) const {
    const std::vector<int> ys = sharesOf(steps(), pixels.height()), xs = sharesOf(positions(), pixels.width());
    CellGrid grid = blankGrid(static_cast<int>(ys.size()) - 1, static_cast<int>(xs.size()) - 1);
    if (empty() || layer.value < 0 || layer.value >= layers() || head.value < 0 || head.value >= heads()) return grid;
    const auto evicted = lane()->retention.evictedAt(layer, head), born = lane()->retention.bornAt();
    const auto rows = static_cast<std::size_t>(grid.rows);
    std::vector<std::size_t> rowOf(static_cast<std::size_t>(steps()));
    for (std::size_t row = 0; row < rows; ++row)
        std::fill(rowOf.begin() + ys[row], rowOf.begin() + ys[row + 1], row);
    // A position is seen from one step on and held up to another. Of the rows in between only the first and the last are covered in part:
    // those are counted, the whole ones are remembered by where they begin and end.
    struct Count {
        std::vector<int> part, whole;
        explicit Count(std::size_t rows) : part(rows), whole(rows + 1) {}
        void clear() {
            std::ranges::fill(part, 0);
            std::ranges::fill(whole, 0);
        }
    } held(rows), seen(rows);
    const auto add = [&](Count& count, int begin, int end) { // steps [begin, end)
        if (begin >= end) return;
        const std::size_t first = rowOf[static_cast<std::size_t>(begin)], last = rowOf[static_cast<std::size_t>(end) - 1];
        if (first == last) {
            count.part[first] += end - begin;
            return;
        }
        count.part[first] += ys[first + 1] - begin;
        count.part[last] += end - ys[last];
        ++count.whole[first + 1];
        --count.whole[last];
    };
    for (std::size_t x = 0; x + 1 < xs.size(); ++x) {
        held.clear();
        seen.clear();
        for (auto p = static_cast<std::size_t>(xs[x]); p < static_cast<std::size_t>(xs[x + 1]); ++p) {
            add(seen, born[p], steps());
            add(held, born[p], std::min(evicted[p], steps()));
        }
        int wholeHeld = 0, wholeSeen = 0;
        for (std::size_t row = 0; row < rows; ++row) {
            wholeHeld += held.whole[row];
            wholeSeen += seen.whole[row];
            const int height = ys[row + 1] - ys[row];
            setShare(grid, row * static_cast<std::size_t>(grid.cols) + x, held.part[row] + wholeHeld * height, seen.part[row] + wholeSeen * height, height * (xs[x + 1] - xs[x]));
        }
    }
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
