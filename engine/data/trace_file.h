// The .keep session file (SQLite; engine/data/FORMAT.md). Writing survives kill -9; reading never changes the file.
#pragma once

#include "engine/data/trace_sink.h"

namespace keepsight {

// Records a run while it goes on. The file is a complete, openable session after every committed batch (at most half a second behind).
// An existing file at `path` is replaced only when begin() was written completely to a temporary beside it.
// Errors (full disk, no permission): EngineError naming path and cause, thrown by the call that met it.
class TraceFileWriter final : public TraceSink {
public:
    explicit TraceFileWriter(const std::filesystem::path& path);
    ~TraceFileWriter() override;
    void begin(const Trace& header) override;
    void add(LaneIndex lane, const TokenRecord& token) override;
    void add(LaneIndex lane, const StepRecord& step) override;
    void add(const KeepRecord& evictions) override;
    void add(std::shared_ptr<const AttentionMap> map) override;
    void add(const Measurement& measurement) override;
    void notice(LaneIndex lane, const std::string& text) override;
    void end(Outcome outcome, const std::string& failure) override;

private:
    struct Private;
    std::unique_ptr<Private> d;
};

struct SaveOptions {
    bool withoutText = false; // "share without prompt": token ids and bytes are left out, positions stay
};

// Whole-file save through a temporary and rename: what was at `path` is intact until the new file is complete.
void saveTrace(const Trace& trace, const std::filesystem::path& path, const SaveOptions& options = {});

// Throws EngineError: not a session, newer format (names both versions), truncated or damaged (names the part).
std::shared_ptr<const Trace> loadTrace(const std::filesystem::path& path);

} // namespace keepsight
