// Tiles of entries against the query heads of their KV head: what passes over one query's entries share. Every key and value is read once for all
// of these heads; splits do not depend on the threads, so neither do the results.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr std::int64_t Split = 256, Tile = 16;

enum class Bf16 : std::uint16_t {}; // as stored
KEEPSIGHT_INLINE Floats widened(const float* from) { return load(from); }
KEEPSIGHT_INLINE Floats widened(const Bf16* from) { return loadBf16(from); }

// scores[g · stride + t] = k[t] · q[g] for the entries of a tile; q padded to whole vectors, k rows padded or a multiple.
template <int G, class T>
void tileScores(const T* k, std::int64_t kRow, std::int64_t count, const float* q, std::int64_t width, float* scores,
                std::int64_t stride) {
    for (std::int64_t t = 0; t < count; ++t) {
        Floats acc[G] = {};
        for (std::int64_t d = 0; d < width; d += Lanes) {
            const Floats key = widened(k + t * kRow + d);
            for (int g = 0; g < G; ++g)
                acc[g] += key * load(q + g * width + d);
        }
        for (int g = 0; g < G; ++g)
            scores[g * stride + t] = sum(acc[g]);
    }
}

template <int G, int V, class T>
void tileValues(const T* v, std::int64_t vRow, std::int64_t count, const float* p, std::int64_t stride, float* out,
                std::int64_t width) {
    Floats acc[G][V];
    for (int g = 0; g < G; ++g)
        for (int j = 0; j < V; ++j)
            acc[g][j] = load(out + g * width + j * Lanes);
    for (std::int64_t t = 0; t < count; ++t)
        for (int j = 0; j < V; ++j) {
            const Floats value = widened(v + t * vRow + j * Lanes);
            for (int g = 0; g < G; ++g)
                acc[g][j] += p[g * stride + t] * value;
        }
    for (int g = 0; g < G; ++g)
        for (int j = 0; j < V; ++j)
            store(out + g * width + j * Lanes, acc[g][j]);
}

template <int G, class T>
void tileValuesAll(const T* v, std::int64_t vRow, std::int64_t count, const float* p, std::int64_t stride, float* out,
                   std::int64_t width) {
    constexpr int Vectors = Lanes == 16 ? 4 : 2;
    std::int64_t d = 0;
    for (; d + Vectors * Lanes <= width; d += Vectors * Lanes)
        tileValues<G, Vectors>(v + d, vRow, count, p, stride, out + d, width);
    for (; d < width; d += Lanes)
        tileValues<G, 1>(v + d, vRow, count, p, stride, out + d, width);
}

template <class T>
using TileFunction = void (*)(const T*, std::int64_t, std::int64_t, const float*, std::int64_t, float*, std::int64_t);
template <class T>
constexpr TileFunction<T> scoresOf[] = {nullptr, tileScores<1, T>, tileScores<2, T>, tileScores<3, T>, tileScores<4, T>};
template <class T>
constexpr TileFunction<T> valuesOf[] = {nullptr, tileValuesAll<1, T>, tileValuesAll<2, T>, tileValuesAll<3, T>, tileValuesAll<4, T>};

// run(rows, stride) with rows [first, first + count) of a head: in place if they fill vectors, else padded to `width` in buffer.
template <class Run>
KEEPSIGHT_INLINE void withTile(const Rows& rows, Element element, std::int64_t head, std::int64_t first, std::int64_t count, std::int64_t dim,
                               std::int64_t width, float* buffer, const Run& run) {
    const std::uint8_t* data = at(rows.data, element, rows.of(head) + first * rows.row);
    if (dim == width) {
        if (element == Element::f32)
            run(reinterpret_cast<const float*>(data), rows.row);
        else
            run(reinterpret_cast<const Bf16*>(data), rows.row);
        return;
    }
    for (std::int64_t t = 0; t < count; ++t) {
        toFp32(at(static_cast<const void*>(data), element, t * rows.row), element, dim, buffer + t * width);
        for (std::int64_t d = dim; d < width; ++d)
            buffer[t * width + d] = 0;
    }
    run(static_cast<const float*>(buffer), width);
}

// seen[h]: what the one query sees of each head. Returns the splits of the longest, at least one.
KEEPSIGHT_INLINE std::int64_t splitsOf(const AttentionArgs& args, std::int64_t* seen) {
    std::int64_t splits = 1;
    for (std::int64_t h = 0; h < args.kvHeads; ++h) {
        seen[h] = visible(args.positionsOf(h), args.lengths[h], args.queryPositions[0]);
        splits = most(splits, (seen[h] + Split - 1) / Split);
    }
    return splits;
}

