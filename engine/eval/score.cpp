// Score: prefill the first part of a text, then feed the rest token by token, teacher-forced, all lanes in lockstep.
// Every token is scored from what its lane still held when it came; the first one from the prefill's last logits (before any eviction).
#include "engine/data/error.h"
#include "engine/eval/evaluation.h"
#include "engine/session/sampler.h"
#include "engine/trace/recorder.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>

namespace keepsight {

void runScore(EvalContext& context) {
    const std::vector<TokenId> ids = promptIds(context.tokenizer, context.frame, context.job.prompt);
    const auto total = static_cast<std::int64_t>(ids.size());
    if (total < 2) throw EngineError("score: expected a text of at least 2 tokens, found " + std::to_string(total));
    checkContext(context.model.config(), total, "the text", context.policies);
    const auto lanes = context.policies.size();
    checkMemory(context, total, static_cast<std::int64_t>(lanes));
    const auto prefix = std::clamp<std::int64_t>(static_cast<std::int64_t>(static_cast<double>(total) * context.job.score.prefixRatio), 1, total - 1);

    context.header.prefillLength = static_cast<Position>(prefix);
    context.sink.begin(context.header);
    for (std::int64_t i = 0; i < total; ++i) {
        const TokenId id = ids[static_cast<std::size_t>(i)];
        context.sink.add(SharedLane, TokenRecord{id, static_cast<Position>(i), i < prefix ? TokenRecord::Role::prompt : TokenRecord::Role::forced, context.tokenizer.bytes(id)});
    }

    ProgressMeter meter(context.progress, prefix + (total - prefix) * static_cast<std::int64_t>(lanes));
    LaneRun run = startLanes(context, std::span(ids).first(static_cast<std::size_t>(prefix)), total, meter);
    std::vector<at::Tensor> logits;
    for (const auto& branch : run.branches) logits.push_back(branch->firstLogits());
    std::vector<double> nll(lanes, 0.0);
    std::vector<std::vector<double>> stepMs(lanes);
    const auto publish = [&] {
        for (std::size_t lane = 0; lane < lanes; ++lane)
            recordLaneMaps(LaneIndex{static_cast<std::int32_t>(lane)}, *run.branches[lane], static_cast<Position>(prefix), run.bin, context.sink);
    };
    for (std::int64_t i = prefix; i < total; ++i) {
        const TokenId token = ids[static_cast<std::size_t>(i)];
        meter.stage("token " + std::to_string(i - prefix + 1) + " of " + std::to_string(total - prefix));
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            if (context.stop.stop_requested()) throw Cancelled{};
            const double cost = negativeLogLikelihood({logits[lane].data_ptr<float>(), static_cast<std::size_t>(logits[lane].numel())}, token);
            logits[lane] = stepLane(context, run, lane, token, cost);
            nll[lane] += cost;
            stepMs[lane].push_back(run.last[lane].milliseconds);
            meter.add(1);
        }
        if ((i - prefix) % 64 == 63) publish();
    }
    publish();

    const auto scored = static_cast<double>(total - prefix);
    // Deltas are against the uncompressed lane, where there is one.
    double baseline = NotMeasured;
    for (std::size_t lane = 0; lane < lanes; ++lane)
        if (!context.policies[lane]->schedule().afterPrefill && context.policies[lane]->schedule().everySteps == 0) baseline = std::exp(nll[lane] / scored);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        const Branch& branch = *run.branches[lane];
        Measurement row = rowFor(context, lane, "score");
        const double ppl = std::exp(nll[lane] / scored);
        row.set("protocol", std::string("score"));
        row.set("nll", nll[lane] / scored);
        row.set("ppl", ppl);
        row.set("ppl_delta", ppl - baseline);
        row.set("n_tokens", static_cast<std::int64_t>(total - prefix));
        row.set("kept_per_layer", keptCounts(branch.cache()));
        row.set("kv_bytes", branch.cache().stats().storedBytes);
        row.set("kv_bytes_allocated", branch.cache().stats().allocatedBytes);
        row.set("prefill_s", run.snapshot->milliseconds() / 1000);
        row.set("ttft_s", (run.snapshot->milliseconds() + branch.selectMilliseconds()) / 1000);
        row.set("tpot_ms", median(stepMs[lane]));
        context.sink.add(row);
    }
}

} // namespace keepsight
