// Tiles of 16 entries against up to 8 query heads, by one warp: scores S = K·Qᵀ and outputs Oᵀ += Vᵀ·P.
//
// A warp copies its tiles into a ring of its own in shared memory, in whole rows, several tiles ahead (cp.async). Chunks of 16 bytes of a
// row are permuted by the row's number, so that no two lanes of a group of eight meet in a bank, neither reading keys nor values. A lane is
// (r, c) = (lane / 4, lane % 4). In S and P it holds {entry e(r), entry e(r) + 8} × {head 2c, head 2c + 1}: s[0], s[1] of the first entry,
// s[2], s[3] of the second; e permutes 0 … 7 (for the banks, too). bf16 and fp16 run on m16n8k16 matrix instructions: the sum over
// dimensions may run in any order, so lane c takes dimensions 32b + 8c … + 7 of keys and queries; of values a lane takes dimensions 64b +
// 8r … + 7 of entries e(2c), e(2c + 1) and those 8 later, and weaves two entries into pairs. fp32 runs on the plain units (the matrix ones
// would round to tf32).
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/flatten.cuh"

namespace keepsight::cuda {

constexpr int TileEntries = 16, TileHeads = 8;

__device__ inline float power2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline unsigned transposed8x8(unsigned x) { // row lane / 4 of an 8×8 matrix of 16-bit values, two of them a lane
    unsigned y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
template <class T>
__device__ void multiplyAdd(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    if constexpr (std::is_same_v<T, __half>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <class T>
__device__ unsigned packed(float low, float high) {
    if constexpr (std::is_same_v<T, __half>) {
        const __half2 x = __floats2half2_rn(low, high);
        return *reinterpret_cast<const unsigned*>(&x);
    } else {
        const __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<const unsigned*>(&x);
    }
}
template <class T>
__device__ float2 unpacked(unsigned x) {
    if constexpr (std::is_same_v<T, __half>)
        return __half22float2(*reinterpret_cast<const __half2*>(&x));
    else
        return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&x));
}

// A tile of keys or values in shared memory.
template <class T, int Dim>
struct Tile {
    static constexpr int Chunks = Dim * static_cast<int>(sizeof(T)) / 16, Pitch = (Chunks + 7) / 8 * 8, Bytes = TileEntries * Pitch * 16;
    static constexpr int Values = 16 / static_cast<int>(sizeof(T)); // of a chunk

    __device__ static int entry(int r) { return r % 2 ? (r - 1) ^ 5 : r; } // e(r)
    // Entries first … first + 15 of a head, by a warp; those beyond `last` are read as `last`, so that every address is held. rowBytes <
    // 2³¹. Leaving: their lines are the first to leave L2.
    template <bool Leaving = false>
    __device__ static void copy(char* to, const T* head, int rowBytes, int first, int last) {
        const int lane = static_cast<int>(threadIdx.x) % 32, limit = last - first;
        const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
        const char* from = reinterpret_cast<const char*>(head) + static_cast<std::int64_t>(first) * rowBytes;
#pragma unroll
        for (int i = 0; i < TileEntries * Chunks / 32; ++i) {
            const int e = (i * 32 + lane) / Chunks, chunk = (i * 32 + lane) % Chunks;
            const unsigned place = shared + (e * Pitch + (chunk ^ e % 8)) * 16;
            const char* source = from + chunk * 16 + static_cast<std::int64_t>(min(e, limit)) * rowBytes;
            if constexpr (Leaving) {
                std::uint64_t policy;
                asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
                asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(place), "l"(source), "l"(policy) : "memory");
            } else {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(source) : "memory");
            }
        }
    }
    __device__ static uint4 chunk(const char* tile, int e, int i) {
        return *reinterpret_cast<const uint4*>(tile + (e * Pitch + (i ^ e % 8)) * 16);
    }
    __device__ static float4 floats(const char* tile, int e, int i) {
        return *reinterpret_cast<const float4*>(tile + (e * Pitch + (i ^ e % 8)) * 16);
    }
};

// The tiles of one warp, in order, across all walks of its block's share: the ring is filled without a pause where one head ends and the
// next begins. MayLeave: keys are the first to leave L2 where `leaving` says so.
template <class T, int Dim, int Ring, bool WithValues, bool MayLeave = false>
struct TileStream {
    static constexpr int Stage = (WithValues ? 2 : 1) * Tile<T, Dim>::Bytes; // keys, then values
    const T *keys, *values;                                                  // of head 0
    std::int64_t keyHead, valueHead;
    int keyRowBytes, valueRowBytes;
    char* ring;              // [Ring, Stage]
    const int *held, *first; // of flattenHeads()
    int parts, warps, next, end, walk, place = 0;
    const std::int32_t* starts = nullptr; // in place of the head strides: the row where each head begins
    bool leaving = false;

