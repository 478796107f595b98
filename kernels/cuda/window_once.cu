// attention_sums of up to 64 queries in one pass, where clusters exist and the entries fit their shared memory: a cluster holds a KV head's entries for the window
// of one query head. Its blocks take equal shares of the tiles of 16 keys; a warp puts a tile's scores in its place once the keys have become fragments.
// The blocks tell each other every query's maximum and sum, and what a query gives to each key is added up from the scores. Each sum has one fixed order.
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch_votes.h"
#include "kernels/cuda/map_cells.cuh"
#include "kernels/cuda/tile.cuh"

#include <algorithm>
#include <cfloat>
#include <climits>

namespace keepsight::cuda {
namespace {

constexpr float Log2E = 1.4426950408889634f;
constexpr int Blocks = 7; // two of a multiprocessor: clusters of eight leave so much of the larger units of an H100 idle that some of 32 had to wait
constexpr int Warps = 8, Threads = Warps * 32, Columns = 8, Queries = Columns * 8, TileKeys = 16;
using Entries = Cluster<Blocks>;

template <int Dim> struct OnceSizes {
    static constexpr int TileBytes = std::max(TileKeys * RowPitch<Dim> * 2, TileKeys * Queries * 4), QueryBytes = Queries * RowPitch<Dim> * 2;
    static int tilesEach(std::int64_t capacity) { return static_cast<int>((capacity + TileKeys * Blocks - 1) / (TileKeys * Blocks)); }
    static std::int64_t bytes(std::int64_t capacity) { return QueryBytes + std::int64_t{tilesEach(capacity)} * (TileBytes + TileKeys * 4); }
};

__device__ inline void merge(float& top, float& sum, float otherTop, float otherSum) {
    const float high = fmaxf(top, otherTop);
    sum = sum * power2(top - high) + otherSum * power2(otherTop - high);
    top = high;
}

template <class T, int Dim>
__global__ void __launch_bounds__(Threads, 2) window_once_kernel(const AttentionArgs a, float* sums, int mostTiles) { // of a block
    using Sizes = OnceSizes<Dim>;
    waitForEarlierKernels();
    extern __shared__ uint4 memory[];
    T* const queries = reinterpret_cast<T*>(memory);
    char* const tiles = reinterpret_cast<char*>(memory) + Sizes::QueryBytes;           // keys, then scores as their lanes have them
    int* const places = reinterpret_cast<int*>(tiles + mostTiles * Sizes::TileBytes); // [tiles, 16] positions
    __shared__ float2 ofWarps[Warps][Queries], ofBlock[Queries];
    __shared__ float norms[Queries];
    __shared__ int now[Queries];
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, thread = static_cast<int>(threadIdx.x);
    const int head = static_cast<int>(blockIdx.y), kvHead = head / static_cast<int>(a.queryHeads / a.kvHeads), window = static_cast<int>(a.queries);
    const int capacity = static_cast<int>(a.capacity), held = max(0, min(a.lengths[kvHead], capacity)), all = (held + TileKeys - 1) / TileKeys;
    const int each = (all + Blocks - 1) / Blocks, firstTile = Entries::rank() * each, count = max(0, min(each, all - firstTile)), first = firstTile * TileKeys;
    const T* q = static_cast<const T*>(a.q.data) + head * a.q.head;
    const T* k = static_cast<const T*>(a.k.data) + kvHead * a.k.head;
    const std::int32_t* positions = a.positions + kvHead * a.capacity;
    loadRows<T, Dim, Threads>(queries, q, Queries, [&](int row) { return row < window ? row * a.q.row : std::int64_t{-1}; });
    constexpr int Words = Dim / 8;
#pragma unroll 1
    for (int i = thread; i < TileKeys * Words; i += Threads) { // the same word of each tile
        const int row = i / Words, word = i % Words;
        const T* from = k + (first + row) * a.k.row + word * 8;
        char* to = reinterpret_cast<char*>(place<T, Dim>(reinterpret_cast<T*>(tiles), row, word));
#pragma unroll 4
        for (int t = 0; t < count; ++t, from += TileKeys * a.k.row, to += Sizes::TileBytes) {
            const bool real = first + t * TileKeys + row < held;
            copyAhead(to, real ? from : k, real);
        }
    }
#pragma unroll 1
    for (int i = thread; i < count * TileKeys; i += Threads) places[i] = first + i < held ? positions[first + i] : INT_MAX; // seen by nobody
    if (thread < Queries) now[thread] = thread < window ? a.queryPositions[thread] : INT_MAX - 1;
    const int oldest = a.queryPositions[0];
    const float scale = a.scale * Log2E;
    waitForAllCopies();
    __syncthreads();

    // Every lane keeps its own maximum and sum of its 16 queries.
    float top[Columns][2], sum[Columns][2] = {};
#pragma unroll
    for (int n = 0; n < Columns; ++n) top[n][0] = top[n][1] = -FLT_MAX;
    const auto columnOf = [&](int n, int c) { return n * 8 + lane % 4 * 2 + c; };
#pragma unroll 1
    for (int t = warp; t < count; t += Warps) {
        char* const tile = tiles + t * Sizes::TileBytes;
        std::uint32_t keys[1][Dim / 16][4];
        loadFragments<T, Dim>(keys, reinterpret_cast<T*>(tile), 0);
        float scores[1][Columns][4] = {};
        products<T, Dim>(scores, keys, queries);
        const int* const own = places + t * TileKeys + lane / 4;
        const int here[2] = {own[0], own[8]};
        const bool hides = places[t * TileKeys + TileKeys - 1] > oldest;
        __syncwarp(); // the keys are read
#pragma unroll
        for (int n = 0; n < Columns; ++n) {
            float(&s)[4] = scores[0][n];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                s[i] *= scale;
                if (hides && here[i / 2] > now[columnOf(n, i % 2)]) s[i] = -INFINITY;
            }
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const float high = fmaxf(top[n][c], fmaxf(s[c], s[2 + c]));
                sum[n][c] = sum[n][c] * power2(top[n][c] - high) + power2(s[c] - high) + power2(s[2 + c] - high);
                top[n][c] = high;
            }
            reinterpret_cast<float4*>(tile)[n * 32 + lane] = make_float4(s[0], s[1], s[2], s[3]);
        }
    }
#pragma unroll
    for (int n = 0; n < Columns; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
            for (int step = 4; step < 32; step *= 2)
                merge(top[n][c], sum[n][c], __shfl_xor_sync(EveryLane, top[n][c], step), __shfl_xor_sync(EveryLane, sum[n][c], step));
            if (lane < 4) ofWarps[warp][columnOf(n, c)] = make_float2(top[n][c], sum[n][c]);
        }
    __syncthreads();
    const auto together = [&](int parts, const auto& partOf) { // in their order
        float high = -FLT_MAX, total = 0;
#pragma unroll
        for (int i = 0; i < parts; ++i) {
            const float2 part = partOf(i);
            merge(high, total, part.x, part.y);
        }
        return make_float2(high, total);
    };
    if (thread < Queries) ofBlock[thread] = together(Warps, [&](int i) { return ofWarps[i][thread]; });
    Entries::arrive();
    Entries::wait();
    if (thread < Queries) {
        const float2 whole = together(Blocks, [&](int i) { return *Entries::of(&ofBlock[thread], i); });
        norms[thread] = thread < window && whole.y > 0 ? whole.x + log2f(whole.y) : INFINITY; // sees nothing, or is none: weight 0
    }
    __syncthreads();
    Entries::arrive(); // what others have is read
    float norm[Columns][2];
#pragma unroll
    for (int n = 0; n < Columns; ++n) norm[n][0] = norms[columnOf(n, 0)], norm[n][1] = norms[columnOf(n, 1)];
    float* const to = sums + head * a.capacity;
#pragma unroll 1
    for (int t = warp; t < count; t += Warps) {
        const float4* const scores = reinterpret_cast<const float4*>(tiles + t * Sizes::TileBytes);
        float early = 0, late = 0; // keys lane / 4 and 8 later
#pragma unroll
        for (int n = 0; n < Columns; ++n) {
            const float4 s = scores[n * 32 + lane];
            early += power2(s.x - norm[n][0]) + power2(s.y - norm[n][1]);
            late += power2(s.z - norm[n][0]) + power2(s.w - norm[n][1]);
        }
        early = quadSum(early), late = quadSum(late);
        const int key = first + t * TileKeys + lane / 4;
        if (lane % 4 == 0 && key < held) to[key] = early;
        if (lane % 4 == 0 && key + 8 < held) to[key + 8] = late;
    }
#pragma unroll 1
    for (int key = held + Entries::rank() * Threads + thread; key < capacity; key += Blocks * Threads) to[key] = 0;
    Entries::wait();
}

