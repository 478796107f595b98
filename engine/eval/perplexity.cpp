// Suffix perplexity (evaluations.md §2): prefill the first part of each window under the policy, then score the rest in one pass,
// teacher-forced, on the compressed cache without further eviction. One prefill serves every policy and ratio.
#include "engine/data/error.h"
#include "engine/eval/perplexity.h"
#include "engine/session/sampler.h"
#include "engine/trace/recorder.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <map>

namespace keepsight {
namespace {

constexpr std::size_t Rows = 512;      // tokens a pass and lane: bounds the time between two looks at the stop token
constexpr std::size_t PassRows = 1024; // of all lanes of a pass: their weights are read and unpacked once

struct SuffixLane {
    std::shared_ptr<const Policy> policy;
    std::shared_ptr<const Quantizer> quantizer;
};

// NLL of suffix tokens from the logits of the token before each; the first from the prefix's last logits. Some lanes at a time.
std::vector<WindowResult> scoreSuffix(EvalContext& context, const std::shared_ptr<const Snapshot>& snapshot, std::span<const SuffixLane> lanes,
                                      std::span<const TokenId> suffix, const std::function<void(std::int64_t)>& onTokens) {
    std::vector<WindowResult> results(lanes.size());
    std::vector<std::unique_ptr<Branch>> branches;
    for (std::size_t i = 0; i < lanes.size(); ++i) {
        BranchOptions options;
        options.headroom = static_cast<std::int64_t>(suffix.size());
        options.recordEvictions = false;
        options.quantizer = lanes[i].quantizer;
        options.stop = context.stop;
        branches.push_back(std::make_unique<Branch>(context.model, snapshot, lanes[i].policy, options));
        const Branch& branch = *branches.back();
        WindowResult& out = results[i];
        out.kept = keptCounts(branch.cache());
        const CacheStats stats = branch.cache().stats();
        out.kvBytes = stats.storedBytes;
        out.allocatedBytes = stats.allocatedBytes;
        out.bits = bitsPerValue(context, branch.cache());
        out.prefillMs = snapshot->milliseconds();
        out.selectMs = branch.selectMilliseconds();
        if (context.job.ppl.includeBoundary)
            out.nll += negativeLogLikelihood({branch.firstLogits().data_ptr<float>(), static_cast<std::size_t>(branch.firstLogits().numel())}, suffix[0]);
    }
    // The last token predicts nothing that is scored; it goes along, because matrix products of an odd number of rows are slower.
    std::vector<TokenId> targets(suffix.begin() + 1, suffix.end());
    targets.push_back(0);
    for (std::size_t done = 0; done < suffix.size();) {
        const std::size_t count = std::min(Rows, suffix.size() - done), scored = std::min(count, suffix.size() - 1 - done);
        const at::Tensor losses = Branch::losses(branches, suffix.subspan(done, count), std::span(targets).subspan(done, count), context.stop);
        const at::Tensor sums = losses.narrow(1, 0, static_cast<std::int64_t>(scored)).sum(1, false, at::kDouble);
        for (std::size_t i = 0; i < results.size(); ++i) results[i].nll += sums[static_cast<std::int64_t>(i)].item<double>();
        done += count;
        onTokens(static_cast<std::int64_t>(count * lanes.size()));
    }
    return results;
}

} // namespace

PplPlan planPerplexity(EvalContext& context) {
    const PplSpec& spec = context.job.ppl;
    if (spec.maxLength < 4) throw UsageError("ppl: expected max-length of at least 4, found " + std::to_string(spec.maxLength));
    if (!(spec.prefixRatio > 0.0 && spec.prefixRatio < 1.0)) throw UsageError("ppl: expected prefix-ratio between 0 and 1, found " + std::to_string(spec.prefixRatio));
    PplPlan plan;
    plan.ids = promptIds(context.tokenizer, context.frame, context.job.prompt);
    const auto available = static_cast<std::int64_t>(plan.ids.size()) / spec.maxLength;
    if (available < 1)
        throw EngineError("ppl: expected a text of at least " + std::to_string(spec.maxLength) + " tokens (max-length), found " + std::to_string(plan.ids.size()));
    checkContext(context.model.config(), spec.maxLength, "a window");
    checkMemory(context, spec.maxLength, static_cast<std::int64_t>(std::min(context.policies.size() + 1, PassRows)));
    plan.windows = std::min<std::int64_t>(std::max(1, spec.windows), available);
    plan.split = std::clamp<std::int64_t>(static_cast<std::int64_t>(spec.maxLength * spec.prefixRatio), 1, spec.maxLength - 2);
    // Whatever keeps everything is the baseline: scored once a window.
    plan.tokensPerWindow = plan.split + (spec.maxLength - plan.split) * static_cast<std::int64_t>(context.policies.size() + 1);
    return plan;
}

PplResults scoreWindows(EvalContext& context, const PplPlan& plan, ProgressMeter& meter, const std::function<void(std::int64_t, const PplResults&)>& onWindow,
                        PplResults start) {
    const PplSpec& spec = context.job.ppl;
    const auto full = std::shared_ptr<const Policy>(makePolicy(PolicySpec{}));
    const std::size_t lanes = context.policies.size();
    PplResults out = std::move(start);
    out.lanes.resize(lanes);
    out.notices.resize(lanes);
    const auto scoreWindow = [&](std::int64_t w) {
        const std::span<const TokenId> window = std::span(plan.ids).subspan(static_cast<std::size_t>(w * spec.maxLength), static_cast<std::size_t>(spec.maxLength));
        const std::int64_t begin = w * plan.tokensPerWindow;
        meter.stage("window " + std::to_string(w + 1) + " of " + std::to_string(plan.windows));
        const auto snapshot = Snapshot::prefill(context.model, window.first(static_cast<std::size_t>(plan.split)), prefillOptionsFor(context.policies, plan.split),
                                                context.stop, [&](std::int64_t done) { meter.at(begin + done); });
        const std::span<const TokenId> suffix = window.subspan(static_cast<std::size_t>(plan.split));
        const auto count = [&](std::int64_t n) { meter.add(n); };
        // Lane 0 of the pass is the baseline; what keeps everything is the baseline again.
        std::vector<SuffixLane> scored{{full, nullptr}};
        std::vector<std::size_t> resultOf(lanes, 0);
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            if (context.stop.stop_requested()) throw Cancelled{};
            const std::shared_ptr<const Policy>& policy = context.policies[lane];
            const Snapshot::Choice choice = snapshot->choose(*policy, context.quantizers[lane].get());
            out.notices[lane] = choice.notice;
            if (choice.everything && policy->rope() == RopeMode::original && policy->kind() != PolicyKind::attend && !context.quantizers[lane]) continue;
            resultOf[lane] = scored.size();
            scored.push_back({policy, context.quantizers[lane]});
        }
        std::vector<WindowResult> results;
        const std::size_t together = std::max<std::size_t>(1, PassRows / std::min(Rows, suffix.size()));
        for (std::size_t i = 0; i < scored.size(); i += together) {
            auto part = scoreSuffix(context, snapshot, std::span(scored).subspan(i, std::min(together, scored.size() - i)), suffix, count);
            std::ranges::move(part, std::back_inserter(results));
        }
        const WindowResult& baseline = results.front();
        meter.at(begin + plan.tokensPerWindow);
        out.baseline.push_back(baseline.nll);
        for (std::size_t lane = 0; lane < lanes; ++lane) out.lanes[lane].push_back(results[resultOf[lane]]);
        if (onWindow) onWindow(w, out);
    };
    try { // whole windows that were done still make rows
        for (auto w = static_cast<std::int64_t>(out.baseline.size()); w < plan.windows; ++w) scoreWindow(w);
    } catch (const Cancelled&) {
        out.cancelled = true;
        if (out.baseline.empty()) throw;
    }
    return out;
}

