// Attention of one query over entries of which most are codes (kernels/packed.h). With c the codes, s and z their scale and zero:
//   by channel (s, z for a channel of a group of tokens)   q·k̃ = Σ c·(s·q) + Σ z·q: both brackets once a group;   Σ p·ṽ = s·Σ p·c + z·Σ p
//   by token (s, z for channels of one token)               q·k̃ = s·Σ c·q + z·Σ q;                                  Σ p·ṽ = Σ (p·s)·c + Σ
//   p·z
// so that a code costs one conversion and one product a head, like a stored number.
#include "kernels/cpu/attention_splits.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/packed_tiles.h"
#include "kernels/packed.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

// Keys or values as they are read.
struct Side {
    const PackedSideArgs& args;
    Planes planes;
    std::int64_t kvHeads, group, width, groupWidth; // width: of an entry in whole vectors; groupWidth: channels that share a scale
    bool byToken;                                   // else by channel, were it in groups of one token
    std::int64_t groups;                            // by token: of a row; else 1
    const CodeDots* dots;                           // by query heads
    const AddCodes* add;

    Side(const PackedSideArgs& side, const AttentionArgs& attention)
        : args(side), planes(planesOf(attention.dim, side.codes ? side.bits : 8)), kvHeads(attention.kvHeads),
          group(attention.queryHeads / attention.kvHeads), width(roundUp(attention.dim, Lanes)), groupWidth(attention.dim / side.groups),
          byToken(side.groupTokens == 1 && (side.groups == 1 || (planes.inOrder && groupWidth % Lanes == 0))),
          groups(byToken ? side.groups : 1), dots(dotsOf(planes.bits, groups > 1)), add(addOf(planes.bits)) {}

    const std::uint8_t* codesAt(std::int64_t h, std::int64_t row) const { return args.codes + h * args.codesHead + row * planes.bytes; }
    const std::uint8_t* parametersAt(const void* from, std::int64_t h, std::int64_t row) const {
        return static_cast<const std::uint8_t*>(from) + 2 * (h * args.parametersHead + row * args.groups);
    }
};

// A thread's, for one side at a time.
struct Scratch {
    float *scale, *zero; // [width] or [groups, Block]
    float* weights;      // [BlockHeads, groups, Block]; dot products use the first of each
    float* sums;         // [G, groups]
    float* rows;         // [G, planes' width]
    float* row;          // [width or Block]
    std::uint8_t* bytes; // [Block, chunks · Lanes]

    static std::int64_t rowsSize(const Side& side) { return most(side.width, side.groups * Block); }
    static std::int64_t size(const Side& side) {
        return 3 * rowsSize(side) + BlockHeads * side.groups * Block + roundUp(side.group * side.groups, 16) +
               side.group * side.planes.width + Block * side.planes.chunks * Lanes / 4;
    }
    Scratch(const Side& side, float* place) {
        const auto take = [&](std::int64_t count) { return (place += count) - count; };
        scale = take(rowsSize(side)), zero = take(rowsSize(side)), row = take(rowsSize(side));
        weights = take(BlockHeads * side.groups * Block);
        rows = take(side.group * side.planes.width);
        bytes = reinterpret_cast<std::uint8_t*>(take(Block * side.planes.chunks * Lanes / 4));
        sums = take(side.group * side.groups);
    }
};

KEEPSIGHT_INLINE void halves(const std::uint8_t* from, std::int64_t count, float* to) {
    std::int64_t i = 0;
    for (; i + Lanes <= count; i += Lanes)
        store(to + i, loadHalves(from + 2 * i));
    for (; i < count; ++i)
        to[i] = loadHalf(from + 2 * i);
}

// Of `count` entries from a row on: [groups, Block], 0 up to whole vectors.
void tokenParameters(const Side& side, const Scratch& s, const std::uint8_t* from, std::int64_t count, float* to) {
    float* rows = side.groups == 1 ? to : s.row;
    halves(from, count * side.groups, rows);
    for (std::int64_t j = 0; j < side.groups; ++j) {
        for (std::int64_t t = 0; t < count && side.groups > 1; ++t)
            to[j * Block + t] = rows[t * side.groups + j];
        for (std::int64_t t = count, padded = roundUp(count, Lanes); t < padded; ++t)
            to[j * Block + t] = 0;
    }
}

