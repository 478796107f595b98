// Pass-key scores by lane, depth and length: mean over keys, empty where not run.
#pragma once

#include "engine/data/trace.h"

#include <QString>
#include <vector>

namespace keepsight {

struct NeedleCell {
    int runs = 0;
    double score = NotMeasured;           // mean over keys
    double keptShare = NotMeasured;       // mean share of the needle's entries still stored
    std::vector<const Measurement*> rows; // one for each key; owned by the trace
};

struct NeedleGrid {
    LaneIndex lane;
    QString title;                 // "B · snapkv:window=8 · 50 % removed"
    std::vector<NeedleCell> cells; // [depths, lengths]
};

class NeedleModel {
public:
    NeedleModel() = default;
    explicit NeedleModel(std::shared_ptr<const Trace> trace); // axes hold what the job planned and what was run

    bool empty() const { return m_grids.empty() || m_lengths.empty() || m_depths.empty(); }
    const std::vector<NeedleGrid>& grids() const { return m_grids; } // one for each lane with a needle row, or of a needle run
    const std::vector<double>& lengths() const { return m_lengths; } // tokens, ascending
    const std::vector<double>& depths() const { return m_depths; }   // percent, ascending
    const NeedleCell& cell(const NeedleGrid& grid, int depth, int length) const;
    int gridOf(LaneIndex lane) const; // −1: none

private:
    std::shared_ptr<const Trace> m_trace;
    std::vector<NeedleGrid> m_grids;
    std::vector<double> m_lengths, m_depths;
};

} // namespace keepsight
