// Entries held as codes against up to 8 query heads, by one warp: tile.cuh's two products, 16 entries at a time, straight from the codes.
//
// A code of b bits, cut out of its byte by one AND, is a subnormal fp16 number: code · 2^(b·j − 24) in plane j, exact. The matrix units
// take it as it is: so the codes of a tile are never written out as numbers, and nothing has to be subtracted. The powers of two are made
// good elsewhere: queries that meet plane j count 2^(−b·j) times, sums of values keep 2^(b·j), and 2^−24 leaves with the results. A
// register takes two codes: of keys the bytes 0 and 2, or 1 and 3, of a word (queries are woven alike), of values the same byte of two
// entries.
//
// Scale and zero of keys by channel go into the queries, once for a unit (PackedQueries::fold); of keys by token into the sums of each
// block of 32 channels. Values' scales go into the weights P, once for a block of 32 channels; Σ p·zero, and Σ p beside it, is one more
// product with P.
//
// In shared memory rows lie as in the cache, so that one copy brings many. Which entries a lane takes is chosen so that rows of 32 bytes do not meet in
// a bank, and of wider ones as few as can be: permuting their segments costs more than it saves.
#pragma once

#include "kernels/cuda/decode_walks.cuh"
#include "kernels/packed.h"

namespace keepsight::cuda {

constexpr int ExactRows = 8; // of a unit, what a warp copies at a time, where its keys or values are exact

__device__ inline float twoTo(int e) { return __int_as_float((127 + e) << 23); } // −126 … 127
__device__ inline unsigned multiplied(unsigned a, unsigned b) {                  // two fp16 values
    const __half2 x = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
    return *reinterpret_cast<const unsigned*>(&x);
}
__device__ inline float2 halves(unsigned x) { return unpacked<__half>(x); }
__device__ inline void copyAsync(unsigned shared, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
}
__device__ inline void copyAsync(unsigned shared, const void* from, int bytes) { // the rest of the 16: 0
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
}

// How the codes of a unit lie. A block is 32 neighbouring channels; (block, word) and (block, half) count the products of 16 channels.
template <int Dim, int Bits>
struct CodeTile {
    static constexpr int Rows = 32; // of a unit
    static constexpr int Planes = 8 / Bits, Row = Dim * Bits / 8, Segments = Row / 32, Blocks = Dim / 32, Bytes = Rows * Row;
    static constexpr bool Narrow = Row < 32; // a plane is 16 channels, half a block
    static constexpr unsigned Mask = ((1u << Bits) - 1) * 0x10001u;

