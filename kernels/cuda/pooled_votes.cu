// Sums of a window's weights to votes: a KV head's query heads become one, then neighbours are pooled; 0 from the window on.
#include "kernels/cuda/launch_votes.h"
#include "kernels/cuda/overlap.cuh"

namespace keepsight::cuda {
namespace {

constexpr int Threads = 256, MostPooled = 255;

__global__ void __launch_bounds__(Threads) pooled_votes_kernel(const PooledVotesArgs a) {
    __shared__ float votes[Threads + MostPooled - 1]; // from the first one's neighbours on
    waitForEarlierKernels();
    const int head = static_cast<int>(blockIdx.y), group = static_cast<int>(a.queryHeads / a.kvHeads), begin = static_cast<int>(blockIdx.x) * Threads, reach = a.kernel / 2;
    const int end = min(a.lengths[head], static_cast<int>(a.capacity)) - static_cast<int>(a.newest), mine = static_cast<int>(threadIdx.x), t = begin + mine;
    for (int i = mine; i < Threads + 2 * reach; i += Threads) {
        const int from = begin - reach + i;
        float vote = 0;
        if (from >= 0 && from < end) {
            const float* sums = a.sums + static_cast<std::int64_t>(head) * group * a.row + from;
            for (int g = 0; g < group; ++g) {
                const float x = sums[g * a.row] / a.rows;
                vote = g == 0 ? x : a.group == 1 ? fmaxf(vote, x) : vote + x;
            }
            if (a.group == 0) vote /= static_cast<float>(group);
        }
        votes[i] = vote;
    }
    __syncthreads();
    if (t >= a.capacity) return;
    float pooled = votes[mine];
    for (int i = 1; i < a.kernel; ++i) pooled = a.largest ? fmaxf(pooled, votes[mine + i]) : pooled + votes[mine + i];
    a.votes[head * a.capacity + t] = t >= end ? 0 : a.largest ? pooled : pooled / static_cast<float>(a.kernel);
}

} // namespace

bool takesPooledVotes(const PooledVotesArgs& a) { return a.kernel <= MostPooled && a.capacity > 0 && a.kvHeads > 0; }

cudaError_t launchPooledVotes(const PooledVotesArgs& a, cudaStream_t stream) {
    cudaLaunchAttribute early;
    const cudaLaunchConfig_t config = overlapping(dim3(static_cast<unsigned>((a.capacity + Threads - 1) / Threads), static_cast<unsigned>(a.kvHeads)), dim3(Threads), 0, stream, early);
    return cudaLaunchKernelEx(&config, pooled_votes_kernel, a);
}

} // namespace keepsight::cuda
