// Blocked attention for many queries; scores never exist for more than one block of rows (≤ ~100 query rows × entries, in L2).
//   1. Keys of a KV head are laid out once as panels Kᵀ [t / Columns][dim][Columns] in fp32, values as [t, dim] in fp32.
//   2. The queries of a KV head are cut into chunks of about equal work; a task is (KV head, chunk).
//   3. A task takes blocks of queries × the head's G query heads: scores = q·Kᵀ panel by panel (both operands in L1), softmax by row,
//      statistics from the weights while they are in cache, output = P·V.
// Chunks are the same for any number of threads and their statistics are added in a fixed order, so results are equal from run to run.
// Scores carry the factor log2 e, folded into q, so that the softmax needs 2^x only.
#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/score_tiles.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr int ValueRows = 6;
constexpr int ValueVectors = Lanes == 16 ? 4 : 2; // accumulators: 6 rows × that many vectors
constexpr std::int64_t ValueWidth = ValueVectors * Lanes;
constexpr std::int64_t PanelFloats = 196608; // score rows × entries of a block: three quarters of a 1 MB L2
constexpr std::int64_t MaxChunks = 8;
constexpr std::int64_t GroupBytes = 64 << 20; // packed keys and values held at a time

// out[r, 0 … ValueWidth) += Σ_t p[r, t] · v[t, 0 … ValueWidth)
template <int M>
void valueTile(const float* p, std::int64_t pStride, const float* v, std::int64_t vStride, std::int64_t count, float* out,
               std::int64_t outStride) {
    Floats acc[M][ValueVectors];
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r)
        for (int j = 0; j < ValueVectors; ++j)
            acc[r][j] = load(out + r * outStride + j * Lanes);
    for (std::int64_t t = 0; t < count; ++t) {
        Floats values[ValueVectors];
        for (int j = 0; j < ValueVectors; ++j)
            values[j] = load(v + t * vStride + j * Lanes);
#pragma GCC unroll 6
        for (int r = 0; r < M; ++r) {
            const Floats a = broadcast(p[r * pStride + t]);
            for (int j = 0; j < ValueVectors; ++j)
                acc[r][j] += a * values[j];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r)
        for (int j = 0; j < ValueVectors; ++j)
            store(out + r * outStride + j * Lanes, acc[r][j]);
}

using ValueTile = void (*)(const float*, std::int64_t, const float*, std::int64_t, std::int64_t, float*, std::int64_t);
constexpr ValueTile valueTiles[] = {nullptr, valueTile<1>, valueTile<2>, valueTile<3>, valueTile<4>, valueTile<5>, valueTile<6>};

struct Shape {
    std::int64_t group, valueStride; // query heads per KV head; padded dim
    std::int64_t blockQueries, blockRows, panelStride;
    std::int64_t chunks;
};

struct Head {                            // packed keys and values of one KV head
    std::int64_t index = 0, entries = 0; // entries some query sees
    float *keys = nullptr, *values = nullptr;
};

struct Partial {                // statistics of one task
    float* columnSum = nullptr; // [group, entries]
    float* map = nullptr;       // [group or 1, rows, mapColumns]
    std::int64_t firstRow = 0, rows = 0;
};

struct Scratch {
    float *panel, *q, *out, *sums, *inverse;
    static std::int64_t size(const AttentionArgs& args, const Shape& s) {
        return s.blockRows * (s.panelStride + args.dim + s.valueStride + 1) + s.panelStride + 64;
    }
    Scratch(float* base, const AttentionArgs& args, const Shape& s) {
        panel = base;
        sums = panel + s.blockRows * s.panelStride;
        out = sums + s.panelStride;
        q = out + s.blockRows * s.valueStride;
        inverse = q + s.blockRows * args.dim;
    }
};

void packHead(const AttentionArgs& args, const Shape& shape, const Head& head, std::int64_t panel, float* rowsBuffer) {
    const std::int64_t first = panel * Columns, n = least(Columns, head.entries - first), dim = args.dim;
    packPanel(args.k, args.element, head.index, first, n, dim, head.keys + first * dim, rowsBuffer);
    if (!head.values) return;
    for (std::int64_t j = 0; j < n; ++j) {
        float* v = head.values + (first + j) * shape.valueStride;
        toFp32(at(args.v.data, args.element, args.v.of(head.index) + (first + j) * args.v.row), args.element, dim, v);
        std::memset(v + dim, 0, static_cast<std::size_t>(shape.valueStride - dim) * 4);
    }
}