// Of one row, for every channel: [width].
void channelParameters(const Side& side, const std::uint8_t* from, float* to) {
    const std::int64_t dim = side.planes.dim;
    if (side.groupWidth == 1)
        halves(from, dim, to);
    else
        for (std::int64_t d = 0; d < dim; d += side.groupWidth)
            for (std::int64_t i = 0; i < side.groupWidth; ++i)
                to[d + i] = loadHalf(from + 2 * (d / side.groupWidth));
    for (std::int64_t d = dim; d < side.width; ++d)
        to[d] = 0;
}

// Codes [begin, end) in blocks of entries: part(first, how many, their codes, bytes from row to row).
template <class Part>
KEEPSIGHT_INLINE void blocksOf(const Side& side, const Scratch& s, std::int64_t h, std::int64_t begin, std::int64_t end, const Part& part) {
    for (std::int64_t first = begin; first < end; first += Block) {
        const std::int64_t n = least(Block, end - first);
        std::int64_t row;
        const std::uint8_t* codes = codeRows(side.planes, side.codesAt(h, first), n, s.bytes, row);
        part(first, n, codes, row);
    }
}

void tokenScores(const Side& side, const Scratch& s, std::int64_t h, std::int64_t begin, std::int64_t count, const float* q,
                 const std::int32_t* groupOf, float* scores, std::int64_t stride) {
    const float* rows = side.planes.inOrder ? q : s.rows;
    for (std::int64_t g = 0; g < side.group; ++g) {
        if (!side.planes.inOrder) toPlanes(side.planes, q + g * side.width, s.rows + g * side.planes.width);
        for (std::int64_t j = 0; j < side.groups; ++j)
            s.sums[g * side.groups + j] = total(q + g * side.width + j * side.groupWidth, side.groupWidth);
    }
    blocksOf(side, s, h, begin, begin + count, [&](std::int64_t first, std::int64_t n, const std::uint8_t* codes, std::int64_t row) {
        tokenParameters(side, s, side.parametersAt(side.args.scale, h, first), n, s.scale);
        tokenParameters(side, s, side.parametersAt(side.args.zero, h, first), n, s.zero);
        for (std::int64_t g = 0; g < side.group; g += BlockHeads) {
            const std::int64_t heads = least(BlockHeads, side.group - g);
            side.dots[heads](codes, row, n, side.planes, rows + g * side.planes.width, s.scale, groupOf, s.weights);
            for (std::int64_t i = 0; i < heads; ++i) {
                const float *dots = s.weights + i * Block, *sums = s.sums + (g + i) * side.groups;
                float* to = scores + (g + i) * stride + first - begin;
                if (side.groups == 1)
                    for (std::int64_t t = 0; t < n; ++t)
                        to[t] = dots[t] * s.scale[t] + s.zero[t] * sums[0];
                else
                    std::memcpy(to, dots, static_cast<std::size_t>(n) * 4);
                for (std::int64_t j = 0; j < side.groups && side.groups > 1; ++j)
                    for (std::int64_t t = 0; t < n; ++t)
                        to[t] += s.zero[j * Block + t] * sums[j];
            }
        }
    });
}

void channelScores(const Side& side, const Scratch& s, std::int64_t h, std::int64_t begin, std::int64_t count, const float* q,
                   float* scores, std::int64_t stride) {
    const std::int64_t end = begin + count, tokens = side.args.groupTokens;
    for (std::int64_t from = begin, to = begin; from < end; from = to) { // entries of one row of scale and zero
        const std::int64_t parameters = from / tokens;
        to = least(end, (parameters + 1) * tokens);
        channelParameters(side, side.parametersAt(side.args.scale, h, parameters), s.scale);
        channelParameters(side, side.parametersAt(side.args.zero, h, parameters), s.zero);
        for (std::int64_t g = 0; g < side.group; ++g) {
            float *planes = s.rows + g * side.planes.width, *scaled = side.planes.inOrder ? planes : s.row;
            Floats zeros{};
            for (std::int64_t d = 0; d < side.width; d += Lanes) {
                const Floats x = load(q + g * side.width + d);
                store(scaled + d, x * load(s.scale + d));
                zeros += x * load(s.zero + d);
            }
            s.sums[g] = sum(zeros);
            if (!side.planes.inOrder) toPlanes(side.planes, scaled, planes);
        }
        blocksOf(side, s, h, from, to, [&](std::int64_t first, std::int64_t n, const std::uint8_t* codes, std::int64_t row) {
            for (std::int64_t g = 0; g < side.group; g += BlockHeads) {
                const std::int64_t heads = least(BlockHeads, side.group - g);
                side.dots[heads](codes, row, n, side.planes, s.rows + g * side.planes.width, nullptr, nullptr, s.weights);
                for (std::int64_t i = 0; i < heads; ++i)
                    for (std::int64_t t = 0; t < n; ++t)
                        scores[(g + i) * stride + first - begin + t] = s.weights[i * Block + t] + s.sums[g + i];
            }
        });
    }
}