    // Entry of row r of the matrices, among 8: of the rows r = 0 … 3, 4 … 7, of the even and of the odd ones, each time one ends in 0, one in 1, 2 and 3 modulo 4.
    __device__ static int entry(int r) { return static_cast<int>(0x53427160u >> (4 * r) & 7); }
    // Rows low … high − 1 of a unit. head: the codes; row 0 is that of entry `begin`.
    __device__ static void copy(unsigned to, const std::uint8_t* head, int begin, int low, int high) {
        constexpr int Chunks = Row / 16;
        const std::uint8_t* from = head + static_cast<std::int64_t>(begin) * Row;
#pragma unroll 1
        for (int i = low * Chunks + static_cast<int>(threadIdx.x) % 32; i < high * Chunks; i += 32)
            copyAsync(to + static_cast<unsigned>(i * 16), from + i * 16);
    }
};

// Calls f with the number of groups of a token's row as a type: 1, 2 or 4.
template <int Blocks, class F>
__device__ __forceinline__ void forGroups(int groups, F&& f) {
    if (groups == Blocks)
        f(std::integral_constant<int, Blocks>{});
    else if (Blocks == 4 && groups == 2)
        f(std::integral_constant<int, 2>{});
    else
        f(std::integral_constant<int, 1>{});
}

// Scale and zero of a token's row, spread to one for every block of 32 channels; rows of 1, 2 or 4.
template <int Blocks>
struct TokenRow {
    unsigned words[Blocks / 2];
    __device__ __forceinline__ TokenRow(const char* at, int groups) {
        if constexpr (Blocks == 4) {
            if (groups == 4) {
                const uint2 x = *reinterpret_cast<const uint2*>(at);
                words[0] = x.x, words[1] = x.y;
            } else if (groups == 2) {
                const unsigned x = *reinterpret_cast<const unsigned*>(at);
                words[0] = __byte_perm(x, 0, 0x1010), words[1] = __byte_perm(x, 0, 0x3232);
            } else {
                words[0] = words[1] = *reinterpret_cast<const unsigned short*>(at) * 0x10001u;
            }
        } else {
            words[0] = groups == 2 ? *reinterpret_cast<const unsigned*>(at) : *reinterpret_cast<const unsigned short*>(at) * 0x10001u;
        }
    }
};

// Scales of two tokens' rows, the first one's below the second one's, for every block of 32 channels.
template <int Blocks>
__device__ __forceinline__ void scalesOfTwo(const char* first, const char* second, int groups, unsigned (&to)[Blocks]) {
    if (groups == Blocks) {
        const TokenRow<Blocks> a(first, groups), b(second, groups);
#pragma unroll
        for (int x = 0; x < Blocks; ++x)
            to[x] = __byte_perm(a.words[x / 2], b.words[x / 2], x % 2 ? 0x7632 : 0x5410);
    } else if (groups == 2) { // of four blocks: those that share a scale share its product with P
        const unsigned a = *reinterpret_cast<const unsigned*>(first), b = *reinterpret_cast<const unsigned*>(second);
#pragma unroll
        for (int x = 0; x < Blocks; ++x)
            to[x] = __byte_perm(a, b, x < Blocks / 2 ? 0x5410 : 0x7632);
    } else {
        const unsigned both = __byte_perm(*reinterpret_cast<const unsigned short*>(first), *reinterpret_cast<const unsigned short*>(second), 0x5410);
#pragma unroll
        for (int x = 0; x < Blocks; ++x)
            to[x] = both;
    }
}

// The queries of a walk: as they are, for exact keys, and as fp16 over a power of two, for codes.
template <class T, int Dim, int Bits, bool ByChannel>
struct PackedQueries {
    using Codes = CodeTile<Dim, Bits>;
    static constexpr int Blocks = Codes::Blocks;
    // Exponent of the largest query. By channel: as high as its product with a scale stays finite, whose 2^Bits steps span fp16's range at
    // the most. By token: sums of 128 stay so.
    static constexpr int Top = !ByChannel ? 6 : Bits == 8 ? 5 : Bits == 4 ? 1 : -1;
    static constexpr int StoredBytes = ByChannel ? Blocks * 512 : 0;
    char* stored; // by channel: of head r, over 2^e, channels of(block, i) and the next; [Blocks, 32 lanes, 4], of the block in shared memory
    unsigned woven[Blocks][4];       // woven, times 2^(−b·j). By token: over 2^e; by channel: times the scales of the unit
    unsigned sums[2];                // by token: of the queries of each group, in two fp16 terms, as a matrix of 16 groups
    float up, scales[2], offsets[2]; // 2^e of head r, and of heads 2c, 2c + 1; by channel: of the unit, Σ q·zero
    int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;

