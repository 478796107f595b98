// Attention of one new query over chosen entries, read where they lie: decode_attention.cu's softmax over a set that is renumbered from 0.
//
// All heads attend to the same n entries, and n is known on the host: a block gets a piece of one walk, the blocks of a walk equal ones. A
// warp copies the rows of its tiles from wherever they are; keys are turned by their rank on the way from shared memory to the matrix units
// and rounded to the cache's type, as ops::rope does. A rank's angles are the same in every head, but the tiles of a warp are few: it works
// them out while their rows are on the way.
#include "kernels/cuda/decode_walks.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int Ring = 2;                      // tiles a warp holds
constexpr std::int64_t MostChosen = 1 << 22; // what cosineSine() can take
constexpr int MostShared = 226 << 10;        // bytes, of all devices
template <class T, int Dim>
constexpr int WarpBytes = Ring * 2 * Tile<T, Dim>::Bytes; // keys and values
template <class T, int Dim>
constexpr int Warps =
    MostShared / WarpBytes<T, Dim> < 12 ? MostShared / WarpBytes<T, Dim> : 12; // of a block, fewer where shared memory is short
template <class T, int Dim>
using SparseWalks = DecodeWalks<T, Dim, Warps<T, Dim>, 1>;

// Of fp32 angles of 0 … 2²²: reduced by multiples of π/2, then polynomials on [−π/4, π/4]; the last bit may be another than cosf's.
__device__ __forceinline__ float2 cosineSine(float angle) {
    const float shifted = fmaf(angle, 0.636619772f, 12582912.0f), turns = shifted - 12582912.0f; // 1.5 · 2²³: the nearest integer
    const unsigned quadrant = __float_as_uint(shifted);
    float r = fmaf(turns, -1.57079637050628662109375f, angle);
    r = fmaf(turns, 4.37113900018624283e-8f, r);
    const float r2 = r * r;
    const float s = fmaf(r * r2, fmaf(fmaf(-1.9515295891e-4f, r2, 8.3321608736e-3f), r2, -1.6666654611e-1f), r);
    const float c =
        fmaf(fmaf(fmaf(fmaf(2.443315711809948e-5f, r2, -1.388731625493765e-3f), r2, 4.166664568298827e-2f), r2, -0.5f), r2, 1.0f);
    const float cosine = quadrant & 1 ? s : c, sine = quadrant & 1 ? c : s;
    return make_float2(__uint_as_float(__float_as_uint(cosine) ^ ((quadrant + 1) << 30 & 0x80000000u)),
                       __uint_as_float(__float_as_uint(sine) ^ (quadrant << 30 & 0x80000000u)));
}

// The tiles of one warp, in order: rows chosen[16·tile] … of one head. A tile's entries are looked up one tile before its rows are asked
// for.
template <class T, int Dim>
struct ChosenStream {
    using Entries = Tile<T, Dim>;
    static constexpr int Stage = 2 * Entries::Bytes; // keys, then values
    const T *keys, *values;                          // of the head
    std::int64_t keyRow, valueRow;
    const std::int32_t* chosen;
    int count;
    char* ring; // [Ring, Stage]
    int warps, next, end, place = 0, entry = 0;

    __device__ void lookUp() {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        // Beyond the last: the last, so that every address is held.
        if (next < end) entry = chosen[min(next * TileEntries + lane % TileEntries, count - 1)];
    }
    __device__ void fetch() { // asks for the next tile, Ring − 1 ahead of the one in use
        if (next < end) {
            const int lane = static_cast<int>(threadIdx.x) % 32;
            const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(ring + (place == 0 ? Ring - 1 : place - 1) * Stage));
#pragma unroll
            for (int i = 0; i < TileEntries * Entries::Chunks / 32; ++i) {
                const int e = (i * 32 + lane) / Entries::Chunks, chunk = (i * 32 + lane) % Entries::Chunks;
                const std::int64_t row = __shfl_sync(EveryLane, entry, e);
                const unsigned at = to + (e * Entries::Pitch + (chunk ^ e % 8)) * 16;
                copy(at, keys + row * keyRow + chunk * Entries::Values);
                copy(at + Entries::Bytes, values + row * valueRow + chunk * Entries::Values);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        next += warps;
        lookUp();
    }
    __device__ static void copy(unsigned to, const T* from) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    }
    __device__ void begin() { // after lookUp()
#pragma unroll 1
        for (place = 1; place < Ring; ++place)
            fetch();
        place = 0;
    }
    __device__ const char* current() const { // after fetch()
        asm volatile("cp.async.wait_group %0;" ::"n"(Ring - 1) : "memory");
        __syncwarp();
        return ring + place * Stage;
    }
    __device__ void release() {
        __syncwarp(); // read before the place is filled again
        place = place == Ring - 1 ? 0 : place + 1;
    }
};

