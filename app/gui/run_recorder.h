// The sink of a run in the window: memory for the views, a recovery file for accidents, and a throttled call for snapshots.
#pragma once

#include "engine/data/trace_file.h"
#include "engine/data/trace_sink.h"

#include <chrono>
#include <functional>
#include <optional>
#include <string>

namespace keepsight {

// Records to a file as long as that works; the first failure is reported once and ends the recording, not the run.
class RecoverySink final : public TraceSink {
public:
    RecoverySink(const std::filesystem::path& path, std::function<void(const std::string&)> warn);
    void begin(const Trace& header) override { guarded([&] { m_writer->begin(header); }); }
    void add(LaneIndex lane, const TokenRecord& token) override { guarded([&] { m_writer->add(lane, token); }); }
    void add(LaneIndex lane, const StepRecord& step) override { guarded([&] { m_writer->add(lane, step); }); }
    void add(const KeepRecord& evictions) override { guarded([&] { m_writer->add(evictions); }); }
    void add(std::shared_ptr<const AttentionMap> map) override { guarded([&] { m_writer->add(map); }); }
    void add(const Measurement& measurement) override { guarded([&] { m_writer->add(measurement); }); }
    void notice(LaneIndex lane, const std::string& text) override { guarded([&] { m_writer->notice(lane, text); }); }
    void end(Outcome outcome, const std::string& failure) override { guarded([&] { m_writer->end(outcome, failure); }); }

private:
    template <class Call>
    void guarded(const Call& call) {
        if (!m_writer) return;
        try {
            call();
        } catch (const std::exception& e) {
            m_writer.reset();
            m_warn(e.what());
        }
    }
    std::unique_ptr<TraceFileWriter> m_writer;
    std::function<void(const std::string&)> m_warn;
};

// Snapshots are taken as often as they are cheap: copying one and showing it use the processors the run is using, and together they
// get no more than CostShare of its time.
class RunRecorder final : public TraceSink {
public:
    using Clock = std::chrono::steady_clock;
    using Publish = std::function<void(std::shared_ptr<const Trace>)>; // called in the engine's thread
    using Shown = std::function<std::optional<Clock::duration>()>;     // what showing the last snapshot cost; nullopt: it is not shown yet
    static constexpr int CostShare = 20;                               // one part in
    static constexpr auto LeastInterval = std::chrono::milliseconds(66);
    RunRecorder(Publish publish, Shown shown, std::unique_ptr<TraceSink> alsoTo);

    void begin(const Trace& header) override;
    void add(LaneIndex lane, const TokenRecord& token) override;
    void add(LaneIndex lane, const StepRecord& step) override;
    void add(const KeepRecord& evictions) override;
    void add(std::shared_ptr<const AttentionMap> map) override;
    void add(const Measurement& measurement) override;
    void notice(LaneIndex lane, const std::string& text) override;
    void end(Outcome outcome, const std::string& failure) override;

    void tick(); // publishes if it is time; also called with each progress report, so that the last records before a pause are shown
    std::shared_ptr<const Trace> result() const { return m_begun ? m_memory.snapshot() : nullptr; }

private:
    MemoryTrace m_memory;
    std::unique_ptr<TraceSink> m_alsoTo;
    Publish m_publish;
    Shown m_shown;
    Clock::time_point m_published{}; // the last one
    Clock::duration m_copying{};     // took this long
    bool m_begun = false;
};

} // namespace keepsight
