// attention() of many bf16 queries for processors with AMX: both products in tiles of bf16, 16 × 32 with 32 × 16, summed in fp32. Scores, their exponentials
// and statistics are fp32; only the weights that meet the values are rounded.
// Keys are packed as tiles [t / 32][dim / 32][2] of [16 pairs of dims][16 entries], values as [dim / 32][t / 32][2] of [16 pairs of entries][16 dims], so
// that a product reads them in one run; queries and rounded weights as [row / 16][… / 32] of [16 rows][32]. A pair of entries is t and t + 16: two vectors
// of weights are rounded and put together without moving their numbers.
#include "kernels/cpu/attention_blocks.h"

#ifdef __AVX512F__

namespace keepsight::KEEPSIGHT_ISA {
namespace {

#define KEEPSIGHT_AMX [[gnu::target("amx-tile,amx-bf16"), gnu::noinline]]

constexpr std::int64_t Tile = 512, Row = 16;       // numbers of a tile; its rows
constexpr std::int64_t Square = 2 * Row;           // four tiles of sums: two of rows by two of columns
constexpr std::int64_t Step = 512, BlockRows = 64; // entries whose scores are made at a time; query rows of a block
constexpr std::int64_t LongPanel = 4096;           // entries beyond which the kept weights of so many rows would leave L2
constexpr std::int64_t FewRows = 16;               // fewer would leave most of a tile empty
constexpr float Slack = 16;                        // an exponential may reach 2^16 before its row is scaled anew: most rows never are

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, startRow = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig tileConfig;

// The tile loads of the compiler's header do not say that they read memory.
KEEPSIGHT_INLINE void written() { asm volatile("" ::: "memory"); }

// to[0 … Square, 0 … Square) (+)= a · b over `depth` numbers. Of a, tiles that follow each other have the next 32 numbers; those of the lower 16 rows lie
// aBelow further. Of b, there are two tiles of columns for each 32 numbers.
template <bool Add>
KEEPSIGHT_AMX void multiply(const std::uint16_t* a, std::int64_t aBelow, const std::uint16_t* b, std::int64_t depth, float* to, std::int64_t toStride) {
    written();
    float* below = to + Row * toStride;
    if constexpr (Add) {
        _tile_loadd(0, to, toStride * 4);
        _tile_loadd(1, to + Row, toStride * 4);
        _tile_loadd(2, below, toStride * 4);
        _tile_loadd(3, below + Row, toStride * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (std::int64_t d = 0; d < depth; d += Square, a += Tile, b += 2 * Tile) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + Tile, 64);
        _tile_loadd(5, a + aBelow, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, toStride * 4);
    _tile_stored(1, to + Row, toStride * 4);
    _tile_stored(2, below, toStride * 4);
    _tile_stored(3, below + Row, toStride * 4);
}

// Where numbers 32·i … of a row lie in an array of [rows / 16][width / 32] tiles.
KEEPSIGHT_INLINE std::uint16_t* inTiles(std::uint16_t* tiles, std::int64_t width, std::int64_t row, std::int64_t i) {
    return tiles + row / Row * Row * width + i * Tile + row % Row * Square;
}

// Both rounded to bf16, number i of `second` above number i of `first`.
KEEPSIGHT_INLINE Words pairs(Floats first, Floats second) {
    return ((Words)first + 0x8000) >> 16 | (((Words)second + 0x8000) & 0xffff0000u);
}

// v's first numbers, the other's behind them.
KEEPSIGHT_INLINE Floats firstOf(std::int64_t count, Floats v, Floats other) {
    Ints places;
    for (int i = 0; i < Lanes; ++i)
        places[i] = i;
    return places < static_cast<int>(count) ? v : other;
}

KEEPSIGHT_INLINE float greatestOf(const float* scores, std::int64_t count) {
    const Floats none = broadcast(-__builtin_inff());
    Floats best[2] = {none, none};
    std::int64_t t = 0;
    for (; t + Columns <= count; t += Columns)
        for (int j = 0; j < 2; ++j)
            best[j] = maximum(best[j], load(scores + t + j * Lanes));
    for (; t < count; t += Lanes)
        best[0] = maximum(best[0], firstOf(count - t, load(scores + t), none));
    return largest(maximum(best[0], best[1]));
}

// The first of `left` numbers, 32 at most; whole rows of a tile without a call.
KEEPSIGHT_INLINE void copyNumbers(const std::uint8_t* from, std::int64_t left, std::uint16_t* to) {
    if (left >= Square)
        __builtin_memcpy(to, from, Square * 2);
    else
        std::memcpy(to, from, static_cast<std::size_t>(left) * 2);
}

struct AmxProducts {
    using Number = std::uint16_t;
    KEEPSIGHT_AMX static void begin() { _tile_loadconfig(&tileConfig); }
    KEEPSIGHT_AMX static void end() { _tile_release(); }

    static void plan(Shape& shape, const AttentionArgs& args, std::int64_t longest) {
        shape.keyWidth = shape.valueWidth = roundUp(args.dim, Square);
        shape.step = shape.narrow = Step;
        shape.steps = most(1, (longest + Step - 1) / Step);
        shape.panelStride = (shape.kept ? most(Columns, roundUp(longest, Columns)) : Step) + Lanes; // odd multiple of a line: rows fall in different sets
        const std::int64_t rows = shape.kept && longest > LongPanel ? Square : BlockRows;
        shape.blockQueries = most(1, least(rows / shape.group, args.queries));
        shape.blockRows = roundUp(shape.blockQueries * shape.group, Square);
    }

    // Rows first … of a head, zero behind n and behind dim: [Columns, width].
    static void copyRows(const AttentionArgs& args, const Rows& from, std::int64_t head, std::int64_t first, std::int64_t n, std::int64_t width,
                         std::uint16_t* to) {
        std::memset(to, 0, static_cast<std::size_t>(Columns * width) * 2);
        for (std::int64_t j = 0; j < n; ++j)
            for (std::int64_t d = 0; d < args.dim; d += Square)
                copyNumbers(at(from.data, args.element, from.of(head) + (first + j) * from.row + d), args.dim - d, to + j * width + d);
    }

    static void pack(const AttentionArgs& args, const Shape& shape, const Head<std::uint16_t>& head, std::int64_t first, std::int64_t n, float* buffer) {
        auto* rows = reinterpret_cast<std::uint16_t*>(buffer);
        const std::int64_t width = shape.keyWidth;
        copyRows(args, args.k, head.index, first, n, width, rows);
        for (std::int64_t t = 0; t < Columns; t += Row)
            for (std::int64_t d = 0; d < width; d += Square) {
                Floats tile[Lanes]; // of pairs
                for (int i = 0; i < Lanes; ++i)
                    tile[i] = loadAs<Floats>(rows + (t + i) * width + d);
                transpose(tile);
                std::memcpy(head.keys + first * width + d / Square * 2 * Tile + t / Row * Tile, tile, sizeof tile);
            }
        if (!head.values) return;
        copyRows(args, args.v, head.index, first, n, width, rows);
        for (std::int64_t d = 0; d < width; d += Row) {
            std::uint16_t* to = valuesAt(head, d, first) + d % Square / Row * Tile;
            for (std::int64_t j = 0; j < Row; ++j, to += Square) {
                const Words both = (Words)loadBf16(rows + j * width + d) >> 16 | (Words)loadBf16(rows + (j + Row) * width + d);
                __builtin_memcpy(to, &both, sizeof both);
            }
        }
    }

    // Values of the 32 dims with d among them, of 32 entries from t on: two tiles.
    static std::uint16_t* valuesAt(const Head<std::uint16_t>& head, std::int64_t d, std::int64_t t) {
        return head.values + d / Square * roundUp(head.entries, Columns) * Square + t * Square;
    }

    static void packQueries(const AttentionArgs& args, const Shape& shape, const Head<std::uint16_t>& head, const BlockScratch<std::uint16_t>& s,
                            std::int64_t begin, std::int64_t count) {
        const std::int64_t width = shape.keyWidth;
        std::memset(s.q, 0, static_cast<std::size_t>(shape.blockRows * width) * 2);
        for (std::int64_t r = 0; r < shape.group * count; ++r) {
            const std::int64_t g = r / count, i = r % count;
            const std::uint8_t* from = at(args.q.data, args.element, (head.index * shape.group + g) * args.q.head + (begin + i) * args.q.row);
            for (std::int64_t d = 0; d < args.dim; d += Square)
                copyNumbers(from + 2 * d, args.dim - d, inTiles(s.q, width, r, d / Square));
        }
    }

    static void scores(const Shape& shape, const Head<std::uint16_t>& head, const BlockScratch<std::uint16_t>& s, std::int64_t rows, std::int64_t first,
                       std::int64_t n, float* to) {
        const std::int64_t width = shape.keyWidth;
        for (std::int64_t t = 0; t < n; t += Square)
            for (std::int64_t r = 0; r < rows; r += Square)
                multiply<false>(s.q + r * width, Row * width, head.keys + (first + t) * width, width, to + r * shape.panelStride + t, shape.panelStride);
    }

    // Rows of n scores, of which a row's first `seen` − first are real.
    static void weights(const AttentionArgs& args, const Shape& shape, const BlockScratch<std::uint16_t>& s, std::int64_t rows, std::int64_t first,
                        std::int64_t n, float* scores) {
        const std::int64_t padded = roundUp(n, Columns);
        const float scale = args.scale * Log2E;
        for (std::int64_t r = 0; r < rows; ++r) { // by itself: no row waits for the one before
            const float greatest = scale * greatestOf(scores + r * shape.panelStride, least(s.seen[r] - first, n));
            if (first == 0)
                s.top[r] = greatest;
            else if (greatest > s.top[r] + Slack)
                raiseTop(shape, s, r, greatest);
        }
        for (std::int64_t r = 0; r < rows; ++r) {
            float *row = scores + r * shape.panelStride, *total = s.total + r * Lanes;
            std::uint16_t* narrow = inTiles(s.narrow, Step, r, 0);
            const std::int64_t count = most(0, least(s.seen[r] - first, n));
            const Floats shift = broadcast(s.top[r]), factor = broadcast(scale);
            Floats acc = load(total);
            const auto put = [&](std::int64_t t, Floats lower, Floats upper) {
                if (shape.kept) {
                    store(row + t, lower);
                    store(row + t + Lanes, upper);
                }
                acc += lower + upper;
                const Words both = pairs(lower, upper);
                __builtin_memcpy(narrow + t * Row, &both, sizeof both);
            };
            std::int64_t t = 0;
            for (; t + Columns <= count; t += Columns)
                put(t, exp2(load(row + t) * factor - shift), exp2(load(row + t + Lanes) * factor - shift));
            if (t < count) {
                const auto part = [&](std::int64_t from) { return firstOf(count - from, exp2(load(row + from) * factor - shift), Floats{}); };
                put(t, part(t), part(t + Lanes));
                t += Columns;
            }
            for (; t < padded; t += Columns)
                put(t, Floats{}, Floats{});
            store(total, acc);
        }
    }

    static void values(const Shape& shape, const Head<std::uint16_t>& head, const BlockScratch<std::uint16_t>& s, std::int64_t rows, std::int64_t first,
                       std::int64_t n, const float*) {
        const std::int64_t width = shape.valueWidth, depth = roundUp(n, Square);
        for (std::int64_t d = 0; d < width; d += Square)
            for (std::int64_t r = 0; r < rows; r += Square)
                multiply<true>(s.narrow + r * Step, Row * Step, valuesAt(head, d, first), depth, s.out + r * width + d, width);
    }
};

} // namespace

void attentionAmx(const AttentionArgs& args, float* logSumExp) {
    if (args.element == Element::bf16 && args.queries > 1 && args.scale > 0 && args.queries * args.queryHeads >= FewRows * args.kvHeads)
        return attendInBlocks<AmxProducts>(args, logSumExp);
    attention(args, logSumExp);
}

} // namespace keepsight::KEEPSIGHT_ISA
#endif
