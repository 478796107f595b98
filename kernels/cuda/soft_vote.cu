// TokenSelect's vote: vote[t] = Σ over query heads of softmax over the candidates of scale · q̄·k, begin ≤ t < lengths[h] − newest.
//
// First kernel: scores of all candidates, keys read once for up to 8 query heads of a KV head (tile.cuh; queries to fp32 precision), left
// in fp32 as [walk, candidate, width] with the heads of a walk side by side; each block leaves (max, sum) of its slices of a walk. Its
// blocks take equal shares of all heads (flatten.cuh). Second kernel: the slices are put together in their order to one log-sum-exp a head,
// then every candidate's vote is summed up, heads in their order: runs repeat bit for bit. Where the scores fit L2 they are to stay there until
// then: the keys, which nobody reads again, give way to them.
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/tile.cuh"

#include <algorithm>
#include <cfloat>

namespace keepsight::cuda {
namespace {

constexpr int Ring = 4, MaxWarps = 8, VoteThreads = 256; // tiles a warp holds; warps of a block, fewer where shared memory is short
constexpr float Log2E = 1.4426950408889634f;
constexpr int VoteBlocksOnce = 4; // of a multiprocessor, where each thread has one candidate
constexpr std::int64_t ScoresInL2 = 32 << 20; // bytes

__device__ int candidatesOf(const SoftVoteArgs& a, int h) {
    if (h >= a.kvHeads) return 0;
    const std::int64_t held = min(static_cast<std::int64_t>(__ldcg(a.lengths + h)), a.capacity); // past L1: an early start may find old lines there
    return static_cast<int>(max(std::int64_t{0}, held - a.newest - a.begin));
}

template <class T, int Dim>
using VoteScores = TileScores<T, Dim, std::is_same_v<T, float> ? 1 : 3>;
template <class T, int Dim>
std::size_t sharedBytes(int warps, int kvHeads, int walks) {
    return static_cast<std::size_t>(warps * (Ring * Tile<T, Dim>::Bytes + TileHeads * 8) +
                                    (VoteScores<T, Dim>::SharedFloats + kvHeads + walks + 1) * 4);
}

template <class T, int Dim>
__global__ void __launch_bounds__(MaxWarps * 32, 1) vote_scores_kernel(const SoftVoteArgs a, const SoftVoteScratch s) {
    waitForEarlierKernels();
    letLaterKernelsStart(); // after that: the next kernel reads the lengths before it waits for this one's end
    extern __shared__ __align__(128) char shared[];
    using Scores = VoteScores<T, Dim>;
    using KeyTile = Tile<T, Dim>;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
    char* ring = shared + warp * Ring * KeyTile::Bytes;
    float* queries = reinterpret_cast<float*>(shared + warps * Ring * KeyTile::Bytes);
    float2* tops = reinterpret_cast<float2*>(queries + Scores::SharedFloats); // [warps, 8] (max, sum)
    int* counts = reinterpret_cast<int*>(tops + warps * TileHeads);           // [kvHeads]
    int* first = counts + a.kvHeads;                                          // [walks + 1]
    const int group = static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads), parts = (group + TileHeads - 1) / TileHeads,
              walks = static_cast<int>(a.kvHeads) * parts;
    if (warp == 0) flattenHeads(static_cast<int>(a.kvHeads), parts, TileEntries, counts, first, [&](int h) { return candidatesOf(a, h); });
    __syncthreads();
    const int tiles = first[walks], blocks = blocksFor(first, walks, warps, static_cast<int>(gridDim.x)),
              block = static_cast<int>(blockIdx.x);
    if (block >= blocks) return;
    const float scale = a.scale * Log2E;
    const std::int64_t candidates = a.capacity - a.begin; // at most
    Scores scores;
    int begin = shareBegin(block, tiles, blocks);
    const int end = shareBegin(block + 1, tiles, blocks);
    int walk = walkOfTile(first, walks, begin);
    const T* keys = static_cast<const T*>(a.keys) + a.begin * a.keyRow;
    TileStream<T, Dim, Ring, false, true> stream{
        keys, nullptr, a.keyHead, 0, static_cast<int>(a.keyRow * sizeof(T)), 0, ring, counts, first, parts, warps, begin + warp, end, walk};
    stream.leaving = walks * candidates * s.width * static_cast<std::int64_t>(sizeof(float)) <= ScoresInL2;
    const auto readAhead = [&](int of) {
        const Walk w(group, parts, of);
        scores.readQueries(a.queries + w.queryHead * a.dim, a.dim, w.queryHeads, queries);
    };
    readAhead(walk);
    stream.begin();
#pragma unroll 1
    for (int flat = begin + warp; begin < end;) {
        const Walk w(group, parts, walk);
        const int stop = min(end, first[walk + 1]), held = counts[w.head];
        float* out = s.scores + walk * candidates * s.width;
        scores.useQueries();
        int after = walk + 1; // the next one with candidates
#pragma unroll 1
        while (stop < end && first[after + 1] == stop)
            ++after;
        if (stop < end) readAhead(after);
        // Every lane keeps its own maximum and sum of its two heads.
        float top0 = -FLT_MAX, top1 = -FLT_MAX, sum0 = 0, sum1 = 0;
#pragma unroll 1
        for (; flat < stop; flat += warps) {
            const int at = (flat - first[walk]) * TileEntries;
            float p[4];
            scores.dot(stream.current(), p);
            stream.release();
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int entry = at + KeyTile::entry(r) + 8 * i;
                const bool real = entry < held;
                const float s0 = p[2 * i] * scale, s1 = p[2 * i + 1] * scale;
                float* to = out + static_cast<std::int64_t>(entry) * s.width + 2 * c;
                if (real && 2 * c < s.width) {
                    if (s.width > 1)
                        *reinterpret_cast<float2*>(to) = make_float2(s0, s1);
                    else
                        *to = s0;
                }
                p[2 * i] = real ? s0 : -INFINITY, p[2 * i + 1] = real ? s1 : -INFINITY;
            }
            const float high0 = fmaxf(top0, fmaxf(p[0], p[2])), high1 = fmaxf(top1, fmaxf(p[1], p[3]));
            sum0 = sum0 * power2(top0 - high0) + power2(p[0] - high0) + power2(p[2] - high0);
            sum1 = sum1 * power2(top1 - high1) + power2(p[1] - high1) + power2(p[3] - high1);
            top0 = high0, top1 = high1;
        }
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
            const float other0 = __shfl_xor_sync(EveryLane, top0, step), other1 = __shfl_xor_sync(EveryLane, top1, step);
            const float high0 = fmaxf(top0, other0), high1 = fmaxf(top1, other1);
            sum0 *= power2(top0 - high0), sum1 *= power2(top1 - high1);
            sum0 += __shfl_xor_sync(EveryLane, sum0, step), sum1 += __shfl_xor_sync(EveryLane, sum1, step);
            top0 = high0, top1 = high1;
        }
        if (r == 0) tops[warp * TileHeads + 2 * c] = make_float2(top0, sum0), tops[warp * TileHeads + 2 * c + 1] = make_float2(top1, sum1);
        __syncthreads();
        if (threadIdx.x < TileHeads) {
            float top = -FLT_MAX, sum = 0;
#pragma unroll 1
            for (int k = 0; k < warps; ++k)
                top = fmaxf(top, tops[k * TileHeads + threadIdx.x].x);
#pragma unroll 1
            for (int k = 0; k < warps; ++k)
                sum += tops[k * TileHeads + threadIdx.x].y * power2(tops[k * TileHeads + threadIdx.x].x - top);
            s.parts[(block + walk) * TileHeads + threadIdx.x] = make_float2(top, sum);
        }
        __syncthreads(); // shared memory is used again
        begin = stop, walk = after;
    }
}