    __device__ void fetch() { // asks for the next tile, Ring − 1 ahead of the one in use
        if (next < end) {
#pragma unroll 1
            while (next >= first[walk + 1])
                ++walk;
            const int head = walk / parts, entry = (next - first[walk]) * TileEntries, last = held[head] - 1;
            char* to = ring + (place == 0 ? Ring - 1 : place - 1) * Stage;
            const std::int64_t start = starts ? starts[head] : 0;
            const auto from = [&](const T* rows, std::int64_t headStride, int rowBytes) {
                return rows + (starts ? start * (rowBytes / static_cast<int>(sizeof(T))) : head * headStride);
            };
            if (MayLeave && leaving)
                Tile<T, Dim>::template copy<true>(to, from(keys, keyHead, keyRowBytes), keyRowBytes, entry, last);
            else
                Tile<T, Dim>::copy(to, from(keys, keyHead, keyRowBytes), keyRowBytes, entry, last);
            if constexpr (WithValues) Tile<T, Dim>::copy(to + Tile<T, Dim>::Bytes, from(values, valueHead, valueRowBytes), valueRowBytes, entry, last);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        next += warps;
    }
    __device__ void begin() {
#pragma unroll 1
        for (place = 1; place < Ring; ++place)
            fetch();
        place = 0;
    }
    __device__ const char* current() {
        fetch();
        asm volatile("cp.async.wait_group %0;" ::"n"(Ring - 1) : "memory");
        __syncwarp();
        return ring + place * Stage;
    }
    __device__ void release() {
        __syncwarp(); // read before the place is filled again
        place = place == Ring - 1 ? 0 : place + 1;
    }
};

// Scores of a tile. Terms 1: queries in the keys' type; 3: fp32 queries as the sum of three rounded ones, which keeps fp32's 24 bits.
template <class T, int Dim, int Terms>
struct TileScores {
    static constexpr int Blocks = (Dim + 31) / 32, SharedFloats = 0;
    using Query = std::conditional_t<Terms == 1, T, float>;
    static constexpr int Loads = Terms == 1 ? 1 : 2; // of 16 bytes for 8 values
    unsigned queries[Terms][Blocks][4];
    uint4 coming[Loads][Blocks];
    int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;

