#include "app/cli/progress_line.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <unistd.h>

namespace keepsight::cli {

ProgressLine::ProgressLine(bool enabled) : m_enabled(enabled && ::isatty(STDERR_FILENO) != 0) {}

std::string ProgressLine::text(const Progress& progress) {
    std::string out = progress.stage;
    if (progress.total > 0) {
        const auto share = 100.0 * static_cast<double>(progress.done) / static_cast<double>(progress.total);
        out += "  " + std::to_string(static_cast<int>(std::clamp(share, 0.0, 100.0))) + " %";
    }
    if (progress.etaSeconds >= 0 && std::isfinite(progress.etaSeconds)) {
        const auto seconds = static_cast<long>(std::min(progress.etaSeconds + 0.5, 359999.0));
        char eta[32];
        if (seconds >= 3600)
            std::snprintf(eta, sizeof eta, "  ETA %ld:%02ld:%02ld", seconds / 3600, seconds / 60 % 60, seconds % 60);
        else
            std::snprintf(eta, sizeof eta, "  ETA %ld:%02ld", seconds / 60, seconds % 60);
        out += eta;
    }
    return out;
}

void ProgressLine::show(const Progress& progress) {
    if (!m_enabled) return;
    const auto now = std::chrono::steady_clock::now();
    if (m_visible && now - m_last < std::chrono::milliseconds(100)) return;
    m_last = now;
    m_visible = true;
    std::fprintf(stderr, "\r\033[K%s", text(progress).c_str());
    std::fflush(stderr);
}

void ProgressLine::clear() {
    if (m_visible) {
        std::fputs("\r\033[K", stderr);
        std::fflush(stderr);
    }
    m_visible = false;
}

void ProgressLine::stop() {
    clear();
    m_enabled = false;
}

} // namespace keepsight::cli