void tokenValues(const Side& side, const Scratch& s, std::int64_t h, std::int64_t begin, std::int64_t count, const float* weights,
                 std::int64_t stride, const std::int32_t* groupOf, float* out) {
    const bool inOrder = side.planes.inOrder;
    float* rows = inOrder ? out : s.rows;
    if (!inOrder) std::memset(rows, 0, static_cast<std::size_t>(side.group * side.planes.width) * 4);
    std::memset(s.sums, 0, static_cast<std::size_t>(side.group * side.groups) * 4);
    blocksOf(side, s, h, begin, begin + count, [&](std::int64_t first, std::int64_t n, const std::uint8_t* codes, std::int64_t row) {
        const std::int64_t padded = roundUp(n, Lanes), head = side.groups * Block;
        tokenParameters(side, s, side.parametersAt(side.args.scale, h, first), n, s.scale);
        tokenParameters(side, s, side.parametersAt(side.args.zero, h, first), n, s.zero);
        for (std::int64_t g = 0; g < side.group; g += BlockHeads) {
            const std::int64_t heads = least(BlockHeads, side.group - g);
            for (std::int64_t i = 0; i < heads; ++i) {
                std::memcpy(s.row, weights + (g + i) * stride + first - begin, static_cast<std::size_t>(n) * 4);
                for (std::int64_t t = n; t < padded; ++t)
                    s.row[t] = 0;
                for (std::int64_t j = 0; j < side.groups; ++j) {
                    Floats zeros{};
                    for (std::int64_t t = 0; t < padded; t += Lanes) {
                        const Floats p = load(s.row + t);
                        store(s.weights + i * head + j * Block + t, p * load(s.scale + j * Block + t));
                        zeros += p * load(s.zero + j * Block + t);
                    }
                    s.sums[(g + i) * side.groups + j] += sum(zeros);
                }
            }
            side.add[heads](codes, row, n, side.planes, s.weights, head, groupOf, rows + g * side.planes.width);
        }
    });
    for (std::int64_t g = 0; g < side.group; ++g) {
        float* to = out + g * side.width;
        if (!inOrder) {
            fromPlanes(side.planes, rows + g * side.planes.width, s.row);
            for (std::int64_t d = 0; d < side.planes.dim; ++d)
                to[d] += s.row[d];
        }
        for (std::int64_t j = 0; j < side.groups; ++j)
            for (std::int64_t i = 0; i < side.groupWidth; ++i)
                to[j * side.groupWidth + i] += s.sums[g * side.groups + j];
    }
}

void channelValues(const Side& side, const Scratch& s, std::int64_t h, std::int64_t begin, std::int64_t count, const float* weights,
                   std::int64_t stride, float* out) {
    const std::int64_t end = begin + count, tokens = side.args.groupTokens;
    for (std::int64_t from = begin, to = begin; from < end; from = to) {
        const std::int64_t parameters = from / tokens;
        to = least(end, (parameters + 1) * tokens);
        std::memset(s.rows, 0, static_cast<std::size_t>(side.group * side.planes.width) * 4);
        blocksOf(side, s, h, from, to, [&](std::int64_t first, std::int64_t n, const std::uint8_t* codes, std::int64_t row) {
            for (std::int64_t g = 0; g < side.group; g += BlockHeads)
                side.add[least(BlockHeads, side.group - g)](codes, row, n, side.planes, weights + g * stride + first - begin, stride,
                                                            nullptr, s.rows + g * side.planes.width);
        });
        channelParameters(side, side.parametersAt(side.args.scale, h, parameters), s.scale);
        channelParameters(side, side.parametersAt(side.args.zero, h, parameters), s.zero);
        for (std::int64_t g = 0; g < side.group; ++g) {
            const float* sums = s.rows + g * side.planes.width;
            if (!side.planes.inOrder) {
                std::memset(s.row, 0, static_cast<std::size_t>(side.width) * 4);
                fromPlanes(side.planes, sums, s.row);
                sums = s.row;
            }
            const float all = total(weights + g * stride + from - begin, to - from);
            float* row = out + g * side.width;
            for (std::int64_t d = 0; d < side.width; d += Lanes)
                store(row + d, load(row + d) + load(sums + d) * load(s.scale + d) + load(s.zero + d) * all);
        }
    }
}

