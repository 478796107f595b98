// Exact values beside codes, in the order of their places: those of rows that come are put behind, those of entries that go make room. A block a head;
// where nothing comes or goes it ends at once.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_quant.h"
#include "kernels/cuda/lists.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int Threads = 1024, Warps = Threads / 32;

// Of a number a thread: the sum of those before it in the block; all becomes the block's. sums [Warps], free again after the next barrier but one.
__device__ int sumBefore(int mine, int* sums, int& all) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int upTo = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int left = __shfl_up_sync(0xffffffffu, upTo, step);
        if (lane >= step) upTo += left;
    }
    if (lane == 31) sums[warp] = upTo;
    __syncthreads();
    int ofWarps = sums[lane];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int left = __shfl_up_sync(0xffffffffu, ofWarps, step);
        if (lane >= step) ofWarps += left;
    }
    all = __shfl_sync(0xffffffffu, ofWarps, 31);
    const int before = __shfl_sync(0xffffffffu, ofWarps, max(warp - 1, 0));
    return (warp > 0 ? before : 0) + upTo - mine;
}

__device__ std::uint16_t exactBits(float x, bool half) { // never to infinity where it is finite
    return half ? __half_as_ushort(__float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f))) : __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__global__ void __launch_bounds__(Threads) add_beside_kernel(const AddBesideArgs a) {
    constexpr int Each = 4; // neighbours a thread takes at once
    __shared__ int sums[2][Warps];
    const std::int64_t h = blockIdx.x;
    const int rows = static_cast<int>(a.added ? max(0, min(a.added[h], static_cast<int>(a.rows))) : a.rows), count = rows * static_cast<int>(a.dim);
    const float* x = a.x + h * a.rows * a.dim;
    const bool* outliers = a.outliers ? a.outliers + h * a.rows * a.dim : nullptr;
    float* rest = a.rest + h * a.rows * a.dim;
    const int firstPlace = a.lengths[h] * static_cast<int>(a.dim);
    std::int64_t held = a.counts[h];
    int turn = 0;
    for (int begin = 0; begin < count; begin += Threads * Each, turn ^= 1) {
        const int first = begin + static_cast<int>(threadIdx.x) * Each;
        float value[Each];
        unsigned found = 0;
#pragma unroll
        for (int i = 0; i < Each; ++i)
            if (first + i < count) {
                value[i] = x[first + i];
                const bool outlier = outliers ? outliers[first + i] : fabsf(value[i]) > a.threshold;
                if (outlier) found |= 1u << i;
                rest[first + i] = outlier ? 0.0f : value[i];
            }
        int all = 0;
        std::int64_t to = h * a.capacity + held + sumBefore(__popc(found), sums[turn], all);
#pragma unroll
        for (int i = 0; i < Each; ++i)
            if (found >> i & 1) a.places[to] = firstPlace + first + i, a.values[to++] = exactBits(value[i], a.half);
        held += all;
    }
    __syncthreads();
    if (threadIdx.x == 0 && count > 0) a.counts[h] = static_cast<std::int32_t>(held);
}

__global__ void __launch_bounds__(Threads) drop_beside_kernel(const DropBesideArgs a) {
    __shared__ int sums[2][Warps];
    const std::int64_t h = blockIdx.x;
    const int none = countBelow(a.entries + h * a.gone, static_cast<int>(a.gone), 0), gone = static_cast<int>(a.gone) - none;
    const int held = a.counts[h], dim = static_cast<int>(a.dim);
    const std::int32_t* entries = a.entries + h * a.gone + none;
    std::int32_t* places = a.places + h * a.capacity;
    std::uint16_t* values = a.values + h * a.capacity;
    if (gone == 0 || held == 0 || entries[0] > places[held - 1] / dim) return;
    int kept = countBelow(places, held, entries[0] * dim), turn = 0; // what lies before the first that goes stays as it is
    for (int begin = kept; begin < held; begin += Threads, turn ^= 1) {
        const int i = begin + static_cast<int>(threadIdx.x);
        int place = 0, before = 0;
        std::uint16_t value = 0;
        bool stays = false;
        if (i < held) {
            place = places[i], value = values[i];
            before = countBelow(entries, gone, place / dim);
            stays = before == gone || entries[before] != place / dim;
        }
        int all = 0;
        const int to = kept + sumBefore(stays, sums[turn], all); // all have read theirs
        if (stays) places[to] = place - before * dim, values[to] = value;
        kept += all;
        __syncthreads(); // before the next are read
    }
    if (threadIdx.x == 0) a.counts[h] = kept;
}

} // namespace

cudaError_t launchAddBeside(const AddBesideArgs& a, cudaStream_t stream) {
    add_beside_kernel<<<static_cast<unsigned>(a.heads), Threads, 0, stream>>>(a);
    return cudaGetLastError();
}

cudaError_t launchDropBeside(const DropBesideArgs& a, cudaStream_t stream) {
    drop_beside_kernel<<<static_cast<unsigned>(a.heads), Threads, 0, stream>>>(a);
    return cudaGetLastError();
}

} // namespace keepsight::cuda
