// The k highest of each row, as ascending indices: radix selection of the threshold, then the entries above it and the last ones equal to it.
//
// A row belongs to a cluster of blocks (one block where clusters do not exist or the row is short); each warp owns a run of it, each
// thread keeps its keys (integers of the scores' order) in registers where the row is not too long for that. The blocks count digits of
// 11, 11 and 10 bits. Sums of 32 bins go to all blocks, which then find the digit alike, and how many of the bin each block has. Once few
// keys share the digits found so far, all blocks collect them and count the other digits for themselves: two barriers of the cluster are
// all that is waited for as a rule. Counts are integers: the order of additions does not matter. A long row is cut into pieces, each by a
// cluster of its own; the pieces' best, still in order, are then searched as one row.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/cluster.cuh"

#include <algorithm>
#include <type_traits>

namespace keepsight::cuda {
namespace {

constexpr int Threads = 1024, Warps = Threads / 32, Step = 128; // Step: elements a warp takes at once, four a lane
constexpr int Bins = 2048, Sums = Bins / 32;                       // Sums: of 32 bins each
constexpr int HeldSteps = 16384 / Threads / 4;                     // of a thread, in registers
constexpr int ClusterBlocks = 8; // 16 are a microsecond faster for one row of 131072, and slower for several
constexpr int MostCollected = 4096;
constexpr unsigned EveryLane = 0xffffffffu;
constexpr std::int64_t ShortRow = 16384, Piece = 65536, LongRow = 2 * Piece; // one block up to ShortRow, pieces beyond LongRow

// Ascending with the score; NaN as −inf, −0 as 0. Every key of a score is above 0, which stands for none.
__device__ unsigned keyOf(float x) {
    const unsigned bits = __float_as_uint(x == x ? x + 0.0f : -INFINITY);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Row {
    const float* scores;        // of the row or piece
    const std::int32_t* source; // indices into scores, −1: none; null: 0, 1, …
    int n, want, offset;        // elements; to be taken; added to the indices written
    std::int32_t* out;
    int room; // places of out
};

// Sum over lanes up to and including this one.
__device__ int sumThrough(int x, int lane) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int left = __shfl_up_sync(EveryLane, x, step);
        if (lane >= step) x += left;
    }
    return x;
}

struct Shared {
    int bins[2][Bins];           // of this block; of one pass, and zero for the next
    int sums[2][ClusterBlocks][Sums]; // of all blocks
    unsigned collected[MostCollected];
    int collectedHere, warpSums[2][Warps], earlier[2];
    int digit, above, within;    // the digit found; keys of higher digits, and of this one
    int aboveEarlier, withinEarlier; // of those, the ones of blocks before this one
};

// The digit of the `missing`-th highest key, by one warp, from `blocks` blocks' counts.
template <int Blocks>
__device__ void findDigit(Shared& s, int buffer, int blocks, int rank, int missing, int lane) {
    using Group = Cluster<Blocks>;
    int high = 0, low = 0, earlier = 0; // sums of bins of 63 − 2·lane and the one below; those of earlier blocks
    int highEarlier = 0;
#pragma unroll 4
    for (int b = 0; b < blocks; ++b) {
        const int2 two = *reinterpret_cast<const int2*>(&s.sums[buffer][b][Sums - 2 - 2 * lane]);
        high += two.y, low += two.x;
        if (b < rank) highEarlier += two.y, earlier += two.x + two.y;
    }
    const int through = sumThrough(high + low, lane), before = through - high - low;
    const int owner = __ffs(static_cast<int>(__ballot_sync(EveryLane, missing <= through))) - 1;
    const bool inHigh = missing <= before + high;
    const int group = __shfl_sync(EveryLane, Sums - 1 - 2 * lane - (inHigh ? 0 : 1), owner);
    int above = __shfl_sync(EveryLane, inHigh ? before : before + high, owner);
    int aboveEarlier = lane < owner ? earlier : lane == owner && !inHigh ? highEarlier : 0;

    const int bin = group * 32 + 31 - lane;
    int sum = 0;
    earlier = 0;
#pragma unroll
    for (int b = 0; b < Blocks; ++b) {
        if (b >= blocks) break;
        const int x = blocks == 1 ? s.bins[buffer][bin] : *Group::of(&s.bins[buffer][bin], b);
        sum += x;
        if (b < rank) earlier += x;
    }
    const int sumTo = sumThrough(sum, lane) + above;
    const int at = __ffs(static_cast<int>(__ballot_sync(EveryLane, missing <= sumTo))) - 1;
    if (lane < at) aboveEarlier += earlier;
    aboveEarlier = __reduce_add_sync(EveryLane, aboveEarlier);
    if (lane == at) s.digit = bin, s.above = sumTo - sum, s.within = sum, s.aboveEarlier = aboveEarlier, s.withinEarlier = earlier;
}

// Resident: all steps are held.
template <int Blocks, bool Resident>
__device__ void selectTop(const Row& row, Shared& s) {
    using Group = Cluster<Blocks>;
    const int rank = Group::rank(), thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, n = row.n;
    const int steps = (n + Blocks * Warps * Step - 1) / (Blocks * Warps * Step), begin = (rank * Warps + warp) * steps * Step;
    const bool vectors = !row.source && reinterpret_cast<std::uintptr_t>(row.scores) % 16 == 0;
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
    uint4 held[HeldSteps];
    if constexpr (Resident) {
        if (vectors) {
#pragma unroll
            for (int step = 0; step < HeldSteps; ++step) {
                const int at = begin + step * Step + 4 * lane;
                float4 x = make_float4(0, 0, 0, 0);
                if (step < steps && at + 4 <= n) x = *reinterpret_cast<const float4*>(row.scores + at);
                held[step] = make_uint4(__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z), __float_as_uint(x.w));
            }
#pragma unroll
            for (int step = 0; step < HeldSteps; ++step) {
                const int at = begin + step * Step + 4 * lane;
                if (step < steps && at + 4 <= n)
                    held[step] = make_uint4(keyOf(__uint_as_float(held[step].x)), keyOf(__uint_as_float(held[step].y)),
                                            keyOf(__uint_as_float(held[step].z)),
                                            keyOf(__uint_as_float(held[step].w)));
                else
                    held[step] = step < steps && at < n ? make_uint4(one(at), one(at + 1), one(at + 2), one(at + 3)) : make_uint4(0, 0, 0, 0);
            }
        } else {
#pragma unroll
            for (int step = 0; step < HeldSteps; ++step)
                held[step] = step < steps ? fresh(step) : make_uint4(0, 0, 0, 0);
        }
    }
    const auto forSteps = [&](auto&& body) { // body(first element of the lane, its four keys); all lanes of a warp alike
        if constexpr (Resident) {
#pragma unroll
            for (int step = 0; step < HeldSteps; ++step)
                if (step < steps) {
                    const unsigned key[4] = {held[step].x, held[step].y, held[step].z, held[step].w};
                    body(begin + step * Step + 4 * lane, key);
                }
        } else {
#pragma unroll 1
            for (int step = 0; step < steps; ++step) {
                const uint4 x = fresh(step);
                const unsigned key[4] = {x.x, x.y, x.z, x.w};
                body(begin + step * Step + 4 * lane, key);
            }
        }
    };

