// Attention of one query (a decode step): memory-bound, so every key and value is read once for all G query heads of its KV head.
#include "kernels/cpu/attention_splits.h"
#include "kernels/cpu/isa.h"

namespace keepsight::KEEPSIGHT_ISA {

void attentionOne(const AttentionArgs& args) {
    const std::int64_t width = roundUp(args.dim, Lanes);
    Buffer<std::int64_t> seen(args.kvHeads);
    const std::int64_t splits = splitsOf(args, seen.data());
    attendInSplits(
        args, seen.data(), splits, Tile * width,
        [&](std::int64_t h, std::int64_t first, std::int64_t count, const float* q, float* scratch, float* to, std::int64_t stride) {
            splitScores(args, args.k, h, first, count, q, width, scratch, to, stride, {args.out ? &args.v : nullptr, first});
        },
        [&](std::int64_t h, std::int64_t first, std::int64_t count, const float* weights, std::int64_t stride, float* scratch, float* to) {
            splitValues(args, args.v, h, first, count, weights, stride, width, scratch, to,
                        {first + count < seen[h] ? &args.k : nullptr, first + count});
        });
}

} // namespace keepsight::KEEPSIGHT_ISA
