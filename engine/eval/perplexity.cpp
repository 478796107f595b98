// Suffix perplexity (evaluations.md §2): prefill the first part of each window under the policy, then score the rest in one pass,
// teacher-forced, on the compressed cache without further eviction. One prefill serves every policy and ratio.
#include "engine/data/error.h"
#include "engine/eval/evaluation.h"
#include "engine/session/sampler.h"
#include "engine/trace/recorder.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <map>

namespace keepsight {
namespace {

struct WindowResult {
    double nll = 0;                 // summed
    std::vector<double> kept;       // [layers × kvHeads]
    std::int64_t kvBytes = 0, allocatedBytes = 0;
    double prefillMs = 0, selectMs = 0;
};

// NLL of suffix tokens from the logits of the token before each; the first from the prefix's last logits.
WindowResult scoreSuffix(EvalContext& context, const std::shared_ptr<const Snapshot>& snapshot, const std::shared_ptr<const Policy>& policy,
                         std::span<const TokenId> suffix, const std::function<void(std::int64_t)>& onTokens) {
    BranchOptions options;
    options.headroom = static_cast<std::int64_t>(suffix.size());
    options.recordEvictions = false;
    Branch branch(context.model, snapshot, policy, options);
    WindowResult out;
    out.kept = keptCounts(branch.cache());
    const CacheStats stats = branch.cache().stats();
    out.kvBytes = stats.storedBytes;
    out.allocatedBytes = stats.allocatedBytes;
    out.prefillMs = snapshot->milliseconds();
    out.selectMs = branch.selectMilliseconds();
    if (context.job.ppl.includeBoundary)
        out.nll += negativeLogLikelihood({snapshot->lastLogits().data_ptr<float>(), static_cast<std::size_t>(snapshot->lastLogits().numel())}, suffix[0]);
    // The last token predicts nothing that is scored; it goes along, because matrix products of an odd number of rows are slower.
    constexpr std::size_t Rows = 512; // tokens a pass: bounds the time between two looks at the stop token
    std::vector<TokenId> targets(suffix.begin() + 1, suffix.end());
    targets.push_back(0);
    for (std::size_t done = 0; done < suffix.size();) {
        const std::size_t count = std::min(Rows, suffix.size() - done), scored = std::min(count, suffix.size() - 1 - done);
        const at::Tensor losses = branch.losses(suffix.subspan(done, count), std::span(targets).subspan(done, count), context.stop);
        out.nll += losses.narrow(0, 0, static_cast<std::int64_t>(scored)).sum(at::kDouble).item<double>();
        done += count;
        onTokens(static_cast<std::int64_t>(count));
    }
    return out;
}

} // namespace

void runPerplexity(EvalContext& context) {
    const PplSpec& spec = context.job.ppl;
    if (spec.maxLength < 4) throw UsageError("ppl: expected max-length of at least 4, found " + std::to_string(spec.maxLength));
    if (!(spec.prefixRatio > 0.0 && spec.prefixRatio < 1.0)) throw UsageError("ppl: expected prefix-ratio between 0 and 1, found " + std::to_string(spec.prefixRatio));
    const std::vector<TokenId> ids = promptIds(context.tokenizer, context.frame, context.job.prompt);
    const auto available = static_cast<std::int64_t>(ids.size()) / spec.maxLength;
    if (available < 1)
        throw EngineError("ppl: expected a text of at least " + std::to_string(spec.maxLength) + " tokens (max-length), found " + std::to_string(ids.size()));
    checkContext(context.model.config(), spec.maxLength, "a window");
    checkMemory(context.model, spec.maxLength, 1);
    const std::int64_t windows = std::min<std::int64_t>(std::max(1, spec.windows), available);
    const std::int64_t split = std::clamp<std::int64_t>(static_cast<std::int64_t>(spec.maxLength * spec.prefixRatio), 1, spec.maxLength - 2);

    context.header.prefillLength = static_cast<Position>(split);
    context.sink.begin(context.header);
    const auto full = std::shared_ptr<const Policy>(makePolicy(PolicySpec{}));
    const std::size_t lanes = context.policies.size();
    // Whatever keeps everything is the baseline: scored once a window.
    ProgressMeter meter(context.progress, windows * (split + (spec.maxLength - split) * static_cast<std::int64_t>(lanes + 1)));
    std::vector<std::vector<WindowResult>> results(lanes);
    std::vector<std::string> notices(lanes);
    std::vector<double> baselineNll;
    const auto scoreWindow = [&](std::int64_t w) {
        const std::span<const TokenId> window = std::span(ids).subspan(static_cast<std::size_t>(w * spec.maxLength), static_cast<std::size_t>(spec.maxLength));
        const std::int64_t begin = w * (split + (spec.maxLength - split) * static_cast<std::int64_t>(lanes + 1));
        meter.stage("window " + std::to_string(w + 1) + " of " + std::to_string(windows));
        const auto snapshot = Snapshot::prefill(context.model, window.first(static_cast<std::size_t>(split)), prefillOptionsFor(context.policies, split), context.stop,
                                                [&](std::int64_t done) { meter.at(begin + done); });
        const std::span<const TokenId> suffix = window.subspan(static_cast<std::size_t>(split));
        const auto count = [&](std::int64_t n) { meter.add(n); };
        const WindowResult baseline = scoreSuffix(context, snapshot, full, suffix, count);
        std::vector<WindowResult> each;
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            if (context.stop.stop_requested()) throw Cancelled{};
            const Snapshot::Choice choice = snapshot->choose(*context.policies[lane]);
            notices[lane] = choice.notice;
            if (choice.everything && context.policies[lane]->rope() == RopeMode::original)
                each.push_back(baseline);
            else
                each.push_back(scoreSuffix(context, snapshot, context.policies[lane], suffix, count));
            meter.at(begin + split + (spec.maxLength - split) * static_cast<std::int64_t>(lane + 2));
        }
        baselineNll.push_back(baseline.nll);
        for (std::size_t lane = 0; lane < lanes; ++lane) results[lane].push_back(std::move(each[lane]));
    };
    bool cancelled = false; // whole windows that were done still make rows
    try {
        for (std::int64_t w = 0; w < windows; ++w) scoreWindow(w);
    } catch (const Cancelled&) {
        cancelled = true;
        if (baselineNll.empty()) throw;
    }