    unsigned prefix = 0;                       // the digits found
    int left = 32, missing = row.want, ties = -1; // bits not yet found; keys missing among the `ties` ones that have the prefix
    int greater = 0, equal = 0;                // keys of earlier blocks above the prefix, and of it
    int pool = 0;                              // keys collected
#pragma unroll 1 // cold code comes from memory, too: loops stay loops where time is not spent
    for (int pass = 0; left > 0 && missing != ties; ++pass) {
        const int bits = left == 10 ? 10 : 11, shift = left - bits, buffer = pass % 2;
        const unsigned mask = (1u << bits) - 1;
        int* bins = s.bins[buffer];
        if (pool == 0)
            forSteps([&](int, const unsigned(&key)[4]) {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (key[j] != 0 && __funnelshift_rc(key[j], 0, left) == prefix) atomicAdd(bins + ((key[j] >> shift) & mask), 1);
            });
        else
#pragma unroll 1
            for (int i = thread; i < pool; i += Threads)
                if (s.collected[i] >> left == prefix) atomicAdd(bins + ((s.collected[i] >> shift) & mask), 1);
        __syncthreads();
        const bool together = Blocks > 1 && pool == 0; // all blocks
#pragma unroll
        for (int i = 0; i < Bins / 2 / Threads; ++i) {
            const int2 two = reinterpret_cast<const int2*>(bins)[i * Threads + thread];
            int sum = two.x + two.y;
#pragma unroll
            for (int step = 1; step < 16; step *= 2)
                sum += __shfl_xor_sync(EveryLane, sum, step);
            int* to = &s.sums[buffer][together ? rank : 0][(i * Threads + thread) / 16];
            if (lane % 16 < (together ? Blocks : 1)) *(together ? Group::of(to, lane % 16) : to) = sum;
        }
        if (together)
            Group::arrive(), Group::wait();
        else
            __syncthreads();
#pragma unroll
        for (int i = 0; i < Bins / Threads; ++i) // read last before the barrier
            s.bins[buffer ^ 1][i * Threads + thread] = 0;
        if (warp == 0) findDigit<Blocks>(s, buffer, together ? Blocks : 1, together ? rank : 0, missing, lane);
        __syncthreads();
        prefix = prefix << bits | static_cast<unsigned>(s.digit);
        missing -= s.above, ties = s.within, left = shift;
        if (pool > 0) continue;
        greater += s.aboveEarlier, equal = s.withinEarlier;
        if (ties > MostCollected || left == 0 || missing == ties) continue;
        int count = 0;
        forSteps([&](int, const unsigned(&key)[4]) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                count += key[j] >> left == prefix;
        });
        const int through = sumThrough(count, lane);
        int place = 0;
        if (lane == 31 && through > 0) place = atomicAdd(&s.collectedHere, through);
        place = equal + __shfl_sync(EveryLane, place, 31) + through - count;
        if (count)
            forSteps([&](int, const unsigned(&key)[4]) {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (key[j] >> left == prefix) s.collected[place++] = key[j];
            });
        __syncthreads();
        pool = ties;
        if constexpr (Blocks > 1) {
            const int end = equal + s.collectedHere, to = (rank + 1 + warp % (Blocks - 1)) % Blocks;
            static_assert(Warps >= Blocks - 1);
            unsigned* theirs = Group::of(s.collected, to);
            const int share = Warps / (Blocks - 1) + (warp % (Blocks - 1) < Warps % (Blocks - 1)); // warps that write to that block
#pragma unroll 1
            for (int i = equal + warp / (Blocks - 1) * 32 + lane; i < end; i += share * 32)
                theirs[i] = s.collected[i];
            Group::arrive(), Group::wait();
        }
    }
    if (Blocks > 1 && pool == 0) Group::arrive(), Group::wait(); // other blocks may still read this one's bins

    // Keys above the prefix are taken, and of `ties` equal to it the last `missing`. To be counted: those of this block's warps, and of
    // earlier blocks' collected keys.
    const unsigned least = prefix << left;
    const auto isEqual = [&](unsigned key) { return key >> left == prefix; };
    int greaterHere = 0, equalHere = 0;
    forSteps([&](int, const unsigned(&key)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            greaterHere += key[j] >= least, equalHere += isEqual(key[j]);
    });
    greaterHere = __reduce_add_sync(EveryLane, greaterHere), equalHere = __reduce_add_sync(EveryLane, equalHere);
    greaterHere -= equalHere;
    if (lane == 0) s.warpSums[0][warp] = greaterHere, s.warpSums[1][warp] = equalHere;
    if (pool > 0 && equal > 0) {
        int g = 0, e = 0;
#pragma unroll 1
        for (int i = thread; i < equal; i += Threads)
            g += s.collected[i] >= least, e += isEqual(s.collected[i]);
        g = __reduce_add_sync(EveryLane, g), e = __reduce_add_sync(EveryLane, e);
        if (lane == 0 && g > 0) atomicAdd(&s.earlier[0], g - e), atomicAdd(&s.earlier[1], e);
    }
    __syncthreads();
    if (greaterHere + equalHere == 0) return; // the whole warp
    if (pool > 0) greater += s.earlier[0], equal = s.earlier[1];
    greater += __reduce_add_sync(EveryLane, lane < warp ? s.warpSums[0][lane] : 0);
    equal += __reduce_add_sync(EveryLane, lane < warp ? s.warpSums[1][lane] : 0);
    const int skipped = ties - missing;
    const unsigned earlierLanes = (1u << lane) - 1;
    int to = greater + max(0, equal - skipped);
    forSteps([&](int at, const unsigned(&key)[4]) {
        unsigned taken = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            taken |= (key[j] >= least ? 1u : 0u) << j;
        if (!__any_sync(EveryLane, taken)) return;
        if (skipped > 0) { // equal ones of lower indices are not
            int ofLane = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j)
                ofLane += isEqual(key[j]);
            if (__any_sync(EveryLane, ofLane)) {
                const int through = sumThrough(ofLane, lane);
                int before = equal + through - ofLane;
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (isEqual(key[j]) && before++ < skipped) taken &= ~(1u << j);
                equal += __shfl_sync(EveryLane, through, 31);
            }
        }
        int place = to;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const unsigned all = __ballot_sync(EveryLane, taken >> j & 1);
            place += __popc(all & earlierLanes), to += __popc(all);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (taken >> j & 1) row.out[place++] = (row.source ? row.source[at + j] : at + j) + row.offset;
    });
}