// Column sums of the block's weights by query head, and from them the map; rows of one map row are summed together first.
void blockStatistics(const AttentionArgs& args, const Shape& shape, const Head& head, const Scratch& s, std::int64_t begin,
                     std::int64_t count, std::int64_t entries, const std::int64_t* ends, const Partial& partial) {
    for (std::int64_t i = 0; i < count;) {
        const std::int64_t row = args.map ? mapRow(args, begin + i) : 0;
        std::int64_t end = i + 1;
        while (end < count && (!args.map || mapRow(args, begin + end) == row))
            ++end;
        for (std::int64_t g = 0; g < shape.group; ++g) {
            const float *p = s.panel + (g * count) * shape.panelStride, *inverse = s.inverse + g * count;
            float* sums = partial.columnSum ? partial.columnSum + g * head.entries : nullptr;
            for (std::int64_t t = 0; t < entries; t += Lanes) {
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

void lastRows(const AttentionArgs& args, const Shape& shape, const Head& head, const Scratch& s, std::int64_t begin, std::int64_t count,
              std::int64_t entries) {
    for (std::int64_t i = most(0, args.queries - args.lastCount - begin); i < count; ++i)
        for (std::int64_t g = 0; g < shape.group; ++g) {
            const std::int64_t r = g * count + i, row = begin + i - (args.queries - args.lastCount);
            float* to = args.lastRows + ((head.index * shape.group + g) * args.lastCount + row) * args.capacity;
            const float *p = s.panel + r * shape.panelStride, inverse = s.inverse[r];
            for (std::int64_t t = 0; t < entries; ++t)
                to[t] = p[t] * inverse;
            std::memset(to + entries, 0, static_cast<std::size_t>(args.capacity - entries) * 4);
        }
}

// Queries [begin, begin + count) of one KV head. Rows are ordered by query head, then query.
void runBlock(const AttentionArgs& args, float* logSumExp, const Shape& shape, const Head& head, const Scratch& s, std::int64_t begin,
              std::int64_t count, const std::int64_t* ends, const Partial& partial) {
    const std::int64_t rows = shape.group * count, dim = args.dim, stride = shape.panelStride;
    const std::int32_t* positions = args.positionsOf(head.index);
    const std::int64_t entries = visible(positions, head.entries, args.queryPositions[begin + count - 1]);
    const std::int64_t panels = (entries + Columns - 1) / Columns, padded = panels * Columns;
    const float factor = args.scale * Log2E;

    for (std::int64_t first = 0; first < rows; first += ScoreRows) {
        const std::int64_t m = least(ScoreRows, rows - first);
        for (std::int64_t r = 0; r < m; ++r) {
            const std::int64_t g = (first + r) / count, i = (first + r) % count;
            packRow(at(args.q.data, args.element, (head.index * shape.group + g) * args.q.head + (begin + i) * args.q.row), args.element, dim,
                    factor, s.q + first * dim, m, r, s.sums);
        }
    }
    for (std::int64_t panel = 0; panel < panels; ++panel)
        for (std::int64_t first = 0; first < rows; first += ScoreRows)
            scoreTiles[least(ScoreRows, rows - first)](s.q + first * dim, head.keys + panel * Columns * dim, dim,
                                                       s.panel + first * stride + panel * Columns, stride);

    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t seen = visible(positions, entries, args.queryPositions[begin + i]);
        for (std::int64_t g = 0; g < shape.group; ++g) {
            const std::int64_t r = g * count + i;
            float top = -__builtin_inff(), sum = 1;
            if (seen > 0) {
                sum = exponentials(s.panel + r * stride, seen, padded, top);
                s.inverse[r] = 1.f / sum;
            } else {
                s.inverse[r] = 0;
                std::memset(s.panel + r * stride, 0, static_cast<std::size_t>(padded) * 4);
            }
            if (logSumExp) logSumExp[(head.index * shape.group + g) * args.queries + begin + i] = top / Log2E + __builtin_logf(sum);
        }
    }

    if (args.columnSum || args.map) blockStatistics(args, shape, head, s, begin, count, entries, ends, partial);
    if (args.lastRows) lastRows(args, shape, head, s, begin, count, entries);
    if (!args.out) return;

    std::memset(s.out, 0, static_cast<std::size_t>(rows * shape.valueStride) * 4);
    constexpr std::int64_t Depth = 64; // values of a step stay in L1
    for (std::int64_t t = 0; t < entries; t += Depth)
        for (std::int64_t d = 0; d < shape.valueStride; d += ValueWidth)
            for (std::int64_t first = 0; first < rows; first += ValueRows)
                valueTiles[least(ValueRows, rows - first)](s.panel + first * stride + t, stride, head.values + t * shape.valueStride + d,
                                                           shape.valueStride, least(Depth, entries - t),
                                                           s.out + first * shape.valueStride + d, shape.valueStride);
    for (std::int64_t r = 0; r < rows; ++r) {
        float* row = s.out + r * shape.valueStride;
        for (std::int64_t d = 0; d < dim; ++d)
            row[d] *= s.inverse[r];
        const std::int64_t query = begin + r % count, queryHead = head.index * shape.group + r / count;
        fromFp32(row, dim, at(args.out, args.element, (query * args.queryHeads + queryHead) * dim), args.element);
    }
}

// First query of every chunk, by equal shares of visible entries; bounds has chunks + 1 places.
void chunkBounds(const AttentionArgs& args, std::int64_t head, std::int64_t chunks, std::int64_t* bounds) {
    const std::int32_t* positions = args.positionsOf(head);
    double work = 0, done = 0;
    for (std::int64_t i = 0; i < args.queries; ++i)
        work += static_cast<double>(visible(positions, args.lengths[head], args.queryPositions[i])) + 16;
    std::int64_t next = 0;
    for (std::int64_t i = 0; i < args.queries; ++i) {
        while (next < chunks && done >= work * static_cast<double>(next) / static_cast<double>(chunks))
            bounds[next++] = i;
        done += static_cast<double>(visible(positions, args.lengths[head], args.queryPositions[i])) + 16;
    }
    while (next <= chunks)
        bounds[next++] = args.queries;
}

void addTo(float* to, const float* from, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i)
        to[i] += from[i];
}

// KV heads [first, first + count), whose keys and values are packed together.
void runHeads(const AttentionArgs& args, float* logSumExp, const Shape& shape, std::int64_t first, std::int64_t count) {
    const std::int64_t chunks = shape.chunks, mapHeads = args.map ? (args.mapHeads == args.kvHeads ? 1 : shape.group) : 0;
    Buffer<Head> heads(count);
    Buffer<Partial> partials(count * chunks);
    Buffer<std::int64_t> bounds(count * (chunks + 1)), ends(args.map ? count * args.mapColumns : 0);
    std::int64_t packed = 0, sums = 0;
    for (std::int64_t h = 0; h < count; ++h) {
        Head& head = heads[h] = {first + h, 0, nullptr, nullptr};
        head.entries =
            visible(args.positionsOf(head.index), args.lengths[head.index], args.queryPositions[args.queries - 1]);
        packed += roundUp(head.entries, Columns) * (args.dim + (args.out ? shape.valueStride : 0));
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
    const std::int64_t perThread = roundUp(Scratch::size(args, shape) + Columns * args.dim, 16);
    Buffer<float> packing(packed), statistics(sums), scratch(threads * perThread);
    statistics.clear(sums);
    float *place = packing.data(), *stats = statistics.data();
    for (std::int64_t h = 0; h < count; ++h) {
        const std::int64_t padded = roundUp(heads[h].entries, Columns);
        heads[h].keys = place;
        place += padded * args.dim;
        if (args.out) {
            heads[h].values = place;
            place += padded * shape.valueStride;
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
#pragma omp for schedule(static)
        for (std::int64_t task = 0; task < count * panels; ++task)
            if (const Head& head = heads[task / panels]; task % panels * Columns < head.entries)
                packHead(args, shape, head, task % panels, mine);
        const Scratch s(mine, args, shape);
#pragma omp for schedule(dynamic)
        for (std::int64_t task = 0; task < count * chunks; ++task) {
            const std::int64_t h = task / chunks, c = task % chunks;
            const std::int64_t *bound = bounds.data() + h * (chunks + 1) + c,
                               *headEnds = args.map ? ends.data() + h * args.mapColumns : nullptr;
            for (std::int64_t i = bound[0]; i < bound[1]; i += shape.blockQueries)
                runBlock(args, logSumExp, shape, heads[h], s, i, least(shape.blockQueries, bound[1] - i), headEnds, partials[task]);
        }
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

} // namespace

void attention(const AttentionArgs& args, float* logSumExp) {
    if (args.queries == 0 || args.queryHeads == 0) return;
    if (args.queries == 1) return attentionOne(args);
    Shape shape{};
    shape.group = args.queryHeads / args.kvHeads;
    shape.valueStride = roundUp(args.dim, ValueWidth);
    std::int64_t longest = 0;
    for (std::int64_t h = 0; h < args.kvHeads; ++h)
        longest = most(longest, args.lengths[h]);
    shape.panelStride =
        most(roundUp(longest, Columns), roundUp(args.dim, Lanes)) + Lanes; // odd multiple of a line: rows fall in different sets
    const std::int64_t rows = most(ScoreRows, least(8 * ScoreRows, PanelFloats / shape.panelStride));
    shape.blockQueries = most(1, least(rows / shape.group, args.queries));
    shape.blockRows = shape.blockQueries * shape.group;
    shape.chunks = most(1, least(MaxChunks, args.queries / most(1, shape.blockQueries)));
    const std::int64_t perHead = roundUp(longest, Columns) * (args.dim + (args.out ? shape.valueStride : 0)) * 4;
    const std::int64_t together = most(1, least(args.kvHeads, GroupBytes / most(1, perHead)));
    for (std::int64_t first = 0; first < args.kvHeads; first += together)
        runHeads(args, logSumExp, shape, first, least(together, args.kvHeads - first));
}

} // namespace keepsight::KEEPSIGHT_ISA
