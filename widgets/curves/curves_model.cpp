#include "widgets/curves/curves_model.h"

#include "widgets/lanes/lane_color.h"

#include <QLocale>
#include <algorithm>
#include <cmath>

namespace keepsight {

QString laneTitle(const Trace& trace, LaneIndex lane) {
    const auto index = static_cast<std::size_t>(lane.value);
    if (lane.value < 0 || index >= trace.lanes.size()) return laneLetter(lane);
    const Lane& of = trace.lanes[index];
    QString title = (of.label.empty() ? laneLetter(lane) : QString::fromStdString(of.label)) + QLatin1Char(' ') + QString::fromStdString(of.policy.id);
    const Budget& budget = of.policy.budget;
    if (budget.kind == Budget::Kind::tokens) title += QStringLiteral(" @%1").arg(budget.tokens);
    else if (budget.compressionRatio > 0) title += QStringLiteral(" −%1 %").arg(QLocale::c().toString(budget.compressionRatio * 100, 'g', 4));
    if (of.policy.quant != QuantSpec()) title += QStringLiteral(" ~") + QString::fromStdString(of.policy.quant.id);
    return title;
}

std::size_t smoothingWindow(std::size_t points) {
    std::size_t window = 9;
    for (std::size_t of = 450; of < points; of *= 2)
        window = 2 * window - 1;
    return window;
}

double runningMedian(const std::vector<double>& values, std::size_t end, std::size_t window) {
    std::vector<double> last;
    for (std::size_t i = end > window ? end - window : 0; i < end; ++i)
        if (!std::isnan(values[i])) last.push_back(values[i]);
    if (last.empty()) return NotMeasured;
    std::ranges::sort(last);
    const std::size_t middle = last.size() / 2;
    return last.size() % 2 ? last[middle] : (last[middle - 1] + last[middle]) / 2;
}

bool CurvesModel::update(const Trace* trace) {
    const std::string run = trace ? trace->run.createdUtc + '\n' + trace->run.commandLine : std::string();
    bool same = trace && run == m_run && trace->lanes.size() == m_lanes.size();
    for (std::size_t i = 0; same && i < m_lanes.size(); ++i) {
        // A preview of another budget cuts a lane's history; whatever is not a longer version of what we have is drawn anew.
        const Lane& lane = trace->lanes[i];
        const Running& had = m_running[i];
        same = lane.policy == had.policy && lane.steps.size() >= had.taken;
        if (same && had.taken > 0) {
            const StepRecord& last = lane.steps[had.taken - 1];
            same = last.step.value == had.lastValue && (last.milliseconds == had.lastMs || std::isnan(last.milliseconds));
        }
    }
    if (!same) {
        m_run = run;
        m_lanes.assign(trace ? trace->lanes.size() : 0, {});
        m_running.assign(m_lanes.size(), {});
        for (std::size_t i = 0; i < m_lanes.size(); ++i) {
            m_lanes[i].title = laneTitle(*trace, LaneIndex{static_cast<std::int32_t>(i)});
            m_running[i].policy = trace->lanes[i].policy;
        }
        m_firstX = trace ? std::max(0, trace->prefillLength - 1) : 0;
        m_lastX = m_firstX;
    }
    if (!trace) return same;
    for (std::size_t i = 0; i < m_lanes.size(); ++i)
        append(i, trace->lanes[i]);
    m_lastX = std::max(m_firstX, trace->run.kind == "score" ? static_cast<double>(trace->tokens.size()) - 1 : m_firstX);
    for (const LaneCurve& lane : m_lanes)
        if (!lane.x.empty()) m_lastX = std::max(m_lastX, lane.x.back());
    return same;
}

void CurvesModel::append(std::size_t index, const Lane& from) {
    LaneCurve& lane = m_lanes[index];
    Running& running = m_running[index];
    if (const std::size_t window = smoothingWindow(from.steps.size()); window != lane.window) {
        lane.window = window;
        for (std::size_t i = 0; i < lane.tpotSmooth.size(); ++i)
            lane.tpotSmooth[i] = std::isnan(lane.tpot[i]) ? NotMeasured : runningMedian(lane.tpot, i + 1, window);
    }
    for (; running.taken < from.steps.size(); ++running.taken) {
        const StepRecord& step = from.steps[running.taken];
        running.lastValue = step.step.value;
        running.lastMs = step.milliseconds;
        if (!std::isnan(step.nll)) {
            running.nllSum += step.nll;
            ++running.nllCount;
        }
        if (step.kind == StepRecord::Kind::prefill) continue;
        const bool decode = step.kind == StepRecord::Kind::decode;
        lane.steps.push_back(step.step.value);
        lane.x.push_back(step.firstPosition + step.count - 1);
        lane.perplexity.push_back(running.nllCount > 0 ? std::exp(running.nllSum / static_cast<double>(running.nllCount)) : NotMeasured);
        lane.tpot.push_back(decode ? step.milliseconds : NotMeasured);
        lane.tpotSmooth.push_back(decode ? runningMedian(lane.tpot, lane.tpot.size(), lane.window) : NotMeasured);
        lane.memory.push_back(static_cast<double>(step.kvBytes) / 1e6);
    }
}

bool CurvesModel::isEmpty() const {
    return std::ranges::all_of(m_lanes, [](const LaneCurve& lane) { return lane.x.empty(); });
}

int CurvesModel::pointAt(const LaneCurve& lane, int step) {
    const auto after = std::ranges::upper_bound(lane.steps, step);
    return static_cast<int>(after - lane.steps.begin()) - 1;
}

double CurvesModel::xOf(int step) const {
    double x = m_firstX;
    for (const LaneCurve& lane : m_lanes)
        if (const int at = pointAt(lane, step); at >= 0) x = std::max(x, lane.x[static_cast<std::size_t>(at)]);
    return x;
}

int CurvesModel::stepNear(double x) const {
    int best = -1;
    double distance = std::numeric_limits<double>::infinity();
    for (const LaneCurve& lane : m_lanes) {
        if (lane.x.empty()) continue;
        auto at = std::ranges::lower_bound(lane.x, x);
        if (at == lane.x.end() || (at != lane.x.begin() && x - *(at - 1) < *at - x)) --at;
        if (std::abs(*at - x) < distance) {
            distance = std::abs(*at - x);
            best = lane.steps[static_cast<std::size_t>(at - lane.x.begin())];
        }
    }
    return best;
}

} // namespace keepsight