template <int Width>
struct CandidateScores { // of one walk
    float x[Width];
    __device__ void read(const float* scores) {
        if constexpr (Width == 1) {
            x[0] = *scores;
        } else if constexpr (Width == 2) {
            const float2 a = *reinterpret_cast<const float2*>(scores);
            x[0] = a.x, x[1] = a.y;
        } else {
#pragma unroll
            for (int i = 0; i < Width; i += 4) {
                const float4 a = *reinterpret_cast<const float4*>(scores + i);
                x[i] = a.x, x[i + 1] = a.y, x[i + 2] = a.z, x[i + 3] = a.w;
            }
        }
    }
    // logSums of heads that are not there: infinite, so that they add 0.
    __device__ float vote(const float* logSums) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < Width; ++i)
            sum += power2(x[i] - logSums[i]);
        return sum;
    }
};

// Once: a thread has one candidate at most, and asks for its scores before the slices are put together.
template <int Width, bool Once>
__global__ void __launch_bounds__(VoteThreads, Once ? VoteBlocksOnce : 8)
vote_kernel(const SoftVoteArgs a, const SoftVoteScratch s, int grid, int warps) {
    letLaterKernelsStart();
    extern __shared__ __align__(16) float logSums[]; // [walks, 8]
    const int group = static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads), parts = (group + TileHeads - 1) / TileHeads,
              walks = static_cast<int>(a.kvHeads) * parts;
    int* counts = reinterpret_cast<int*>(logSums + walks * TileHeads); // [walks] candidates
    int* heads = counts + walks;                                       // [kvHeads]
    int* first = heads + a.kvHeads;                                    // [walks + 1]
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (threadIdx.x < 32) {
        flattenHeads(static_cast<int>(a.kvHeads), parts, TileEntries, heads, first, [&](int h) { return candidatesOf(a, h); });
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < walks; i += 32)
            counts[i] = heads[parts == 1 ? i : i / parts];
    }
    __syncthreads();
    const int tiles = first[walks], blocks = blocksFor(first, walks, warps, grid);
    const std::int64_t candidates = a.capacity - a.begin; // at most
    const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * VoteThreads + threadIdx.x;
    constexpr int Ahead = Once ? std::min(32 / Width, 12) : 0; // walks
    CandidateScores<Width> ahead[Once ? Ahead : 1];
    waitForEarlierKernels();
    if constexpr (Once) {
        const std::int64_t t = place - a.begin;
#pragma unroll
        for (int walk = 0; walk < Ahead; ++walk)
            if (walk < walks && t >= 0 && t < counts[walk]) ahead[walk].read(s.scores + (walk * candidates + t) * Width);
    }
