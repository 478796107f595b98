#include "app/gui/run_recorder.h"

#include <algorithm>
#include <exception>

namespace keepsight {

RecoverySink::RecoverySink(const std::filesystem::path& path, std::function<void(const std::string&)> warn) : m_warn(std::move(warn)) {
    try {
        m_writer = std::make_unique<TraceFileWriter>(path);
    } catch (const std::exception& e) {
        m_warn(e.what());
    }
}

RunRecorder::RunRecorder(Publish publish, Shown shown, std::unique_ptr<TraceSink> alsoTo)
    : m_alsoTo(std::move(alsoTo)), m_publish(std::move(publish)), m_shown(std::move(shown)) {}

void RunRecorder::begin(const Trace& header) {
    m_memory.begin(header);
    m_begun = true;
    if (m_alsoTo) m_alsoTo->begin(header);
    tick();
}

void RunRecorder::add(LaneIndex lane, const TokenRecord& token) {
    m_memory.add(lane, token);
    if (m_alsoTo) m_alsoTo->add(lane, token);
}

void RunRecorder::add(LaneIndex lane, const StepRecord& step) {
    tick(); // before the step: a snapshot never shows a step without the evictions that follow it
    m_memory.add(lane, step);
    if (m_alsoTo) m_alsoTo->add(lane, step);
}

void RunRecorder::add(const KeepRecord& evictions) {
    m_memory.add(evictions);
    if (m_alsoTo) m_alsoTo->add(evictions);
}

void RunRecorder::add(std::shared_ptr<const AttentionMap> map) {
    m_memory.add(map);
    if (m_alsoTo) m_alsoTo->add(map);
}

void RunRecorder::add(const Measurement& measurement) {
    m_memory.add(measurement);
    if (m_alsoTo) m_alsoTo->add(measurement);
    tick();
}

void RunRecorder::notice(LaneIndex lane, const std::string& text) {
    m_memory.notice(lane, text);
    if (m_alsoTo) m_alsoTo->notice(lane, text);
}

void RunRecorder::end(Outcome outcome, const std::string& failure) {
    m_memory.end(outcome, failure);
    if (m_alsoTo) m_alsoTo->end(outcome, failure);
}

void RunRecorder::tick() {
    const auto now = Clock::now();
    if (!m_begun || now < m_published + LeastInterval) return;
    if (m_published != Clock::time_point{}) {
        const auto showing = m_shown();
        if (!showing || now < m_published + CostShare * (m_copying + *showing)) return;
    }
    auto snapshot = m_memory.snapshot();
    m_published = Clock::now();
    m_copying = m_published - now;
    m_publish(std::move(snapshot));
}

} // namespace keepsight
