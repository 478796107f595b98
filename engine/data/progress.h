// What long work reports, and how it may end.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace keepsight {

struct Progress {
    std::string stage;       // "prefill", "lane B: decode", "needle 3/9" … shown as it is
    std::int64_t done = 0;   // in units of the stage (tokens, cells, bytes)
    std::int64_t total = 0;  // 0: unknown
    double etaSeconds = -1;  // of the whole job; negative: unknown
};

using OnProgress = std::function<void(const Progress&)>;

enum class Outcome { complete, cancelled };

} // namespace keepsight