#pragma unroll 1
    for (int walk = static_cast<int>(threadIdx.x) / 32; walk < walks; walk += VoteThreads / 32) { // by a warp, four lanes a head
        const int g = lane / 4;
        float top = -FLT_MAX, sum = 0;
        if (first[walk] < first[walk + 1]) {
            const int from = blockOfTile(first[walk], tiles, blocks),
                      count = blockOfTile(first[walk + 1] - 1, tiles, blocks) - from + 1;
            const float2* slices = s.parts + static_cast<std::int64_t>(from + walk) * TileHeads + g;
#pragma unroll 6
            for (int k = lane % 4; k < count; k += 4)
                top = fmaxf(top, slices[k * TileHeads].x);
            for (int step = 1; step < 4; step *= 2)
                top = fmaxf(top, __shfl_xor_sync(EveryLane, top, step));
#pragma unroll 6
            for (int k = lane % 4; k < count; k += 4)
                sum += slices[k * TileHeads].y * power2(slices[k * TileHeads].x - top);
            for (int step = 1; step < 4; step *= 2)
                sum += __shfl_xor_sync(EveryLane, sum, step);
        }
        if (lane % 4 == 0) logSums[walk * TileHeads + g] = g < Walk(group, parts, walk).queryHeads && sum > 0 ? top + log2f(sum) : INFINITY;
    }
    __syncthreads();
