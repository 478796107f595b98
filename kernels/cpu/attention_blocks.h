// Blocked attention for many queries, whatever multiplies them; scores never exist for more than one block of rows (≤ ~100 query rows), which stays in L2.
//   1. Keys and values of a KV head are packed once, as Products wants them.
//   2. The queries of a KV head are cut into chunks of about equal work; a task is (KV head, chunk).
//   3. A task takes blocks of queries × the head's G query heads, and their entries in steps: scores = q·Kᵀ, their exponentials by row under a score that
//      is about the greatest so far, output += P·V, scaled down before where that score grew.
//   4. Statistics come from the weights of all steps, which are kept for that while they are in cache.
// Chunks are the same for any number of threads and their statistics are added in a fixed order, so results are equal from run to run.
// The factor log2 e is in the scores, so that the softmax needs 2^x only.
//
// Products, static functions throughout:
//   Number                                            what packed keys, values and queries consist of
//   plan(shape, args, longest)                        sets what a shape says of widths, rows and steps
//   begin(), end()                                    of a thread's work
//   pack(args, shape, head, first, n, buffer)         n ≤ Columns entries; buffer: [Columns, keyWidth] floats
//   packQueries(args, shape, head, s, begin, count)   to s.q; rows are ordered by query head, then query
//   scores(shape, head, s, rows, first, n, to)        of entries [first, first + n), to rows of panelStride; up to whole Columns there is room
//   weights(args, shape, s, rows, first, n, scores)   exponentials of what each row sees, zeros behind; raises s.top and adds to s.total
//   values(shape, head, s, rows, first, n, scores)    adds P·V to s.out
#pragma once

#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/score_tiles.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr std::int64_t MaxChunks = 8;
constexpr std::int64_t GroupBytes = 64 << 20; // packed keys and values held at a time

struct Shape {
    std::int64_t group = 0, chunks = 0;                            // group: query heads per KV head
    bool kept = false;                                             // weights of all steps lie side by side in the panel
    std::int64_t keyWidth = 0, valueWidth = 0;                     // padded dim of packed keys and values
    std::int64_t blockQueries = 0, blockRows = 0;                  // of a block at most; blockRows with padding
    std::int64_t step = 0, steps = 0, narrow = 0, panelStride = 0; // entries of a step; of a row of narrow weights and of the panel
};

template <class Number>
struct Head {                            // packed keys and values of one KV head
    std::int64_t index = 0, entries = 0; // entries some query sees
    Number *keys = nullptr, *values = nullptr;
};

struct Partial {                // statistics of one task
    float* columnSum = nullptr; // [group, entries]
    float* map = nullptr;       // [group or 1, rows, mapColumns]
    std::int64_t firstRow = 0, rows = 0;
};

template <class Number>
struct BlockScratch {
    std::int64_t* seen; // [blockRows] entries that a row sees
    float *panel, *sums, *out, *top;
    float* total;       // [blockRows, Lanes] Σ of exponentials under top, in parts
    float* inverse;     // [steps, blockRows] top after each step, then what makes the step's exponentials weights
    Number *q, *narrow; // narrow: the weights that Products multiplies, where it does not take them from the panel
    static std::int64_t size(const Shape& s) {
        return s.blockRows * (s.panelStride + s.valueWidth + Lanes + s.steps + s.keyWidth + s.narrow + 3) + s.panelStride + 64;
    }
    BlockScratch(float* base, const Shape& s) {
        seen = reinterpret_cast<std::int64_t*>(base);
        panel = base + roundUp(2 * s.blockRows, 16);
        out = panel + s.blockRows * s.panelStride;
        top = out + s.blockRows * s.valueWidth;
        total = top + s.blockRows;
        inverse = total + s.blockRows * Lanes;
        q = reinterpret_cast<Number*>(inverse + s.blockRows * s.steps);
        narrow = q + s.blockRows * s.keyWidth;
        sums = reinterpret_cast<float*>(narrow + roundUp(s.blockRows * s.narrow, 2));
    }
};