// The one query of every head times `factor`, [queryHeads, width], zero behind dim.
KEEPSIGHT_INLINE void scaledQueries(const AttentionArgs& args, float factor, std::int64_t width, float* q) {
    std::memset(q, 0, static_cast<std::size_t>(args.queryHeads * width) * 4);
    for (std::int64_t h = 0; h < args.queryHeads; ++h) {
        toFp32(at(args.q.data, args.element, h * args.q.head), args.element, args.dim, q + h * width);
        for (std::int64_t d = 0; d < args.dim; ++d)
            q[h * width + d] *= factor;
    }
}

// What is read behind a split: rows of the same head from `first` on.
struct Following {
    const Rows* rows = nullptr;
    std::int64_t first = 0;
};

// Asks for the tile that lies Ahead behind the one at t of rows [first, first + count): the processor by itself fetches from memory too late.
KEEPSIGHT_INLINE void prefetchTile(const AttentionArgs& args, const Rows& rows, std::int64_t h, std::int64_t first, std::int64_t count,
                                   std::int64_t t, const Following& following) {
    constexpr std::int64_t Ahead = 4 * Tile;
    const bool inside = t + Ahead < count;
    if (!inside && !following.rows) return;
    const Rows& from = inside ? rows : *following.rows;
    const std::int64_t begin = t + Ahead + (inside ? first : following.first - count);
    const std::uint8_t* row = at(from.data, args.element, from.of(h) + begin * from.row);
    for (std::int64_t n = 0; n < Tile; ++n, row += from.row * bytesOf(args.element))
        for (std::int64_t byte = 0; byte < args.dim * bytesOf(args.element); byte += 64)
            __builtin_prefetch(row + byte, 0, 2);
}

// Rows of keys or values [first, first + count) of a KV head times a vector of each of its query heads, [G, width]: scores[g · stride + t].
inline void splitScores(const AttentionArgs& args, const Rows& rows, std::int64_t h, std::int64_t first, std::int64_t count, const float* vectors, std::int64_t width,
                        float* buffer, float* scores, std::int64_t stride, const Following& following = {}) {
    const std::int64_t group = args.queryHeads / args.kvHeads;
    for (std::int64_t t = 0; t < count; t += Tile) {
        const std::int64_t n = least(Tile, count - t);
        prefetchTile(args, rows, h, first, count, t, following);
        withTile(rows, args.element, h, first + t, n, args.dim, width, buffer, [&]<class T>(const T* k, std::int64_t row) {
            for (std::int64_t g = 0; g < group; g += 4)
                scoresOf<T>[least(4, group - g)](k, row, n, vectors + g * width, width, scores + g * stride + t, stride);
        });
    }
}

// out[g · width] += Σ weights[g · stride + t] · v over these rows.
inline void splitValues(const AttentionArgs& args, const Rows& rows, std::int64_t h, std::int64_t first, std::int64_t count, const float* weights, std::int64_t stride, std::int64_t width,
                        float* buffer, float* out, const Following& following = {}) {
    const std::int64_t group = args.queryHeads / args.kvHeads;
    for (std::int64_t t = 0; t < count; t += Tile) {
        const std::int64_t n = least(Tile, count - t);
        prefetchTile(args, rows, h, first, count, t, following);
        withTile(rows, args.element, h, first + t, n, args.dim, width, buffer, [&]<class T>(const T* v, std::int64_t row) {
            for (std::int64_t g = 0; g < group; g += 4)
                valuesOf<T>[least(4, group - g)](v, row, n, weights + g * stride + t, stride, out + g * width, width);
        });
    }
}

// tops[s] becomes what a split's exponentials are to be multiplied with to be weights, from its maximum and its sum.
KEEPSIGHT_INLINE void splitFactors(float* tops, const float* sums, std::int64_t used) {
    float best = used ? tops[0] : 0, all = 0;
    for (std::int64_t s = 0; s < used; ++s)
        best = tops[s] > best ? tops[s] : best;
    for (std::int64_t s = 0; s < used; ++s) {
        float factor[Lanes];
        store(factor, exp2(broadcast(tops[s] - best)));
        tops[s] = factor[0];
        all += sums[s] * factor[0];
    }
    for (std::int64_t s = 0; s < used; ++s)
        tops[s] /= all;
}

// The splits' outputs, `next` values apart, put together.
KEEPSIGHT_INLINE void combineSplits(const float* factors, const float* outs, std::int64_t next, std::int64_t used, std::int64_t width, float* out) {
    for (std::int64_t d = 0; d < width; d += Lanes) {
        Floats acc{};
        for (std::int64_t s = 0; s < used; ++s)
            acc += factors[s] * load(outs + s * next + d);
        store(out + d, acc);
    }
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