// How far a lane turns what it takes of a tile's keys: of both of its entries every fourth chunk of a row's first half, and with it the
// chunk half a row later, which holds the other ones of its pairs.
template <class T, int Dim>
struct Turns {
    static constexpr int Values = Tile<T, Dim>::Values, Half = Tile<T, Dim>::Chunks / 2, Blocks = (Half + 3) / 4;
    static constexpr bool Ahead = Blocks * Values <= 16; // more do not fit into the registers
    float2 held[Ahead ? Blocks : 1][2][Values];
    const float* frequencies; // [Dim / 2]
    float rank;               // of the first entry
    int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;

    __device__ bool within(int block) const { return Half % 4 == 0 || block * 4 + c < Half; }
    __device__ void find(int block) {
        float2(&to)[2][Values] = held[Ahead ? block : 0];
        const float4* from = reinterpret_cast<const float4*>(frequencies + (block * 4 + c) * Values);
#pragma unroll
        for (int i = 0; i < Values; i += 4) {
            const float4 f = within(block) ? from[i / 4] : make_float4(0, 0, 0, 0);
            const float each[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
            for (int j = 0; j < 4; ++j)
                to[0][i + j] = cosineSine(rank * each[j]), to[1][i + j] = cosineSine((rank + 8) * each[j]);
        }
    }
    __device__ void aim(int first) { // at the tile with this first rank
        rank = static_cast<float>(first + Tile<T, Dim>::entry(r));
        if constexpr (Ahead)
#pragma unroll
            for (int b = 0; b < Blocks; ++b)
                find(b);
    }
    __device__ const float2 (&of(int block, int entry))[Values] {
        if constexpr (!Ahead)
            if (entry == 0) find(block);
        return held[Ahead ? block : 0][entry];
    }
};

__device__ __forceinline__ float2 turned(float a, float b, float2 by) { return make_float2(a * by.x - b * by.y, b * by.x + a * by.y); }

// Scores of a tile: S = turn(K)·Qᵀ. Queries are turned already: shared by the block, [8, Dim] in the keys' type, rows of no head 0.
template <class T, int Dim>
struct TurnedScores : Turns<T, Dim> {
    using Base = Turns<T, Dim>;
    using Base::Blocks, Base::Half, Base::c, Base::r;
    unsigned queries[2][Blocks][4]; // of both halves

