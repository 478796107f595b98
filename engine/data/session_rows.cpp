#include "engine/data/session_rows.h"

#include "engine/data/error.h"
#include "engine/data/plain_json.h"
#include "engine/data/session_codec.h"

namespace keepsight::session {

namespace {

Cell integer(std::int64_t value) { return value; }
Text json(const OrderedJson& value) { return {value.dump()}; }

} // namespace

void TraceRows::create(const Trace& trace) {
    m_rows.createTables();
    setRun(trace.run);
    m_rows.put(Meta, ModelRow, {Text{"model"}, json(modelToJson(trace.model))});
    m_rows.put(Meta, PrefillRow, {Text{"prefill_length"}, Text{std::to_string(trace.prefillLength)}});
    for (std::size_t i = 0; i < trace.lanes.size(); ++i) {
        const Lane& from = trace.lanes[i];
        LaneState& state = m_lanes.emplace_back();
        state.label = from.label;
        state.policy = from.policy;
        state.notice = from.notice;
        const bool fresh = from.retention.layers() == 0 && from.retention.positions() == 0;
        state.retention = fresh ? Retention(trace.model.config.layers, storedHeads(trace.model.config, from.policy))
                                : Retention(from.retention.layers(), from.retention.heads());
        putLane(i);
    }
    for (const TokenRecord& token : trace.tokens)
        add(SharedLane, token);
    for (const auto& map : trace.maps)
        add(*map);
    for (std::size_t i = 0; i < trace.lanes.size(); ++i) {
        const LaneIndex index{static_cast<int>(i)};
        for (const TokenRecord& token : trace.lanes[i].generated)
            add(index, token);
        addHistory(index, trace.lanes[i]);
        for (const auto& map : trace.lanes[i].maps)
            add(*map);
    }
    for (const Measurement& measurement : trace.measurements)
        add(measurement);
}

void TraceRows::addHistory(LaneIndex index, const Lane& from) {
    std::vector<std::vector<KeepRecord>> bySteps(from.steps.size());
    for (int layer = 0; layer < from.retention.layers(); ++layer)
        for (int head = 0; head < from.retention.heads(); ++head) {
            const auto row = from.retention.evictedAt(LayerIndex{layer}, HeadIndex{head});
            for (std::size_t p = 0; p < row.size(); ++p) {
                if (row[p] == NeverEvicted) continue;
                if (row[p] < 0 || static_cast<std::size_t>(row[p]) >= bySteps.size())
                    throw EngineError("session: lane " + from.label + " evicts at step " + std::to_string(row[p]) +
                                      ", which it does not have");
                auto& records = bySteps[static_cast<std::size_t>(row[p])];
                if (records.empty() || records.back().layer.value != layer || records.back().head.value != head)
                    records.push_back({index, Step{row[p]}, LayerIndex{layer}, HeadIndex{head}, {}});
                records.back().evicted.push_back(static_cast<Position>(p));
            }
        }
    for (const StepRecord& step : from.steps) {
        add(index, step);
        for (const KeepRecord& record : bySteps[static_cast<std::size_t>(step.step.value)])
            add(record);
    }
    const LaneState& written = lane(index);
    const auto born = written.retention.bornAt(), expected = from.retention.bornAt();
    if (!std::equal(born.begin(), born.end(), expected.begin(), expected.end()))
        throw EngineError("session: the positions held by lane " + from.label + " do not match its steps");
}

void TraceRows::resume(const TraceRows& before) {
    m_rows.restore(before.m_rows);
    m_run = before.m_run;
    m_lanes = before.m_lanes;
    m_mapRows = before.m_mapRows;
}

TraceRows::LaneState& TraceRows::lane(LaneIndex index) {
    if (index.value < 0 || static_cast<std::size_t>(index.value) >= m_lanes.size())
        throw EngineError("session: a record names lane " + std::to_string(index.value) + ", but the run has " +
                          std::to_string(m_lanes.size()) + " lanes");
    return m_lanes[static_cast<std::size_t>(index.value)];
}

void TraceRows::setRun(const RunInfo& run) {
    m_run = run;
    m_rows.put(Meta, RunRow, {Text{"run"}, json(runToJson(run))});
}

void TraceRows::putLane(std::size_t index) {
    const LaneState& state = m_lanes[index];
    m_rows.put(Lanes, static_cast<std::int64_t>(index) + 1,
               {json(jsonOfBytes(state.label)), json(policyToJson(state.policy)), json(jsonOfBytes(state.notice)),
                integer(state.retention.layers()), integer(state.retention.heads())});
}

void TraceRows::add(LaneIndex index, const TokenRecord& token) {
    if (index != SharedLane) lane(index);
    m_rows.append(Tokens, {integer(index.value), integer(token.position), integer(token.id), integer(static_cast<int>(token.role)),
                           Blob{token.bytes}});
}

void TraceRows::add(LaneIndex index, const StepRecord& step) {
    LaneState& state = lane(index);
    if (step.step.value != state.steps)
        throw EngineError("session: lane " + state.label + " records step " + std::to_string(step.step.value) + "; expected step " +
                          std::to_string(state.steps));
    writePending(index, state);
    writeKeyframe(index, state);
    state.retention.append(step.step, step.count);
    ++state.steps;
    state.keyframeWritten = false;
    m_rows.append(Steps, {integer(index.value), integer(step.step.value), integer(static_cast<int>(step.kind)), integer(step.firstPosition),
                          integer(step.count), real(step.milliseconds), real(step.policyMilliseconds), real(step.nll),
                          integer(step.kvBytes), integer(step.allocatedBytes)});
}

void TraceRows::add(const KeepRecord& evictions) {
    LaneState& state = lane(evictions.lane);
    if (evictions.step.value != state.steps - 1)
        throw EngineError("session: lane " + state.label + " evicts at step " + std::to_string(evictions.step.value) + " while step " +
                          std::to_string(state.steps - 1) + " is the newest");
    state.retention.evict(evictions);
    if (!evictions.evicted.empty()) state.pending.push_back(evictions);
}

void TraceRows::add(const AttentionMap& map) {
    if (map.lane != SharedLane) lane(map.lane);
    if (map.rows < 0 || map.cols < 0 || map.values.size() != static_cast<std::size_t>(map.rows) * static_cast<std::size_t>(map.cols))
        throw EngineError("session: an attention map of " + std::to_string(map.rows) + " × " + std::to_string(map.cols) + " cells holds " +
                          std::to_string(map.values.size()) + " values");
    auto& row = m_mapRows[{map.lane.value, map.layer.value, map.head.value, map.perQueryHead}];
    if (row == 0) row = static_cast<std::int64_t>(m_mapRows.size());
    const MapEncoding encoding = encodingOf(map);
    m_rows.put(Maps, row,
               {integer(map.lane.value), integer(map.layer.value), integer(map.head.value), integer(map.perQueryHead),
                integer(map.rowBegin), integer(map.rowEnd), integer(map.rowBin), integer(map.colBin), integer(map.rows), integer(map.cols),
                integer(static_cast<int>(encoding)), Blob{encodeMap(map, encoding)}});
}

void TraceRows::add(const Measurement& measurement) {
    m_rows.append(Measurements, {integer(measurement.lane.value), json(jsonOfBytes(measurement.kind)), json(fieldsToJson(measurement))});
}

void TraceRows::notice(LaneIndex index, const std::string& text) {
    lane(index).notice = text;
    putLane(static_cast<std::size_t>(index.value));
}

void TraceRows::writePending(LaneIndex index, LaneState& state) {
    if (state.pending.empty()) return;
    m_rows.append(Retained, {integer(index.value), integer(state.steps - 1), integer(Delta),
                             Blob{encodeDelta(state.pending, state.retention.layers(), state.retention.heads())}});
    state.pending.clear();
}

void TraceRows::writeKeyframe(LaneIndex index, LaneState& state) {
    const int step = state.steps - 1;
    if (state.keyframeWritten || state.retention.layers() == 0 || (step != 1 && (step <= 0 || step % KeyframeEvery != 0))) return;
    m_rows.append(Retained,
                  {integer(index.value), integer(step), integer(Keyframe), Blob{compressed(heldBitmaps(state.retention, Step{step}))}});
    state.keyframeWritten = true;
}

void TraceRows::flush() {
    for (std::size_t i = 0; i < m_lanes.size(); ++i)
        writePending(LaneIndex{static_cast<int>(i)}, m_lanes[i]);
    m_rows.seal();
}

void TraceRows::complete() {
    for (std::size_t i = 0; i < m_lanes.size(); ++i) {
        writePending(LaneIndex{static_cast<int>(i)}, m_lanes[i]);
        writeKeyframe(LaneIndex{static_cast<int>(i)}, m_lanes[i]);
    }
    m_rows.seal();
}

} // namespace keepsight::session
