#include "widgets/needle/needle_model.h"

#include "engine/data/error.h"
#include "engine/data/job.h"
#include "widgets/base/plot_view.h"

#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

void insert(std::vector<double>& sorted, double value) {
    const auto at = std::lower_bound(sorted.begin(), sorted.end(), value);
    if (at == sorted.end() || *at != value) sorted.insert(at, value);
}

double meanOf(const std::vector<const Measurement*>& rows, std::string_view field) {
    double sum = 0;
    int count = 0;
    for (const Measurement* row : rows) {
        const double value = row->number(field);
        if (std::isnan(value)) continue;
        sum += value;
        ++count;
    }
    return count > 0 ? sum / count : NotMeasured;
}

} // namespace

NeedleModel::NeedleModel(std::shared_ptr<const Trace> trace) : m_trace(std::move(trace)) {
    if (!m_trace) return;
    std::vector<bool> ran(m_trace->lanes.size(), m_trace->run.kind == "needle");
    if (m_trace->run.kind == "needle" && !m_trace->run.jobJson.empty()) {
        try { // cells still to come show as not run
            const Job job = jobFromJson(m_trace->run.jobJson);
            for (const int length : job.needle.lengths)
                insert(m_lengths, length);
            for (const double depth : job.needle.depths)
                insert(m_depths, depth);
        } catch (const EngineError&) { // the rows alone then say what there is
        }
    }
    const auto wanted = [&](const Measurement& row) {
        return row.kind == "needle" && row.lane.value >= 0 && row.lane.value < static_cast<int>(ran.size()) &&
               std::isfinite(row.number("length")) && std::isfinite(row.number("depth"));
    };
    for (const Measurement& row : m_trace->measurements) {
        if (!wanted(row)) continue;
        insert(m_lengths, row.number("length"));
        insert(m_depths, row.number("depth"));
        ran[static_cast<std::size_t>(row.lane.value)] = true;
    }
    for (std::size_t lane = 0; lane < ran.size(); ++lane) {
        if (!ran[lane]) continue;
        NeedleGrid grid{LaneIndex{static_cast<int>(lane)}, laneTitle(m_trace->lanes[lane]),
                        std::vector<NeedleCell>(m_lengths.size() * m_depths.size())};
        for (const Measurement& row : m_trace->measurements) {
            if (!wanted(row) || row.lane != grid.lane) continue;
            const auto col =
                static_cast<std::size_t>(std::lower_bound(m_lengths.begin(), m_lengths.end(), row.number("length")) - m_lengths.begin());
            const auto line =
                static_cast<std::size_t>(std::lower_bound(m_depths.begin(), m_depths.end(), row.number("depth")) - m_depths.begin());
            grid.cells[line * m_lengths.size() + col].rows.push_back(&row);
        }
        for (NeedleCell& cell : grid.cells) {
            cell.runs = static_cast<int>(cell.rows.size());
            cell.score = meanOf(cell.rows, "score");
            cell.keptShare = meanOf(cell.rows, "kept_needle_share");
        }
        m_grids.push_back(std::move(grid));
    }
}

const NeedleCell& NeedleModel::cell(const NeedleGrid& grid, int depth, int length) const {
    return grid.cells.at(static_cast<std::size_t>(depth) * m_lengths.size() + static_cast<std::size_t>(length));
}

int NeedleModel::gridOf(LaneIndex lane) const {
    for (std::size_t i = 0; i < m_grids.size(); ++i)
        if (m_grids[i].lane == lane) return static_cast<int>(i);
    return -1;
}

} // namespace keepsight
