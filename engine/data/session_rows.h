// A trace's records as rows of a session file. Internal to engine/data's sources.
#pragma once

#include "engine/data/session_db.h"
#include "engine/data/trace.h"

#include <map>
#include <tuple>
#include <vector>

namespace keepsight::session {

inline constexpr int KeyframeEvery = 64; // steps; and step 1

enum MetaRow : std::int64_t { RunRow = 1, ModelRow = 2, PrefillRow = 3 };
enum RetainedKind : std::int64_t { Delta = 0, Keyframe = 1 };

// Turns records into rows; keeps per lane what it needs to write held sets. Transactions belong to the caller.
class TraceRows {
public:
    explicit TraceRows(Database& db) : m_rows(db) {}
    void create(const Trace& trace);      // tables and everything the trace holds
    void resume(const TraceRows& before); // the same file through another connection
    void setRun(const RunInfo& run);
    void add(LaneIndex lane, const TokenRecord& token);
    void add(LaneIndex lane, const StepRecord& step);
    void add(const KeepRecord& evictions);
    void add(const AttentionMap& map);
    void add(const Measurement& measurement);
    void notice(LaneIndex lane, const std::string& text);
    void flush();    // evictions collected so far, and the seal
    void complete(); // the last step of every lane is over: its keyframe, if one is due
    const RunInfo& run() const { return m_run; }

private:
    struct LaneState {
        std::string label, notice;
        PolicySpec policy;
        Retention retention;
        int steps = 0;
        std::vector<KeepRecord> pending; // evictions of the newest step, not yet written
        bool keyframeWritten = false;    // of the newest step
    };
    LaneState& lane(LaneIndex index);
    void putLane(std::size_t index);
    void writePending(LaneIndex index, LaneState& lane);
    void writeKeyframe(LaneIndex index, LaneState& lane);
    void addHistory(LaneIndex index, const Lane& lane);

    RowWriter m_rows;
    RunInfo m_run;
    std::vector<LaneState> m_lanes;
    std::map<std::tuple<int, int, int, bool>, std::int64_t> m_mapRows; // lane, layer, head, perQueryHead
};

} // namespace keepsight::session
