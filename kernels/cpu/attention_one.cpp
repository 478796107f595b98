// Attention of one query (a decode step): memory-bound, so every key and value is read once for all G query heads of its KV head.
// A task is (KV head, split of the entries); it keeps max, sum and weighted values of its split, which are then combined in order.
// Splits do not depend on the threads, so neither do the results.
#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/isa.h"

namespace keepsight::KEEPSIGHT_ISA {

void attentionOne(const AttentionArgs& args) {
    const std::int64_t group = args.queryHeads / args.kvHeads, width = roundUp(args.dim, Lanes);
    Buffer<std::int64_t> seen(args.kvHeads);
    std::int64_t splits = 1;
    for (std::int64_t h = 0; h < args.kvHeads; ++h) {
        seen[h] = visible(args.positions + h * args.capacity, args.lengths[h], args.queryPositions[0]);
        splits = most(splits, (seen[h] + Split - 1) / Split);
    }
    const bool wantWeights = args.columnSum || args.lastRows || args.map;
    const std::int64_t length = splits * Split, heads = args.queryHeads;
    Buffer<float> q(heads * width), weights(wantWeights ? heads * length : 0), tops(heads * splits), sums(heads * splits),
        outs(heads * splits * width);
    Buffer<float> scratch(omp_get_max_threads() * (group * Split + Tile * width));
    Buffer<std::int64_t> ends(args.map ? args.kvHeads * args.mapColumns : 0);
    q.clear(heads * width);
    for (std::int64_t h = 0; h < heads; ++h) {
        toFp32(at(args.q.data, args.element, h * args.q.head), args.element, args.dim, q.data() + h * width);
        for (std::int64_t d = 0; d < args.dim; ++d)
            q[h * width + d] *= args.scale * Log2E;
    }

#pragma omp parallel
    {
        float* mine = scratch.data() + omp_get_thread_num() * (group * Split + Tile * width);
        float* buffer = mine + group * Split;
#pragma omp for schedule(static)
        for (std::int64_t task = 0; task < args.kvHeads * splits; ++task) {
            const std::int64_t h = task / splits, split = task % splits, first = split * Split, count = least(Split, seen[h] - first);
            if (count <= 0) continue;
            float* scores = wantWeights ? weights.data() + h * group * length + first : mine;
            const std::int64_t stride = wantWeights ? length : Split;
            for (std::int64_t t = 0; t < count; t += Tile) {
                const std::int64_t n = least(Tile, count - t);
                std::int64_t row;
                const float* k = tileRows(args.k, args.element, h, first + t, n, args.dim, width, buffer, row);
                for (std::int64_t g = 0; g < group; g += 4)
                    scoresOf[least(4, group - g)](k, row, n, q.data() + (h * group + g) * width, width, scores + g * stride + t, stride);
            }
            for (std::int64_t g = 0; g < group; ++g) {
                const std::int64_t place = (h * group + g) * splits + split;
                sums[place] = exponentials(scores + g * stride, count, count, tops[place]);
            }
            if (!args.out) continue;
            float* out = outs.data() + (h * splits + split) * group * width; // [kv head, split, group, width]
            std::memset(out, 0, static_cast<std::size_t>(group * width) * 4);
            for (std::int64_t t = 0; t < count; t += Tile) {
                const std::int64_t n = least(Tile, count - t);
                std::int64_t row;
                const float* v = tileRows(args.v, args.element, h, first + t, n, args.dim, width, buffer, row);
                for (std::int64_t g = 0; g < group; g += 4)
                    valuesOf[least(4, group - g)](v, row, n, scores + g * stride + t, stride, out + g * width, width);
            }
        }
#pragma omp for schedule(static)
        for (std::int64_t head = 0; head < heads; ++head) {
            const std::int64_t h = head / group, g = head % group, used = (seen[h] + Split - 1) / Split;
            float *top = tops.data() + head * splits, *total = sums.data() + head * splits;
            float best = used ? top[0] : 0, all = 0;
            for (std::int64_t s = 0; s < used; ++s)
                best = top[s] > best ? top[s] : best;
            for (std::int64_t s = 0; s < used; ++s) {
                float factor[Lanes];
                store(factor, exp2(broadcast(top[s] - best)));
                top[s] = factor[0];
                all += total[s] * factor[0];
            }
            for (std::int64_t s = 0; s < used; ++s)
                top[s] /= all;
            if (args.out) {
                float* sumOf = q.data() + head * width; // this head's query is no longer needed
                for (std::int64_t d = 0; d < width; d += Lanes) {
                    Floats acc{};
                    for (std::int64_t s = 0; s < used; ++s)
                        acc += top[s] * load(outs.data() + ((h * splits + s) * group + g) * width + d);
                    store(sumOf + d, acc);
                }
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

} // namespace keepsight::KEEPSIGHT_ISA