    __device__ bool within(int block) const { return Dim % 32 == 0 || block * 32 + c * 8 < Dim; }
    // Starts to read the queries of a part: head i at q + i·stride, at a multiple of 16 bytes; heads ≥ `heads` count as 0. Long before
    // useQueries(): behind the tiles already asked for a load takes as long as all of them.
    __device__ void readQueries(const Query* q, std::int64_t stride, int heads, float*) {
#pragma unroll
        for (int b = 0; b < Blocks; ++b)
#pragma unroll
            for (int t = 0; t < Loads; ++t)
                coming[t][b] = r < heads && within(b) ? *reinterpret_cast<const uint4*>(q + r * stride + b * 32 + c * 8 + t * 4)
                                                      : make_uint4(0, 0, 0, 0);
    }
    __device__ void useQueries() {
#pragma unroll
        for (int b = 0; b < Blocks; ++b) {
            const unsigned words[8] = {coming[0][b].x,         coming[0][b].y,         coming[0][b].z,         coming[0][b].w,
                                       coming[Loads - 1][b].x, coming[Loads - 1][b].y, coming[Loads - 1][b].z, coming[Loads - 1][b].w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if constexpr (Terms == 1) {
                    queries[0][b][i] = words[i];
                } else {
                    float low = __uint_as_float(words[2 * i]), high = __uint_as_float(words[2 * i + 1]);
#pragma unroll
                    for (int t = 0; t < Terms; ++t) {
                        queries[t][b][i] = packed<T>(low, high);
                        const float2 rounded = unpacked<T>(queries[t][b][i]);
                        low -= rounded.x, high -= rounded.y;
                    }
                }
            }
        }
    }
    __device__ void dot(const char* tile, float (&s)[4]) const {
        const int e = Tile<T, Dim>::entry(r);
        float other[4] = {};
        s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
        for (int b = 0; b < Blocks; ++b) {
            const uint4 zero = make_uint4(0, 0, 0, 0);
            const uint4 x = within(b) ? Tile<T, Dim>::chunk(tile, e, 4 * b + c) : zero,
                        y = within(b) ? Tile<T, Dim>::chunk(tile, e + 8, 4 * b + c) : zero;
#pragma unroll
            for (int t = Terms - 1; t >= 0; --t) {
                multiplyAdd<T>(s, x.x, y.x, x.y, y.y, queries[t][b][0], queries[t][b][1]);
                multiplyAdd<T>(other, x.z, y.z, x.w, y.w, queries[t][b][2], queries[t][b][3]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            s[i] += other[i];
    }
};

// Of [2 entries, 8 heads] the four lanes of an entry add up theirs, each keeping two heads.
__device__ inline void addUpHeads(const float (&part)[2][TileHeads], float (&s)[4]) {
    const int c = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float half[4];
#pragma unroll
        for (int g = 0; g < 4; ++g) {
            const float give = c & 2 ? part[i][g] : part[i][g + 4];
            half[g] = (c & 2 ? part[i][g + 4] : part[i][g]) + __shfl_xor_sync(EveryLane, give, 2);
        }
#pragma unroll
        for (int g = 0; g < 2; ++g) {
            const float give = c & 1 ? half[g] : half[g + 2];
            s[2 * i + g] = (c & 1 ? half[g + 2] : half[g]) + __shfl_xor_sync(EveryLane, give, 1);
        }
    }
}

template <int Dim, int Terms>
struct TileScores<float, Dim, Terms> {
    static constexpr int Blocks = Dim / 16, SharedFloats = TileHeads * Dim; // queries of the part, shared by the block
    using Query = float;
    const float *queries, *coming;
    std::int64_t apart;
    int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4, held = 0, comingHeads = 0;

    __device__ void readQueries(const float* q, std::int64_t stride, int heads, float* shared) {
        coming = q, apart = stride, comingHeads = heads, queries = shared;
    }
    __device__ void useQueries() { // by the whole block
        float* shared = const_cast<float*>(queries);
        held = comingHeads;
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < held * Dim; i += static_cast<int>(blockDim.x))
            shared[i] = coming[i / Dim * apart + i % Dim];
        __syncthreads();
    }
    __device__ void dot(const char* tile, float (&s)[4]) const {
        const int e = Tile<float, Dim>::entry(r);
        float part[2][TileHeads] = {};
#pragma unroll 4
        for (int b = 0; b < Blocks; ++b) {
            const float4 x = Tile<float, Dim>::floats(tile, e, 4 * b + c), y = Tile<float, Dim>::floats(tile, e + 8, 4 * b + c);
#pragma unroll
            for (int g = 0; g < TileHeads; ++g) {
                if (g >= held) continue;
                const float4 q = *reinterpret_cast<const float4*>(queries + g * Dim + b * 16 + c * 4);
                part[0][g] += q.x * x.x + q.y * x.y + q.z * x.z + q.w * x.w;
                part[1][g] += q.x * y.x + q.y * y.y + q.z * y.z + q.w * y.w;
            }
        }
        addUpHeads(part, s);
    }
};

// In shared memory a warp's outputs lie at of(head, d): heads 2c and 2c + 1 together, and the pairs two words apart modulo the banks.
template <int Dim>
struct OutputPlace {
    static constexpr int Floats = TileHeads / 2 * (2 * Dim + 2);
    __device__ static int of(int head, int d) { return head / 2 * (2 * Dim + 2) + head % 2 * Dim + d; }
};

// The outputs of a warp: Σ p·v, [8 heads, Dim], spread over its lanes.
template <class T, int Dim>
struct TileOutputs {
    static constexpr int Blocks = (Dim + 63) / 64, SharedFloats = 0;
    float sums[Blocks][4][4];
    int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;

    __device__ bool within(int block) const { return Dim % 64 == 0 || block * 64 + r * 8 < Dim; }
    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < Blocks * 16; ++i)
            sums[i / 16][i / 4 % 4][i % 4] = 0;
    }
    // Outputs of heads 2c and 2c + 1 shrink by shrink0, shrink1, then p·v is added.
    __device__ void add(const char* tile, const float (&p)[4], float shrink0, float shrink1, float*) {
        const unsigned early = packed<T>(p[0], p[1]), late = packed<T>(p[2], p[3]);
        const unsigned p0 = transposed8x8(early), p1 = transposed8x8(late);
        const int e0 = Tile<T, Dim>::entry(2 * c), e1 = Tile<T, Dim>::entry(2 * c + 1);
#pragma unroll
        for (int h = 0; h < Blocks; ++h) {
            unsigned word[4][4] = {}; // [entry][two dimensions]
            if (within(h))
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint4 x = Tile<T, Dim>::chunk(tile, (i % 2 ? e1 : e0) + i / 2 * 8, 8 * h + r);
                    word[i][0] = x.x, word[i][1] = x.y, word[i][2] = x.z, word[i][3] = x.w;
                }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float(&o)[4] = sums[h][j];
                o[0] *= shrink0, o[1] *= shrink1, o[2] *= shrink0, o[3] *= shrink1;
                multiplyAdd<T>(o, __byte_perm(word[0][j], word[1][j], 0x5410), __byte_perm(word[0][j], word[1][j], 0x7632),
                               __byte_perm(word[2][j], word[3][j], 0x5410), __byte_perm(word[2][j], word[3][j], 0x7632), p0, p1);
            }
        }
    }
    __device__ void store(float* to, int heads) const {
#pragma unroll
        for (int h = 0; h < Blocks; ++h) {
            if (!within(h)) continue;
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int g = 0; g < 2; ++g)
                    if (2 * c + g < heads)
                        *reinterpret_cast<float2*>(to + OutputPlace<Dim>::of(2 * c + g, h * 64 + r * 8 + 2 * j)) =
                            make_float2(sums[h][j][g], sums[h][j][2 + g]);
        }
    }
};