// Entries [first, first + count) of a head as its parts have them: exact(rows, begin in them, count, offset), codes(begin, count, offset).
template <class Exact, class Codes>
KEEPSIGHT_INLINE void overParts(const Side& side, std::int64_t h, std::int64_t first, std::int64_t count, const Exact& exact,
                                const Codes& codes) {
    const std::int64_t firstEnd = side.args.counts[h], tail = firstEnd + side.args.counts[side.kvHeads + h], end = first + count,
                       dim = side.planes.dim;
    const std::int64_t a = least(most(firstEnd, first), end), b = least(most(tail, first), end);
    if (first < a) exact(Rows{side.args.first, side.args.firstHead, dim}, first, a - first, 0);
    if (a < b) codes(a - firstEnd, b - a, a - first);
    if (b < end) exact(Rows{side.args.tail, side.args.tailHead, dim}, b - tail, end - b, b - first);
}

} // namespace

void packedAttention(const PackedAttentionArgs& packed) {
    if (packed.unusual()) return codedAttention(packed);
    const AttentionArgs& args = packed.attention;
    const Side keys(packed.keys, args), values(packed.values, args);
    Buffer<std::int64_t> seen(args.kvHeads);
    std::int64_t splits = 1;
    for (std::int64_t h = 0; h < args.kvHeads; ++h) {
        seen[h] = 0;
        for (int part = 0; part < 3; ++part)
            seen[h] += packed.keys.counts[part * args.kvHeads + h];
        splits = most(splits, (seen[h] + Split - 1) / Split);
    }
    Buffer<std::int32_t> keyGroups(keys.planes.width / Lanes), valueGroups(values.planes.width / Lanes); // of each vector of codes
    for (std::int64_t v = 0; v < keys.planes.width / Lanes; ++v)
        keyGroups[v] = static_cast<std::int32_t>(keys.groups > 1 ? v * Lanes / keys.groupWidth : 0);
    for (std::int64_t v = 0; v < values.planes.width / Lanes; ++v)
        valueGroups[v] = static_cast<std::int32_t>(values.groups > 1 ? v * Lanes / values.groupWidth : 0);

    const std::int64_t exactFloats = Tile * keys.width;
    attendInSplits(
        args, seen.data(), splits, most(exactFloats, most(Scratch::size(keys), Scratch::size(values))),
        [&](std::int64_t h, std::int64_t first, std::int64_t count, const float* q, float* scratch, float* to, std::int64_t stride) {
            overParts(
                keys, h, first, count,
                [&](const Rows& rows, std::int64_t begin, std::int64_t n, std::int64_t offset) {
                    splitScores(args, rows, h, begin, n, q, keys.width, scratch, to + offset, stride);
                },
                [&](std::int64_t begin, std::int64_t n, std::int64_t offset) {
                    const Scratch s(keys, scratch);
                    if (keys.byToken)
                        tokenScores(keys, s, h, begin, n, q, keyGroups.data(), to + offset, stride);
                    else
                        channelScores(keys, s, h, begin, n, q, to + offset, stride);
                });
        },
        [&](std::int64_t h, std::int64_t first, std::int64_t count, const float* weights, std::int64_t stride, float* scratch, float* to) {
            overParts(
                values, h, first, count,
                [&](const Rows& rows, std::int64_t begin, std::int64_t n, std::int64_t offset) {
                    splitValues(args, rows, h, begin, n, weights + offset, stride, values.width, scratch, to);
                },
                [&](std::int64_t begin, std::int64_t n, std::int64_t offset) {
                    const Scratch s(values, scratch);
                    if (values.byToken)
                        tokenValues(values, s, h, begin, n, weights + offset, stride, valueGroups.data(), to);
                    else
                        channelValues(values, s, h, begin, n, weights + offset, stride, to);
                });
        });
}

} // namespace keepsight::KEEPSIGHT_ISA
