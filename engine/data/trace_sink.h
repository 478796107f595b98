// Where a running job puts its records: into memory, into a .keep file, or both.
#pragma once

#include "engine/data/trace.h"

#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

namespace keepsight {

// Calls come from one thread, in the order: begin, then records with non-descending steps per lane, then end.
class TraceSink {
public:
    virtual ~TraceSink() = default;
    virtual void begin(const Trace& header) = 0;                       // run, model, lanes (label, policy), prefillLength; no records yet
    virtual void add(LaneIndex lane, const TokenRecord& token) = 0;    // SharedLane, or the lane that generated it
    virtual void add(LaneIndex lane, const StepRecord& step) = 0;      // appends step.count positions to the lane's retention
    virtual void add(const KeepRecord& evictions) = 0;                 // after its step was added
    virtual void add(std::shared_ptr<const AttentionMap> map) = 0;     // replaces an earlier map of the same lane, layer, head, perQueryHead
    virtual void add(const Measurement& measurement) = 0;
    virtual void notice(LaneIndex lane, const std::string& text) = 0;
    virtual void end(Outcome outcome, const std::string& failure) = 0; // failure: empty, or the sentence of the exception
};

// Builds a Trace; snapshot() may be called from any thread.
class MemoryTrace final : public TraceSink {
public:
    MemoryTrace() = default;
    explicit MemoryTrace(Trace start);                                 // continue from a loaded trace
    void begin(const Trace& header) override;
    void add(LaneIndex lane, const TokenRecord& token) override;
    void add(LaneIndex lane, const StepRecord& step) override;
    void add(const KeepRecord& evictions) override;
    void add(std::shared_ptr<const AttentionMap> map) override;
    void add(const Measurement& measurement) override;
    void notice(LaneIndex lane, const std::string& text) override;
    void end(Outcome outcome, const std::string& failure) override;
    std::shared_ptr<const Trace> snapshot() const;                     // immutable copy; the same pointer while nothing changed

private:
    mutable std::mutex m_mutex;
    Trace m_trace;
    mutable std::shared_ptr<const Trace> m_last;
};

class TeeSink final : public TraceSink {
public:
    explicit TeeSink(std::vector<TraceSink*> sinks) : m_sinks(std::move(sinks)) {} // not owned
    void begin(const Trace& header) override { for (auto* s : m_sinks) s->begin(header); }
    void add(LaneIndex lane, const TokenRecord& token) override { for (auto* s : m_sinks) s->add(lane, token); }
    void add(LaneIndex lane, const StepRecord& step) override { for (auto* s : m_sinks) s->add(lane, step); }
    void add(const KeepRecord& evictions) override { for (auto* s : m_sinks) s->add(evictions); }
    void add(std::shared_ptr<const AttentionMap> map) override { for (auto* s : m_sinks) s->add(map); }
    void add(const Measurement& measurement) override { for (auto* s : m_sinks) s->add(measurement); }
    void notice(LaneIndex lane, const std::string& text) override { for (auto* s : m_sinks) s->notice(lane, text); }
    // Every sink is told, also when one of them cannot write any more; the first such error is thrown then.
    void end(Outcome outcome, const std::string& failure) override {
        std::exception_ptr first;
        for (TraceSink* sink : m_sinks) try {
                sink->end(outcome, failure);
            } catch (...) {
                if (!first) first = std::current_exception();
            }
        if (first) std::rethrow_exception(first);
    }

private:
    std::vector<TraceSink*> m_sinks;
};

} // namespace keepsight
