// How much one query's attention output would change without each entry (a decode step of the kvc policies); see kernels/bind/output_change.cpp
// for the sums. Keys are read once, values twice: for the output, and for ⟨o, v⟩ and ‖v‖².
#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/isa.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

float squares(const float* x, std::int64_t width) {
    Floats acc{};
    for (std::int64_t d = 0; d < width; d += Lanes)
        acc += load(x + d) * load(x + d);
    return sum(acc);
}

// One entry's change for one head; a: weight, s: logit, n: ‖v‖², ov: ⟨o, v⟩, oo: ‖o‖².
template <int Kind> KEEPSIGHT_INLINE float changeOf(float a, float s, float n, float ov, float oo) {
    const float byValue = a * a * n, as = a * s, apart = n + oo - 2 * ov, byKey = as * as * (apart > 0 ? apart : 0);
    const float change = Kind == 0 ? byValue : Kind == 1 ? byKey : Kind == 2 ? byValue + byKey + 2 * as * a * (n - ov) : byValue + byKey;
    return change > 0 ? change : 0; // all four are sums of squares
}

template <int Kind> void changes(const float* weights, float factor, const float* logits, const float* norms, const float* ov, float oo, std::int64_t count, float* out) {
    for (std::int64_t t = 0; t < count; ++t)
        out[t] = changeOf<Kind>(weights[t] * factor, logits[t], norms[t], ov[t], oo);
}

using ChangeFunction = void (*)(const float*, float, const float*, const float*, const float*, float, std::int64_t, float*);
constexpr ChangeFunction changesOf[] = {changes<0>, changes<1>, changes<2>, changes<3>};

} // namespace

void outputChangeOne(const OutputChangeArgs& given) {
    const AttentionArgs& args = given.attention;
    const std::int64_t group = args.queryHeads / args.kvHeads, width = roundUp(args.dim, Lanes), heads = args.queryHeads;
    Buffer<std::int64_t> seen(args.kvHeads);
    const std::int64_t splits = splitsOf(args, seen.data()), length = splits * Split, perThread = Tile * width + group * Tile + Tile;
    Buffer<float> q(heads * width), logits(heads * length), weights(heads * length), tops(heads * splits), sums(heads * splits), outs(heads * splits * width), norms(heads);
    Buffer<float> scratch(omp_get_max_threads() * perThread);
    scaledQueries(args, args.scale, width, q.data());

#pragma omp parallel
    {
        float *buffer = scratch.data() + omp_get_thread_num() * perThread, *dots = buffer + Tile * width, *valueNorms = dots + group * Tile;
#pragma omp for schedule(static)
        for (std::int64_t task = 0; task < args.kvHeads * splits; ++task) {
            const std::int64_t h = task / splits, split = task % splits, first = split * Split, count = least(Split, seen[h] - first);
            if (count <= 0) continue;
            float *logit = logits.data() + h * group * length + first, *weight = weights.data() + h * group * length + first;
            splitScores(args, args.k, h, first, count, q.data() + h * group * width, width, buffer, logit, length);
            for (std::int64_t g = 0; g < group; ++g) {
                for (std::int64_t t = 0; t < count; ++t)
                    weight[g * length + t] = logit[g * length + t] * Log2E;
                const std::int64_t place = (h * group + g) * splits + split;
                sums[place] = exponentials(weight + g * length, count, count, tops[place]);
            }
            float* out = outs.data() + (h * splits + split) * group * width; // [KV head, split, group, width]
            std::memset(out, 0, static_cast<std::size_t>(group * width) * 4);
            splitValues(args, args.v, h, first, count, weight, length, width, buffer, out);
        }
#pragma omp for schedule(static)
        for (std::int64_t head = 0; head < heads; ++head) { // the splits' factors, and the output in the query's place
            const std::int64_t h = head / group, g = head % group, used = (seen[h] + Split - 1) / Split;
            float *factors = tops.data() + head * splits, *o = q.data() + head * width;
            splitFactors(factors, sums.data() + head * splits, used);
            combineSplits(factors, outs.data() + (h * splits * group + g) * width, group * width, used, width, o);
            norms[head] = squares(o, width);
        }
#pragma omp for schedule(static)
        for (std::int64_t task = 0; task < args.kvHeads * splits; ++task) {
            const std::int64_t h = task / splits, split = task % splits, first = split * Split, count = least(Split, seen[h] - first);
            for (std::int64_t t = 0; t < count; t += Tile) {
                const std::int64_t n = least(Tile, count - t);
                std::int64_t row;
                const float* v = tileRows(args.v, args.element, h, first + t, n, args.dim, width, buffer, row);
                for (std::int64_t i = 0; i < n; ++i)
                    valueNorms[i] = squares(v + i * row, width);
                for (std::int64_t g = 0; g < group; g += 4)
                    scoresOf[least(4, group - g)](v, row, n, q.data() + (h * group + g) * width, width, dots + g * Tile, Tile);
                for (std::int64_t g = 0; g < group; ++g) {
                    const std::int64_t head = h * group + g, place = head * length + first + t;
                    changesOf[given.kind](weights.data() + place, tops[head * splits + split], logits.data() + place, valueNorms, dots + g * Tile, norms[head], n,
                                          given.change + head * args.capacity + first + t);
                }
            }
        }
    }
    for (std::int64_t head = 0; head < heads; ++head) {
        const std::int64_t reached = seen[head / group];
        std::memset(given.change + head * args.capacity + reached, 0, static_cast<std::size_t>(args.capacity - reached) * 4);
    }
}

} // namespace keepsight::KEEPSIGHT_ISA