void setPerplexity(EvalContext& context, const PplPlan& plan, const PplResults& results, std::size_t lane, Measurement& row) {
    const PplSpec& spec = context.job.ppl;
    const auto scored = static_cast<std::int64_t>(results.baseline.size());
    const std::int64_t perWindow = spec.maxLength - plan.split - (spec.includeBoundary ? 0 : 1), n = perWindow * scored;
    double baseline = 0, nll = 0, spread = 0;
    for (const double x : results.baseline) baseline += x;
    std::vector<double> each, prefill, ttft;
    for (const WindowResult& r : results.lanes[lane]) {
        nll += r.nll;
        each.push_back(r.nll / static_cast<double>(perWindow));
        prefill.push_back(r.prefillMs / 1000);
        ttft.push_back((r.prefillMs + r.selectMs) / 1000);
    }
    const double mean = nll / static_cast<double>(n);
    for (const double x : each) spread += (x - mean) * (x - mean);
    const WindowResult& first = results.lanes[lane].front();
    row.set("protocol", std::string("suffix"));
    row.set("nll", mean);
    row.set("nll_stderr", scored > 1 ? std::sqrt(spread / static_cast<double>(scored - 1) / static_cast<double>(scored)) : NotMeasured);
    row.set("ppl", std::exp(mean));
    row.set("ppl_delta", std::exp(mean) - std::exp(baseline / static_cast<double>(n)));
    row.set("n_tokens", n);
    row.set("per_window", each);
    row.set("kept_per_layer", first.kept); // of the first window, [layers × kvHeads]
    row.set("kv_bytes", first.kvBytes);
    row.set("kv_bytes_allocated", first.allocatedBytes);
    row.set("bits_per_value", first.bits);
    row.set("prefill_s", median(prefill));
    row.set("ttft_s", median(ttft));
    row.set("tpot_ms", NotMeasured); // the suffix is one pass: there is no step to time
}

void runPerplexity(EvalContext& context) {
    const PplPlan plan = planPerplexity(context);
    context.header.prefillLength = static_cast<Position>(plan.split);
    context.sink.begin(context.header);
    ProgressMeter meter(context.progress, plan.windows * plan.tokensPerWindow);
    const PplResults results = scoreWindows(context, plan, meter);
    for (std::size_t lane = 0; lane < context.policies.size(); ++lane) {
        Measurement row = rowFor(context, lane, "ppl");
        setPerplexity(context, plan, results, lane, row);
        context.sink.add(row);
        if (!results.notices[lane].empty()) context.sink.notice(LaneIndex{static_cast<std::int32_t>(lane)}, results.notices[lane]);
    }
    if (results.cancelled) throw Cancelled{};
}

} // namespace keepsight
