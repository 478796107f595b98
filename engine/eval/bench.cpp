// Bench (evaluations.md §3–4): prefill, TTFT, TPOT and bytes of each lane, lanes in a new order every repeat, medians with quartiles.
#include "engine/data/error.h"
#include "engine/eval/bench.h"
#include "engine/session/sampler.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <numeric>

namespace keepsight {
namespace {

std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

} // namespace

std::vector<TokenId> benchIds(EvalContext& context) {
    const BenchSpec& spec = context.job.bench;
    if (spec.context < 1 || spec.newTokens < 1 || spec.repeats < 1 || spec.warmup < 0)
        throw UsageError("bench: expected ctx, new and repeats of at least 1 and warmup of at least 0, found ctx " + std::to_string(spec.context) + ", new " +
                         std::to_string(spec.newTokens) + ", repeats " + std::to_string(spec.repeats) + ", warmup " + std::to_string(spec.warmup));
    checkContext(context.model.config(), spec.context + spec.newTokens, "the bench", context.policies);
    checkMemory(context, spec.context + spec.newTokens, 1);
    std::vector<TokenId> ids;
    if (context.job.prompt.ids || !context.job.prompt.text.empty()) {
        const std::vector<TokenId> text = promptIds(context.tokenizer, context.frame, context.job.prompt);
        for (int i = 0; i < spec.context; ++i) ids.push_back(text[static_cast<std::size_t>(i) % text.size()]); // repeated up to the length asked for
    } else {
        for (int i = 0; i < spec.context; ++i)
            ids.push_back(static_cast<TokenId>(mix(context.job.seed + static_cast<std::uint64_t>(i) + 1) % static_cast<std::uint64_t>(context.model.config().vocab)));
    }
    return ids;
}

std::vector<std::size_t> shuffledLanes(std::size_t lanes, std::uint64_t seed, int round) {
    std::vector<std::size_t> order(lanes);
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t i = lanes; i > 1; --i) // Fisher–Yates with the job's seed
        std::swap(order[i - 1], order[mix(seed + static_cast<std::uint64_t>(round) * 1000 + i) % i]);
    return order;
}

void timeLane(EvalContext& context, std::size_t lane, const std::vector<TokenId>& ids, std::shared_ptr<const Snapshot> snapshot, BenchTimes* times) {
    const BenchSpec& spec = context.job.bench;
    const std::shared_ptr<const Policy> policy = context.policies[lane];
    const auto begin = std::chrono::steady_clock::now();
    const auto since = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
    const double shared = snapshot ? snapshot->milliseconds() / 1000 : 0; // of a prefill that was there already
    if (!snapshot) snapshot = Snapshot::prefill(context.model, ids, prefillOptionsFor(std::span(&policy, 1), spec.context), context.stop);
    Branch branch(context.model, snapshot, policy, branchOptions(context, lane, spec.newTokens));
    const double prefill = shared + since(); // with the policy's work
    TokenId token = argmaxToken({branch.firstLogits().data_ptr<float>(), static_cast<std::size_t>(branch.firstLogits().numel())});
    const double ttft = shared + since();
    std::vector<double> steps;
    double before = ttft;
    for (int n = 1; n < spec.newTokens; ++n) {
        const at::Tensor logits = branch.feed(std::span(&token, 1), LogitRows::last, true, context.stop).reshape({-1});
        token = argmaxToken({logits.data_ptr<float>(), static_cast<std::size_t>(logits.numel())});
        const double now = shared + since();
        steps.push_back((now - before) * 1000);
        before = now;
    }
    if (!times) return; // warm-up
    times->prefill.push_back(prefill);
    times->ttft.push_back(ttft);
    if (!steps.empty()) times->tpot.push_back(std::accumulate(steps.begin(), steps.end(), 0.0) / static_cast<double>(steps.size()));
    times->decode.push_back(before - ttft);
    times->throughput.push_back(spec.newTokens / before);
    times->stats = branch.cache().stats();
}

void setBench(EvalContext& context, const BenchTimes& t, Measurement& row) {
    const BenchSpec& spec = context.job.bench;
    row.set("ctx", static_cast<std::int64_t>(spec.context));
    row.set("new", static_cast<std::int64_t>(spec.newTokens));
    row.set("repeats", static_cast<std::int64_t>(t.prefill.size()));
    row.set("prefill_s", median(t.prefill));
    row.set("prefill_tok_s", spec.context / median(t.prefill));
    row.set("ttft_s", median(t.ttft));
    row.set("tpot_ms", median(t.tpot));
    row.set("tpot_iqr_ms", quantile(t.tpot, 0.75) - quantile(t.tpot, 0.25));
    row.set("decode_tok_s", 1000 / median(t.tpot));
    row.set("throughput", median(t.throughput));
}

void runBench(EvalContext& context) {
    const BenchSpec& spec = context.job.bench;
    const std::vector<TokenId> ids = benchIds(context);
    context.header.prefillLength = spec.context;
    context.sink.begin(context.header);
    const std::size_t lanes = context.policies.size();
    std::vector<BenchTimes> times(lanes);
    const int rounds = spec.warmup + spec.repeats;
    ProgressMeter meter(context.progress, static_cast<std::int64_t>(rounds) * static_cast<std::int64_t>(lanes));
    bool cancelled = false; // finished repeats still make rows
    try {
        for (int round = 0; round < rounds; ++round)
            for (const std::size_t lane : shuffledLanes(lanes, context.job.seed, round)) {
                meter.stage(round < spec.warmup ? "warm-up" : "repeat " + std::to_string(round - spec.warmup + 1) + " of " + std::to_string(spec.repeats));
                if (context.stop.stop_requested()) throw Cancelled{};
                timeLane(context, lane, ids, nullptr, round < spec.warmup ? nullptr : &times[lane]);
                meter.add(1);
            }
    } catch (const Cancelled&) {
        cancelled = true;
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        if (times[lane].prefill.empty()) continue;
        Measurement row = rowFor(context, lane, "bench");
        setBench(context, times[lane], row);
        row.set("kv_bytes", times[lane].stats.storedBytes);
        row.set("kv_bytes_allocated", times[lane].stats.allocatedBytes);
        row.set("kv_bytes_peak", times[lane].stats.peakBytes);
        context.sink.add(row);
    }
    if (cancelled) throw Cancelled{};
}

} // namespace keepsight
