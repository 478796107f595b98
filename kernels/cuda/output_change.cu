// How much one query's attention output would change without each entry (a decode step of the kvc policies); see kernels/bind/output_change.cpp for
// the sums, attention_sums.cu for those of a prompt.
//
// First pass: decode attention (decode_attention.cu) leaves the scores, their log-sum-exp and, unless only ‖v‖² is asked for, the output o.
// Second pass, here: a warp takes tiles of 16 values of a KV head and up to 8 of its query heads (tile.cuh); ⟨o, v⟩ is a product of the tile with
// o as three rounded terms, ‖v‖² a sum in fp32. With o values are read twice, the second time mostly from L2. The grid covers the capacity: what
// is not held, or not visible, becomes 0.
#include "kernels/cuda/decode_walks.cuh"
#include "kernels/cuda/launch_change.h"
#include "kernels/cuda/overlap.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int Warps = 4, Ring = 2; // of a block, fewer where shared memory is short; tiles a warp holds
constexpr float Ln2 = 0.69314718055994531f;

template <class T>
__device__ float squares(uint4 chunk, float sum) {
    const unsigned words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (const unsigned word : words) {
        if constexpr (std::is_same_v<T, float>) {
            sum = fmaf(__uint_as_float(word), __uint_as_float(word), sum);
        } else {
            const float2 x = unpacked<T>(word);
            sum = fmaf(x.x, x.x, fmaf(x.y, x.y, sum));
        }
    }
    return sum;
}

// One entry's change for one head; a: weight, s: logit, n: ‖v‖², ov: ⟨o, v⟩, oo: ‖o‖².
__device__ float changeOf(int kind, float a, float s, float n, float ov, float oo) {
    const float byValue = a * a * n, as = a * s, byKey = as * as * fmaxf(n + oo - 2 * ov, 0);
    const float change = kind == 0 ? byValue : kind == 1 ? byKey : kind == 2 ? byValue + byKey + 2 * as * a * (n - ov) : byValue + byKey;
    return fmaxf(change, 0); // all four are sums of squares
}

template <class T, int Dim>
using OutputProducts = TileScores<T, Dim, std::is_same_v<T, float> ? 1 : 3>;
template <class T, int Dim>
std::size_t sharedBytes(int warps) {
    return static_cast<std::size_t>(warps * Ring * Tile<T, Dim>::Bytes + OutputProducts<T, Dim>::SharedFloats * 4);
}