    const auto scored = static_cast<std::int64_t>(baselineNll.size());
    const std::int64_t perWindow = spec.maxLength - split - (spec.includeBoundary ? 0 : 1), n = perWindow * scored;
    double baseline = 0;
    for (const double nll : baselineNll) baseline += nll;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        double nll = 0;
        std::vector<double> each, prefill, ttft;
        for (const WindowResult& r : results[lane]) {
            nll += r.nll;
            each.push_back(r.nll / static_cast<double>(perWindow));
            prefill.push_back(r.prefillMs / 1000);
            ttft.push_back((r.prefillMs + r.selectMs) / 1000);
        }
        const double mean = nll / static_cast<double>(n);
        double spread = 0;
        for (const double x : each) spread += (x - mean) * (x - mean);
        Measurement row = rowFor(context, lane, "ppl");
        row.set("protocol", std::string("suffix"));
        row.set("nll", mean);
        row.set("nll_stderr", scored > 1 ? std::sqrt(spread / static_cast<double>(scored - 1) / static_cast<double>(scored)) : NotMeasured);
        row.set("ppl", std::exp(mean));
        row.set("ppl_delta", std::exp(mean) - std::exp(baseline / static_cast<double>(n)));
        row.set("n_tokens", n);
        row.set("per_window", each);
        row.set("kept_per_layer", results[lane].front().kept); // of the first window, [layers × kvHeads]
        row.set("kv_bytes", results[lane].front().kvBytes);
        row.set("kv_bytes_allocated", results[lane].front().allocatedBytes);
        row.set("prefill_s", median(prefill));
        row.set("ttft_s", median(ttft));
        row.set("tpot_ms", NotMeasured); // the suffix is one pass: there is no step to time
        context.sink.add(row);
        if (!notices[lane].empty()) context.sink.notice(LaneIndex{static_cast<std::int32_t>(lane)}, notices[lane]);
    }
    if (cancelled) throw Cancelled{};
}

} // namespace keepsight
