// The engine's facade: plain data in, plain data out; torch stays behind the private pointer. Used by both programs and by tests.
//
// Threads: open, close and run are called from one thread at a time; preview, model, tokenize and cachedPreviewReady may be called
// from any other thread meanwhile. Everything throws EngineError (UsageError for requests that are wrong in themselves).
#pragma once

#include "engine/data/explanation.h"
#include "engine/data/job.h"
#include "engine/data/trace_sink.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

struct OpenOptions {
    std::filesystem::path model;      // directory or .gguf
    std::string device = "auto";      // auto | cpu | cuda[:i]
    std::string dtype = "auto";       // auto (fp32 on CPU, bf16 on CUDA) | fp32 | bf16 | fp16 (CUDA only)
    int threads = 0;                  // 0: all cores
};

struct Tokens {
    std::vector<TokenId> ids;
    std::vector<std::string> pieces; // bytes each id decodes to
};

struct LogitsResult {
    double nll = 0;                   // mean next-token NLL over ids, nats
    std::vector<TokenId> argmax;      // per position, [ids.size()]
    std::vector<float> lastLogits;    // [vocab]
    std::vector<TokenId> greedy;      // appended tokens
};

class Engine {
public:
    Engine();
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    static std::string version();     // "0.1.0"
    static const std::vector<PolicyInfo>& policies(); // registry order
    static const std::vector<QuantInfo>& quantizers();   // registry order, "none" first
    static PolicySpec parsePolicy(std::string_view text); // "snapkv:window=32": resolves aliases, checks names, types and ranges
    static QuantSpec parseQuant(std::string_view text);   // "kivi:bits=4"
    static void checkPolicy(const PolicySpec& spec);      // the quantizer and their combination included
    // The sentence that refuses this policy with this quantizer, whatever the model; empty: they go together.
    static std::string incompatibility(const PolicySpec& spec);

    Outcome open(const OpenOptions& options, std::stop_token stop = {}, const OnProgress& progress = {});
    void close();
    bool isOpen() const;
    ModelInfo model() const;          // copy
    ModelInfo ensureHash(std::stop_token stop = {}); // model() with sha256 computed (cached on disk by path, size, time)

    Tokens tokenize(const PromptSpec& prompt) const;
    std::string decode(const std::vector<TokenId>& ids) const;

    // Runs a job and records it. Every job calls sink.begin and sink.end exactly once, whatever happens.
    // resume: an earlier recording of the same job that did not end; suite and needle take over what it has measured.
    Outcome run(const Job& job, TraceSink& sink, std::stop_token stop = {}, const OnProgress& progress = {}, const Trace* resume = nullptr);

    // The sets `policy` keeps after the prefill of the last score or generate job, from statistics already held: no forward pass,
    // ≤ 50 ms at 30 layers × 3 heads × 4000 tokens once the policy's scores are there (its run, or a first call, which scores every layer).
    // nullopt: no prefill held, or it lacks a statistic this policy needs.
    std::optional<KeptSets> preview(const PolicySpec& policy) const;

    // Why `policy` kept or dropped a token of that layer and head right after that prefill; nullopt as for preview.
    std::optional<Explanation> explain(const PolicySpec& policy, LayerIndex layer, HeadIndex head, Position position) const;
    // The same for a decode step: repeats the lane (forced: the tokens it was fed after the prefill) up to the last selection at or before
    // `step` that could choose about the token. Takes about as long as the run did to that step.
    std::optional<Explanation> explain(const PolicySpec& policy, const std::vector<TokenId>& forced, Step step, LayerIndex layer, HeadIndex head, Position position,
                                       std::stop_token stop = {}, const OnProgress& progress = {}) const;

    // One head's attention at full resolution over the whole prompt (recomputes the layers below it).
    // [T, T] floats: refused above 8192 tokens.
    std::shared_ptr<const AttentionMap> attention(const PromptSpec& prompt, LayerIndex layer, HeadIndex queryHead,
                                                  std::stop_token stop = {}, const OnProgress& progress = {});

    LogitsResult logits(const std::vector<TokenId>& ids, int greedy, std::stop_token stop = {});

private:
    struct Private;
    std::unique_ptr<Private> d;
};

} // namespace keepsight
