// How much attention outputs would change without each entry (the kvc policies); see kernels/bind/output_change.cpp for the sums.
// One query, a decode step: keys are read once, values twice: for the output, and for ⟨o, v⟩ and ‖v‖².
// Many queries whose outputs and log-sum-exps are known: a weight needs nothing but its own logit then, so a task takes entries of its own and adds up
// their changes over all queries, in the queries' order. Weights exist for one tile at a time.
#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/score_tiles.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

template <class T>
float squares(const T* x, std::int64_t width) {
    Floats acc{};
    for (std::int64_t d = 0; d < width; d += Lanes)
        acc += widened(x + d) * widened(x + d);
    return sum(acc);
}

// Entries' changes for one head; a: weight, s: logit, n: ‖v‖², ov: ⟨o, v⟩, oo: ‖o‖². One entry, or a vector of them.
template <int Kind, class F> KEEPSIGHT_INLINE F changeOf(F a, F s, F n, F ov, F oo) {
    const F byValue = a * a * n, as = a * s, apart = n + oo - 2 * ov, byKey = as * as * (apart > 0 ? apart : F{});
    const F change = Kind == 0 ? byValue : Kind == 1 ? byKey : Kind == 2 ? byValue + byKey + 2 * as * a * (n - ov) : byValue + byKey;
    return change > 0 ? change : F{}; // all four are sums of squares
}

template <int Kind> void changes(const float* weights, float factor, const float* logits, const float* norms, const float* ov, float oo, std::int64_t count, float* out) {
    for (std::int64_t t = 0; t < count; ++t)
        out[t] = changeOf<Kind, float>(weights[t] * factor, logits[t], norms[t], ov[t], oo);
}

using ChangeFunction = void (*)(const float*, float, const float*, const float*, const float*, float, std::int64_t, float*);
constexpr ChangeFunction changesOf[] = {changes<0>, changes<1>, changes<2>, changes<3>};

// Rows of queries, of one query head after the other, as tiles that stay within a query head.
struct QueryRows {
    std::int64_t begin, count;  // queries
    float *q, *o;               // [queryHeads, count, dim]: scaled queries; outputs, where the changes hang on them
    float *logSumExp, *squares; // [queryHeads, count]: times log2 e; ‖o‖²
    std::int64_t* seen;         // [kvHeads, count] entries
};

void packTile(const AttentionArgs& args, const void* output, const float* logSumExp, const QueryRows& rows, std::int64_t head, std::int64_t first, float* buffer) {
    const std::int64_t group = args.queryHeads / args.kvHeads, dim = args.dim, m = least(ScoreRows, rows.count - first), h = head / group;
    for (std::int64_t r = 0; r < m; ++r) {
        const std::int64_t query = rows.begin + first + r, row = head * rows.count + first + r;
        packRow(at(args.q.data, args.element, head * args.q.head + query * args.q.row), args.element, dim, args.scale, rows.q + (row - r) * dim, m, r, buffer);
        rows.squares[row] = 0;
        if (output) {
            packRow(at(output, args.element, (query * args.queryHeads + head) * dim), args.element, dim, 1, rows.o + (row - r) * dim, m, r, buffer);
            for (std::int64_t d = 0; d < dim; ++d)
                rows.squares[row] += buffer[d] * buffer[d];
        }
        rows.logSumExp[row] = logSumExp[head * args.queries + query] * Log2E;
        if (head % group == 0) rows.seen[h * rows.count + first + r] = visible(args.positionsOf(h), args.lengths[h], args.queryPositions[query]);
    }
}

struct Panel { // Columns entries of a KV head from `first` on
    std::int64_t first;
    const float *keys, *values;
    Floats norms[2];            // ‖v‖²
};

// The changes of a panel's entries, summed over the rows of one query head.
template <int Kind> void panelChanges(const AttentionArgs& args, const QueryRows& rows, std::int64_t head, const Panel& panel, Floats (&sums)[2]) {
    const std::int64_t *seen = rows.seen + head / (args.queryHeads / args.kvHeads) * rows.count, begin = head * rows.count;
    float scores[ScoreRows * Columns], products[ScoreRows * Columns];
    Ints lanes;
    for (int i = 0; i < Lanes; ++i)
        lanes[i] = i;
    for (std::int64_t t = 0; t < rows.count; t += ScoreRows) {
        const std::int64_t m = least(ScoreRows, rows.count - t);
        if (panel.first >= seen[t + m - 1]) continue; // queries ascend
        scoreTiles[m](rows.q + (begin + t) * args.dim, panel.keys, args.dim, scores, Columns);
        if constexpr (Kind != 0) scoreTiles[m](rows.o + (begin + t) * args.dim, panel.values, args.dim, products, Columns);
        for (std::int64_t r = 0; r < m; ++r) {
            const Floats norm = broadcast(rows.logSumExp[begin + t + r]), square = broadcast(rows.squares[begin + t + r]);
            const std::int32_t left = static_cast<std::int32_t>(seen[t + r] - panel.first);
            for (int half = 0; half < 2; ++half) {
                const Floats s = load(scores + r * Columns + half * Lanes), product = Kind != 0 ? load(products + r * Columns + half * Lanes) : Floats{};
                const Floats change = changeOf<Kind, Floats>(exp2(s * Log2E - norm), s, panel.norms[half], product, square);
                sums[half] += lanes + half * Lanes < left ? change : Floats{};
            }
        }
    }
}