    __device__ void useQueries(const T* shared, int) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int b = 0; b < Blocks; ++b) {
                const uint4 x =
                    this->within(b) ? reinterpret_cast<const uint4*>(shared + r * Dim)[h * Half + b * 4 + c] : make_uint4(0, 0, 0, 0);
                queries[h][b][0] = x.x, queries[h][b][1] = x.y, queries[h][b][2] = x.z, queries[h][b][3] = x.w;
            }
    }
    __device__ void dot(const char* tile, float (&s)[4]) {
        const int e = Tile<T, Dim>::entry(r);
        float other[4] = {};
        s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
        for (int b = 0; b < Blocks; ++b) {
            unsigned keys[2][2][4]; // [half][entry]
#pragma unroll
            for (int entry = 0; entry < 2; ++entry) {
                const float2(&by)[8] = this->of(b, entry);
                const uint4 zero = make_uint4(0, 0, 0, 0);
                const uint4 low = this->within(b) ? Tile<T, Dim>::chunk(tile, e + 8 * entry, 4 * b + c) : zero,
                            high = this->within(b) ? Tile<T, Dim>::chunk(tile, e + 8 * entry, 4 * b + c + Half) : zero;
                const unsigned from[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 x = unpacked<T>(from[0][i]), y = unpacked<T>(from[1][i]), one = turned(x.x, y.x, by[2 * i]),
                                 two = turned(x.y, y.y, by[2 * i + 1]);
                    keys[0][entry][i] = packed<T>(one.x, two.x), keys[1][entry][i] = packed<T>(one.y, two.y);
                }
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                multiplyAdd<T>(s, keys[h][0][0], keys[h][1][0], keys[h][0][1], keys[h][1][1], queries[h][b][0], queries[h][b][1]);
                multiplyAdd<T>(other, keys[h][0][2], keys[h][1][2], keys[h][0][3], keys[h][1][3], queries[h][b][2], queries[h][b][3]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            s[i] += other[i];
    }
};

template <int Dim>
struct TurnedScores<float, Dim> : Turns<float, Dim> {
    using Base = Turns<float, Dim>;
    using Base::Blocks, Base::Half, Base::c, Base::r;
    const float* queries;
    int heads;

    __device__ void useQueries(const float* shared, int count) { queries = shared, heads = count; }
    __device__ void dot(const char* tile, float (&s)[4]) {
        const int e = Tile<float, Dim>::entry(r);
        float part[2][TileHeads] = {};
#pragma unroll
        for (int b = 0; b < Blocks; ++b) {
            if (!this->within(b)) continue;
#pragma unroll
            for (int entry = 0; entry < 2; ++entry) {
                const float2(&by)[4] = this->of(b, entry);
                const float4 x = Tile<float, Dim>::floats(tile, e + 8 * entry, 4 * b + c),
                             y = Tile<float, Dim>::floats(tile, e + 8 * entry, 4 * b + c + Half);
                const float2 k[4] = {turned(x.x, y.x, by[0]), turned(x.y, y.y, by[1]), turned(x.z, y.z, by[2]), turned(x.w, y.w, by[3])};
#pragma unroll
                for (int g = 0; g < TileHeads; ++g) {
                    if (g >= heads) continue;
                    const float4* of = reinterpret_cast<const float4*>(queries + g * Dim) + 4 * b + c;
                    const float4 low = of[0], high = of[Half];
                    part[entry][g] += low.x * k[0].x + low.y * k[1].x + low.z * k[2].x + low.w * k[3].x + high.x * k[0].y +
                                      high.y * k[1].y + high.z * k[2].y + high.w * k[3].y;
                }
            }
        }
        addUpHeads(part, s);
    }
};

template <class T, int Dim>
struct SparseShared { // sizes of the parts of a block's shared memory
    static constexpr int Weights = TileOutputs<T, Dim>::SharedFloats;
    static int firstPart(int warps) {
        return std::max(warps * WarpBytes<T, Dim>, SparseWalks<T, Dim>::outputBytes(warps));
    } // tiles, and then outputs
    static std::size_t bytes(int warps, int walks) {
        return static_cast<std::size_t>(firstPart(warps) + TileHeads * Dim * static_cast<int>(sizeof(T)) +
                                        (warps * (Weights + TileHeads * 2) + Dim / 2 + 2 * walks + 1) * 4);
    }
};

// The block's queries, turned by `rank`, and the frequencies, to shared memory. By the whole block, two pairs a thread.
template <class T, int Dim>
__device__ void turnQueries(const SparseAttentionArgs& args, const Walk& w, int rank, T* queries, float* frequencies) {
    constexpr int Half = Dim / 2;
    const auto at = static_cast<float>(rank);
    for (int i = static_cast<int>(threadIdx.x); i < TileHeads * Half / 2; i += static_cast<int>(blockDim.x)) {
        const int g = i / (Half / 2), pair = i % (Half / 2) * 2;
        const T* from = static_cast<const T*>(args.attention.q.data) + (w.queryHead + g) * args.attention.q.head + pair;
        const float f0 = args.inverseFrequencies[pair], f1 = args.inverseFrequencies[pair + 1];
        float x[4] = {};
        if (g < w.queryHeads) x[0] = wide(from[0]), x[1] = wide(from[1]), x[2] = wide(from[Half]), x[3] = wide(from[Half + 1]);
        const float2 one = turned(x[0], x[2], cosineSine(at * f0)), two = turned(x[1], x[3], cosineSine(at * f1));
        T* to = queries + g * Dim + pair;
        to[0] = narrow<T>(one.x), to[1] = narrow<T>(two.x), to[Half] = narrow<T>(one.y), to[Half + 1] = narrow<T>(two.y);
        if (g == 0) frequencies[pair] = f0, frequencies[pair + 1] = f1;
    }
}

// Grid (splits, walks).
template <class T, int Dim>
__global__ void __launch_bounds__(Warps<T, Dim> * 32, 1)
    sparse_attention_kernel(const __grid_constant__ SparseAttentionArgs args, const __grid_constant__ DecodeScratch s,
                            const int firstPart) {
    letLaterKernelsStart(); // they wait for the end before they read the output
    extern __shared__ __align__(128) char shared[];
    const AttentionArgs& a = args.attention;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int group = static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads), parts = (group + TileHeads - 1) / TileHeads;
    const int walk = static_cast<int>(blockIdx.y), splits = static_cast<int>(gridDim.x), split = static_cast<int>(blockIdx.x);
    T* queries = reinterpret_cast<T*>(shared + firstPart);                                     // [8, Dim]
    float* frequencies = reinterpret_cast<float*>(queries + TileHeads * Dim);                  // [Dim / 2]
    float* weights = frequencies + Dim / 2;                                                    // [warps, …]
    float2* tops = reinterpret_cast<float2*>(weights + warps * SparseShared<T, Dim>::Weights); // [warps, 8] (max, sum)
    int2* takers = reinterpret_cast<int2*>(tops + warps * TileHeads); // [walks], of which only the block's own is looked at
    int* last = reinterpret_cast<int*>(takers + gridDim.y);

    const Walk w(group, parts, walk);
    const int count = static_cast<int>(a.capacity), tiles = (count + TileEntries - 1) / TileEntries;
    const int begin = shareBegin(split, tiles, splits), end = shareBegin(split + 1, tiles, splits);
    ChosenStream<T, Dim> stream{static_cast<const T*>(a.k.data) + w.head * a.k.head,
                                static_cast<const T*>(a.v.data) + w.head * a.v.head,
                                a.k.row,
                                a.v.row,
                                args.chosen,
                                count,
                                shared + warp * WarpBytes<T, Dim>,
                                warps,
                                begin + warp,
                                end};
    stream.lookUp(); // what does not wait for anything is read first
    const int now = a.queryPositions[0], newest = args.chosen[count - 1];
    turnQueries<T, Dim>(args, w, count - 1, queries, frequencies);
    stream.begin();
    const std::int32_t* positions = args.positions + w.head * args.positionsHead;
    const bool allSeen = positions[newest] <= now;
    const auto visibleNow = [&] {
        return allSeen ? count : visibleEntries([&](int rank) { return positions[args.chosen[rank]]; }, count, now);
    };
    if (threadIdx.x == 0) takers[walk] = make_int2(walk * splits, splits);
    __syncthreads();

    TurnedScores<T, Dim> scores;
    scores.frequencies = frequencies;
    scores.useQueries(queries, w.queryHeads);
    TileOutputs<T, Dim> outputs;
    outputs.clear();
    RunningSoftmax softmax;
#pragma unroll 1
    for (int tile = begin + warp; tile < end; tile += warps) {
        stream.fetch();
        scores.aim(tile * TileEntries);
        const char* keys = stream.current();
        float p[4], shrink0, shrink1;
        scores.dot(keys, p);
        hideAndKeep(p, a.scale * Log2E, tile * TileEntries, visibleNow(), a, s, w);
        softmax.add(p, shrink0, shrink1);
        outputs.add(keys + Tile<T, Dim>::Bytes, p, shrink0, shrink1, weights + warp * SparseShared<T, Dim>::Weights);
        stream.release();
    }
    if (s.visible && split == 0 && warp == 0)
        if (const int visible = visibleNow(); threadIdx.x == 0) s.visible[w.head] = visible;
    __syncthreads(); // where the tiles were, the outputs go
    const SparseWalks<T, Dim> share{a, s, group, parts, warps, walk * splits + split, reinterpret_cast<float*>(shared), tops, last, takers};
    outputs.store(share.outputs + warp * share.Outputs, w.queryHeads);
    softmax.store(tops + warp * TileHeads);
    const int done[1] = {walk};
    share.finish(done, 1);
}

template <class T, int Dim>
cudaError_t launch(const SparseAttentionArgs& args, const DecodeScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    using Sizes = SparseShared<T, Dim>;
    const AttentionArgs& a = args.attention;
    const int walks = walksOf(a.queryHeads, a.kvHeads), tiles = static_cast<int>((a.capacity + TileEntries - 1) / TileEntries);
    const auto splitsOf = [&](int warps) { return std::clamp(decodeBlocks(device) / walks, 1, (tiles + warps - 1) / warps); };
    int warps = Warps<T, Dim>;
#pragma unroll 1
    while (warps > 1 && Sizes::bytes(warps, walks) > static_cast<std::size_t>(device.sharedPerBlock))
        --warps;
    const int splits = splitsOf(warps);
    const std::size_t bytes = Sizes::bytes(warps, walks);
    const auto kernel = sparse_attention_kernel<T, Dim>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess)
        return error;
    kernel<<<dim3(static_cast<unsigned>(splits), static_cast<unsigned>(walks)), static_cast<unsigned>(warps * 32), bytes, stream>>>(
        args, scratch, Sizes::firstPart(warps));
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || !scratch.scores) return error;
    return launchDecodeWeights(a, scratch, stream);
}

} // namespace

bool takesSparseAttention(const SparseAttentionArgs& args, CudaElement element) {
    const AttentionArgs& a = args.attention;
    const int size = element == CudaElement::f32 ? 4 : 2;
    const auto inTiles = [&](const Rows& x) {
        return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.head * size % 16 == 0 && x.row * size % 16 == 0;
    };
    return hasHeadSize(a.dim) && a.queries == 1 && a.capacity > 0 && a.capacity < MostChosen && inTiles(a.k) && inTiles(a.v);
}

cudaError_t launchSparseAttention(const SparseAttentionArgs& args, CudaElement element, const DecodeScratch& scratch,
                                  const CudaDevice& device, cudaStream_t stream) {
    if (!takesSparseAttention(args, element)) return cudaErrorNotSupported;
    return forHeadSize(args.attention.dim, [&](auto dim) {
        return forElement(element, [&](auto zero) { return launch<decltype(zero), decltype(dim)::value>(args, scratch, device, stream); });
    });
}

} // namespace keepsight::cuda