// Column sums of the block's weights by query head, and from them the map; rows of one map row are summed together first.
template <class Number>
void blockStatistics(const AttentionArgs& args, const Shape& shape, const Head<Number>& head, const BlockScratch<Number>& s, std::int64_t begin,
                     std::int64_t count, std::int64_t entries, const std::int64_t* ends, const Partial& partial) {
    for (std::int64_t i = 0; i < count;) {
        const std::int64_t row = args.map ? mapRow(args, begin + i) : 0;
        std::int64_t end = i + 1;
        while (end < count && (!args.map || mapRow(args, begin + end) == row))
            ++end;
        for (std::int64_t g = 0; g < shape.group; ++g) {
            const float *p = s.panel + (g * count) * shape.panelStride, *inverse = s.inverse + g * count;
            float* sums = partial.columnSum ? partial.columnSum + g * head.entries : nullptr;
            for (std::int64_t first = 0; first < entries; first += shape.step, inverse += shape.blockRows)
                for (std::int64_t t = first; t < least(entries, first + shape.step); t += Lanes) {
                    Floats acc{};
                    for (std::int64_t r = i; r < end; ++r)
                        acc += inverse[r] * load(p + r * shape.panelStride + t);
                    store(s.sums + t, acc);
                }
            if (sums) {
                std::int64_t t = 0;
                for (; t + Lanes <= entries; t += Lanes)
                    store(sums + t, load(sums + t) + load(s.sums + t));
                for (; t < entries; ++t)
                    sums[t] += s.sums[t];
            }
            if (args.map && row >= 0) {
                const bool mean = args.mapHeads == args.kvHeads;
                float* map = partial.map + ((mean ? 0 : g) * partial.rows + row - partial.firstRow) * args.mapColumns;
                addToMap(s.sums, entries, ends, args.mapColumns, mean ? 1.f / static_cast<float>(shape.group) : 1.f, map);
            }
        }
        i = end;
    }
}

template <class Number>
void lastRows(const AttentionArgs& args, const Shape& shape, const Head<Number>& head, const BlockScratch<Number>& s, std::int64_t begin,
              std::int64_t count, std::int64_t entries) {
    for (std::int64_t i = most(0, args.queries - args.lastCount - begin); i < count; ++i)
        for (std::int64_t g = 0; g < shape.group; ++g) {
            const std::int64_t r = g * count + i, row = begin + i - (args.queries - args.lastCount);
            float* to = args.lastRows + ((head.index * shape.group + g) * args.lastCount + row) * args.capacity;
            const float *p = s.panel + r * shape.panelStride, *inverse = s.inverse + r;
            for (std::int64_t first = 0; first < entries; first += shape.step, inverse += shape.blockRows)
                for (std::int64_t t = first; t < least(entries, first + shape.step); ++t)
                    to[t] = p[t] * *inverse;
            std::memset(to + entries, 0, static_cast<std::size_t>(args.capacity - entries) * 4);
        }
}

KEEPSIGHT_INLINE void scaleRow(float* row, std::int64_t count, float factor) {
    for (std::int64_t d = 0; d < count; ++d)
        row[d] *= factor;
}

// A row's greatest score is `top` from now on: what was summed up under the one before shrinks.
template <class Number>
KEEPSIGHT_INLINE void raiseTop(const Shape& shape, const BlockScratch<Number>& s, std::int64_t row, float top) {
    const float shrink = exp2(broadcast(s.top[row] - top))[0];
    s.top[row] = top;
    scaleRow(s.total + row * Lanes, Lanes, shrink);
    scaleRow(s.out + row * shape.valueWidth, shape.valueWidth, shrink);
}