using PanelFunction = void (*)(const AttentionArgs&, const QueryRows&, std::int64_t, const Panel&, Floats (&)[2]);
constexpr PanelFunction panelChangesOf[] = {panelChanges<0>, panelChanges<1>, panelChanges<2>, panelChanges<3>};

// Panels [first, last) of KV head h.
void spanChanges(const OutputChangeArgs& given, const QueryRows& rows, std::int64_t h, std::int64_t first, std::int64_t last, float* buffer) {
    const AttentionArgs& args = given.attention;
    const std::int64_t group = args.queryHeads / args.kvHeads, dim = args.dim, entries = rows.seen[h * rows.count + rows.count - 1];
    float *keys = buffer + Columns * dim, *values = keys + Columns * dim;
    for (std::int64_t begin = first * Columns; begin < least(last * Columns, entries); begin += Columns) {
        const std::int64_t n = least(Columns, entries - begin);
        packPanel(args.k, args.element, h, begin, n, dim, keys, buffer);
        packPanel(args.v, args.element, h, begin, n, dim, values, buffer); // ‖v‖² of all entries at once, too
        Panel panel{begin, keys, values, {}};
        for (std::int64_t d = 0; d < dim; ++d)
            for (int half = 0; half < 2; ++half) {
                const Floats v = load(values + d * Columns + half * Lanes);
                panel.norms[half] += v * v;
            }
        for (std::int64_t g = 0; g < group; ++g) {
            Floats sums[2] = {};
            panelChangesOf[given.kind](args, rows, h * group + g, panel, sums);
            float added[Columns], *to = given.change + (h * group + g) * args.capacity + begin;
            store(added, sums[0]);
            store(added + Lanes, sums[1]);
            for (std::int64_t j = 0; j < n; ++j)
                to[j] += added[j];
        }
    }
}

} // namespace

void outputChange(const OutputChangeArgs& given, const void* output, const float* logSumExp) {
    const AttentionArgs& args = given.attention;
    constexpr std::int64_t Together = 512, SpanPanels = 16;
    const std::int64_t count = least(Together, args.queries), dim = args.dim, heads = args.queryHeads, panels = (args.capacity + Columns - 1) / Columns,
                       spans = (panels + SpanPanels - 1) / SpanPanels, perThread = roundUp(3 * Columns * dim, 16);
    std::memset(given.change, 0, static_cast<std::size_t>(heads * args.capacity) * 4);
    Buffer<float> q(heads * count * dim), o(output ? heads * count * dim : 0), norms(heads * count), squares(heads * count), scratch(omp_get_max_threads() * perThread);
    Buffer<std::int64_t> seen(args.kvHeads * count);
    for (std::int64_t begin = 0; begin < args.queries; begin += Together) {
        const QueryRows rows{begin, least(Together, args.queries - begin), q.data(), o.data(), norms.data(), squares.data(), seen.data()};
        const std::int64_t tiles = (rows.count + ScoreRows - 1) / ScoreRows;
#pragma omp parallel
        {
            float* mine = scratch.data() + omp_get_thread_num() * perThread;
#pragma omp for schedule(static)
            for (std::int64_t task = 0; task < heads * tiles; ++task)
                packTile(args, output, logSumExp, rows, task / tiles, task % tiles * ScoreRows, mine);
#pragma omp for schedule(dynamic)
            for (std::int64_t task = 0; task < args.kvHeads * spans; ++task)
                spanChanges(given, rows, task / spans, task % spans * SpanPanels, (task % spans + 1) * SpanPanels, mine);
        }
    }
}

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
                withTile(args.v, args.element, h, first + t, n, args.dim, width, buffer, [&]<class T>(const T* v, std::int64_t row) {
                    for (std::int64_t i = 0; i < n; ++i)
                        valueNorms[i] = squares(v + i * row, width);
                    for (std::int64_t g = 0; g < group; g += 4)
                        scoresOf<T>[least(4, group - g)](v, row, n, q.data() + (h * group + g) * width, width, dots + g * Tile, Tile);
                });
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