    __device__ int of(int block, int i) const { return block * 32 + (Codes::Narrow ? i / 2 * 16 + c * 4 + i % 2 * 2 : c * 8 + i * 2); }
    // A row of 16-bit values at the channels of the lane.
    __device__ void readRow(unsigned (&to)[Blocks][4], const void* row) const {
        const char* from = static_cast<const char*>(row);
#pragma unroll
        for (int x = 0; x < Blocks; ++x) {
            if constexpr (Codes::Narrow) {
                const uint2 a = *reinterpret_cast<const uint2*>(from + of(x, 0) * 2),
                            b = *reinterpret_cast<const uint2*>(from + of(x, 2) * 2);
                to[x][0] = a.x, to[x][1] = a.y, to[x][2] = b.x, to[x][3] = b.y;
            } else {
                const uint4 a = *reinterpret_cast<const uint4*>(from + of(x, 0) * 2);
                to[x][0] = a.x, to[x][1] = a.y, to[x][2] = a.z, to[x][3] = a.w;
            }
        }
    }
    static constexpr int planeOf(int block, int word) { return Codes::Narrow ? block * 2 + word : block / Codes::Segments; }
    __device__ static void weave(unsigned (&to)[Blocks][4], const unsigned (&from)[Blocks][4]) { // times 2^(−b·plane)
#pragma unroll
        for (int x = 0; x < Blocks; ++x)
#pragma unroll
            for (int w = 0; w < 2; ++w) {
                const unsigned weight = static_cast<unsigned>(15 - Bits * planeOf(x, w)) * 0x04000400u;
                unsigned low = from[x][2 * w], high = from[x][2 * w + 1];
                if (planeOf(x, w) > 0) low = multiplied(low, weight), high = multiplied(high, weight);
                to[x][2 * w] = __byte_perm(low, high, 0x5410), to[x][2 * w + 1] = __byte_perm(low, high, 0x7632);
            }
    }
    __device__ uint4* storedAt(int block) const {
        return reinterpret_cast<uint4*>(stored) + block * 32 + static_cast<int>(threadIdx.x) % 32;
    }
    // Queries of a part to come: head i at q + i·stride. Long before use(): behind the units already asked for a load takes as long as all
    // of them.
    __device__ void expect(const T* q, std::int64_t stride, int heads) const {
        if (r < heads && c < Dim / 32) asm volatile("prefetch.global.L1 [%0];" ::"l"(q + r * stride + c * 32));
    }
    // By all warps that attend. Heads ≥ `heads` count as 0. groups: of keys by token.
    __device__ void use(const T* q, std::int64_t stride, int heads, int groups, int warps) {
        unsigned exact[Blocks][4] = {};
        if (r < heads) readRow(exact, q + r * stride);
        float most = 0;
#pragma unroll
        for (int i = 0; i < Blocks * 4; ++i) {
            const float2 x = unpacked<T>(exact[i / 4][i % 4]);
            most = fmaxf(most, fmaxf(fabsf(x.x), fabsf(x.y)));
        }
        most = fmaxf(most, __shfl_xor_sync(EveryLane, most, 1));
        most = fmaxf(most, __shfl_xor_sync(EveryLane, most, 2));
        const int e = min(max(static_cast<int>(__float_as_uint(most) >> 23) - 127, -100), 125) - Top; // most < 2^(e + Top + 1)
        const float down = twoTo(-e);
        up = twoTo(e);
#pragma unroll
        for (int i = 0; i < 2; ++i)
            scales[i] = __shfl_sync(EveryLane, up, (2 * c + i) * 4);
        unsigned plain[Blocks][4];
        float part[Blocks];
#pragma unroll
        for (int x = 0; x < Blocks; ++x) {
            part[x] = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float2 q = unpacked<T>(exact[x][i]);
                plain[x][i] = packed<__half>(q.x * down, q.y * down);
                const float2 rounded = halves(plain[x][i]);
                part[x] += rounded.x + rounded.y;
            }
        }
        if constexpr (ByChannel) {
            if (threadIdx.x < 32) // the same in all warps
#pragma unroll
                for (int x = 0; x < Blocks; ++x)
                    *storedAt(x) = make_uint4(plain[x][0], plain[x][1], plain[x][2], plain[x][3]);
            meet(warps);
        } else {
            weave(woven, plain);
            float mine[2] = {}; // of groups 2c and 2c + 1
#pragma unroll
            for (int x = 0; x < Blocks; ++x) {
                part[x] += __shfl_xor_sync(EveryLane, part[x], 1);
                part[x] += __shfl_xor_sync(EveryLane, part[x], 2);
                const int group = x * groups / Blocks;
                if (group == 2 * c) mine[0] += part[x];
                if (group == 2 * c + 1) mine[1] += part[x];
            }
            sums[0] = packed<__half>(mine[0], mine[1]);
            const float2 rounded = halves(sums[0]);
            sums[1] = packed<__half>(mine[0] - rounded.x, mine[1] - rounded.y);
        }
    }
    // By channel: rows of scale and zero of the unit.
    __device__ void fold(const char* scale, const char* zero) {
        unsigned row[Blocks][4];
        float even[4] = {}, odd[4] = {};
        readRow(row, zero);
        // A row is one operand as it was loaded: words 0 and 2 stand in rows 0 … 7 of the matrix, 1 and 3 in rows 8 … 15. One product makes
        // sense in the upper rows, the other in the lower ones.
#pragma unroll
        for (int x = 0; x < Blocks; ++x) {
            const uint4 q = *storedAt(x);
            multiplyAdd<__half>(even, row[x][0], row[x][1], row[x][2], row[x][3], q.x, q.z);
            multiplyAdd<__half>(odd, row[x][0], row[x][1], row[x][2], row[x][3], q.y, q.w);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
            offsets[i] = (even[i] + odd[2 + i]) * twoTo(-24);
        readRow(row, scale);
#pragma unroll
        for (int x = 0; x < Blocks; ++x) {
            const uint4 q = *storedAt(x);
            row[x][0] = multiplied(row[x][0], q.x), row[x][1] = multiplied(row[x][1], q.y);
            row[x][2] = multiplied(row[x][2], q.z), row[x][3] = multiplied(row[x][3], q.w);
        }
        weave(woven, row);
    }
    static constexpr float DotUnit = ByChannel ? 16777216.0f : 1.0f; // 2^24
    // q·k of 16 coded entries, over 2^e · DotUnit. tile: the codes; scale, zero: by token, the rows of the first entry.
    __device__ __forceinline__ void dot(const char* tile, const char* scale, const char* zero, int groups, float (&s)[4]) const {
        constexpr int Chains = ByChannel ? 2 : Blocks;
        float sum[Chains][4] = {};
        if constexpr (ByChannel) sum[0][0] = sum[0][2] = offsets[0], sum[0][1] = sum[0][3] = offsets[1];
        const int at = Codes::entry(r);
        const char* row = tile + at * Codes::Row;
#pragma unroll
        for (int b = 0; b < (Codes::Narrow ? 1 : Codes::Segments); ++b) {
            unsigned word[2][2] = {}; // [entry e or e + 8][word]
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const char* from = row + i * 8 * Codes::Row;
                if constexpr (Codes::Narrow) {
                    word[i][0] = *reinterpret_cast<const unsigned*>(from + c * 4);
                } else {
                    const uint2 x = *reinterpret_cast<const uint2*>(from + b * 32 + c * 8);
                    word[i][0] = x.x, word[i][1] = x.y;
                }
            }
#pragma unroll
            for (int w = 0; w < (Codes::Narrow ? 1 : 2); ++w)
#pragma unroll
                for (int j = 0; j < Codes::Planes; ++j) {
                    const unsigned mask = Codes::Mask << (Bits * j);
                    const int x = Codes::Narrow ? j / 2 : j * Codes::Segments + b, half = Codes::Narrow ? j % 2 : w;
                    multiplyAdd<__half>(sum[ByChannel ? j % 2 ^ w : x], word[0][w] & mask, word[1][w] & mask, word[0][w] >> 8 & mask,
                                        word[1][w] >> 8 & mask, woven[x][2 * half], woven[x][2 * half + 1]);
                }
        }
        if constexpr (ByChannel) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                s[i] = sum[0][i] + sum[1][i];
        } else {
            const int e = at, rowBytes = groups * 2;
            float zeros[4] = {};
            unsigned z[2] = {}; // groups 2c and 2c + 1 of both entries
            if (2 * c < groups)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const char* from = zero + (e + 8 * i) * rowBytes + c * 4;
                    z[i] = groups == 1 ? *reinterpret_cast<const unsigned short*>(from) : *reinterpret_cast<const unsigned*>(from);
                }
            multiplyAdd<__half>(zeros, z[0], z[1], z[0], z[1], sums[0], sums[1]);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const TokenRow<Blocks> scales(scale + (e + 8 * i) * rowBytes, groups);
                float both[2] = {};
#pragma unroll
                for (int x = 0; x < Blocks; ++x) {
                    const float2 pair = halves(scales.words[x / 2]);
                    const float by = x % 2 ? pair.y : pair.x;
                    both[0] += by * sum[x][2 * i], both[1] += by * sum[x][2 * i + 1];
                }
                s[2 * i] = both[0] * twoTo(24) + zeros[2 * i], s[2 * i + 1] = both[1] * twoTo(24) + zeros[2 * i + 1];
            }
        }
    }
    // Channels of(block, i) and the next of the query, as it was given: exact entries are few.
    __device__ unsigned exact(int block, int i) const {
        if constexpr (ByChannel) {
            const float2 x = halves(reinterpret_cast<const unsigned*>(storedAt(block))[i]);
            return packed<T>(x.x * up, x.y * up);
        } else {
            const float2 x = halves(__byte_perm(woven[block][i / 2 * 2], woven[block][i / 2 * 2 + 1], i % 2 ? 0x7632 : 0x5410));
            const float by = up * twoTo(Bits * planeOf(block, i / 2));
            return packed<T>(x.x * by, x.y * by);
        }
    }
    // q·k of ExactRows exact entries, and of as many that are not there.
    __device__ void dotExact(const char* tile, float (&s)[4]) const {
        const int e = Codes::entry(r);
        float other[4] = {};
        s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
        for (int x = 0; x < Blocks; ++x) {
            unsigned k[4];
            if constexpr (Codes::Narrow) {
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    const uint2 a = *reinterpret_cast<const uint2*>(tile + (e * Dim + of(x, i)) * 2);
                    k[i] = a.x, k[i + 1] = a.y;
                }
            } else {
                const uint4 a = *reinterpret_cast<const uint4*>(tile + (e * Dim + of(x, 0)) * 2);
                k[0] = a.x, k[1] = a.y, k[2] = a.z, k[3] = a.w;
            }
            multiplyAdd<T>(s, k[0], 0, k[1], 0, exact(x, 0), exact(x, 1));
            multiplyAdd<T>(other, k[2], 0, k[3], 0, exact(x, 2), exact(x, 3));
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            s[i] += other[i];
    }
};

