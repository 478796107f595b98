#include "app/gui/inspector_panel.h"

#include "widgets/base/plot_view.h"

#include <algorithm>
#include <cmath>

namespace keepsight {

namespace {

// Mean over the visible rows of the column that covers a position.
double columnMean(const AttentionMap& map, Position position) {
    if (map.colBin <= 0) return NotMeasured;
    const int col = position / map.colBin;
    if (col < 0 || col >= map.cols) return NotMeasured;
    double sum = 0;
    int count = 0;
    for (int r = 0; r < map.rows; ++r) {
        const float v = map.values[std::size_t(r) * std::size_t(map.cols) + std::size_t(col)];
        if (std::isnan(v)) continue;
        sum += double(v);
        ++count;
    }
    return count ? sum / count : NotMeasured;
}

Step stepOf(const Lane& lane, Step wanted) { return Step(std::clamp(wanted.value, 0, std::max(0, int(lane.steps.size()) - 1))); }

double nllOf(const Lane& lane, Position position) {
    for (const StepRecord& s : lane.steps)
        if (s.kind == StepRecord::Kind::decode && position >= s.firstPosition && position < s.firstPosition + s.count) return s.nll;
    return NotMeasured;
}

} // namespace

TokenFacts tokenFacts(const Trace& trace, const Focus& wanted) {
    TokenFacts facts;
    const Focus focus = clampFocus(wanted, &trace);
    facts.position = focus.position;
    if (focus.position < 0 || trace.lanes.empty()) return facts;
    facts.token = tokenText(trace, focus.lane, focus.position);
    const Lane& lane = trace.lanes[std::size_t(focus.lane.value)];
    for (const Lane& l : trace.lanes)
        facts.nll.push_back(nllOf(l, focus.position));
    const HeadIndex kvHead = kvHeadOf(trace, focus.lane, focus.head);
    if (const auto map = trace.map(SharedLane, focus.layer, kvHead)) {
        facts.attentionPrefill = columnMean(*map, focus.position);
        facts.bin = map->colBin;
    }
    if (const auto map = trace.map(focus.lane, focus.layer, kvHead)) facts.attentionSince = columnMean(*map, focus.position);
    const Retention& r = lane.retention;
    if (lane.steps.empty() || r.layers() == 0 || focus.position >= r.positions()) return facts;
    const Step step = stepOf(lane, focus.step);
    facts.seen = r.positionsAt(step);
    facts.appended = focus.position < facts.seen;
    facts.held = r.holds(step, focus.layer, focus.head, focus.position);
    facts.evictedAt = r.evictedAt(focus.layer, focus.head)[std::size_t(focus.position)];
    facts.holders = r.holdersAt(step, focus.position);
    facts.holdersOf = r.layers() * r.heads();
    facts.kept = r.countAt(step, focus.layer, focus.head);
    return facts;
}

LaneComparison compareLanes(const Trace& trace, LaneIndex reference, LaneIndex lane, const Focus& wanted) {
    LaneComparison c;
    const Focus focus = clampFocus(wanted, &trace);
    const Lane &a = trace.lanes.at(std::size_t(reference.value)), &b = trace.lanes.at(std::size_t(lane.value));
    if (a.steps.empty() || b.steps.empty()) return c;
    const Step step(std::min(stepOf(a, focus.step).value, stepOf(b, focus.step).value));
    c.reference = trace.perplexityAt(reference, step);
    c.perplexity = trace.perplexityAt(lane, step);
    const auto bytes = [step](const Lane& l) { return double(l.steps[std::size_t(step.value)].kvBytes); };
    if (bytes(a) > 0) c.bytesShare = bytes(b) / bytes(a);
    const Retention &ra = a.retention, &rb = b.retention;
    if (ra.layers() == 0 || ra.layers() != rb.layers() || rb.heads() == 0) return c;
    const int heads = std::max(ra.heads(), rb.heads()); // a KV head that one lane stores is compared with each of its query heads in the other
    std::int64_t both = 0, any = 0;
    const auto add = [&](LayerIndex layer, HeadIndex head, std::int64_t& common, std::int64_t& all) {
        const auto ea = ra.evictedAt(layer, HeadIndex(head.value * ra.heads() / heads)), eb = rb.evictedAt(layer, HeadIndex(head.value * rb.heads() / heads));
        const Position n = std::min(ra.positionsAt(step), rb.positionsAt(step));
        for (Position p = 0; p < n; ++p) {
            const bool inA = ea[std::size_t(p)] > step.value, inB = eb[std::size_t(p)] > step.value;
            common += inA && inB;
            all += inA || inB;
        }
    };
    for (int h = focus.head.value * heads / storedHeads(trace, focus.lane); h < (focus.head.value + 1) * heads / storedHeads(trace, focus.lane); ++h)
        add(focus.layer, HeadIndex(h), both, any);
    if (any) c.jaccardHead = double(both) / double(any);
    both = any = 0;
    for (int l = 0; l < ra.layers(); ++l)
        for (int h = 0; h < heads; ++h)
            add(LayerIndex(l), HeadIndex(h), both, any);
    if (any) c.jaccardAll = double(both) / double(any);
    return c;
}

} // namespace keepsight
