#include "engine/eval/evaluation.h"

#include "engine/data/error.h"
#include "engine/session/sampler.h"
#include "engine/trace/recorder.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <numeric>

namespace keepsight {
namespace {

std::int64_t availableMemory() {
    std::ifstream info("/proc/meminfo");
    std::string word;
    while (info >> word)
        if (word == "MemAvailable:") {
            std::int64_t kilobytes = 0;
            info >> kilobytes;
            return kilobytes * 1024;
        }
    return -1;
}

} // namespace

std::vector<TokenId> promptIds(const Tokenizer& tokenizer, const ChatFrame& frame, const PromptSpec& prompt) {
    if (prompt.ids) {
        if (prompt.ids->empty()) throw UsageError("prompt: expected at least one token id, found an empty list");
        for (std::size_t i = 0; i < prompt.ids->size(); ++i)
            if ((*prompt.ids)[i] < 0 || (*prompt.ids)[i] >= tokenizer.vocab())
                throw UsageError("prompt: token id " + std::to_string((*prompt.ids)[i]) + " at index " + std::to_string(i) + " is outside the vocabulary of " +
                                 std::to_string(tokenizer.vocab()));
        return *prompt.ids;
    }
    if (const std::size_t nul = prompt.text.find('\0'); nul != std::string::npos)
        throw UsageError("prompt: expected text, found a NUL byte at byte " + std::to_string(nul) + "; is this a binary file?");
    if (!isValidUtf8(prompt.text)) throw UsageError("prompt: expected UTF-8 text, found bytes that are not UTF-8; convert the file first (iconv -t utf-8)");
    if (prompt.chat && frame.name.empty())
        throw UsageError("prompt: the model's chat template is not one of the built-in frames; run without the chat frame, or put the frame into the text");
    const std::string text = prompt.chat ? frame.wrap(prompt.text) : prompt.text;
    std::vector<TokenId> ids = tokenizer.encode(text, {.parseSpecial = prompt.chat || prompt.special, .addSpecial = prompt.special && !prompt.chat});
    if (ids.empty()) throw UsageError("prompt: expected at least one token, found an empty text");
    return ids;
}

void checkContext(const ModelConfig& config, std::int64_t tokens, std::string_view what, std::span<const std::shared_ptr<const Policy>> policies) {
    // Lanes that pass the prompt by selection never use a position beyond what they attend to.
    if (!policies.empty() && std::ranges::all_of(policies, [](const auto& policy) { return policy->ownsPrefill(); })) return;
    if (config.maxPositions > 0 && tokens > config.maxPositions)
        throw EngineError(std::string(what) + " needs " + std::to_string(tokens) + " tokens, the model's context holds " + std::to_string(config.maxPositions) +
                          "; shorten the text or the continuation");
}

void checkMemory(const EvalContext& context, std::int64_t tokens, std::int64_t lanes) {
    const Model& model = context.model;
    const ModelConfig& c = model.config();
    const std::int64_t perToken = static_cast<std::int64_t>(c.layers) * c.kvHeads * c.headDim * 2 * static_cast<std::int64_t>(c10::elementSize(model.dtype()));
    std::vector<std::int64_t> kept; // by each lane, in tokens; with granularity=query_head each query head has a copy
    for (const auto& policy : context.policies)
        kept.push_back(std::min<std::int64_t>(tokens, policy->schedule().afterPrefill ? policy->budget(tokens) : tokens) * (storedHeads(c, policy->spec()) / c.kvHeads));
    std::ranges::sort(kept, std::greater<>());
    kept.resize(static_cast<std::size_t>(lanes), tokens); // the widest of them
    // The shared prefill, the lanes', and what a block of the prompt works with: the MLP's rows, queries, keys and values, and their inputs.
    const std::int64_t block = std::min(tokens, Snapshot::blockOf(model)),
                       row = 3 * static_cast<std::int64_t>(c.feedForward) + 3 * static_cast<std::int64_t>(c.queryHeads) * c.headDim + 4 * static_cast<std::int64_t>(c.hidden);
    const std::int64_t working = block * row * static_cast<std::int64_t>(c10::elementSize(model.dtype())) + (std::int64_t{256} << 20);
    const std::int64_t needed = perToken * std::accumulate(kept.begin(), kept.end(), tokens) + working;
    const std::int64_t available = model.device().is_cpu() ? availableMemory() : ops::freeMemory(model.device()).value_or(-1);
    if (available >= 0 && needed > available)
        throw EngineError("this run needs about " + mebibytes(needed) + " of memory on " + model.device().str() + " for " + std::to_string(tokens) + " tokens in " +
                          std::to_string(lanes) + (lanes == 1 ? " lane, only " : " lanes, only ") + mebibytes(available) + " are available; use fewer tokens or lanes");
}

void ProgressMeter::at(std::int64_t done) {
    m_done = done;
    if (!m_out) return;
    const auto now = std::chrono::steady_clock::now();
    if (done < m_total && now - m_last < std::chrono::milliseconds(100)) return;
    m_last = now;
    const double elapsed = std::chrono::duration<double>(now - m_begin).count();
    const double eta = done > 0 && elapsed > 0.3 ? elapsed * static_cast<double>(m_total - done) / static_cast<double>(done) : -1.0;
    m_out({m_stage, done, m_total, eta});
}

Measurement rowFor(const EvalContext& context, std::size_t lane, std::string kind) {
    const PolicySpec& spec = context.policies[lane]->spec();
    Measurement row;
    row.kind = std::move(kind);
    row.lane = LaneIndex{static_cast<std::int32_t>(lane)};
    std::string params;
    for (const auto& [name, value] : spec.params) params += (params.empty() ? "" : ",") + name + "=" + value;
    row.set("policy", spec.id);
    row.set("params", params);
    row.set("quant", spec.quant.text());
    row.set("compression_ratio", spec.budget.kind == Budget::Kind::ratio ? Measurement::Value(spec.budget.compressionRatio) : Measurement::Value());
    row.set("budget", spec.budget.kind == Budget::Kind::tokens ? Measurement::Value(static_cast<std::int64_t>(spec.budget.tokens)) : Measurement::Value());
    return row;
}

LaneRun startLanes(EvalContext& context, std::span<const TokenId> prompt, std::int64_t totalTokens, ProgressMeter& meter) {
    LaneRun run;
    const Job& job = context.job;
    if (job.trace.attentionBins > 0) run.bin = static_cast<int>((totalTokens + job.trace.attentionBins - 1) / job.trace.attentionBins);
    PrefillOptions options = prefillOptionsFor(context.policies, static_cast<std::int64_t>(prompt.size()));
    // Cheap next to the prefill, and the budget slider can then preview any policy.
    options.lastRows = std::max(options.lastRows, 128);
    options.columnSums = true;
    options.mapBin = run.bin;
    meter.stage("prefill");
    run.snapshot = Snapshot::prefill(context.model, prompt, options, context.stop, [&](std::int64_t done) { meter.at(done); });
    if (context.prefilled) context.prefilled(run.snapshot);
    if (run.bin > 0) { // somebody looks on: scores of policies now, so that a first preview is as fast as the others; as many as 5 % of the prefill allow
        const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double, std::milli>(0.05 * run.snapshot->milliseconds());
        for (const PolicyEntry& entry : policyRegistry()) {
            if (context.stop.stop_requested()) throw Cancelled{};
            if (std::chrono::steady_clock::now() > until) break;
            PolicySpec spec;
            spec.id = entry.info.id;
            spec.budget = Budget::removed(0.5);
            const std::unique_ptr<const Policy> policy = makePolicy(spec);
            if (run.snapshot->serves(*policy)) run.snapshot->choose(*policy);
        }
    }
    recordPrefillMaps(*run.snapshot, context.sink);

    const CacheStats whole = run.snapshot->cache().stats();
    for (std::size_t lane = 0; lane < context.policies.size(); ++lane) {
        const LaneIndex index{static_cast<std::int32_t>(lane)};
        StepRecord step;
        step.kind = StepRecord::Kind::prefill;
        step.count = static_cast<std::int32_t>(prompt.size());
        step.milliseconds = run.snapshot->milliseconds();
        step.kvBytes = whole.storedBytes;
        step.allocatedBytes = whole.allocatedBytes;
        context.sink.add(index, step);

        BranchOptions branch = branchOptions(context, lane, totalTokens - static_cast<std::int64_t>(prompt.size()) + 1);
        branch.explain = context.job.generate.explain;
        branch.mapBin = run.bin;
        if (run.bin > 0) {
            branch.mapRows = static_cast<int>((totalTokens - static_cast<std::int64_t>(prompt.size()) + run.bin - 1) / run.bin);
            branch.mapCols = static_cast<int>((totalTokens + run.bin - 1) / run.bin);
        }
        branch.recordEvictions = job.trace.retention;
        run.branches.push_back(std::make_unique<Branch>(context.model, run.snapshot, context.policies[lane], branch));
        Branch& b = *run.branches.back();
        if (!b.notice().empty()) context.sink.notice(index, b.notice());
        StepRecord eviction;
        eviction.step = Step{1};
        eviction.kind = StepRecord::Kind::evict;
        eviction.firstPosition = step.count;
        eviction.milliseconds = eviction.policyMilliseconds = b.selectMilliseconds();
        const CacheStats stats = b.cache().stats();
        eviction.kvBytes = stats.storedBytes;
        eviction.allocatedBytes = stats.allocatedBytes;
        recordStep(index, eviction, b.takeEvictions(), context.sink);
        run.last.push_back(eviction);
    }
    return run;
}

BranchOptions branchOptions(const EvalContext& context, std::size_t lane, std::int64_t headroom) {
    BranchOptions options;
    options.headroom = headroom;
    options.recordEvictions = false;
    options.quantizer = context.quantizers[lane];
    options.stop = context.stop;
    return options;
}

double bitsPerValue(const EvalContext& context, const KvCache& cache) {
    std::int64_t entries = 0;
    for (int l = 0; l < cache.layers(); ++l) entries += cache.layer(LayerIndex{l}).total();
    return entries > 0 ? 8.0 * static_cast<double>(cache.stats().storedBytes) / (2.0 * static_cast<double>(entries) * context.model.config().headDim) : NotMeasured;
}

at::Tensor stepLane(EvalContext& context, LaneRun& run, std::size_t lane, TokenId token, double nll) {
    Branch& branch = *run.branches[lane];
    StepRecord step;
    step.step = Step{run.last[lane].step.value + 1};
    step.firstPosition = branch.seen();
    step.count = 1;
    step.nll = nll;
    const auto begin = std::chrono::steady_clock::now();
    const at::Tensor logits = branch.feed(std::span(&token, 1), LogitRows::last, true, context.stop);
    step.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    step.policyMilliseconds = branch.policyMilliseconds();
    const CacheStats stats = branch.cache().stats();
    step.kvBytes = stats.storedBytes;
    step.allocatedBytes = stats.allocatedBytes;
    recordStep(LaneIndex{static_cast<std::int32_t>(lane)}, step, branch.takeEvictions(), context.sink);
    run.last[lane] = step;
    return logits.reshape({-1});
}

double quantile(std::vector<double> values, double q) {
    if (values.empty()) return NotMeasured;
    std::sort(values.begin(), values.end());
    const double at = q * static_cast<double>(values.size() - 1);
    const auto low = static_cast<std::size_t>(at);
    const std::size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

} // namespace keepsight
