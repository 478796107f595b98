// The curves of a run, one per lane, kept up to date by appending: what the plots draw and the cursor reads.
#pragma once

#include "engine/data/trace.h"

#include <QString>
#include <string>
#include <vector>

namespace keepsight {

struct LaneCurve {
    QString title;                 // "B snapkv −50 %": half is removed; "@64": 64 tokens are kept
    std::vector<int> steps;        // [points] from the step after the prefill's eviction on
    std::vector<double> x;         // [points] position of the newest token
    std::vector<double> perplexity; // so far; NaN where unknown
    std::vector<double> tpot;      // ms of the step; NaN for the eviction
    std::vector<double> tpotSmooth; // median of the last `window` steps
    std::size_t window = 0;         // grows with the run; all of tpotSmooth is set anew then
    std::vector<double> memory;    // MB stored
};

class CurvesModel {
public:
    // Appends the new points of a run that went on; false: it is another run (or history), everything was rebuilt.
    bool update(const Trace* trace);
    const std::vector<LaneCurve>& lanes() const { return m_lanes; }
    bool isEmpty() const;
    double lastX() const { return m_lastX; }    // of all lanes, or of the whole text where its length is known
    double firstX() const { return m_firstX; }

    double xOf(int step) const;                 // position shown by that step; clamped
    int stepNear(double x) const;               // −1: no points
    // Index of the last point of a lane at or before step; −1: none
    static int pointAt(const LaneCurve& lane, int step);

private:
    struct Running { double nllSum = 0; long nllCount = 0; int lastValue = -1; double lastMs = 0; std::size_t taken = 0; PolicySpec policy; };
    void append(std::size_t lane, const Lane& from);

    std::string m_run;
    std::vector<LaneCurve> m_lanes;
    std::vector<Running> m_running;
    double m_firstX = 0, m_lastX = 0;
};

std::size_t smoothingWindow(std::size_t points); // 9, and doubled as the points double: about fifty windows in a picture
QString laneTitle(const Trace& trace, LaneIndex lane);
double runningMedian(const std::vector<double>& values, std::size_t end, std::size_t window); // of the last `window` numbers before end; NaNs left out

} // namespace keepsight