// Σ p·v of a warp, [8 heads, Dim], and Σ p. Weights come as p · 2^WeightTop at the least where p is 1, up to 2^WeightLimit: fp16 holds
// small ones then.
template <class T, int Dim, int Bits>
struct PackedOutputs {
    using Codes = CodeTile<Dim, Bits>;
    static constexpr int Blocks = Codes::Blocks, WeightTop = 10, WeightLimit = 14;
    static constexpr int Room = 16 - WeightLimit; // scales · 2^up < 2^Room
    static constexpr unsigned One = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
    float sums[Blocks][2][4]; // channels of(block, half), the next; heads 2c, 2c + 1. While `coded`: over codeUnit()
    float zeros[4];           // row r, heads 2c and 2c + 1: Σ p·zero of group r; row 8: Σ p
    bool coded;
    int up;         // scales count 2^up times,
    unsigned limit; // and do so as long as this, added to a pair of them, sets no highest bit: below 2^(Room − up). Never while exact
    int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;

    __device__ int of(int block, int half) const { return block * 32 + (Codes::Narrow ? half * 16 + r * 2 : r * 4 + half * 2); }
    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < Blocks * 8; ++i)
            sums[i / 8][i / 4 % 2][i % 4] = 0;
        zeros[0] = zeros[1] = zeros[2] = zeros[3] = 0;
        coded = false, up = 0;
        become(false);
    }
    __device__ void shrink(float shrink0, float shrink1) {
#pragma unroll
        for (int i = 0; i < Blocks * 8; ++i)
            sums[i / 8][i / 4 % 2][i % 4] *= i % 2 ? shrink1 : shrink0;
        zeros[0] *= shrink0, zeros[1] *= shrink1, zeros[2] *= shrink0, zeros[3] *= shrink1;
    }
    // From sums of exact values to those of codes, or back.
    __device__ void become(bool codes) {
        limit = codes ? static_cast<unsigned>(0x8000 - (15 + Room - up << 10)) * 0x10001u : 0x80008000u;
        if (coded == codes) return;
        coded = codes;
#pragma unroll
        for (int x = 0; x < Blocks; ++x)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int e = up - 24 + Bits * PackedQueries<T, Dim, Bits, true>::planeOf(x, h);
                const float by = twoTo(codes ? e : -e);
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    sums[x][h][i] *= by;
            }
    }
    // Whether all rows of a unit can be added as things are: no product of a weight and a scale may pass fp16's range. A lane looks at one entry.
    __device__ __forceinline__ bool takes(const char* scale, int groups) const {
        const TokenRow<Blocks> row(scale + static_cast<int>(threadIdx.x) % 32 * groups * 2, groups);
        unsigned over = 0;
#pragma unroll
        for (int i = 0; i < Blocks / 2; ++i)
            over |= (row.words[i] & 0x7fff7fff) + limit;
        return !__any_sync(EveryLane, over & 0x80008000u);
    }
    // Sees to it, for rows low … high − 1; nor should products lie needlessly low in the range.
    __device__ void prepare(const char* scale, int groups, int low, int high) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        unsigned most = 0;
        if (lane >= low && lane < high) {
            const TokenRow<Blocks> row(scale + lane * groups * 2, groups);
#pragma unroll
            for (int i = 0; i < Blocks / 2; ++i)
                most = max(most, max(row.words[i] & 0x7fff, row.words[i] >> 16 & 0x7fff));
        }
        const bool fits = static_cast<int>(most >> 10) - 15 + up < Room;
        if (coded && __all_sync(EveryLane, fits)) return;
        most = __reduce_max_sync(EveryLane, most);
        const int e = max(static_cast<int>(most >> 10) - 15, -15); // the largest is below 2^(e + 1)
        become(false);
        up = e >= -8 && e < Room - 1 ? 0 : min(max(Room - 3 - e, -14), 15);
        become(true);
    }
    // p: of 16 entries as in S. Those before low and from high on have p = 0, but may hold anything.
    __device__ __forceinline__ void add(const char* tile, const char* scale, const char* zero, int groups, const float (&p)[4], int low,
                                        int high) {
        const unsigned early = packed<__half>(p[0], p[1]), late = packed<__half>(p[2], p[3]);
        const unsigned p0 = transposed8x8(early), p1 = transposed8x8(late);
        const int rowBytes = groups * 2, group = min(r, groups - 1), at0 = Codes::entry(2 * c), at1 = Codes::entry(2 * c + 1);
        unsigned scales[Blocks][2], z[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int e0 = at0 + 8 * i, e1 = at1 + 8 * i;
            unsigned both[Blocks];
            scalesOfTwo<Blocks>(scale + e0 * rowBytes, scale + e1 * rowBytes, groups, both);
            const unsigned z0 = *reinterpret_cast<const unsigned short*>(zero + e0 * rowBytes + group * 2),
                           z1 = *reinterpret_cast<const unsigned short*>(zero + e1 * rowBytes + group * 2);
            z[i] = __byte_perm(z0, z1, 0x5410);
#pragma unroll
            for (int x = 0; x < Blocks; ++x)
                scales[x][i] = both[x];
            if (low > 0 || high < TileEntries) {
                const unsigned real = (e0 >= low && e0 < high ? 0xffffu : 0) | (e1 >= low && e1 < high ? 0xffff0000u : 0);
                z[i] &= real;
#pragma unroll
                for (int x = 0; x < Blocks; ++x)
                    scales[x][i] &= real;
            }
        }
        if (up != 0) {
            const unsigned by = static_cast<unsigned>(15 + up) * 0x04000400u;
#pragma unroll
            for (int i = 0; i < Blocks * 2; ++i)
                scales[i / 2][i % 2] = multiplied(scales[i / 2][i % 2], by);
        }
        const unsigned ones = r == 0 ? 0x3c003c00u : 0;
        multiplyAdd<__half>(zeros, z[0], ones, z[1], ones, p0, p1);
#pragma unroll
        for (int x = 0; x < Blocks; ++x)
            scales[x][0] = multiplied(scales[x][0], p0), scales[x][1] = multiplied(scales[x][1], p1);

#pragma unroll
        for (int b = 0; b < (Codes::Narrow ? 1 : Codes::Segments); ++b) {
            unsigned word[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = i % 2 ? at1 : at0;
                const char* row = tile + (at + i / 2 * 8) * Codes::Row;
                if constexpr (Codes::Narrow)
                    word[i] = *reinterpret_cast<const unsigned short*>(row + r * 2);
                else
                    word[i] = *reinterpret_cast<const unsigned*>(row + b * 32 + r * 4);
            }
#pragma unroll
            for (int h = 0; h < (Codes::Narrow ? 1 : 2); ++h) {
                const unsigned first = __byte_perm(word[0], word[1], h ? 0x7632 : 0x5410),
                               second = __byte_perm(word[2], word[3], h ? 0x7632 : 0x5410);
#pragma unroll
                for (int j = 0; j < Codes::Planes; ++j) {
                    const unsigned mask = Codes::Mask << (Bits * j);
                    const int x = Codes::Narrow ? j / 2 : j * Codes::Segments + b, half = Codes::Narrow ? j % 2 : h;
                    multiplyAdd<__half>(sums[x][half], first & mask, first >> 8 & mask, second & mask, second >> 8 & mask, scales[x][0],
                                        scales[x][1]);
                }
            }
        }
    }
    // p: of ExactRows entries as in S, and 0 for as many that are not there.
    __device__ void addExact(const char* tile, const float (&p)[4]) {
        become(false);
        const unsigned p0 = transposed8x8(packed<T>(p[0], p[1]));
        multiplyAdd<T>(zeros, 0, r == 0 ? One : 0, 0, 0, p0, 0);
#pragma unroll
        for (int x = 0; x < Blocks; ++x)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                unsigned word[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    word[i] = *reinterpret_cast<const unsigned*>(tile + (Codes::entry(2 * c + i) * Dim + of(x, h)) * 2);
                }
                multiplyAdd<T>(sums[x][h], __byte_perm(word[0], word[1], 0x5410), __byte_perm(word[0], word[1], 0x7632), 0, 0, p0, 0);
            }
    }
    // Outputs as OutputPlace has them, for weights that are 1 at the most; the sums of the weights of heads 2c and 2c + 1 in all lanes.
    __device__ float2 store(float* to, int heads, int groups) {
        become(false);
        const float down = twoTo(-WeightTop);
#pragma unroll
        for (int x = 0; x < Blocks; ++x) {
            const int group = x * groups / Blocks;
            float z[2];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                z[i] = __shfl_sync(EveryLane, zeros[i], group * 4 + c);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    if (2 * c + i < heads)
                        *reinterpret_cast<float2*>(to + OutputPlace<Dim>::of(2 * c + i, of(x, h))) =
                            make_float2((sums[x][h][i] + z[i]) * down, (sums[x][h][2 + i] + z[i]) * down);
        }
        return make_float2(__shfl_sync(EveryLane, zeros[2], c) * down, __shfl_sync(EveryLane, zeros[3], c) * down);
    }
};

} // namespace keepsight::cuda
