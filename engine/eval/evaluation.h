// The jobs: each takes the loaded model and a Job, and writes what happens into a TraceSink.
//
// Adding one: a file here with one function of this signature, one line in evaluations.def, one value of RunKind.
#pragma once

#include "engine/data/job.h"
#include "engine/data/trace_sink.h"
#include "engine/session/branch.h"
#include "engine/tokenizer/tokenizer.h"

#include <chrono>
#include <functional>
#include <memory>
#include <stop_token>
#include <vector>

namespace keepsight {

struct EvalContext {
    const Model& model;
    const Tokenizer& tokenizer;
    const ChatFrame& frame;
    std::vector<TokenId> stopTokens;
    const Job& job;
    std::vector<std::shared_ptr<const Policy>> policies; // one per lane of the job
    std::vector<std::shared_ptr<const Quantizer>> quantizers; // as policies; null: none
    TraceSink& sink;
    std::stop_token stop;
    const OnProgress& progress;
    Trace header;                                        // run, model, lanes; a job fills tokens' prefillLength and calls sink.begin(header)
    std::function<void(std::shared_ptr<const Snapshot>)> prefilled; // shares the prefill with previews
    const Trace* resume = nullptr;                       // an earlier, unfinished recording of the same job; null: none
};

using Evaluation = void (*)(EvalContext&); // returns when complete; throws Cancelled or EngineError

std::vector<TokenId> promptIds(const Tokenizer& tokenizer, const ChatFrame& frame, const PromptSpec& prompt); // throws UsageError, EngineError
// Longer than the model's context: EngineError, unless every one of the policies reads prompts of any length.
void checkContext(const ModelConfig& config, std::int64_t tokens, std::string_view what, std::span<const std::shared_ptr<const Policy>> policies = {});
// Bytes a job with that many cached tokens and lanes will need against what the machine has; EngineError if it cannot fit.
void checkMemory(const EvalContext& context, std::int64_t tokens, std::int64_t lanes);

// Progress with an ETA from the work done so far; emits at most ten times a second, and always the last.
class ProgressMeter {
public:
    ProgressMeter(const OnProgress& out, std::int64_t total) : m_out(out), m_total(total), m_begin(std::chrono::steady_clock::now()) {}
    void stage(std::string name) { m_stage = std::move(name); }
    void at(std::int64_t done);
    void add(std::int64_t more) { at(m_done + more); }

private:
    const OnProgress& m_out;
    std::string m_stage;
    std::int64_t m_done = 0, m_total = 0;
    std::chrono::steady_clock::time_point m_begin, m_last{};
};

// Fields every result row begins with: policy, params, quant, compression_ratio, budget.
Measurement rowFor(const EvalContext& context, std::size_t lane, std::string kind);

// A run of lanes in lockstep over one shared prefill (Score and Generate): prefill, maps, branches, steps 0 and 1.
struct LaneRun {
    std::shared_ptr<const Snapshot> snapshot;
    std::vector<std::unique_ptr<Branch>> branches;
    std::vector<StepRecord> last; // newest step of each lane
    int bin = 0;
};
LaneRun startLanes(EvalContext& context, std::span<const TokenId> prompt, std::int64_t totalTokens, ProgressMeter& meter);
// Feeds one token to a lane and records the step. nll: of that token, known before it was fed. Returns the next logits [vocab].
at::Tensor stepLane(EvalContext& context, LaneRun& run, std::size_t lane, TokenId token, double nll);

// Options of a lane's branch with its quantizer; `headroom` tokens will be appended.
BranchOptions branchOptions(const EvalContext& context, std::size_t lane, std::int64_t headroom);
// Bits per stored value of a lane's kept entries, everything counted: 8 · bytes / values.
double bitsPerValue(const EvalContext& context, const KvCache& cache);

double median(std::vector<double> values);          // NaN if empty
double quantile(std::vector<double> values, double q); // linear interpolation; NaN if empty

void runScore(EvalContext& context);
void runGenerate(EvalContext& context);
void runPerplexity(EvalContext& context);
void runNeedle(EvalContext& context);
void runBench(EvalContext& context);
void runSuite(EvalContext& context);

} // namespace keepsight
