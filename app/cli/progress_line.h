// One line on stderr that rewrites itself: stage, share, ETA. Silent unless stderr is a terminal.
#pragma once

#include "engine/data/progress.h"

#include <chrono>
#include <string>

namespace keepsight::cli {

class ProgressLine {
public:
    explicit ProgressLine(bool enabled);
    ~ProgressLine() { clear(); }
    ProgressLine(const ProgressLine&) = delete;
    ProgressLine& operator=(const ProgressLine&) = delete;

    void show(const Progress& progress); // at most ten times a second
    void clear();
    void stop(); // clears, and stays silent: the terminal now belongs to the answer

    static std::string text(const Progress& progress); // "prefill  37 %  ETA 1:05"

private:
    bool m_enabled = false, m_visible = false;
    std::chrono::steady_clock::time_point m_last{};
};

} // namespace keepsight::cli