#pragma unroll 1
    for (std::int64_t i = place; i < a.capacity; i += static_cast<std::int64_t>(gridDim.x) * VoteThreads) {
        const std::int64_t t = i - a.begin;
        float vote = 0;
#pragma unroll
        for (int walk = 0; walk < Ahead; ++walk)
            if (walk < walks && t >= 0 && t < counts[walk]) vote += ahead[walk].vote(logSums + walk * TileHeads);
#pragma unroll 4
        for (int walk = Ahead; walk < walks; ++walk)
            if (t >= 0 && t < counts[walk]) {
                CandidateScores<Width> late;
                late.read(s.scores + (walk * candidates + t) * Width);
                vote += late.vote(logSums + walk * TileHeads);
            }
        a.vote[i] = vote;
    }
}

template <int Width>
auto voteKernel(bool once) { return once ? vote_kernel<Width, true> : vote_kernel<Width, false>; }

template <class T, int Dim>
cudaError_t launch(const SoftVoteArgs& args, const SoftVoteScratch& s, const CudaDevice& device, cudaStream_t stream) {
    const int walks = walksOf(args.queryHeads, args.kvHeads), kvHeads = static_cast<int>(args.kvHeads), blocks = voteBlocks(device);
    int warps = MaxWarps;
#pragma unroll 1
    while (warps > 1 && sharedBytes<T, Dim>(warps, kvHeads, walks) > static_cast<std::size_t>(device.sharedPerBlock))
        --warps;
    const std::size_t bytes = sharedBytes<T, Dim>(warps, kvHeads, walks);
    const auto scores = vote_scores_kernel<T, Dim>;
    if (const cudaError_t error = cudaFuncSetAttribute(scores, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess)
        return error;
    cudaLaunchAttribute early;
    const cudaLaunchConfig_t first =
        overlapping(dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(warps * 32)), bytes, stream, early);
    if (const cudaError_t error = cudaLaunchKernelEx(&first, scores, args, s); error != cudaSuccess) return error;
    const std::int64_t wanted = (args.capacity + VoteThreads - 1) / VoteThreads;
    const bool once = wanted <= VoteBlocksOnce * device.multiprocessors;
    const auto vote = s.width == 1   ? voteKernel<1>(once)
                      : s.width == 2 ? voteKernel<2>(once)
                      : s.width == 4 ? voteKernel<4>(once)
                                     : voteKernel<8>(once);
    const cudaLaunchConfig_t second = overlapping(dim3(static_cast<unsigned>(std::min<std::int64_t>(wanted, 8 * device.multiprocessors))), dim3(VoteThreads),
                                                  sizeof(float) * static_cast<std::size_t>(walks * (TileHeads + 2) + kvHeads + 1), stream, early);
    return cudaLaunchKernelEx(&second, vote, args, s, blocks, warps);
}

} // namespace

int voteBlocks(const CudaDevice& device) { return device.multiprocessors; }

int voteWidth(std::int64_t queryHeads, std::int64_t kvHeads) {
    const std::int64_t group = std::min<std::int64_t>(queryHeads / kvHeads, TileHeads);
    return group > 4 ? 8 : group > 2 ? 4 : static_cast<int>(group);
}

cudaError_t launchSoftVote(const SoftVoteArgs& args, CudaElement element, const SoftVoteScratch& scratch, const CudaDevice& device,
                           cudaStream_t stream) {
    if (args.capacity == 0) return cudaSuccess;
    return forHeadSize(args.dim, [&](auto dim) {
        return forElement(element, [&](auto zero) { return launch<decltype(zero), decltype(dim)::value>(args, scratch, device, stream); });
    });
}

} // namespace keepsight::cuda
