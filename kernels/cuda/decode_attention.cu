// Attention of one new query over ragged entries: o = softmax(q·Kᵀ·scale over visible entries)·V, online softmax in fp32, base 2.
//
// A fixed grid; its blocks take equal shares of all heads' tiles (flatten.cuh), so ragged heads cost what their entries cost. A walk is a
// KV head seen by up to 8 of its query heads: keys and values are read once for all of them (tile.cuh). A block's warps take every nth tile
// of its share; what they leave is added up by decode_walks.cuh. Visible entries are a prefix: positions ascend.
#include "kernels/cuda/decode_walks.cuh"
#include "kernels/cuda/overlap.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int Ring = 2; // tiles a warp holds

// Entries that the query sees of a head whose last one, of n, lies behind it. By a whole warp, uniform.
__device__ int visibleEntries(const std::int32_t* positions, int n, int now) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int low = 0, high = n - 1; // entries before low are seen, entry high is not
#pragma unroll 1
    while (low < high) {
        const int step = (high - low + 32) / 33, probe = low + step * (lane + 1) - 1;
        const int seen = __popc(__ballot_sync(EveryLane, probe < high && positions[probe] <= now));
        if (seen < 32) high = min(high, low + step * (seen + 1) - 1);
        low += step * seen;
    }
    return low;
}

template <class T, int Dim>
struct DecodeShared { // sizes of the parts of a block's shared memory
    static constexpr int Queries = TileScores<T, Dim, 1>::SharedFloats, Weights = TileOutputs<T, Dim>::SharedFloats;
    static constexpr int RingBytes = Ring * TileStream<T, Dim, Ring, true>::Stage;
    static std::size_t bytes(int warps, int kvHeads, int walks, int blocks) {
        return static_cast<std::size_t>(warps * (RingBytes + (Weights + Waiting * TileHeads * 2) * 4) +
                                        DecodeWalks<T, Dim>::outputBytes(warps, blocks) +
                                        (Queries + kvHeads + 3 * walks + 2 + Waiting) * 4);
    }
};

