// Options that several commands share, and what they become: prompts, lanes, output files.
#pragma once

#include "engine/data/job.h"

#include <CLI/CLI.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight::cli {

struct GlobalOptions { // may stand before or after the command
    std::string device = "auto", dtype = "auto", logLevel = "info";
    int threads = 0;
    std::uint64_t seed = 0;
    void add(CLI::App& app);
    bool shows(std::string_view level) const; // "info" shows notices and progress, "warn" notices, "error" neither
};

struct ModelOption {
    std::string path;
    void add(CLI::App& app);
    std::filesystem::path resolve() const; // the option, else the installed default; throws EngineError
};

struct PromptOptions {
    std::string textFile, idsFile;
    bool chat = false, special = false;
    void add(CLI::App& app, const std::string& textOption, bool frames = true);
    PromptSpec read() const; // throws UsageError if neither or both files are given
};

// The lanes a job runs, and the rows a table shows: a policy that ignores budgets runs once and is repeated for each of them.
struct LanePlan {
    struct Row {
        std::size_t lane = 0;
        Budget budget;
    };
    std::vector<LaneSpec> lanes;
    std::vector<Row> rows;
};

struct LaneOptions {
    std::vector<std::string> policies, lanes, quantizers;
    std::vector<double> ratios;
    std::vector<int> budgets;
    void add(CLI::App& app);
    LanePlan plan() const; // throws UsageError
};

struct OutputOptions {
    std::string json, csv, session;
    void add(CLI::App& app, bool withSession = true);
    void check() const; // before hours of work: the folders exist
    bool textToStdout() const { return json != "-" && csv != "-"; }
};

// Windows of suffix perplexity.
struct WindowOptions {
    PplSpec ppl;
    bool noBoundary = false;
    void add(CLI::App& app);
    PplSpec read() const;
};

void addBenchOptions(CLI::App& app, BenchSpec& bench);

std::string readText(const std::string& file);                                      // "-": stdin; refuses NUL bytes and what is not UTF-8
std::vector<TokenId> readIds(const std::string& file);                              // JSON array
std::vector<int> parseIntegers(const std::string& text, const std::string& option); // "A:B:S" or "1,2,3"
std::vector<double> parseDepths(const std::string& text);                           // "N" evenly from 0 to 100, "A:B:S" or "0,50,100"
CLI::Validator realFrom(double low, double high);                                   // inclusive; CLI11's own range lets NaN through
std::string quotedLine(int argc, char** argv);                                      // keepsight-cli …, ready to paste

} // namespace keepsight::cli