// Queries [begin, begin + count) of one KV head. Rows are ordered by query head, then query.
template <class Products, class Number = typename Products::Number>
void runBlock(const AttentionArgs& args, float* logSumExp, const Shape& shape, const Head<Number>& head, const BlockScratch<Number>& s,
              std::int64_t begin, std::int64_t count, const std::int64_t* ends, const Partial& partial) {
    const std::int64_t rows = shape.group * count;
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t seen = visible(args.positionsOf(head.index), head.entries, args.queryPositions[begin + i]);
        for (std::int64_t g = 0; g < shape.group; ++g)
            s.seen[g * count + i] = seen;
    }
    const std::int64_t entries = s.seen[count - 1];
    Products::packQueries(args, shape, head, s, begin, count);
    for (std::int64_t r = 0; r < rows; ++r)
        s.top[r] = -__builtin_inff();
    std::memset(s.total, 0, static_cast<std::size_t>(rows * Lanes) * 4);
    std::memset(s.out, 0, static_cast<std::size_t>(shape.blockRows * shape.valueWidth) * 4);

    float* tops = s.inverse;
    for (std::int64_t first = 0; first < entries; first += shape.step, tops += shape.blockRows) {
        const std::int64_t n = least(shape.step, entries - first);
        float* scores = s.panel + (shape.kept ? first : 0);
        Products::scores(shape, head, s, rows, first, n, scores);
        Products::weights(args, shape, s, rows, first, n, scores);
        if (shape.kept) std::memcpy(tops, s.top, static_cast<std::size_t>(rows) * 4);
        if (args.out) Products::values(shape, head, s, rows, first, n, scores);
    }

    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t query = begin + r % count, queryHead = head.index * shape.group + r / count;
        const float total = sum(load(s.total + r * Lanes)), inverse = total == 0 ? 0 : 1.f / total;
        if (logSumExp) logSumExp[queryHead * args.queries + query] = s.top[r] / Log2E + __builtin_logf(total);
        for (float* top = s.inverse + r; shape.kept && top < tops; top += shape.blockRows)
            *top = inverse == 0 ? 0 : inverse * exp2(broadcast(*top - s.top[r]))[0];
        if (!args.out) continue;
        scaleRow(s.out + r * shape.valueWidth, args.dim, inverse);
        fromFp32(s.out + r * shape.valueWidth, args.dim, at(args.out, args.element, (query * args.queryHeads + queryHead) * args.dim), args.element);
    }
    if (args.columnSum || args.map) blockStatistics(args, shape, head, s, begin, count, entries, ends, partial);
    if (args.lastRows) lastRows(args, shape, head, s, begin, count, entries);
}

// First query of every chunk, by equal shares of visible entries; bounds has chunks + 1 places.
inline void chunkBounds(const AttentionArgs& args, std::int64_t head, std::int64_t chunks, std::int64_t* bounds) {
    const std::int32_t* positions = args.positionsOf(head);
    const auto overQueries = [&](const auto& take) { // what each costs
        std::int64_t seen = visible(positions, args.lengths[head], args.queryPositions[0]);
        for (std::int64_t i = 0; i < args.queries; ++i) {
            while (seen < args.lengths[head] && positions[seen] <= args.queryPositions[i])
                ++seen;
            take(i, static_cast<double>(seen) + 16);
        }
    };
    double work = 0, done = 0;
    overQueries([&](std::int64_t, double cost) { work += cost; });
    std::int64_t next = 0;
    overQueries([&](std::int64_t i, double cost) {
        while (next < chunks && done >= work * static_cast<double>(next) / static_cast<double>(chunks))
            bounds[next++] = i;
        done += cost;
    });
    while (next <= chunks)
        bounds[next++] = args.queries;
}

inline void addTo(float* to, const float* from, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i)
        to[i] += from[i];
}