template <class T, int Dim> cudaError_t launch(const AttentionArgs& a, float* sums, const CudaDevice& device, cudaStream_t stream) {
    using Sizes = OnceSizes<Dim>;
    constexpr int Own = 6400, Reserved = 1 << 10; // bytes: what a block has besides; of that, what the device keeps
    const std::int64_t bytes = Sizes::bytes(a.capacity);
    if (2 * (bytes + Own) > device.sharedPerBlock + Reserved) return cudaErrorNotSupported; // with one block a multiprocessor two passes are as fast
    const auto kernel = window_once_kernel<T, Dim>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)); error != cudaSuccess) return error;
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = overlappingClusters(Blocks, dim3(Blocks, static_cast<unsigned>(a.queryHeads)), dim3(Threads), static_cast<std::size_t>(bytes), stream, attributes);
    return cudaLaunchKernelEx(&config, kernel, a, sums, Sizes::tilesEach(a.capacity));
}

} // namespace

cudaError_t launchWindowOnce(const AttentionArgs& a, float* sums, CudaElement element, const CudaDevice& device, cudaStream_t stream) {
    if (!device.clusters || a.queries > Queries || a.queryHeads > 65535) return cudaErrorNotSupported;
    return forHeadSize(a.dim, [&](auto dim) {
        constexpr int Dim = decltype(dim)::value;
        return element == CudaElement::bf16 ? launch<__nv_bfloat16, Dim>(a, sums, device, stream) : launch<__half, Dim>(a, sums, device, stream);
    });
}

} // namespace keepsight::cuda
