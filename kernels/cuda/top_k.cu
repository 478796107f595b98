// The k highest of each row, as ascending indices: radix selection of the threshold, then the entries above it and the last ones equal to
// it.
//
// A row belongs to a cluster of blocks (one block where clusters do not exist or the row is short); each warp owns a run of it. Scores
// become integers of the same order and stay in shared memory as far as they fit. Three passes count digits of 11, 11 and 10 bits; block b
// of the cluster adds up its part of all blocks' histograms and hands the sums to every block, so all find the same digit. Counts are
// integers: the order of additions does not matter. A long row is cut into pieces, each by a cluster of its own; the pieces' best, still in
// order, are then searched as one row.
#include "kernels/cuda/launch.h"

#include <algorithm>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#include <cooperative_groups.h>
#define KEEPSIGHT_CLUSTERS
#endif

namespace keepsight::cuda {
namespace {

constexpr int Threads = 1024, Warps = Threads / 32, Bins = 2048, Step = 128; // Step: elements a warp takes at once, four a lane
constexpr unsigned EveryLane = 0xffffffffu;
constexpr std::int64_t ShortRow = 16384, Piece = 65536, LongRow = 2 * Piece; // one block up to ShortRow, pieces beyond LongRow

// Ascending with the score; NaN as −inf, −0 as 0. Every key of a score is above 0, which stands for none.
__device__ unsigned keyOf(float x) {
    const unsigned bits = __float_as_uint(x == x ? x + 0.0f : -INFINITY);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

#ifdef KEEPSIGHT_CLUSTERS
template <int Blocks>
struct Cluster {
    __device__ static int rank() { return Blocks == 1 ? 0 : static_cast<int>(cooperative_groups::this_cluster().block_rank()); }
    __device__ static void arrive() { // barrier in two halves; a block's own threads meet, too
        if constexpr (Blocks == 1)
            __syncthreads();
        else
            asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    }
    __device__ static void wait() {
        if constexpr (Blocks > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
    template <class T>
    __device__ static T* of(T* mine, int other) { // the same variable of another block
        return Blocks == 1 ? mine : cooperative_groups::this_cluster().map_shared_rank(mine, other);
    }
};
#else
template <int Blocks>
struct Cluster {
    __device__ static int rank() { return 0; }
    __device__ static void arrive() { __syncthreads(); }
    __device__ static void wait() {}
    template <class T>
    __device__ static T* of(T* mine, int) {
        return mine;
    }
};
#endif

struct Row {
    const float* scores;        // of the row or piece
    const std::int32_t* source; // indices into scores, −1: none; null: 0, 1, …
    int n, want, offset;        // elements; to be taken; added to the indices written
    std::int32_t* out;
    int room; // places of out
};

template <int Blocks>
__device__ void selectTop(const Row& row, int cachedSteps) {
    extern __shared__ __align__(16) unsigned cache[]; // [Warps, cachedSteps, Step]
    __shared__ __align__(16) int histogram[3][Bins];  // of this block
    __shared__ __align__(16) int sums[Bins];          // of all blocks; two barriers lie between its last reader and its next writer
    __shared__ int warpSums[2][Warps], totals[Blocks][2];
    __shared__ int found[3]; // digit, how many in higher bins, in this one
    using Group = Cluster<Blocks>;
    const int rank = Group::rank(), thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, n = row.n;
#pragma unroll 1
    for (int i = row.want + rank * Threads + thread; i < row.room; i += Blocks * Threads)
        row.out[i] = -1;
    if (row.want == 0) return; // all blocks of the row alike

    const int steps = (n + Blocks * Warps * Step - 1) / (Blocks * Warps * Step), begin = (rank * Warps + warp) * steps * Step,
              cached = min(steps, cachedSteps);
    const bool vectors = !row.source && reinterpret_cast<std::uintptr_t>(row.scores) % 16 == 0;
    uint4* kept = reinterpret_cast<uint4*>(cache) + warp * cachedSteps * (Step / 4) + lane;
    const auto one = [&](int at) {
        if (at >= n) return 0u;
        if (!row.source) return keyOf(row.scores[at]);
        const std::int32_t i = row.source[at];
        return i < 0 ? 0u : keyOf(row.scores[i]);
    };
    const auto fresh = [&](int step) {
        const int at = begin + step * Step + 4 * lane;
        if (vectors && at + 4 <= n) {
            const float4 x = *reinterpret_cast<const float4*>(row.scores + at);
            return make_uint4(keyOf(x.x), keyOf(x.y), keyOf(x.z), keyOf(x.w));
        }
        return make_uint4(one(at), one(at + 1), one(at + 2), one(at + 3));
    };
    const auto keys = [&](int step) { return step < cached ? kept[step * (Step / 4)] : fresh(step); };

#pragma unroll 1
    for (int i = thread; i < 3 * Bins; i += Threads)
        (&histogram[0][0])[i] = 0;
#pragma unroll 4
    for (int step = 0; step < cached; ++step)
        kept[step * (Step / 4)] = fresh(step);
    __syncthreads();

    unsigned prefix = 0;
    int missing = row.want, ties = 0;
#pragma unroll 1 // cold code comes from memory, too: loops stay loops where time is not spent
    for (int pass = 0; pass < 3; ++pass) {
        const int bits = pass < 2 ? 11 : 10, shift = pass == 0 ? 21 : pass == 1 ? 10 : 0;
        const unsigned mask = (1u << bits) - 1;
#pragma unroll 4
        for (int step = 0; step < steps; ++step) {
            const uint4 x = keys(step);
            const unsigned key[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (key[j] != 0 && __funnelshift_rc(key[j], 0, shift + bits) == prefix)
                    atomicAdd(&histogram[pass][(key[j] >> shift) & mask], 1);
        }
        Group::arrive(), Group::wait();
        if constexpr (Blocks > 1) { // bin rank·Part + thread/Split of all blocks; Split neighbours read a share of the blocks each, and
                                    // hand out the sum
            constexpr int Part = Bins / Blocks, Split = Threads / Part;
            const int bin = rank * Part + thread / Split;
            int sum = 0;
#pragma unroll
            for (int b = 0; b < Blocks / Split; ++b)
                sum += *Group::of(&histogram[pass][bin], thread % Split * (Blocks / Split) + b);
#pragma unroll
            for (int step = 1; step < Split; step *= 2)
                sum += __shfl_xor_sync(EveryLane, sum, step);
#pragma unroll
            for (int b = 0; b < Blocks / Split; ++b)
                *Group::of(&sums[bin], thread % Split * (Blocks / Split) + b) = sum;
            Group::arrive(), Group::wait();
        }
        const int place = Threads - 1 - thread; // of bins 2·place and 2·place + 1: thread 0 has the highest ones
        const int2 mine = reinterpret_cast<const int2*>(Blocks > 1 ? sums : histogram[pass])[place];
        int sum = mine.x + mine.y;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int left = __shfl_up_sync(EveryLane, sum, step);
            if (lane >= step) sum += left;
        }
        if (lane == 31) warpSums[0][warp] = sum;
        __syncthreads();
        const int before = static_cast<int>(__reduce_add_sync(EveryLane, lane < warp ? static_cast<unsigned>(warpSums[0][lane]) : 0u));
        const int through = before + sum, above = through - mine.x - mine.y; // down to and including my bins, and before them
        if (above < missing && missing <= through) {
            const bool high = missing <= above + mine.y;
            found[0] = 2 * place + (high ? 1 : 0), found[1] = high ? above : above + mine.y, found[2] = high ? mine.y : mine.x;
        }
        __syncthreads();
        prefix = prefix << bits | static_cast<unsigned>(found[0]);
        missing -= found[1], ties = found[2];
    }

    // prefix is the key of the last one taken; of `ties` equal ones the last `missing` are. Counts: greater ones in the low half, equal
    // ones in the high half.
    int greater = 0, equal = 0;
#pragma unroll 4
    for (int step = 0; step < steps; ++step) {
        const uint4 x = keys(step);
        greater += (x.x > prefix) + (x.y > prefix) + (x.z > prefix) + (x.w > prefix);
        equal += (x.x == prefix) + (x.y == prefix) + (x.z == prefix) + (x.w == prefix);
    }
    greater = __reduce_add_sync(EveryLane, greater), equal = __reduce_add_sync(EveryLane, equal);
    if (lane == 0) warpSums[0][warp] = greater, warpSums[1][warp] = equal;
    const bool idle = greater + equal == 0; // of the whole warp
    __syncthreads();
    if (warp < 2) {
        const int sum = __reduce_add_sync(EveryLane, warpSums[warp][lane]);
        if (lane < Blocks) Group::of(&totals[rank][warp], lane)[0] = sum;
    }
    Group::arrive(), Group::wait();
    if (idle) return;
    greater = (lane < warp ? warpSums[0][lane] : 0) + (lane < rank ? totals[lane][0] : 0);
    equal = (lane < warp ? warpSums[1][lane] : 0) + (lane < rank ? totals[lane][1] : 0);
    greater = __reduce_add_sync(EveryLane, greater), equal = __reduce_add_sync(EveryLane, equal);
    const int skipped = ties - missing;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const uint4 x = keys(step);
        const unsigned key[4] = {x.x, x.y, x.z, x.w};
        int here = 0; // greater ones, and equal ones above bit 16
#pragma unroll
        for (int j = 0; j < 4; ++j)
            here += (key[j] > prefix ? 1 : 0) + (key[j] == prefix ? 1 << 16 : 0);
        if (!__any_sync(EveryLane, here)) continue;
        int through = here;
#pragma unroll
        for (int s = 1; s < 32; s *= 2) {
            const int left = __shfl_up_sync(EveryLane, through, s);
            if (lane >= s) through += left;
        }
        int greaterHere = greater + ((through - here) & 0xffff), equalHere = equal + ((through - here) >> 16);
        if (here)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = begin + step * Step + 4 * lane + j;
                const auto write = [&](int to) { row.out[to] = (row.source ? row.source[at] : at) + row.offset; };
                if (key[j] > prefix) write(greaterHere++ + max(0, equalHere - skipped));
                if (key[j] == prefix) {
                    if (equalHere >= skipped) write(greaterHere + equalHere - skipped);
                    ++equalHere;
                }
            }
        through = __shfl_sync(EveryLane, through, 31);
        greater += through & 0xffff, equal += through >> 16;
    }
}

__device__ int held(const TopKArgs& a, std::int64_t row) { return max(0, min(a.counts[row], static_cast<int>(a.capacity))); }

// Grid (blocks, rows · pieces); without candidates pieces is 1 and the row's own indices are written.
template <int Blocks>
__global__ void __launch_bounds__(Threads, 1) top_k_kernel(const TopKArgs a, std::int32_t* candidates, int pieces, int cachedSteps) {
    const std::int64_t row = blockIdx.y / pieces, offset = blockIdx.y % pieces * Piece;
    int n = held(a, row);
    if (candidates) n = max(0, min(n - static_cast<int>(offset), static_cast<int>(Piece)));
    std::int32_t* out = candidates ? candidates + blockIdx.y * a.k : a.out + row * a.k;
    selectTop<Blocks>(
        {a.scores + row * a.row + offset, nullptr, n, min(static_cast<int>(a.k), n), static_cast<int>(offset), out, static_cast<int>(a.k)},
        cachedSteps);
}

template <int Blocks>
__global__ void __launch_bounds__(Threads, 1)
    top_k_of_pieces_kernel(const TopKArgs a, const std::int32_t* candidates, int pieces, int cachedSteps) {
    const std::int64_t row = blockIdx.y, all = pieces * a.k;
    selectTop<Blocks>({a.scores + row * a.row, candidates + row * all, static_cast<int>(all), min(static_cast<int>(a.k), held(a, row)), 0,
                       a.out + row * a.k, static_cast<int>(a.k)},
                      cachedSteps);
}

int piecesOf(const TopKArgs& args) {
    const std::int64_t pieces = (args.capacity + Piece - 1) / Piece;
    return args.capacity > LongRow && pieces * args.k <= args.capacity / 2 ? static_cast<int>(pieces) : 1;
}

template <class Kernel, class Candidates>
cudaError_t launch(Kernel* one, Kernel* several, int clusterBlocks, std::int64_t elements, std::int64_t rows, const TopKArgs& args,
                   Candidates candidates, int pieces, const CudaDevice& device, cudaStream_t stream) {
    const bool cluster = device.clusters && elements > ShortRow;
    const int blocks = cluster ? clusterBlocks : 1;
    Kernel* kernel = cluster ? several : one;
    const std::int64_t steps = (elements + blocks * Warps * Step - 1) / (blocks * Warps * Step),
                       room = (device.sharedPerBlock - 4 * Bins * 4 - 1024) / (Warps * Step * 4);
    const int cached = static_cast<int>(std::max<std::int64_t>(0, std::min(steps, room))), bytes = cached * Warps * Step * 4;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); error != cudaSuccess)
        return error;
    if (blocks > 8)
        if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1); error != cudaSuccess)
            return error;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows));
    config.blockDim = dim3(Threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    config.stream = stream;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(blocks), attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = cluster ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, args, candidates, pieces, cached);
}

} // namespace

std::int64_t topKCandidates(const TopKArgs& args, const CudaDevice&) {
    const int pieces = piecesOf(args);
    return pieces > 1 ? args.rows * pieces * args.k : 0;
}

#ifndef CLUSTER
#define CLUSTER 8
#endif
cudaError_t launchTopK(const TopKArgs& args, const TopKScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    if (args.rows == 0 || args.k == 0) return cudaSuccess;
    const int pieces = piecesOf(args);
    if (pieces == 1) {
        std::int32_t* none = nullptr;
        return launch(top_k_kernel<1>, top_k_kernel<CLUSTER>, CLUSTER, args.capacity, args.rows, args, none, 1, device, stream);
    }
    if (const cudaError_t error =
            launch(top_k_kernel<1>, top_k_kernel<8>, 8, Piece, args.rows * pieces, args, scratch.candidates, pieces, device, stream);
        error != cudaSuccess)
        return error;
    const std::int32_t* candidates = scratch.candidates;
    return launch(top_k_of_pieces_kernel<1>, top_k_of_pieces_kernel<8>, 8, pieces * args.k, args.rows, args, candidates, pieces, device,
                  stream);
}

} // namespace keepsight::cuda