// Before anything of earlier kernels is read.
template <int Blocks>
__device__ void prepare(Shared& s) {
#pragma unroll
    for (int i = 0; i < Bins / Threads; ++i)
        s.bins[0][i * Threads + threadIdx.x] = 0;
    if (threadIdx.x == 0) s.collectedHere = s.earlier[0] = s.earlier[1] = 0;
    __syncthreads();
    if constexpr (Blocks > 1) Cluster<Blocks>::arrive(), Cluster<Blocks>::wait(); // a block's shared memory is there once it has started
    letLaterKernelsStart();
    waitForEarlierKernels();
}

__device__ void fillRest(const Row& row, int rank, int blocks) {
#pragma unroll 1
    for (int i = row.want + rank * Threads + static_cast<int>(threadIdx.x); i < row.room; i += blocks * Threads)
        row.out[i] = -1;
}

__device__ int heldOf(const TopKArgs& a, std::int64_t row) { return max(0, min(a.counts[row], static_cast<int>(a.capacity))); }

// Grid (blocks, rows · pieces); without candidates pieces is 1 and the row's own indices are written.
template <int Blocks, bool Resident>
__global__ void __launch_bounds__(Threads, 1) top_k_kernel(const TopKArgs a, std::int32_t* candidates, int pieces) {
    __shared__ __align__(16) Shared shared;
    prepare<Blocks>(shared);
    const std::int64_t row = blockIdx.y / pieces, offset = blockIdx.y % pieces * Piece;
    int n = heldOf(a, row);
    if (candidates) n = max(0, min(n - static_cast<int>(offset), static_cast<int>(Piece)));
    std::int32_t* out = candidates ? candidates + blockIdx.y * a.k : a.out + row * a.k;
    const Row r{a.scores + row * a.row + offset, nullptr, n, min(static_cast<int>(a.k), n), static_cast<int>(offset), out, static_cast<int>(a.k)};
    fillRest(r, Cluster<Blocks>::rank(), Blocks);
    if (r.want > 0) selectTop<Blocks, Resident>(r, shared);
}

