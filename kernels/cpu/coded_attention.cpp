// Attention of one query over entries stored in any form (kernels/packed.h): a tile of entries becomes numbers in the thread's own scratch, where it
// stays in L1, and is attended to as dense entries are.
#include "kernels/cpu/angles.h"
#include "kernels/cpu/attention_splits.h"
#include "kernels/cpu/code_rows.h"
#include "kernels/cpu/isa.h"
#include "kernels/packed.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

// How many of an ascending list are < limit.
std::int64_t before(const std::int32_t* list, std::int64_t count, std::int64_t limit) {
    std::int64_t low = 0, high = count;
    while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (list[middle] < limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

float exactAt(const SixteenBits& values, std::int64_t h, std::int64_t i) {
    std::uint16_t bits;
    std::memcpy(&bits, static_cast<const std::uint8_t*>(values.data) + 2 * (h * values.head + i), 2);
    if (!values.bf16) return floatOfHalf(bits);
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}

// A thread's.
struct Scratch {
    float *rows, *scale, *zero, *angles, *sine, *cosine; // [Tile, width], [width] each
    std::uint8_t* codes;                                 // [padded]
    static std::int64_t padded(std::int64_t dim) { return roundUp(dim + Lanes, 64); }
    static std::int64_t size(std::int64_t dim) { return Tile * roundUp(dim, Lanes) + 6 * padded(dim); }
    Scratch(float* place, std::int64_t dim) : rows(place) {
        place += Tile * roundUp(dim, Lanes);
        for (float** part : {&scale, &zero, &angles, &sine, &cosine})
            *part = place, place += padded(dim);
        codes = reinterpret_cast<std::uint8_t*>(place);
    }
};

// Keys or values as they are read.
struct Side {
    const PackedSideArgs& a;
    const AttentionArgs& attention;
    std::int64_t dim, width, columns = 0; // columns in use, of an array across all heads
    LevelTable table;

    Side(const PackedSideArgs& side, const AttentionArgs& args)
        : a(side), attention(args), dim(args.dim), width(roundUp(args.dim, Lanes)), table(side.levels, side.bits) {
        if (!a.acrossWidth) return;
        std::int64_t codes = 0;
        for (std::int64_t h = 0; h < args.kvHeads; ++h)
            codes += a.counts[args.kvHeads + h];
        columns = a.acrossColumns(codes, dim);
    }

    const std::uint8_t* halvesAt(const void* from, std::int64_t place) const { return static_cast<const std::uint8_t*>(from) + 2 * place; }

    // Codes, scale and zero of value f on, of an array across all heads: runs that lie in one row and one plane.
    void gatherAcross(std::int64_t f, const Scratch& s) const {
        const std::int64_t rowBytes = packedBytes(a.acrossWidth, a.bits);
        const int low = a.bits == 3 ? 2 : a.bits;
        const std::int64_t bytes = planeBytes(a.acrossWidth, low), highBytes = planeBytes(a.acrossWidth, 1);
        for (std::int64_t d = 0, n; d < dim; d += n) {
            const std::int64_t row = (f + d) / columns, column = (f + d) % columns, plane = column / bytes;
            n = least(dim - d, least(columns, (plane + 1) * bytes) - column);
            const std::uint8_t* from = a.codes + row * rowBytes;
            for (std::int64_t i = 0; i < n; ++i)
                s.codes[d + i] = static_cast<std::uint8_t>(from[column - plane * bytes + i] >> (plane * low) & ((1 << low) - 1));
            for (std::int64_t i = 0; i < n && a.bits == 3; ++i)
                s.codes[d + i] |= static_cast<std::uint8_t>((from[bytes + (column + i) % highBytes] >> ((column + i) / highBytes) & 1) << 2);
            for (std::int64_t i = 0; i < n; ++i)
                s.scale[d + i] = loadHalf(halvesAt(a.scale, column + i)), s.zero[d + i] = loadHalf(halvesAt(a.zero, column + i));
        }
    }
    // Codes [first, first + count) of a head to rows of `width`.
    void decode(std::int64_t h, std::int64_t first, std::int64_t count, std::int64_t codesBefore, const Scratch& s, float* to) const {
        const std::int32_t* ends = a.ends ? a.ends + h * a.endsHead : nullptr;
        std::int64_t group = ends ? least(before(ends, a.parameterRows, first + 1), a.parameterRows - 1) : 0, held = -1;
        const std::int64_t rowBytes = packedBytes(dim, a.bits);
        for (std::int64_t i = first; i < first + count; ++i) {
            float* out = to + (i - first) * width;
            if (a.acrossWidth) {
                gatherAcross((codesBefore + i) * dim, s);
                scaleRow(s.codes, table, s.scale, s.zero, dim, out);
                continue;
            }
            while (ends && group + 1 < a.parameterRows && i >= ends[group])
                ++group;
            if (!ends) group = a.groupTokens == 1 ? i : least(i / a.groupTokens, a.parameterRows - 1);
            if (group != held) {
                held = group;
                const std::int64_t parameters = h * a.parametersHead + group * a.groups;
                spreadHalves(halvesAt(a.scale, parameters), dim, a.groups, s.scale), spreadHalves(halvesAt(a.zero, parameters), dim, a.groups, s.zero);
            }
            decodeRow(a.codes + h * a.codesHead + i * rowBytes, a.bits, table, s.scale, s.zero, dim, s.codes, out);
        }
        if (a.places) {
            const std::int32_t* places = a.places + h * a.placesHead;
            for (std::int64_t n = a.exactCounts[h], j = before(places, n, first * dim); j < n && places[j] < (first + count) * dim; ++j)
                to[(places[j] / dim - first) * width + places[j] % dim] = exactAt(a.exact, h, j);
        }
        for (std::int64_t j = first * a.rowExactCount; a.rowChannels && j < (first + count) * a.rowExactCount; ++j) {
            const std::int64_t place = h * a.channelsHead + j;
            const std::int64_t channel = a.wideChannels ? static_cast<const std::int16_t*>(a.rowChannels)[place] : static_cast<const std::uint8_t*>(a.rowChannels)[place];
            to[(j / a.rowExactCount - first) * width + channel] = exactAt(a.rowExact, h, j);
        }
    }
    // Entries [first, first + count ≤ Tile) of a head to s.rows.
    void read(std::int64_t h, std::int64_t first, std::int64_t count, std::int64_t codesBefore, const Scratch& s) const {
        const std::int64_t heads = attention.kvHeads, codes = a.counts[h], tail = codes + a.counts[heads + h], end = first + count;
        const std::int64_t p = least(most(codes, first), end), q = least(most(tail, first), end); // codes are [p, q)
        const auto exact = [&](const void* rows, std::int64_t head, std::int64_t begin, std::int64_t n, float* to) {
            for (std::int64_t t = 0; t < n; ++t)
                toFp32(at(rows, attention.element, h * head + (begin + t) * dim), attention.element, dim, to + t * width);
        };
        if (first < p) exact(a.first, a.firstHead, first, p - first, s.rows);
        if (p < q) decode(h, p - codes, q - p, codesBefore, s, s.rows + (p - first) * width);
        if (q < end) exact(a.tail, a.tailHead, q - tail, end - q, s.rows + (q - first) * width);
        for (std::int64_t t = 0; t < count && width > dim; ++t)
            std::memset(s.rows + t * width + dim, 0, static_cast<std::size_t>(width - dim) * 4);
    }
    void turn(std::int64_t h, std::int64_t first, std::int64_t count, const KeyTurnArgs& by, const Scratch& s) const {
        const std::int64_t half = dim / 2;
        for (std::int64_t t = first; t < first + count; ++t) {
            float* x = s.rows + (t - first) * width;
            const auto position = static_cast<float>(by.byRank ? t : attention.positionsOf(h)[t]);
            std::int64_t done = 0;
#ifdef __FMA__
            for (; done + Lanes <= half; done += Lanes) { // angles are rounded to fp32 before the sine is taken, as ops::rope does
                Floats sine, cosine;
                const Floats low = load(x + done), high = load(x + done + half);
                sineCosine(load(by.inverseFrequencies + done) * position, sine, cosine);
                store(x + done, low * cosine - high * sine), store(x + done + half, high * cosine + low * sine);
            }
#endif
            for (std::int64_t i = done; i < half; ++i)
                s.angles[i] = position * by.inverseFrequencies[i];
            if (done < half) sineCosine(s.angles + done, half - done, s.sine + done, s.cosine + done);
            for (std::int64_t i = done; i < half; ++i) {
                const float low = x[i], high = x[i + half];
                x[i] = low * s.cosine[i] - high * s.sine[i];
                x[i + half] = high * s.cosine[i] + low * s.sine[i];
            }
        }
    }
};

} // namespace

void codedAttention(const PackedAttentionArgs& packed) {
    const AttentionArgs& args = packed.attention;
    const Side keys(packed.keys, args), values(packed.values, args);
    const std::int64_t heads = args.kvHeads, group = args.queryHeads / heads, width = keys.width;
    Buffer<std::int64_t> seen(heads), keysBefore(heads + 1), valuesBefore(heads + 1); // codes of the heads before
    std::int64_t splits = 1;
    keysBefore[0] = valuesBefore[0] = 0;
    for (std::int64_t h = 0; h < heads; ++h) {
        seen[h] = packed.keys.counts[h] + packed.keys.counts[heads + h] + packed.keys.counts[2 * heads + h];
        splits = most(splits, (seen[h] + Split - 1) / Split);
        keysBefore[h + 1] = keysBefore[h] + packed.keys.counts[heads + h], valuesBefore[h + 1] = valuesBefore[h] + packed.values.counts[heads + h];
    }
    attendInSplits(
        args, seen.data(), splits, Scratch::size(args.dim),
        [&](std::int64_t h, std::int64_t first, std::int64_t count, const float* q, float* scratch, float* to, std::int64_t stride) {
            const Scratch s(scratch, args.dim);
            for (std::int64_t t = 0; t < count; t += Tile) {
                const std::int64_t n = least(Tile, count - t);
                keys.read(h, first + t, n, keysBefore[h], s);
                if (packed.turn.inverseFrequencies) keys.turn(h, first + t, n, packed.turn, s);
                for (std::int64_t g = 0; g < group; g += 4)
                    scoresOf<float>[least(4, group - g)](s.rows, width, n, q + g * width, width, to + g * stride + t, stride);
            }
        },
        [&](std::int64_t h, std::int64_t first, std::int64_t count, const float* weights, std::int64_t stride, float* scratch, float* to) {
            const Scratch s(scratch, args.dim);
            for (std::int64_t t = 0; t < count; t += Tile) {
                const std::int64_t n = least(Tile, count - t);
                values.read(h, first + t, n, valuesBefore[h], s);
                for (std::int64_t g = 0; g < group; g += 4)
                    valuesOf<float>[least(4, group - g)](s.rows, width, n, weights + g * stride + t, stride, to + g * width, width);
            }
        });
}

} // namespace keepsight::KEEPSIGHT_ISA
