#include "engine/data/error.h"
#include "engine/data/trace_sink.h"

namespace keepsight {

namespace {

Lane& laneOf(Trace& trace, LaneIndex lane) {
    if (lane.value < 0 || static_cast<std::size_t>(lane.value) >= trace.lanes.size())
        throw EngineError("trace: a record names lane " + std::to_string(lane.value) + ", but the run has " +
                          std::to_string(trace.lanes.size()) + " lanes");
    return trace.lanes[static_cast<std::size_t>(lane.value)];
}

void prepareLanes(Trace& trace) {
    for (Lane& lane : trace.lanes)
        if (lane.retention.positions() == 0 && lane.retention.layers() == 0)
            lane.retention = Retention(trace.model.config.layers, storedHeads(trace.model.config, lane.policy));
}

} // namespace

MemoryTrace::MemoryTrace(Trace start) : m_trace(std::move(start)) { prepareLanes(m_trace); }

void MemoryTrace::begin(const Trace& header) {
    const std::lock_guard lock(m_mutex);
    m_trace = header;
    prepareLanes(m_trace);
    m_last.reset();
}

void MemoryTrace::add(LaneIndex lane, const TokenRecord& token) {
    const std::lock_guard lock(m_mutex);
    (lane == SharedLane ? m_trace.tokens : laneOf(m_trace, lane).generated).push_back(token);
    m_last.reset();
}

void MemoryTrace::add(LaneIndex index, const StepRecord& step) {
    const std::lock_guard lock(m_mutex);
    Lane& lane = laneOf(m_trace, index);
    if (step.step.value != static_cast<std::int32_t>(lane.steps.size()))
        throw EngineError("trace: lane " + lane.label + " records step " + std::to_string(step.step.value) + "; expected step " +
                          std::to_string(lane.steps.size()));
    lane.retention.append(step.step, step.count);
    lane.steps.push_back(step);
    m_last.reset();
}

void MemoryTrace::add(const KeepRecord& evictions) {
    const std::lock_guard lock(m_mutex);
    laneOf(m_trace, evictions.lane).retention.evict(evictions);
    m_last.reset();
}

void MemoryTrace::add(std::shared_ptr<const AttentionMap> map) {
    const std::lock_guard lock(m_mutex);
    auto& maps = map->lane == SharedLane ? m_trace.maps : laneOf(m_trace, map->lane).maps;
    m_last.reset();
    for (auto& old : maps)
        if (old->layer == map->layer && old->head == map->head && old->perQueryHead == map->perQueryHead) {
            old = std::move(map);
            return;
        }
    maps.push_back(std::move(map));
}

void MemoryTrace::add(const Measurement& measurement) {
    const std::lock_guard lock(m_mutex);
    m_trace.measurements.push_back(measurement);
    m_last.reset();
}

void MemoryTrace::notice(LaneIndex lane, const std::string& text) {
    const std::lock_guard lock(m_mutex);
    laneOf(m_trace, lane).notice = text;
    m_last.reset();
}

void MemoryTrace::end(Outcome outcome, const std::string& failure) {
    const std::lock_guard lock(m_mutex);
    m_trace.run.finished = true;
    m_trace.run.cancelled = outcome == Outcome::cancelled;
    m_trace.run.failure = failure;
    m_last.reset();
}

std::shared_ptr<const Trace> MemoryTrace::snapshot() const {
    const std::lock_guard lock(m_mutex);
    if (!m_last) m_last = std::make_shared<const Trace>(m_trace);
    return m_last;
}

} // namespace keepsight