template <class T, int Dim>
__global__ void __launch_bounds__(MaxWarps * 32, 1) decode_attention_kernel(const AttentionArgs a, const DecodeScratch s) {
    letLaterKernelsStart(); // they wait for the end before they read the output
    extern __shared__ __align__(128) char shared[];
    using Sizes = DecodeShared<T, Dim>;
    using KeyTile = Tile<T, Dim>;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
    float* allOutputs = reinterpret_cast<float*>(shared + warps * Sizes::RingBytes);
    float* weights = reinterpret_cast<float*>(shared + warps * Sizes::RingBytes +
                                              DecodeWalks<T, Dim>::outputBytes(warps, static_cast<int>(gridDim.x))); // [warps, …]
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
    const DecodeWalks<T, Dim> share{a, s, group, parts, warps, block, allOutputs, tops, last, takers};
    share.clearEmpty(first, walks);
    if (block >= blocks) return;
    share.findTakers(first, walks, blocks);

    const float scale = a.scale * Log2E;
    TileScores<T, Dim, 1> scores;
    TileOutputs<T, Dim> outputs;
    int begin = shareBegin(block, tiles, blocks);
    const int end = shareBegin(block + 1, tiles, blocks);
    int walk = walkOfTile(first, walks, begin);
    TileStream<T, Dim, Ring, true> stream{static_cast<const T*>(a.k.data),
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
                                          walk};
    bool allSeen = true;
    const auto readAhead = [&](int of) { // of a walk
        const Walk w(group, parts, of);
        scores.readQueries(static_cast<const T*>(a.q.data) + w.queryHead * a.q.head, a.q.head, w.queryHeads, queries);
        allSeen = a.positions[w.head * a.capacity + held[w.head] - 1] <= now;
    };
    int waiting = 0, waitingWalk[Waiting] = {};
    readAhead(walk);
    stream.begin();
#pragma unroll 1
    for (int flat = begin + warp; begin < end;) {
        const Walk w(group, parts, walk);
        const int n = held[w.head], stop = min(end, first[walk + 1]);
        scores.useQueries();
        const int visible = allSeen ? n : visibleEntries(a.positions + w.head * a.capacity, n, now);
        if (s.visible && threadIdx.x == 0 && begin == first[walk]) s.visible[w.head] = visible;
        int after = walk + 1; // the next one with entries
#pragma unroll 1
        while (stop < end && first[after + 1] == stop)
            ++after;
        if (stop < end) readAhead(after);
        outputs.clear();
        float top0 = -FLT_MAX, top1 = -FLT_MAX, sum0 = 0, sum1 = 0;
#pragma unroll 1
        for (; flat < stop; flat += warps) {
            const char* keys = stream.current();
            const int at = (flat - first[walk]) * TileEntries, mine = at + KeyTile::entry(r);
            float p[4];
            scores.dot(keys, p);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                p[i] *= scale;
            if (at + TileEntries > visible) {
                if (mine >= visible) p[0] = p[1] = -INFINITY;
                if (mine + 8 >= visible) p[2] = p[3] = -INFINITY;
            }
            if (s.scores)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (mine + i / 2 * 8 < visible && 2 * c + i % 2 < w.queryHeads)
                        s.scores[(w.queryHead + 2 * c + i % 2) * a.capacity + mine + i / 2 * 8] = p[i];
            float high0 = fmaxf(p[0], p[2]), high1 = fmaxf(p[1], p[3]);
#pragma unroll
            for (int step = 4; step < 32; step *= 2) {
                high0 = fmaxf(high0, __shfl_xor_sync(EveryLane, high0, step));
                high1 = fmaxf(high1, __shfl_xor_sync(EveryLane, high1, step));
            }
            high0 = fmaxf(high0, top0), high1 = fmaxf(high1, top1);
            const float shrink0 = power2(top0 - high0), shrink1 = power2(top1 - high1);
            top0 = high0, top1 = high1;
            p[0] = power2(p[0] - top0), p[1] = power2(p[1] - top1), p[2] = power2(p[2] - top0), p[3] = power2(p[3] - top1);
            sum0 = sum0 * shrink0 + p[0] + p[2], sum1 = sum1 * shrink1 + p[1] + p[3];
            outputs.add(keys + KeyTile::Bytes, p, shrink0, shrink1, weights + warp * Sizes::Weights);
            stream.release();
        }
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            sum0 += __shfl_xor_sync(EveryLane, sum0, step), sum1 += __shfl_xor_sync(EveryLane, sum1, step);
        outputs.store(allOutputs + (waiting * warps + warp) * share.Outputs, w.queryHeads);
        float2* mine = tops + (waiting * warps + warp) * TileHeads;
        if (r == 0) mine[2 * c] = make_float2(top0, sum0), mine[2 * c + 1] = make_float2(top1, sum1);
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

template <class T, int Dim>
cudaError_t launch(const AttentionArgs& args, const DecodeScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    using Sizes = DecodeShared<T, Dim>;
    const int walks = walksOf(args.queryHeads, args.kvHeads), kvHeads = static_cast<int>(args.kvHeads), blocks = decodeBlocks(device);
    int warps = MaxWarps;
#pragma unroll 1
    while (warps > 1 && Sizes::bytes(warps, kvHeads, walks, blocks) > static_cast<std::size_t>(device.sharedPerBlock))
        --warps;
    const std::size_t bytes = Sizes::bytes(warps, kvHeads, walks, blocks);
    const auto kernel = decode_attention_kernel<T, Dim>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess)
        return error;
    if (const cudaError_t error = cudaMemsetAsync(scratch.arrived, 0, sizeof(unsigned) * static_cast<std::size_t>(walks), stream);
        error != cudaSuccess)
        return error;
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(warps * 32), bytes, stream>>>(args, scratch);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || !scratch.scores) return error;
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
        return forElement(element, [&](auto zero) { return launch<decltype(zero), decltype(dim)::value>(args, scratch, device, stream); });
    });
}

} // namespace keepsight::cuda
