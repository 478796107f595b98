// Attention of many queries in fp32 vectors: keys of a KV head lie as panels Kᵀ [t / Columns][dim][Columns], values as [t, dim]. A block's entries are one step.
#include "kernels/cpu/attention_blocks.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr int ValueRows = 6;
constexpr int ValueVectors = Lanes == 16 ? 4 : 2; // accumulators: 6 rows × that many vectors
constexpr std::int64_t ValueWidth = ValueVectors * Lanes;
constexpr std::int64_t PanelFloats = 196608; // score rows × entries of a block: three quarters of a 1 MB L2

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

struct VectorProducts {
    using Number = float;
    static void begin() {}
    static void end() {}

    static void plan(Shape& shape, const AttentionArgs& args, std::int64_t longest) {
        shape.keyWidth = args.dim;
        shape.valueWidth = roundUp(args.dim, ValueWidth);
        shape.panelStride =
            most(roundUp(longest, Columns), roundUp(args.dim, Lanes)) + Lanes; // odd multiple of a line: rows fall in different sets
        const std::int64_t rows = most(ScoreRows, least(8 * ScoreRows, PanelFloats / shape.panelStride));
        shape.blockQueries = most(1, least(rows / shape.group, args.queries));
        shape.blockRows = shape.blockQueries * shape.group;
        shape.step = most(Columns, roundUp(longest, Columns));
        shape.steps = 1;
    }

    static void pack(const AttentionArgs& args, const Shape& shape, const Head<float>& head, std::int64_t first, std::int64_t n, float* buffer) {
        const std::int64_t dim = args.dim;
        packPanel(args.k, args.element, head.index, first, n, dim, head.keys + first * dim, buffer);
        if (!head.values) return;
        for (std::int64_t j = 0; j < n; ++j) {
            float* v = head.values + (first + j) * shape.valueWidth;
            toFp32(at(args.v.data, args.element, args.v.of(head.index) + (first + j) * args.v.row), args.element, dim, v);
            std::memset(v + dim, 0, static_cast<std::size_t>(shape.valueWidth - dim) * 4);
        }
    }

    static void packQueries(const AttentionArgs& args, const Shape& shape, const Head<float>& head, const BlockScratch<float>& s,
                            std::int64_t begin, std::int64_t count) {
        const std::int64_t rows = shape.group * count, dim = args.dim;
        for (std::int64_t first = 0; first < rows; first += ScoreRows) {
            const std::int64_t m = least(ScoreRows, rows - first);
            for (std::int64_t r = 0; r < m; ++r) {
                const std::int64_t g = (first + r) / count, i = (first + r) % count;
                packRow(at(args.q.data, args.element, (head.index * shape.group + g) * args.q.head + (begin + i) * args.q.row), args.element,
                        dim, args.scale * Log2E, s.q + first * dim, m, r, s.sums);
            }
        }
    }

    static void scores(const Shape& shape, const Head<float>& head, const BlockScratch<float>& s, std::int64_t rows, std::int64_t first,
                       std::int64_t n, float* to) {
        const std::int64_t dim = shape.keyWidth;
        for (std::int64_t t = first; t < first + n; t += Columns)
            for (std::int64_t r = 0; r < rows; r += ScoreRows)
                scoreTiles[least(ScoreRows, rows - r)](s.q + r * dim, head.keys + t * dim, dim, to + r * shape.panelStride + t - first,
                                                       shape.panelStride);
    }

    static void weights(const AttentionArgs&, const Shape& shape, const BlockScratch<float>& s, std::int64_t rows, std::int64_t, std::int64_t n,
                        float* scores) {
        const std::int64_t padded = roundUp(n, Columns);
        for (std::int64_t r = 0; r < rows; ++r, scores += shape.panelStride)
            if (s.seen[r] > 0)
                s.total[r * Lanes] = exponentials(scores, s.seen[r], padded, s.top[r]);
            else
                std::memset(scores, 0, static_cast<std::size_t>(padded) * 4);
    }

    static void values(const Shape& shape, const Head<float>& head, const BlockScratch<float>& s, std::int64_t rows, std::int64_t first,
                       std::int64_t n, const float* weights) {
        constexpr std::int64_t Depth = 64; // values of a step stay in L1
        const std::int64_t width = shape.valueWidth;
        for (std::int64_t t = 0; t < n; t += Depth)
            for (std::int64_t d = 0; d < width; d += ValueWidth)
                for (std::int64_t r = 0; r < rows; r += ValueRows)
                    valueTiles[least(ValueRows, rows - r)](weights + r * shape.panelStride + t, shape.panelStride,
                                                           head.values + (first + t) * width + d, width, least(Depth, n - t),
                                                           s.out + r * width + d, width);
    }
};

} // namespace

void attention(const AttentionArgs& args, float* logSumExp) {
    if (args.queries == 0 || args.queryHeads == 0) return;
    if (args.queries == 1) return attentionOne(args);
    attendInBlocks<VectorProducts>(args, logSumExp);
}

} // namespace keepsight::KEEPSIGHT_ISA
