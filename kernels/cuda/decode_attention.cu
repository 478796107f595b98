// Attention of one new query over ragged entries: o = softmax(q·Kᵀ·scale over visible entries)·V, online softmax in fp32, base 2.
//
// A fixed grid; its blocks take equal shares of all heads' tiles (flatten.cuh), so ragged heads cost what their entries cost. A walk is a
// KV head seen by up to 8 of its query heads: keys and values are read once for all of them (tile.cuh). A block's warps take every nth tile
// of its share; what they leave is added up by decode_walks.cuh. Visible entries are a prefix: positions ascend.
#include "kernels/cuda/decode_walks.cuh"
#include "kernels/cuda/launch_change.h"
#include "kernels/cuda/overlap.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

// The output: in the queries' type; in fp32, with weights as the sum of two rounded ones, for what takes differences from it; or only scores.
enum class Output { rounded, wide, none };

template <class T, int Dim, Output Out>
struct DecodeShared { // sizes of the parts of a block's shared memory
    static constexpr int Ring = Out == Output::none ? 4 : 2; // tiles a warp holds
    static constexpr int Queries = TileScores<T, Dim, 1>::SharedFloats, Weights = TileOutputs<T, Dim>::SharedFloats;
    static constexpr int RingBytes = Ring * TileStream<T, Dim, Ring, Out != Output::none>::Stage;
    static std::size_t bytes(int warps, int kvHeads, int walks) {
        return static_cast<std::size_t>(warps * (RingBytes + (Weights + Waiting * TileHeads * 2) * 4) +
                                        DecodeWalks<T, Dim>::outputBytes(warps) +
                                        (Queries + kvHeads + 3 * walks + 2 + Waiting) * 4);
    }
};

template <class T, int Dim, Output Out>
__global__ void __launch_bounds__(MaxWarps * 32, 1) decode_attention_kernel(const AttentionArgs a, const DecodeScratch s) {
    letLaterKernelsStart(); // they wait for the end before they read the output
    waitForEarlierKernels();
    extern __shared__ __align__(128) char shared[];
    using Sizes = DecodeShared<T, Dim, Out>;
    using KeyTile = Tile<T, Dim>;
    using Walks = DecodeWalks<std::conditional_t<Out == Output::rounded, T, float>, Dim>;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
    float* allOutputs = reinterpret_cast<float*>(shared + warps * Sizes::RingBytes);
    float* weights = reinterpret_cast<float*>(shared + warps * Sizes::RingBytes +
                                              Walks::outputBytes(warps)); // [warps, …]
    float2* tops = reinterpret_cast<float2*>(weights + warps * Sizes::Weights); // [Waiting, warps, 8] (max, sum)
    float* queries = reinterpret_cast<float*>(tops + Waiting * warps * TileHeads);
    int* held = reinterpret_cast<int*>(queries + Sizes::Queries); // [kvHeads]
    int* first = held + a.kvHeads;                                // [walks + 1]
    const int group = static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads), parts = (group + TileHeads - 1) / TileHeads,
              walks = static_cast<int>(a.kvHeads) * parts;
    int* last = first + walks + 1;                                                                  // [Waiting]
    int2* takers = reinterpret_cast<int2*>(last + Waiting + (a.kvHeads + walks + 1 + Waiting) % 2); // [walks] first block, how many

    // Shares are of held entries: what the query sees is found out while the first tiles are on their way.
    const int now = a.queryPositions[0];
    if (warp == 0)
        flattenHeads(static_cast<int>(a.kvHeads), parts, TileEntries, held, first,
                     [&](int h) { return h < a.kvHeads ? max(0, min(a.lengths[h], static_cast<int>(a.capacity))) : 0; });
    __syncthreads();
    const int tiles = first[walks], blocks = blocksFor(first, walks, warps, static_cast<int>(gridDim.x)),
              block = static_cast<int>(blockIdx.x);
    const Walks share{a, s, group, parts, warps, block, allOutputs, tops, last, takers};
    if (block >= blocks) {
        share.clearEmpty(first, walks);
        return;
    }

    const float scale = a.scale * Log2E;
    TileScores<T, Dim, 1> scores;
    TileOutputs<T, Dim> outputs;
    int begin = shareBegin(block, tiles, blocks);
    const int end = shareBegin(block + 1, tiles, blocks);
    int walk = walkOfTile(first, walks, begin);
    TileStream<T, Dim, Sizes::Ring, Out != Output::none> stream{static_cast<const T*>(a.k.data),
                                          static_cast<const T*>(a.v.data),
                                          a.k.head,
                                          a.v.head,
                                          static_cast<int>(a.k.row * sizeof(T)),
                                          static_cast<int>(a.v.row * sizeof(T)),
                                          shared + warp * Sizes::RingBytes,
                                          held,
                                          first,
                                          parts,
                                          warps,
                                          begin + warp,
                                          end,
                                          walk,
                                          0,
                                          a.k.starts};
    bool allSeen = true;
    const auto readAhead = [&](int of) { // of a walk
        const Walk w(group, parts, of);
        scores.readQueries(static_cast<const T*>(a.q.data) + w.queryHead * a.q.head, a.q.head, w.queryHeads, queries);
        allSeen = a.positionsOf(w.head)[held[w.head] - 1] <= now;
    };
    int waiting = 0, waitingWalk[Waiting] = {};
    readAhead(walk);
    stream.begin();
    share.clearEmpty(first, walks); // while the first tiles are on their way
    share.findTakers(first, walks, blocks);