template <int Blocks, bool Resident>
__global__ void __launch_bounds__(Threads, 1) top_k_of_pieces_kernel(const TopKArgs a, const std::int32_t* candidates, int pieces) {
    __shared__ __align__(16) Shared shared;
    prepare<Blocks>(shared);
    const std::int64_t row = blockIdx.y, all = pieces * a.k;
    const Row r{a.scores + row * a.row, candidates + row * all, static_cast<int>(all), min(static_cast<int>(a.k), heldOf(a, row)), 0,
                a.out + row * a.k,
                static_cast<int>(a.k)};
    fillRest(r, Cluster<Blocks>::rank(), Blocks);
    if (r.want > 0) selectTop<Blocks, Resident>(r, shared);
}

int piecesOf(const TopKArgs& args) {
    const std::int64_t pieces = (args.capacity + Piece - 1) / Piece;
    return args.capacity > LongRow && pieces * args.k <= args.capacity / 2 ? static_cast<int>(pieces) : 1;
}

template <class Kernel, class Candidates>
cudaError_t launch(Kernel* kernel, int blocks, std::int64_t rows, const TopKArgs& args, Candidates candidates, int pieces, cudaStream_t stream) {
    cudaLaunchAttribute attributes[2];
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(rows));
    const cudaLaunchConfig_t config = overlappingClusters(blocks, grid, dim3(Threads), 0, stream, attributes);
    return cudaLaunchKernelEx(&config, kernel, args, candidates, pieces);
}

// Of a row of `elements`.
template <int Blocks>
bool resident(std::int64_t elements) { return elements <= static_cast<std::int64_t>(Blocks) * Threads * 4 * HeldSteps; }

} // namespace

std::int64_t topKCandidates(const TopKArgs& args, const CudaDevice&) {
    const int pieces = piecesOf(args);
    return pieces > 1 ? args.rows * pieces * args.k : 0;
}

cudaError_t launchTopK(const TopKArgs& args, const TopKScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    if (args.rows == 0 || args.k == 0) return cudaSuccess;
    const int pieces = piecesOf(args);
    const std::int64_t part = pieces > 1 ? Piece : args.capacity, parts = args.rows * pieces, all = pieces * args.k;
    std::int32_t* to = pieces > 1 ? scratch.candidates : nullptr;
    const auto several = [&](auto blocks) {
        constexpr int Blocks = decltype(blocks)::value;
        return launch(resident<Blocks>(part) ? top_k_kernel<Blocks, true> : top_k_kernel<Blocks, false>, Blocks, parts, args, to, pieces, stream);
    };
    cudaError_t error;
    if (!device.clusters || part <= ShortRow)
        error = several(std::integral_constant<int, 1>{});
    else
        error = several(std::integral_constant<int, ClusterBlocks>{});
    if (error != cudaSuccess || pieces == 1) return error;
    const std::int32_t* from = scratch.candidates;
    const auto best = [&](auto blocks) {
        constexpr int Blocks = decltype(blocks)::value;
        return launch(resident<Blocks>(all) ? top_k_of_pieces_kernel<Blocks, true> : top_k_of_pieces_kernel<Blocks, false>, Blocks, args.rows,
                      args, from, pieces, stream);
    };
    if (!device.clusters || all <= ShortRow) return best(std::integral_constant<int, 1>{});
    return best(std::integral_constant<int, ClusterBlocks>{});
}

} // namespace keepsight::cuda
