// A pass of one query over its entries in splits, whatever keys and values are stored as. A task is (KV head, split of the entries); it
// keeps max, sum and weighted values of its split, which are then combined in order.
#pragma once

#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/attention_tiles.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

// seen[h]: entries of a head. Of entries [first, first + count) of KV head h, for each of its query heads g:
//   scores(h, first, count, q, scratch, to, stride)       q [G, width], scaled by scale · log2 e: its products with the keys to to[g ·
//   stride + t] values(h, first, count, weights, stride, scratch, to) Σ weights[g · stride + t] · v added to to[g · width]
// with scratchFloats of scratch, the thread's own.
template <class Scores, class Values>
void attendInSplits(const AttentionArgs& args, const std::int64_t* seen, std::int64_t splits, std::int64_t scratchFloats,
                    const Scores& scores, const Values& values) {
    const std::int64_t group = args.queryHeads / args.kvHeads, width = roundUp(args.dim, Lanes);
    const bool wantWeights = args.columnSum || args.lastRows || args.map;
    const std::int64_t length = splits * Split, heads = args.queryHeads, perThread = roundUp(group * Split + scratchFloats, 16);
    Buffer<float> q(heads * width), weights(wantWeights ? heads * length : 0), tops(heads * splits), sums(heads * splits),
        outs(heads * splits * width);
    Buffer<float> threads(omp_get_max_threads() * perThread);
    Buffer<std::int64_t> ends(args.map ? args.kvHeads * args.mapColumns : 0);
    scaledQueries(args, args.scale * Log2E, width, q.data());

#pragma omp parallel
    {
        float *mine = threads.data() + omp_get_thread_num() * perThread, *scratch = mine + group * Split;
#pragma omp for schedule(dynamic) // a head's last split may hold a single entry
        for (std::int64_t task = 0; task < args.kvHeads * splits; ++task) {
            const std::int64_t h = task / splits, split = task % splits, first = split * Split, count = least(Split, seen[h] - first);
            if (count <= 0) continue;
            float* to = wantWeights ? weights.data() + h * group * length + first : mine;
            const std::int64_t stride = wantWeights ? length : Split;
            scores(h, first, count, q.data() + h * group * width, scratch, to, stride);
            for (std::int64_t g = 0; g < group; ++g) {
                const std::int64_t place = (h * group + g) * splits + split;
                sums[place] = exponentials(to + g * stride, count, count, tops[place]);
            }
            if (!args.out) continue;
            float* out = outs.data() + (h * splits + split) * group * width; // [KV head, split, group, width]
            std::memset(out, 0, static_cast<std::size_t>(group * width) * 4);
            values(h, first, count, to, stride, scratch, out);
        }
#pragma omp for schedule(static)
        for (std::int64_t head = 0; head < heads; ++head) {
            const std::int64_t h = head / group, g = head % group, used = (seen[h] + Split - 1) / Split;
            float* top = tops.data() + head * splits;
            splitFactors(top, sums.data() + head * splits, used);
            if (args.out) {
                float* sumOf = q.data() + head * width; // this head's query is no longer needed
                combineSplits(top, outs.data() + (h * splits * group + g) * width, group * width, used, width, sumOf);
                fromFp32(sumOf, args.dim, at(args.out, args.element, head * args.dim), args.element);
            }
            if (!wantWeights) continue;
            float* row = weights.data() + head * length;
            for (std::int64_t t = 0; t < seen[h]; ++t)
                row[t] *= top[t / Split];
            if (args.columnSum)
                for (std::int64_t t = 0; t < seen[h]; ++t)
                    args.columnSum[head * args.capacity + t] += row[t];
            if (args.lastRows && args.lastCount) {
                std::memcpy(args.lastRows + head * args.capacity, row, static_cast<std::size_t>(seen[h]) * 4);
                std::memset(args.lastRows + head * args.capacity + seen[h], 0, static_cast<std::size_t>(args.capacity - seen[h]) * 4);
            }
        }
    }

    if (!args.map) return;
    const std::int64_t mapRowIndex = mapRow(args, 0);
    if (mapRowIndex < 0) return;
    for (std::int64_t h = 0; h < args.kvHeads; ++h) {
        columnEnds(args, h, ends.data());
        const bool mean = args.mapHeads == args.kvHeads;
        for (std::int64_t g = 0; g < group; ++g) {
            const std::int64_t mapHead = mean ? h : h * group + g;
            addToMap(weights.data() + (h * group + g) * length, seen[h], ends.data(), args.mapColumns,
                     mean ? 1.f / static_cast<float>(group) : 1.f, args.map + (mapHead * args.mapRows + mapRowIndex) * args.mapColumns);
        }
    }
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
