#pragma once

namespace keepsight::cli {

inline constexpr int ExitDone = 0;        // also --help and --version
inline constexpr int ExitFailed = 1;      // the run failed; one line on stderr says what and what to do
inline constexpr int ExitUsage = 2;       // the request is wrong in itself
inline constexpr int ExitCancelled = 130; // Ctrl-C; what was done is kept

} // namespace keepsight::cli