// KV heads [first, first + count), whose keys and values are packed together.
template <class Products, class Number = typename Products::Number>
void runHeads(const AttentionArgs& args, float* logSumExp, const Shape& shape, std::int64_t first, std::int64_t count) {
    const std::int64_t chunks = shape.chunks, mapHeads = args.map ? (args.mapHeads == args.kvHeads ? 1 : shape.group) : 0;
    Buffer<Head<Number>> heads(count);
    Buffer<Partial> partials(count * chunks);
    Buffer<std::int64_t> bounds(count * (chunks + 1)), ends(args.map ? count * args.mapColumns : 0);
    std::int64_t packed = 0, sums = 0;
    for (std::int64_t h = 0; h < count; ++h) {
        Head<Number>& head = heads[h] = {first + h, 0, nullptr, nullptr};
        head.entries =
            visible(args.positionsOf(head.index), args.lengths[head.index], args.queryPositions[args.queries - 1]);
        packed += roundUp(head.entries, Columns) * (shape.keyWidth + (args.out ? shape.valueWidth : 0));
        chunkBounds(args, head.index, chunks, bounds.data() + h * (chunks + 1));
        if (args.map) columnEnds(args, head.index, ends.data() + h * args.mapColumns);
        for (std::int64_t c = 0; c < chunks; ++c) {
            Partial& partial = partials[h * chunks + c] = {};
            const std::int64_t begin = bounds[h * (chunks + 1) + c], end = bounds[h * (chunks + 1) + c + 1];
            if (args.columnSum) sums += shape.group * head.entries;
            if (!args.map || begin == end) continue;
            for (std::int64_t i = begin; i < end; ++i) { // queries outside the map have no row
                const std::int64_t row = mapRow(args, i);
                if (row < 0) continue;
                if (partial.rows == 0) partial.firstRow = row;
                partial.rows = row - partial.firstRow + 1;
            }
            sums += mapHeads * partial.rows * args.mapColumns;
        }
    }

    const int threads = omp_get_max_threads();
    const std::int64_t perThread = roundUp(BlockScratch<Number>::size(shape) + Columns * shape.keyWidth, 16);
    Buffer<Number> packing(packed);
    Buffer<float> statistics(sums), scratch(threads * perThread);
    statistics.clear(sums);
    Number* place = packing.data();
    float* stats = statistics.data();
    for (std::int64_t h = 0; h < count; ++h) {
        const std::int64_t padded = roundUp(heads[h].entries, Columns);
        heads[h].keys = place;
        place += padded * shape.keyWidth;
        if (args.out) {
            heads[h].values = place;
            place += padded * shape.valueWidth;
        }
        for (std::int64_t c = 0; c < chunks; ++c) {
            Partial& partial = partials[h * chunks + c];
            if (args.columnSum) {
                partial.columnSum = stats;
                stats += shape.group * heads[h].entries;
            }
            partial.map = stats;
            stats += mapHeads * partial.rows * args.mapColumns;
        }
    }

    const std::int64_t panels = (args.capacity + Columns - 1) / Columns;
#pragma omp parallel
    {
        float* mine = scratch.data() + omp_get_thread_num() * perThread;
        const BlockScratch<Number> s(mine, shape);
        Products::begin();
#pragma omp for schedule(static)
        for (std::int64_t task = 0; task < count * panels; ++task)
            if (const Head<Number>& head = heads[task / panels]; task % panels * Columns < head.entries)
                Products::pack(args, shape, head, task % panels * Columns, least(Columns, head.entries - task % panels * Columns), mine);
#pragma omp for schedule(dynamic)
        for (std::int64_t task = 0; task < count * chunks; ++task) {
            const std::int64_t h = task / chunks, c = task % chunks;
            const std::int64_t *bound = bounds.data() + h * (chunks + 1) + c,
                               *headEnds = args.map ? ends.data() + h * args.mapColumns : nullptr;
            for (std::int64_t i = bound[0]; i < bound[1]; i += shape.blockQueries)
                runBlock<Products>(args, logSumExp, shape, heads[h], s, i, least(shape.blockQueries, bound[1] - i), headEnds, partials[task]);
        }
        Products::end();
#pragma omp for schedule(static)
        for (std::int64_t h = 0; h < count; ++h)
            for (std::int64_t c = 0; c < chunks; ++c) {
                const Partial& partial = partials[h * chunks + c];
                if (args.columnSum)
                    for (std::int64_t g = 0; g < shape.group; ++g)
                        addTo(args.columnSum + (heads[h].index * shape.group + g) * args.capacity, partial.columnSum + g * heads[h].entries,
                              heads[h].entries);
                for (std::int64_t m = 0; m < mapHeads; ++m)
                    addTo(args.map + ((heads[h].index * mapHeads + m) * args.mapRows + partial.firstRow) * args.mapColumns,
                          partial.map + m * partial.rows * args.mapColumns, partial.rows * args.mapColumns);
            }
    }
}

template <class Products>
void attendInBlocks(const AttentionArgs& args, float* logSumExp) {
    Shape shape;
    shape.group = args.queryHeads / args.kvHeads;
    shape.kept = args.columnSum || args.map || args.lastRows;
    std::int64_t longest = 0;
    for (std::int64_t h = 0; h < args.kvHeads; ++h)
        longest = most(longest, args.lengths[h]);
    Products::plan(shape, args, longest);
    shape.chunks = most(1, least(MaxChunks, args.queries / shape.blockQueries));
    const std::int64_t perHead = roundUp(longest, Columns) * (shape.keyWidth + (args.out ? shape.valueWidth : 0)) *
                                 static_cast<std::int64_t>(sizeof(typename Products::Number));
    const std::int64_t together = most(1, least(args.kvHeads, GroupBytes / most(1, perHead)));
    for (std::int64_t first = 0; first < args.kvHeads; first += together)
        runHeads<Products>(args, logSumExp, shape, first, least(together, args.kvHeads - first));
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
