// Generate: every lane continues the prompt on its own; steps go round the lanes so that their times are taken side by side.
#include "engine/data/error.h"
#include "engine/eval/evaluation.h"
#include "engine/session/sampler.h"
#include "engine/trace/recorder.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

Measurement explanationRow(const EvalContext& context, std::size_t lane, const Explanation& e) {
    const auto orNothing = [](int value) { return value < 0 ? Measurement::Value() : Measurement::Value(static_cast<std::int64_t>(value)); };
    Measurement row;
    row.kind = "explain";
    row.lane = LaneIndex{static_cast<std::int32_t>(lane)};
    row.set("lane", context.job.lanes[lane].label);
    row.set("position", static_cast<std::int64_t>(e.position));
    row.set("layer", static_cast<std::int64_t>(e.layer.value));
    row.set("head", static_cast<std::int64_t>(e.head.value));
    row.set("step", static_cast<std::int64_t>(e.step.value));
    row.set("kept", e.kept);
    row.set("protected_by", e.protectedBy);
    row.set("score", e.score);
    row.set("rank", orNothing(e.rank > 0 ? e.rank : -1));
    row.set("candidates", static_cast<std::int64_t>(e.candidates));
    row.set("slots", static_cast<std::int64_t>(e.slots));
    row.set("cutoff", e.cutoff);
    row.set("margin", e.margin);
    row.set("last_kept", orNothing(e.lastKept));
    row.set("budget", static_cast<std::int64_t>(e.budget));
    row.set("budget_needed", orNothing(e.budgetNeeded));
    row.set("note", e.note);
    return row;
}

} // namespace

void runGenerate(EvalContext& context) {
    const Job& job = context.job;
    const std::vector<TokenId> ids = promptIds(context.tokenizer, context.frame, job.prompt);
    if (job.generate.maxNew < 0) throw UsageError("generate: expected max-new of at least 0, found " + std::to_string(job.generate.maxNew));
    const auto prompt = static_cast<std::int64_t>(ids.size()), total = prompt + job.generate.maxNew;
    checkContext(context.model.config(), total, "the prompt with its continuation", context.policies);
    const auto lanes = context.policies.size();
    checkMemory(context, total, static_cast<std::int64_t>(lanes));

    context.header.prefillLength = static_cast<Position>(prompt);
    context.sink.begin(context.header);
    for (std::int64_t i = 0; i < prompt; ++i) {
        const TokenId id = ids[static_cast<std::size_t>(i)];
        context.sink.add(SharedLane, TokenRecord{id, static_cast<Position>(i), TokenRecord::Role::prompt, context.tokenizer.bytes(id)});
    }
    ProgressMeter meter(context.progress, prompt + static_cast<std::int64_t>(job.generate.maxNew) * static_cast<std::int64_t>(lanes));
    LaneRun run = startLanes(context, ids, total, meter);

    struct State {
        at::Tensor logits;
        std::string text;
        double nll = 0, sampleMs = 0;
        int made = 0;
        bool done = false;
        std::vector<double> stepMs;
    };
    std::vector<State> states(lanes);
    for (std::size_t lane = 0; lane < lanes; ++lane) states[lane].logits = run.branches[lane]->firstLogits();
    const auto publish = [&] {
        for (std::size_t lane = 0; lane < lanes; ++lane)
            recordLaneMaps(LaneIndex{static_cast<std::int32_t>(lane)}, *run.branches[lane], static_cast<Position>(prompt), run.bin, context.sink);
    };
    for (int n = 0; n < job.generate.maxNew; ++n) {
        bool any = false;
        meter.stage("token " + std::to_string(n + 1) + " of " + std::to_string(job.generate.maxNew));
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            State& s = states[lane];
            if (context.stop.stop_requested()) throw Cancelled{};
            if (s.done) continue;
            const auto begin = std::chrono::steady_clock::now();
            const std::span<const float> logits(s.logits.data_ptr<float>(), static_cast<std::size_t>(s.logits.numel()));
            const TokenId token = sampleToken(logits, job.sampler, job.seed, static_cast<std::uint64_t>(n));
            if (n == 0) s.sampleMs = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
            const bool stops = std::find(context.stopTokens.begin(), context.stopTokens.end(), token) != context.stopTokens.end();
            if (stops && !job.generate.ignoreEos) {
                s.done = true;
                continue;
            }
            any = true;
            const double cost = negativeLogLikelihood(logits, token);
            s.nll += cost;
            ++s.made;
            s.text += context.tokenizer.bytes(token);
            const LaneIndex index{static_cast<std::int32_t>(lane)};
            context.sink.add(index, TokenRecord{token, static_cast<Position>(prompt + n), TokenRecord::Role::generated, context.tokenizer.bytes(token)});
            if (n + 1 < job.generate.maxNew) {
                s.logits = stepLane(context, run, lane, token, cost);
                s.stepMs.push_back(run.last[lane].milliseconds);
            } else { // the last token is said, not stored: nothing follows that could read it
                StepRecord said = run.last[lane];
                said.step = Step{said.step.value + 1};
                said.kind = StepRecord::Kind::decode;
                said.firstPosition = static_cast<Position>(prompt + n);
                said.count = 0;
                said.nll = cost;
                said.milliseconds = said.policyMilliseconds = NotMeasured;
                context.sink.add(index, said);
            }
            meter.add(1);
        }
        if (!any) break;
        if (n % 64 == 63) publish();
    }
    publish();

    for (std::size_t lane = 0; lane < lanes; ++lane) {
        const State& s = states[lane];
        Branch& branch = *run.branches[lane];
        for (const Explanation& e : branch.takeExplanations()) context.sink.add(explanationRow(context, lane, e));
        const double prefillMs = run.snapshot->milliseconds(), ttftMs = prefillMs + branch.selectMilliseconds() + s.sampleMs;
        double decodeMs = 0;
        for (const double ms : s.stepMs) decodeMs += ms;
        Measurement row = rowFor(context, lane, "generate");
        row.set("text", s.text);
        row.set("n_tokens", static_cast<std::int64_t>(s.made));
        row.set("nll", s.made > 0 ? s.nll / s.made : NotMeasured);
        row.set("kept_per_layer", keptCounts(branch.cache()));
        row.set("kv_bytes", branch.cache().stats().storedBytes);
        row.set("kv_bytes_allocated", branch.cache().stats().allocatedBytes);
        row.set("prefill_s", prefillMs / 1000);
        row.set("ttft_s", ttftMs / 1000);
        row.set("tpot_ms", median(s.stepMs));
        row.set("decode_s", decodeMs / 1000);
        row.set("throughput", s.made > 0 ? s.made / ((ttftMs + decodeMs) / 1000) : NotMeasured);
        context.sink.add(row);
    }
}

} // namespace keepsight
