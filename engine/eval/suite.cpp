// Suite: suffix perplexity and decode times of policies × budgets × quantizers in one table. Each window of text is prefilled once for all
// lanes, and so is the context of the timing. What an earlier, interrupted recording of the same job holds is not done again.
#include "engine/data/error.h"
#include "engine/eval/bench.h"
#include "engine/eval/perplexity.h"

#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

constexpr const char* WindowKind = "suite_window"; // one per window and lane: what a resumed suite starts from

Measurement windowRow(std::size_t lane, std::int64_t window, const WindowResult& r, double baseline, const std::string& notice) {
    Measurement row;
    row.kind = WindowKind;
    row.lane = LaneIndex{static_cast<std::int32_t>(lane)};
    row.set("window", window);
    row.set("nll_sum", r.nll);
    row.set("baseline_sum", baseline);
    row.set("kept_per_layer", r.kept);
    row.set("kv_bytes", r.kvBytes);
    row.set("kv_bytes_allocated", r.allocatedBytes);
    row.set("bits_per_value", r.bits);
    row.set("prefill_ms", r.prefillMs);
    row.set("select_ms", r.selectMs);
    row.set("notice", notice);
    return row;
}

// The windows that every lane of an earlier recording has done.
PplResults earlier(const Trace* trace, std::size_t lanes) {
    PplResults out;
    out.lanes.resize(lanes);
    out.notices.resize(lanes);
    if (!trace) return out;
    std::vector<double> baseline;
    for (const Measurement& m : trace->measurements) {
        const auto lane = static_cast<std::size_t>(m.lane.value);
        if (m.kind != WindowKind || lane >= lanes || static_cast<std::size_t>(m.number("window")) != out.lanes[lane].size()) continue;
        WindowResult r{m.number("nll_sum"), {}, static_cast<std::int64_t>(m.number("kv_bytes")), static_cast<std::int64_t>(m.number("kv_bytes_allocated")),
                       m.number("bits_per_value"), m.number("prefill_ms"), m.number("select_ms")};
        if (const Measurement::Value* kept = m.find("kept_per_layer"))
            if (const auto* list = std::get_if<std::vector<double>>(kept)) r.kept = *list;
        out.lanes[lane].push_back(std::move(r));
        out.notices[lane] = m.text("notice");
        if (lane == 0) baseline.push_back(m.number("baseline_sum"));
    }
    std::size_t whole = baseline.size();
    for (const auto& lane : out.lanes) whole = std::min(whole, lane.size());
    for (auto& lane : out.lanes) lane.resize(whole);
    out.baseline.assign(baseline.begin(), baseline.begin() + static_cast<std::ptrdiff_t>(whole));
    return out;
}

} // namespace

void runSuite(EvalContext& context) {
    const std::size_t lanes = context.policies.size();
    const PplPlan plan = planPerplexity(context);
    const BenchSpec& bench = context.job.bench;
    const std::vector<TokenId> ids = context.job.suite.bench ? benchIds(context) : std::vector<TokenId>{};
    const int rounds = context.job.suite.bench ? bench.warmup + bench.repeats : 0;
    // Progress in tokens that pass the model; a decoded one weighs about as much as eight of a block.
    constexpr std::int64_t DecodeWeight = 8;
    const std::int64_t textTokens = plan.windows * plan.tokensPerWindow, laneTokens = DecodeWeight * bench.newTokens;
    const std::int64_t benchTokens = rounds > 0 ? bench.context + rounds * static_cast<std::int64_t>(lanes) * laneTokens : 0;
    ProgressMeter meter(context.progress, textTokens + benchTokens);

    context.header.prefillLength = static_cast<Position>(plan.split);
    context.sink.begin(context.header);
    PplResults start = earlier(context.resume, lanes);
    const auto record = [&](std::int64_t window, const PplResults& results) {
        for (std::size_t lane = 0; lane < lanes; ++lane)
            context.sink.add(windowRow(lane, window, results.lanes[lane][static_cast<std::size_t>(window)], results.baseline[static_cast<std::size_t>(window)],
                                       results.notices[lane]));
    };
    for (std::size_t w = 0; w < start.baseline.size(); ++w) record(static_cast<std::int64_t>(w), start);
    const PplResults results = scoreWindows(context, plan, meter, record, std::move(start));

    std::vector<BenchTimes> times(lanes);
    bool cancelled = results.cancelled;
    if (rounds > 0 && !cancelled) try {
            meter.stage("prefill for timing");
            const auto snapshot = Snapshot::prefill(context.model, ids, prefillOptionsFor(context.policies, bench.context), context.stop,
                                                    [&](std::int64_t done) { meter.at(textTokens + done); });
            for (int round = 0; round < rounds; ++round)
                for (const std::size_t lane : shuffledLanes(lanes, context.job.seed, round)) {
                    if (context.stop.stop_requested()) throw Cancelled{};
                    meter.stage(round < bench.warmup ? "warm-up" : "timing " + std::to_string(round - bench.warmup + 1) + " of " + std::to_string(bench.repeats));
                    timeLane(context, lane, ids, snapshot, round < bench.warmup ? nullptr : &times[lane]);
                    meter.add(laneTokens);
                }
        } catch (const Cancelled&) {
            cancelled = true;
        }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        Measurement row = rowFor(context, lane, "suite");
        setPerplexity(context, plan, results, lane, row);
        if (!times[lane].tpot.empty()) {
            setBench(context, times[lane], row);
            row.set("bench_kv_bytes", times[lane].stats.storedBytes);
            row.set("kv_bytes_peak", times[lane].stats.peakBytes);
        }
        context.sink.add(row);
        if (!results.notices[lane].empty()) context.sink.notice(LaneIndex{static_cast<std::int32_t>(lane)}, results.notices[lane]);
    }
    if (cancelled) throw Cancelled{};
}

} // namespace keepsight