#pragma unroll 1
    for (int flat = begin + warp; begin < end;) {
        const Walk w(group, parts, walk);
        const int n = held[w.head], stop = min(end, first[walk + 1]);
        scores.useQueries();
        const int visible = allSeen ? n : visibleEntries([of = a.positionsOf(w.head)](int t) { return of[t]; }, n, now);
        if (s.visible && threadIdx.x == 0 && begin == first[walk]) s.visible[w.head] = visible;
        int after = walk + 1; // the next one with entries
#pragma unroll 1
        while (stop < end && first[after + 1] == stop)
            ++after;
        if (stop < end) readAhead(after);
        outputs.clear();
        RunningSoftmax softmax;
#pragma unroll 1
        for (; flat < stop; flat += warps) {
            const char* keys = stream.current();
            float p[4], shrink0, shrink1;
            scores.dot(keys, p);
            hideAndKeep(p, scale, (flat - first[walk]) * TileEntries, visible, a, s, w);
            softmax.add(p, shrink0, shrink1);
            if constexpr (Out != Output::none) outputs.add(keys + KeyTile::Bytes, p, shrink0, shrink1, weights + warp * Sizes::Weights);
            if constexpr (Out == Output::wide && !std::is_same_v<T, float>) {
                const float2 early = unpacked<T>(packed<T>(p[0], p[1])), late = unpacked<T>(packed<T>(p[2], p[3]));
                const float rest[4] = {p[0] - early.x, p[1] - early.y, p[2] - late.x, p[3] - late.y};
                outputs.add(keys + KeyTile::Bytes, rest, 1, 1, weights + warp * Sizes::Weights);
            }
            stream.release();
        }
        outputs.store(allOutputs + (waiting * warps + warp) * share.Outputs, w.queryHeads);
        softmax.store(tops + (waiting * warps + warp) * TileHeads);
        // Most blocks see one head or two: what waits is added up at the end, when no tile is missed meanwhile.
        waitingWalk[waiting++] = walk;
        begin = stop, walk = after;
        if (waiting == Waiting || begin == end) {
            share.finish(waitingWalk, waiting);
            waiting = 0;
        }
    }
}

// Weights of the query from its scores: lastRows = w, columnSum += w. Grid (entries / 1024, query heads), four entries a thread.
__global__ void __launch_bounds__(256) decode_weights_kernel(const AttentionArgs a, const DecodeScratch s) {
    const std::int64_t head = blockIdx.y;
    const int visible = s.visible[static_cast<int>(head) / (static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads))];
    const float logSum = s.logSums[head];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * 1024 + i * 256 + threadIdx.x, at = head * a.capacity + t;
        if (t >= a.capacity) continue;
        const bool seen = t < visible;
        const float weight = seen ? power2(s.scores[at] - logSum) : 0.0f;
        if (a.lastCount > 0) a.lastRows[at] = weight;
        if (seen && a.columnSum) a.columnSum[at] += weight;
    }
}

template <class T, int Dim, Output Out>
cudaError_t launch(const AttentionArgs& args, const DecodeScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    using Sizes = DecodeShared<T, Dim, Out>;
    const int walks = walksOf(args.queryHeads, args.kvHeads), kvHeads = static_cast<int>(args.kvHeads), blocks = decodeBlocks(device);
    int warps = MaxWarps;
#pragma unroll 1
    while (warps > 1 && Sizes::bytes(warps, kvHeads, walks) > static_cast<std::size_t>(device.sharedPerBlock))
        --warps;
    const std::size_t bytes = Sizes::bytes(warps, kvHeads, walks);
    const auto kernel = decode_attention_kernel<T, Dim, Out>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess)
        return error;
    cudaLaunchAttribute early;
    const cudaLaunchConfig_t config =
        overlapping(dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(warps * 32)), bytes, stream, early);
    if (const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args, scratch);
        error != cudaSuccess || !scratch.scores || Out != Output::rounded)
        return error;
    return launchDecodeWeights(args, scratch, stream);
}

} // namespace

int decodeBlocks(const CudaDevice& device) { return device.multiprocessors; }

cudaError_t launchDecodeWeights(const AttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((args.capacity + 1023) / 1024), static_cast<unsigned>(args.queryHeads));
    decode_weights_kernel<<<grid, 256, 0, stream>>>(args, scratch);
    return cudaGetLastError();
}

cudaError_t launchDecodeAttention(const AttentionArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                                  cudaStream_t stream) {
    return forHeadSize(args.dim, [&](auto dim) {
        return forElement(element, [&](auto zero) { return launch<decltype(zero), decltype(dim)::value, Output::rounded>(args, scratch, device, stream); });
    });
}

cudaError_t launchDecodeScores(const AttentionArgs& args, CudaElement element, bool output, const DecodeScratch& scratch, const CudaDevice& device,
                               cudaStream_t stream) {
    return forHeadSize(args.dim, [&](auto dim) {
        return forElement(element, [&](auto zero) {
            using T = decltype(zero);
            constexpr int Dim = decltype(dim)::value;
            return output ? launch<T, Dim, Output::wide>(args, scratch, device, stream) : launch<T, Dim, Output::none>(args, scratch, device, stream);
        });
    });
}

} // namespace keepsight::cuda
