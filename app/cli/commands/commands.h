// One function per command of keepsight-cli. Adding one: a file here, one line below, one line in main.cpp.
#pragma once

#include "app/cli/run_job.h"

#include <functional>

namespace keepsight::cli {

// Adds the command's options to `app` and returns what runs it; the result is the exit code.
using RunCommand = std::function<int(const Shell&)>;

RunCommand addPolicies(CLI::App& app);
RunCommand addQuantizers(CLI::App& app);
RunCommand addInfo(CLI::App& app);
RunCommand addTokenize(CLI::App& app);
RunCommand addLogits(CLI::App& app);
RunCommand addGenerate(CLI::App& app);
RunCommand addScore(CLI::App& app);
RunCommand addPerplexity(CLI::App& app);
RunCommand addBench(CLI::App& app);
RunCommand addSuite(CLI::App& app);
RunCommand addNeedle(CLI::App& app);
RunCommand addReplay(CLI::App& app);
RunCommand addExport(CLI::App& app);

} // namespace keepsight::cli
