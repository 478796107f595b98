// What a window of queries gives to each entry while decoding: Σ over the window of attention's weights, entries in ragged heads and seen by their
// position. [queryHeads, capacity], 0 where nothing is held.
//
// Two passes over the products of keys with all queries of a KV head's query heads, 16-bit numbers on the matrix units; weights are never stored.
// First, queries are the rows: a block takes 128 of them and a slice of the head's entries, and leaves each row's maximum and sum there. Second, keys
// are the rows: a block holds 128 of them in registers and walks the windows of some query heads, each row's log-sum-exp put together from the slices
// on the way. A key's sum stays with one thread and its three neighbours: one fixed order, so that runs repeat bit for bit.
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch_votes.h"
#include "kernels/cuda/map_cells.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/tile.cuh"

#include <algorithm>
#include <cfloat>
#include <climits>

namespace keepsight::cuda {
namespace {

constexpr float Log2E = 1.4426950408889634f;
constexpr int Threads = 128, Warps = Threads / 32, Columns = 8, Tile64 = Columns * 8; // 64 keys or queries come at a time

template <int Dim> struct WindowSizes {
    static constexpr int Rows = Dim > 128 ? 1 : 2, Held = Warps * Rows * 16; // tiles of 16 rows of a warp; rows of a block
    static constexpr int Pitch = RowPitch<Dim>, Bytes = (Held + 2 * Tile64) * Pitch * 2;
    static constexpr int Blocks = Dim > 128 ? 2 : 3; // of a multiprocessor
};

__device__ inline int heldBy(const AttentionArgs& a, int head) { return max(0, min(a.lengths[head], static_cast<int>(a.capacity))); }
__device__ inline int sliceOf(int held, int slices) { return (held + slices * Tile64 - 1) / (slices * Tile64) * Tile64; } // entries, whole tiles

template <class T, int Dim>
__global__ void __launch_bounds__(Threads, WindowSizes<Dim>::Blocks) window_norms_kernel(const AttentionArgs a, float2* parts) {
    waitForEarlierKernels();
    letLaterKernelsStart(); // what they read before they wait is older than this
    using Sizes = WindowSizes<Dim>;
    constexpr int Rows = Sizes::Rows, Depth = Dim / 16;
    extern __shared__ uint4 memory[];
    T* const queryTile = reinterpret_cast<T*>(memory);            // [Held, Dim]
    T* const keyTiles = queryTile + Sizes::Held * Sizes::Pitch; // two of [64, Dim]
    __shared__ int places[2][Tile64];
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int head = static_cast<int>(blockIdx.z), window = static_cast<int>(a.queries), group = static_cast<int>(a.queryHeads / a.kvHeads);
    const int rows = group * window, rowBegin = static_cast<int>(blockIdx.y) * Sizes::Held;
    const int held = heldBy(a, head), slice = sliceOf(held, static_cast<int>(gridDim.x)), first = static_cast<int>(blockIdx.x) * slice;
    const int end = min(held, first + slice);
    if (first >= end) return;
    const T* q = static_cast<const T*>(a.q.data) + static_cast<std::int64_t>(head) * group * a.q.head;
    const T* k = static_cast<const T*>(a.k.data) + head * a.k.head;
    const std::int32_t* positions = a.positions + head * a.capacity;
    const auto fetch = [&](int buffer, int begin) {
        if (threadIdx.x < Tile64)
            places[buffer][threadIdx.x] = begin + static_cast<int>(threadIdx.x) < end ? positions[begin + threadIdx.x] : INT_MAX; // seen by nobody
        loadRows<T, Dim, Threads>(keyTiles + buffer * Tile64 * Sizes::Pitch, k, Tile64,
                                  [&](int row) { return begin + row < end ? (begin + row) * a.k.row : std::int64_t{-1}; });
    };
    loadRows<T, Dim, Threads>(queryTile, q, Sizes::Held, [&](int row) {
        const unsigned r = static_cast<unsigned>(rowBegin + row), g = r / static_cast<unsigned>(window);
        return rowBegin + row < rows ? g * a.q.head + (r - g * static_cast<unsigned>(window)) * a.q.row : std::int64_t{-1};
    });
    fetch(0, first);
    const auto rowOf = [&](int m, int half) { return rowBegin + (warp * Rows + m) * 16 + half * 8 + lane / 4; };
    int now[Rows][2];
    float top[Rows][2], sum[Rows][2] = {};
#pragma unroll
    for (int m = 0; m < Rows; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            now[m][half] = a.queryPositions[static_cast<unsigned>(rowOf(m, half)) % static_cast<unsigned>(window)];
            top[m][half] = -FLT_MAX;
        }
    const int oldest = a.queryPositions[0];
    const float scale = a.scale * Log2E;
    std::uint32_t queries[Rows][Depth][4];
    int buffer = 0;
#pragma unroll 1
    for (int begin = first; begin < end; begin += Tile64, buffer ^= 1) {
        if (begin + Tile64 < end) {
            fetch(buffer ^ 1, begin + Tile64);
            waitForCopies<1>();
        } else {
            waitForCopies<0>();
        }
        __syncthreads();
        if (begin == first) loadFragments<T, Dim>(queries, queryTile, warp * Rows * 16);
        float scores[Rows][Columns][4] = {};
        products<T, Dim>(scores, queries, keyTiles + buffer * Tile64 * Sizes::Pitch);
        const bool hides = places[buffer][Tile64 - 1] > oldest;
#pragma unroll
        for (int m = 0; m < Rows; ++m) {
            float high[2] = {top[m][0], top[m][1]};
#pragma unroll
            for (int n = 0; n < Columns; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float& s = scores[m][n][i];
                    s *= scale;
                    if (hides && places[buffer][n * 8 + lane % 4 * 2 + i % 2] > now[m][i / 2]) s = -INFINITY;
                    high[i / 2] = fmaxf(high[i / 2], s);
                }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                high[half] = fmaxf(high[half], __shfl_xor_sync(EveryLane, high[half], 1));
                high[half] = fmaxf(high[half], __shfl_xor_sync(EveryLane, high[half], 2));
                sum[m][half] *= power2(top[m][half] - high[half]);
                top[m][half] = high[half];
            }
#pragma unroll
            for (int n = 0; n < Columns; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[m][i / 2] += power2(scores[m][n][i] - top[m][i / 2]);
        }
        __syncthreads(); // before the buffer is written again
    }
    float2* to = parts + (static_cast<std::int64_t>(head) * gridDim.x + blockIdx.x) * rows;
#pragma unroll
    for (int m = 0; m < Rows; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float all = quadSum(sum[m][half]);
            if (lane % 4 == 0 && rowOf(m, half) < rows) to[rowOf(m, half)] = make_float2(top[m][half], all);
        }
}

// The log-sum-exp, base 2, of a row by two neighbouring threads, from its slices, `apart` from each other; of a row that sees nothing +∞: weight 0.
__device__ inline float normOf(const float2* parts, int count, std::int64_t apart) {
    constexpr int Together = 8;
    const int odd = static_cast<int>(threadIdx.x) % 2;
    float top = -FLT_MAX, sum = 0;
#pragma unroll 1
    for (int i = odd; i < count; i += 2 * Together) {
        float2 part[Together];
        float high = top;
#pragma unroll
        for (int j = 0; j < Together; ++j) part[j] = i + 2 * j < count ? __ldcg(parts + (i + 2 * j) * apart) : make_float2(-FLT_MAX, 0);
#pragma unroll
        for (int j = 0; j < Together; ++j) high = fmaxf(high, part[j].x);
        sum *= power2(top - high);
#pragma unroll
        for (int j = 0; j < Together; ++j) sum += part[j].y * power2(part[j].x - high);
        top = high;
    }
    const float other = __shfl_xor_sync(EveryLane, top, 1), high = fmaxf(top, other);
    sum *= power2(top - high);
    sum += __shfl_xor_sync(EveryLane, sum, 1);
    return sum > 0 ? high + log2f(sum) : INFINITY;
}

// headsEach: query heads of a block.
template <class T, int Dim>
__global__ void __launch_bounds__(Threads, WindowSizes<Dim>::Blocks) window_sums_kernel(const AttentionArgs a, const float2* parts, float* sums, int slices, int headsEach) {
    using Sizes = WindowSizes<Dim>;
    constexpr int Rows = Sizes::Rows, Depth = Dim / 16;
    extern __shared__ uint4 memory[];
    T* const keyTile = reinterpret_cast<T*>(memory);              // [Held, Dim]
    T* const queryTiles = keyTile + Sizes::Held * Sizes::Pitch; // two of [64, Dim]
    __shared__ float norms[2][Tile64];
    __shared__ int now[2][Tile64];
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int head = static_cast<int>(blockIdx.z), window = static_cast<int>(a.queries), group = static_cast<int>(a.queryHeads / a.kvHeads);
    const int held = heldBy(a, head), capacity = static_cast<int>(a.capacity), keyBegin = static_cast<int>(blockIdx.x) * Sizes::Held;
    const int firstHead = static_cast<int>(blockIdx.y) * headsEach, heads = min(headsEach, group - firstHead), tiles = (window + Tile64 - 1) / Tile64;
    const std::int64_t queryHead = static_cast<std::int64_t>(head) * group + firstHead;
    const std::int32_t* positions = a.positions + head * a.capacity;
    if (keyBegin >= held) {
        waitForEarlierKernels();
        for (int g = 0; g < heads; ++g)
            if (const int key = keyBegin + static_cast<int>(threadIdx.x); key < min(capacity, keyBegin + Sizes::Held)) sums[(queryHead + g) * a.capacity + key] = 0;
        return;
    }
    const T* q = static_cast<const T*>(a.q.data) + queryHead * a.q.head;
    const T* k = static_cast<const T*>(a.k.data) + head * a.k.head;
    const int slice = sliceOf(held, slices), count = (held + slice - 1) / slice;
    // Tile t of the block: queries of one head.
    const auto copyQueries = [&](int buffer, int t) {
        const int g = t / tiles, begin = t % tiles * Tile64;
        loadRows<T, Dim, Threads>(queryTiles + buffer * Tile64 * Sizes::Pitch, q + g * a.q.head, Tile64,
                                  [&](int row) { return begin + row < window ? (begin + row) * a.q.row : std::int64_t{-1}; });
    };
    const auto findNorms = [&](int buffer, int t) { // two threads a row
        const int g = t / tiles, row = static_cast<int>(threadIdx.x) / 2, w = t % tiles * Tile64 + row;
        const float norm = normOf(parts + (static_cast<std::int64_t>(head) * slices * group + firstHead + g) * window + w, w < window ? count : 0,
                                  static_cast<std::int64_t>(group) * window);
        if (threadIdx.x % 2 == 0) norms[buffer][row] = norm, now[buffer][row] = w < window ? a.queryPositions[w] : 0;
    };
    loadRows<T, Dim, Threads>(keyTile, k, Sizes::Held, [&](int row) { return keyBegin + row < held ? (keyBegin + row) * a.k.row : std::int64_t{-1}; });
    copyQueries(0, 0);
    const auto keyOf = [&](int m, int half) { return keyBegin + (warp * Rows + m) * 16 + half * 8 + lane / 4; };
    int places[Rows][2];
    float total[Rows][2] = {};
#pragma unroll
    for (int m = 0; m < Rows; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) places[m][half] = keyOf(m, half) < held ? positions[keyOf(m, half)] : 0;
    const bool hides = positions[min(held, keyBegin + Sizes::Held) - 1] > a.queryPositions[0];
    const float scale = a.scale * Log2E;
    waitForEarlierKernels(); // what is read from here on is the first pass's
    findNorms(0, 0);
    std::uint32_t keys[Rows][Depth][4];
    int buffer = 0;
#pragma unroll 1
    for (int t = 0; t < heads * tiles; ++t, buffer ^= 1) {
        if (t + 1 < heads * tiles) {
            copyQueries(buffer ^ 1, t + 1);
            findNorms(buffer ^ 1, t + 1);
            waitForCopies<1>();
        } else {
            waitForCopies<0>();
        }
        __syncthreads();
        if (t == 0) loadFragments<T, Dim>(keys, keyTile, warp * Rows * 16);
        float scores[Rows][Columns][4] = {}, part[Rows][2] = {}; // part: of the tile, as long sums in two stages lose less
        products<T, Dim>(scores, keys, queryTiles + buffer * Tile64 * Sizes::Pitch);
#pragma unroll
        for (int n = 0; n < Columns; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int column = n * 8 + lane % 4 * 2 + c;
                const float norm = norms[buffer][column];
#pragma unroll
                for (int m = 0; m < Rows; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float weight = power2(fmaf(scores[m][n][half * 2 + c], scale, -norm));
                        part[m][half] += hides && places[m][half] > now[buffer][column] ? 0 : weight;
                    }
            }
        const bool last = (t + 1) % tiles == 0; // of its head
#pragma unroll
        for (int m = 0; m < Rows; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                total[m][half] += part[m][half];
                if (!last) continue;
                const float sum = quadSum(total[m][half]);
                const int key = keyOf(m, half);
                if (lane % 4 == 0 && key < capacity) sums[(queryHead + t / tiles) * a.capacity + key] = key < held ? sum : 0;
                total[m][half] = 0;
            }
        __syncthreads(); // before the buffer is written again
    }
}

int blocksOf(std::int64_t rows, int each) { return static_cast<int>((rows + each - 1) / each); }

template <int Dim> int slicesOf(const AttentionArgs& a, const CudaDevice& device) {
    using Sizes = WindowSizes<Dim>;
    const std::int64_t others = static_cast<std::int64_t>(blocksOf(a.queryHeads / a.kvHeads * a.queries, Sizes::Held)) * a.kvHeads;
    return static_cast<int>(std::clamp<std::int64_t>(device.multiprocessors * Sizes::Blocks / others, 1, blocksOf(a.capacity, 2 * Tile64)));
}

template <class T, int Dim> cudaError_t launch(const AttentionArgs& a, float* sums, float2* parts, const CudaDevice& device, cudaStream_t stream) {
    using Sizes = WindowSizes<Dim>;
    if (Sizes::Bytes > device.sharedPerBlock) return cudaErrorNotSupported;
    const auto norms = window_norms_kernel<T, Dim>;
    const auto adds = window_sums_kernel<T, Dim>;
    static const cudaError_t allowed = std::max(cudaFuncSetAttribute(norms, cudaFuncAttributeMaxDynamicSharedMemorySize, Sizes::Bytes),
                                                cudaFuncSetAttribute(adds, cudaFuncAttributeMaxDynamicSharedMemorySize, Sizes::Bytes));
    if (allowed != cudaSuccess) return allowed;
    const int group = static_cast<int>(a.queryHeads / a.kvHeads), slices = slicesOf<Dim>(a, device), keyBlocks = blocksOf(a.capacity, Sizes::Held);
    const auto heads = static_cast<unsigned>(a.kvHeads);
    cudaLaunchAttribute early, earlier;
    const cudaLaunchConfig_t first = overlapping(dim3(static_cast<unsigned>(slices), static_cast<unsigned>(blocksOf(group * a.queries, Sizes::Held)), heads),
                                                 dim3(Threads), Sizes::Bytes, stream, earlier);
    if (const cudaError_t error = cudaLaunchKernelEx(&first, norms, a, parts); error != cudaSuccess) return error;
    const int headParts = static_cast<int>(std::clamp<std::int64_t>(device.multiprocessors * Sizes::Blocks / (keyBlocks * a.kvHeads), 1, group));
    const int each = (group + headParts - 1) / headParts;
    const cudaLaunchConfig_t second =
        overlapping(dim3(static_cast<unsigned>(keyBlocks), static_cast<unsigned>((group + each - 1) / each), heads), dim3(Threads), Sizes::Bytes, stream, early);
    return cudaLaunchKernelEx(&second, adds, a, static_cast<const float2*>(parts), sums, slices, each);
}

} // namespace

bool takesWindowSums(const AttentionArgs& a, CudaElement element) {
    return element != CudaElement::f32 && hasHeadSize(a.dim) && a.queries > 0 && a.capacity > 0 && a.kvHeads > 0 && a.queryHeads / a.kvHeads * a.queries < (1 << 21);
}

std::int64_t windowParts(const AttentionArgs& a, const CudaDevice& device) {
    std::int64_t slices = 0;
    forHeadSize(a.dim, [&](auto dim) { return slices = slicesOf<decltype(dim)::value>(a, device), cudaSuccess; });
    return slices * a.queryHeads * a.queries;
}

cudaError_t launchWindowSums(const AttentionArgs& a, float* sums, float2* parts, CudaElement element, const CudaDevice& device, cudaStream_t stream) {
    if (const cudaError_t done = launchWindowOnce(a, sums, element, device, stream); done != cudaErrorNotSupported) return done;
    return forHeadSize(a.dim, [&](auto dim) {
        constexpr int Dim = decltype(dim)::value;
        return element == CudaElement::bf16 ? launch<__nv_bfloat16, Dim>(a, sums, parts, device, stream) : launch<__half, Dim>(a, sums, parts, device, stream);
    });
}

} // namespace keepsight::cuda