template <int Dim>
struct TileOutputs<float, Dim> {
    static constexpr int Lanes = Dim >= 80 ? 32 : Dim / 4, Blocks = Dim > 128 ? 2 : 1,
                         Steps = TileEntries * Lanes / 32;             // lanes of a row; rows a lane reads
    static constexpr int SharedFloats = (TileEntries + 1) * TileHeads; // a warp's weights, then its shrink factors
    float4 sums[TileHeads][Blocks];
    int lane = static_cast<int>(threadIdx.x) % 32;

    __device__ bool within(int block) const { return (block * 32 + lane % Lanes) * 4 < Dim; }
    __device__ void clear() {
#pragma unroll
        for (int g = 0; g < TileHeads; ++g)
#pragma unroll
            for (int b = 0; b < Blocks; ++b)
                sums[g][b] = make_float4(0, 0, 0, 0);
    }
    __device__ void add(const char* tile, const float (&p)[4], float shrink0, float shrink1, float* shared) {
        const int r = lane / 4, c = lane % 4, e = Tile<float, Dim>::entry(r);
        __syncwarp();
        *reinterpret_cast<float2*>(shared + e * TileHeads + 2 * c) = make_float2(p[0], p[1]);
        *reinterpret_cast<float2*>(shared + (e + 8) * TileHeads + 2 * c) = make_float2(p[2], p[3]);
        if (r == 0) *reinterpret_cast<float2*>(shared + TileEntries * TileHeads + 2 * c) = make_float2(shrink0, shrink1);
        __syncwarp();
#pragma unroll
        for (int g = 0; g < TileHeads; ++g) {
            const float shrink = shared[TileEntries * TileHeads + g];
#pragma unroll
            for (int b = 0; b < Blocks; ++b)
                sums[g][b].x *= shrink, sums[g][b].y *= shrink, sums[g][b].z *= shrink, sums[g][b].w *= shrink;
        }
#pragma unroll 4
        for (int i = 0; i < Steps; ++i) {
            const int row = i * (32 / Lanes) + lane / Lanes;
            const float4* weights = reinterpret_cast<const float4*>(shared + row * TileHeads);
            const float4 w0 = weights[0], w1 = weights[1];
            const float w[TileHeads] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
#pragma unroll
            for (int b = 0; b < Blocks; ++b) {
                const float4 v = within(b) ? Tile<float, Dim>::floats(tile, row, b * 32 + lane % Lanes) : make_float4(0, 0, 0, 0);
#pragma unroll
                for (int g = 0; g < TileHeads; ++g)
                    sums[g][b].x += w[g] * v.x, sums[g][b].y += w[g] * v.y, sums[g][b].z += w[g] * v.z, sums[g][b].w += w[g] * v.w;
            }
        }
    }
    __device__ void store(float* to, int heads) const {
#pragma unroll
        for (int g = 0; g < TileHeads; ++g)
#pragma unroll
            for (int b = 0; b < Blocks; ++b) {
                float4 x = sums[g][b];
#pragma unroll
                for (int step = Lanes; step < 32; step *= 2) {
                    x.x += __shfl_xor_sync(EveryLane, x.x, step), x.y += __shfl_xor_sync(EveryLane, x.y, step);
                    x.z += __shfl_xor_sync(EveryLane, x.z, step), x.w += __shfl_xor_sync(EveryLane, x.w, step);
                }
                if (g < heads && lane < Lanes && within(b)) {
                    float2* at = reinterpret_cast<float2*>(to + OutputPlace<Dim>::of(g, (b * 32 + lane) * 4));
                    at[0] = make_float2(x.x, x.y), at[1] = make_float2(x.z, x.w);
                }
            }
    }
};

// A KV head seen by up to 8 of its query heads: keys and values are read once for all of them.
struct Walk {
    int head, queryHead, queryHeads;
    __device__ Walk(int group, int parts, int walk) { // query heads of a KV head; walks of one
        head = walk / parts;
        const int part = (walk - head * parts) * TileHeads;
        queryHead = head * group + part;
        queryHeads = min(TileHeads, group - part);
    }
};

} // namespace keepsight::cuda