template <class T, int Dim, bool WithOutput>
__global__ void __launch_bounds__(Warps * 32) output_change_kernel(const OutputChangeArgs args, const DecodeScratch s, int tilesEach) { // of a warp
    extern __shared__ __align__(128) char shared[];
    __shared__ float outputNorms[TileHeads];
    using ValueTile = Tile<T, Dim>;
    const AttentionArgs& a = args.attention;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int r = lane / 4, c = lane % 4, e = ValueTile::entry(r), capacity = static_cast<int>(a.capacity);
    const int group = static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads);
    const Walk w(group, (group + TileHeads - 1) / TileHeads, static_cast<int>(blockIdx.y));
    char* ring = shared + warp * Ring * ValueTile::Bytes;
    const int held = max(0, min(a.lengths[w.head], capacity)), begin = (static_cast<int>(blockIdx.x) * warps + warp) * tilesEach;
    const int end = min(begin + tilesEach, (capacity + TileEntries - 1) / TileEntries), read = min(end, (held + TileEntries - 1) / TileEntries);
    const auto fetch = [&](int tile) {
        if (tile < read)
            ValueTile::copy(ring + (tile - begin) % Ring * ValueTile::Bytes, static_cast<const T*>(a.v.data) + w.head * a.v.head,
                            static_cast<int>(a.v.row * sizeof(T)), tile * TileEntries, held - 1);
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    fetch(begin);
    waitForEarlierKernels(); // what is read from here on is the first pass's
    const int visible = s.visible[w.head];

    OutputProducts<T, Dim> products;
    float logSums[2] = {}, norms[2] = {};
    if constexpr (WithOutput) {
        const float* out = static_cast<const float*>(a.out) + static_cast<std::int64_t>(w.queryHead) * Dim;
        products.readQueries(out, Dim, w.queryHeads, reinterpret_cast<float*>(shared + warps * Ring * ValueTile::Bytes));
        for (int g = warp; g < TileHeads; g += warps) {
            float sum = 0;
            if (g < w.queryHeads)
                for (int d = lane; d < Dim; d += 32) sum = fmaf(out[g * Dim + d], out[g * Dim + d], sum);
#pragma unroll
            for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(EveryLane, sum, step);
            if (lane == 0) outputNorms[g] = sum;
        }
        products.useQueries();
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
        if (2 * c + i < w.queryHeads) {
            logSums[i] = s.logSums[w.queryHead + 2 * c + i];
            if constexpr (WithOutput) norms[i] = outputNorms[2 * c + i];
        }
#pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
        float ov[4] = {}, valueNorms[2] = {};
        if (tile < read) {
            fetch(tile + 1);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
            __syncwarp();
            const char* values = ring + (tile - begin) % Ring * ValueTile::Bytes;
            if constexpr (WithOutput) products.dot(values, ov);
#pragma unroll
            for (int i = c; i < ValueTile::Chunks; i += 4) {
                valueNorms[0] = squares<T>(ValueTile::chunk(values, e, i), valueNorms[0]);
                valueNorms[1] = squares<T>(ValueTile::chunk(values, e + 8, i), valueNorms[1]);
            }
#pragma unroll
            for (float& n : valueNorms) {
                n += __shfl_xor_sync(EveryLane, n, 1);
                n += __shfl_xor_sync(EveryLane, n, 2);
            }
            __syncwarp(); // read before the place is filled again
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int t = tile * TileEntries + e + i / 2 * 8, g = 2 * c + i % 2;
            if (t >= capacity || g >= w.queryHeads) continue;
            const std::int64_t place = (w.queryHead + g) * a.capacity + t;
            float change = 0;
            if (t < visible) {
                const float score = s.scores[place];
                const float weight = power2(score - logSums[i % 2]);
                change = changeOf(WithOutput ? args.kind : 0, weight, score * Ln2, valueNorms[i / 2], ov[i], norms[i % 2]);
            }
            args.change[place] = change;
        }
    }
}

template <class T, int Dim, bool WithOutput>
cudaError_t launch(const OutputChangeArgs& args, const DecodeScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    constexpr int Together = 16; // warps of a multiprocessor, about: a warp reads the outputs of its heads before its tiles
    const AttentionArgs& a = args.attention;
    const std::int64_t walks = walksOf(a.queryHeads, a.kvHeads), tiles = (a.capacity + TileEntries - 1) / TileEntries;
    const auto kernel = output_change_kernel<T, Dim, WithOutput>;
    int warps = Warps;
    while (warps > 1 && sharedBytes<T, Dim>(warps) > static_cast<std::size_t>(device.sharedPerBlock)) --warps;
    const std::size_t bytes = sharedBytes<T, Dim>(warps);
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)); error != cudaSuccess)
        return error;
    const std::int64_t each = std::clamp<std::int64_t>(tiles * walks / (device.multiprocessors * Together), 1, 16);
    cudaLaunchAttribute early;
    const cudaLaunchConfig_t config = overlapping(dim3(static_cast<unsigned>((tiles + each * warps - 1) / (each * warps)), static_cast<unsigned>(walks)),
                                                  dim3(static_cast<unsigned>(warps * 32)), bytes, stream, early);
    return cudaLaunchKernelEx(&config, kernel, args, scratch, static_cast<int>(each));
}

} // namespace

cudaError_t launchOutputChange(const OutputChangeArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                               cudaStream_t stream) {
    const bool output = args.kind != 0;
    if (const cudaError_t error = launchDecodeScores(args.attention, element, output, scratch, device, stream); error != cudaSuccess) return error;
    return forHeadSize(args.attention.dim, [&](auto dim) {
        return forElement(element, [&](auto zero) {
            using T = decltype(zero);
            constexpr int Dim = decltype(dim)::value;
            return output ? launch<T, Dim, true>(args, scratch, device, stream) : launch<T, Dim, false>(args, scratch, device, stream);
        });
    });
}

} // namespace keepsight::cuda
