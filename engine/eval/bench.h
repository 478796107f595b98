// Times of decoding in parts, shared by the bench and suite jobs.
#pragma once

#include "engine/eval/evaluation.h"

namespace keepsight {

std::vector<TokenId> benchIds(EvalContext& context); // the prompt, repeated or made from the seed; throws UsageError, EngineError
std::vector<std::size_t> shuffledLanes(std::size_t lanes, std::uint64_t seed, int round);

struct BenchTimes {
    std::vector<double> prefill, ttft, tpot, throughput, decode; // one per repeat; seconds, tpot in milliseconds
    CacheStats stats;
};
// One repeat of one lane. snapshot: a prefill to branch from, null: prefills here. times null: a warm-up.
void timeLane(EvalContext& context, std::size_t lane, const std::vector<TokenId>& ids, std::shared_ptr<const Snapshot> snapshot, BenchTimes* times);
void setBench(EvalContext& context, const BenchTimes& times, Measurement& row);

} // namespace keepsight
