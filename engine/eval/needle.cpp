// Needle: pass-key retrieval over length × depth × key for every lane (evaluations.md §6 C). One prefill serves all lanes of a cell.
//
// The policy acts on the context before the question is known (kvpress's protocol); queryAware puts the question into the prefill.
// Cells come in a fixed order: length, depth, key, lane.
#include "engine/data/error.h"
#include "engine/eval/evaluation.h"
#include "engine/eval/passkey.h"
#include "engine/session/sampler.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

// Share of (layer, KV head, needle token) still stored.
double needleShare(const KvCache& cache, Position begin, Position end) {
    std::int64_t held = 0, all = 0;
    for (int l = 0; l < cache.layers(); ++l)
        for (const std::vector<std::int32_t>& row : cache.layer(LayerIndex{l}).heldPositions()) {
            held += std::ranges::lower_bound(row, end) - std::ranges::lower_bound(row, begin);
            all += end - begin;
        }
    return all > 0 ? static_cast<double>(held) / static_cast<double>(all) : NotMeasured;
}

// The rows of a cell that an earlier, interrupted recording of the job has.
std::vector<Measurement> doneBefore(const Trace* trace, int length, double depth, int key) {
    std::vector<Measurement> out;
    if (trace)
        std::ranges::copy_if(trace->measurements, std::back_inserter(out), [&](const Measurement& m) {
            return m.kind == "needle" && m.number("length") == length && m.number("depth") == depth && m.number("key_index") == key;
        });
    return out;
}

} // namespace

void runNeedle(EvalContext& context) {
    const NeedleSpec& spec = context.job.needle;
    if (spec.lengths.empty() || spec.depths.empty() || spec.keys < 1) throw UsageError("needle: expected at least one length, one depth and one key");
    for (const double depth : spec.depths)
        if (!(depth >= 0 && depth <= 100)) throw UsageError("needle: expected depths from 0 to 100 percent, found " + std::to_string(depth));
    const std::size_t lanes = context.policies.size();
    const int longest = *std::max_element(spec.lengths.begin(), spec.lengths.end());
    const int answerTokens = spec.digits + 12; // one token a digit in most vocabularies, and a few words before them
    checkContext(context.model.config(), longest + answerTokens, "the longest needle prompt", context.policies);
    checkMemory(context, longest + answerTokens, 1);
    context.sink.begin(context.header);

    std::int64_t total = 0;
    for (const int length : spec.lengths)
        total += static_cast<std::int64_t>(length) * static_cast<std::int64_t>(spec.depths.size()) * spec.keys;
    ProgressMeter meter(context.progress, total);
    std::int64_t done = 0, cell = 0;
    const std::int64_t cells = static_cast<std::int64_t>(spec.lengths.size() * spec.depths.size()) * spec.keys;
    for (const int length : spec.lengths) {
        for (const double depth : spec.depths) {
            for (int key = 0; key < spec.keys; ++key) {
                meter.stage("needle cell " + std::to_string(++cell) + " of " + std::to_string(cells));
                if (const std::vector<Measurement> before = doneBefore(context.resume, length, depth, key); before.size() == lanes) {
                    for (const Measurement& row : before) context.sink.add(row);
                    meter.at(done += length);
                    continue;
                }
                const PasskeyPrompt prompt = makePasskey(context.tokenizer, length, depth, key, spec.digits, context.job.seed, spec.haystack, context.frame);
                std::vector<TokenId> prefill = prompt.context;
                if (spec.queryAware) prefill.insert(prefill.end(), prompt.question.begin(), prompt.question.end());
                const auto snapshot = Snapshot::prefill(context.model, prefill, prefillOptionsFor(context.policies, static_cast<std::int64_t>(prefill.size())),
                                                        context.stop, [&](std::int64_t n) { meter.at(done + n * 9 / 10); });
                for (std::size_t lane = 0; lane < lanes; ++lane) {
                    const BranchOptions options = branchOptions(context, lane, static_cast<std::int64_t>(prompt.question.size()) + answerTokens);
                    const auto begin = std::chrono::steady_clock::now();
                    Branch branch(context.model, snapshot, context.policies[lane], options);
                    const double share = needleShare(branch.cache(), prompt.needleBegin, prompt.needleEnd);
                    at::Tensor logits = branch.firstLogits();
                    if (!spec.queryAware) logits = branch.feed(prompt.question, LogitRows::last, true, context.stop).reshape({-1});
                    std::string answer;
                    std::vector<double> stepMs;
                    for (int n = 0; n < answerTokens; ++n) {
                        const TokenId token = argmaxToken({logits.data_ptr<float>(), static_cast<std::size_t>(logits.numel())});
                        if (std::find(context.stopTokens.begin(), context.stopTokens.end(), token) != context.stopTokens.end()) break;
                        answer += context.tokenizer.bytes(token);
                        // Digits followed by something else: the answer is complete.
                        const std::size_t digit = answer.find_first_of("0123456789");
                        if (digit != std::string::npos && answer.find_first_not_of("0123456789", digit) != std::string::npos) break;
                        if (n + 1 == answerTokens) break;
                        const auto step = std::chrono::steady_clock::now();
                        logits = branch.feed(std::span(&token, 1), LogitRows::last, true, context.stop).reshape({-1});
                        stepMs.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - step).count());
                    }
                    const PasskeyScore score = scorePasskey(answer, prompt.expected);
                    Measurement row = rowFor(context, lane, "needle");
                    row.set("length", static_cast<std::int64_t>(length));
                    row.set("depth", depth);
                    row.set("key_index", static_cast<std::int64_t>(key));
                    row.set("score", score.exact);
                    row.set("digit_prefix", score.prefix);
                    row.set("expected", prompt.expected);
                    row.set("answer", answer);
                    row.set("kept_needle_share", share);
                    row.set("prompt_tokens", static_cast<std::int64_t>(prompt.context.size() + prompt.question.size()));
                    row.set("kv_bytes", branch.cache().stats().storedBytes);
                    row.set("prefill_s", snapshot->milliseconds() / 1000);
                    row.set("answer_s", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
                    row.set("tpot_ms", median(stepMs));
                    context.sink.add(row);
                    if (!branch.notice().empty()) context.sink.notice(LaneIndex{static_cast<std::int32_t>(lane)}, branch.notice());
                }
                done += length;
                meter.at(done);
            }
        }
    }
}

} // namespace keepsight
