// What a person asks the engine to do, as plain data. Front ends build it; the trace stores it as JSON.
#pragma once

#include "engine/data/ids.h"
#include "engine/data/policy_spec.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace keepsight {

enum class RunKind { score, generate, needle, ppl, bench, suite };

struct PromptSpec {
    std::string text;                      // UTF-8; refused if it holds NUL bytes or is not UTF-8
    std::optional<std::vector<TokenId>> ids; // in place of text
    bool chat = false;                     // wrap as the user turn of the model's chat frame
    bool special = false;                  // add BOS etc. as the tokenizer's own rules say, and parse special tokens in the text
    bool operator==(const PromptSpec&) const = default;
};

struct LaneSpec {
    std::string label; // "A", …
    PolicySpec policy;
    bool operator==(const LaneSpec&) const = default;
};

struct SamplerSpec {
    double temperature = 0.0; // 0: greedy
    double topP = 1.0;
    bool operator==(const SamplerSpec&) const = default;
};

// Score: prefill the first part, then feed the rest token by token, teacher-forced.
struct ScoreSpec {
    double prefixRatio = 0.75; // prefix = floor(tokens · ratio), at least 1, at most tokens − 1
    bool operator==(const ScoreSpec&) const = default;
};

struct GenerateSpec {
    int maxNew = 64;
    bool ignoreEos = false;
    std::vector<int> explain; // positions whose fate is told for every layer, head and selection
    bool operator==(const GenerateSpec&) const = default;
};

// Suffix perplexity, evaluations.md §2.
struct PplSpec {
    int maxLength = 1024;
    double prefixRatio = 0.5;
    int windows = 20;             // at most; the trailing partial window is dropped
    bool includeBoundary = true;  // score the first suffix token (predicted before eviction)
    bool operator==(const PplSpec&) const = default;
};

// Pass-key retrieval, evaluations.md §6 C.
struct NeedleSpec {
    std::vector<int> lengths = {1000};   // tokens of the whole prompt
    std::vector<double> depths = {0, 50, 100}; // percent of the filler before the key
    int keys = 1;                        // keys per cell
    int digits = 5;
    bool queryAware = false;             // true: the question is part of the prefill that the policy sees
    std::string haystack;                // filler text; empty: our own
    bool operator==(const NeedleSpec&) const = default;
};

struct BenchSpec {
    int context = 512, newTokens = 32, warmup = 1, repeats = 3;
    bool operator==(const BenchSpec&) const = default;
};

// Suite: ppl and bench of every lane in one table.
struct SuiteSpec {
    bool bench = true; // false: perplexity and bytes only
    bool operator==(const SuiteSpec&) const = default;
};

struct TraceOptions {
    int attentionBins = 128;    // per side, ≤ 256; 0: no maps. Maps are per KV head (mean of its query heads)
    bool retention = true;
    bool operator==(const TraceOptions&) const = default;
};

struct Job {
    RunKind kind = RunKind::score;
    PromptSpec prompt;
    std::vector<LaneSpec> lanes; // ppl, bench, suite and needle: one per policy × budget × quantizer
    SamplerSpec sampler;
    ScoreSpec score;
    GenerateSpec generate;
    PplSpec ppl;
    NeedleSpec needle;
    BenchSpec bench;
    SuiteSpec suite;
    TraceOptions trace;
    std::uint64_t seed = 0;
    std::string commandLine; // filled by commandLineOf() if empty
    bool operator==(const Job&) const = default;
};

const char* name(RunKind kind);
std::string jobToJson(const Job& job);
Job jobFromJson(const std::string& json); // throws EngineError

// One lane as --lane takes it: "snapkv:window=16@0.5" (share removed), "h2o@b128" (tokens kept), "full", "knorm@0.5~kivi:bits=4" (packed).
std::string laneText(const LaneSpec& lane);

// The keepsight-cli line that repeats the job; texts longer than a line are named by file: textFile, or "prompt.txt" if empty.
std::string commandLineOf(const Job& job, const std::string& modelPath, const std::string& textFile = {});

} // namespace keepsight
