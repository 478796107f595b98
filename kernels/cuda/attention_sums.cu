// What a prompt's attention weights sum up to, from queries, keys and the log-sum-exp of each query's row, which a fused attention leaves: the
// weights themselves are never stored. Σ over the queries for every key, binned maps, and the sums of the kvc policies (bind/output_change.cpp):
// of squared weights, and, from values and the rows' outputs too, of how much the outputs would change.
//
// A block takes 128 keys of one query head and holds them as matrix-core fragments in registers; 64 queries at a time (32 with outputs) come
// through shared memory, twice buffered. Keys are the rows of the product, so that a key's sum stays in the registers of one thread and its three
// neighbours: no atomics and one fixed order, so that runs repeat bit for bit. Early keys are seen by most queries: their blocks come first.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch_change.h"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/map_cells.cuh"
#include "kernels/cuda/tile.cuh"

namespace keepsight::cuda {
namespace {

constexpr int Warps = 4, Threads = Warps * 32, Rows = 2, Keys = Warps * Rows * 16; // of a warp: tiles of 16 keys

template <int Dim, Sum Kind> struct SumsSizes { // with values beside the keys, half as many products of both fit the registers
    static constexpr int Operands = Kind == Sum::changes ? 2 : 1, Queries = 64 / Operands, Tile = Queries * Dim;
    static constexpr int Elements = (Operands * 2 * Queries > Keys ? Operands * 2 * Queries : Keys) * Dim;
    static constexpr int Blocks = (Dim > 64 ? 3 : 4) - (Kind == Sum::changes); // of a multiprocessor: what the registers are to allow
};

template <class T, int Dim, Sum Kind> __global__ void __launch_bounds__(Threads, SumsSizes<Dim, Kind>::Blocks) attention_sums_kernel(ChangeSumsArgs args) {
    using Sizes = SumsSizes<Dim, Kind>;
    constexpr bool Changes = Kind == Sum::changes;
    constexpr int Depth = Dim / 16, Queries = Sizes::Queries, Tiles = Queries / 8;
    const AttentionSumsArgs& a = args.sums;
    extern __shared__ uint4 memory[];
    T* const tiles = reinterpret_cast<T*>(memory);            // two of [Queries, Dim], and two of outputs; first one of [Keys, Dim]
    __shared__ float rowNorms[2][Queries], outputNorms[2][Queries];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t head = blockIdx.y, keyBegin = static_cast<std::int64_t>(blockIdx.x) * Keys, past = a.held - a.queries;
    const T* q = static_cast<const T*>(a.q) + head * a.qHead;
    const T* k = static_cast<const T*>(a.k) + head / (a.queryHeads / a.kvHeads) * a.kHead;
    const float* norms = a.logSumExp + head * a.queries;
    constexpr float Log2e = 1.4426950408889634f;
    // A weight is 2^(score · scale − norm), and its square the same of twice as much.
    constexpr float Unit = Kind == Sum::squares ? 2 * Log2e : Log2e;
    const float scale = a.scale * Unit;
    const T* v = nullptr;
    const T* o = nullptr;

    std::uint32_t keys[Rows][Depth][4], values[Changes ? Rows : 1][Changes ? Depth : 1][4];
    float valueNorms[Rows][2] = {};
    const auto fragments = [&](auto& to, const T* from, std::int64_t stride) {
        loadRows<T, Dim, Threads>(tiles, from, Keys, [&](int row) { return keyBegin + row < a.held ? (keyBegin + row) * stride : -1; });
        waitForCopies<0>();
        __syncthreads();
        loadFragments<T, Dim>(to, tiles, warp * Rows * 16);
        __syncthreads();
    };
    fragments(keys, k, a.kRow);
    if constexpr (Changes) {
        v = static_cast<const T*>(args.v) + head / (a.queryHeads / a.kvHeads) * args.vHead;
        o = static_cast<const T*>(args.o) + head * args.oHead;
        fragments(values, v, args.vRow);
        for (int m = 0; m < Rows; ++m)
            for (int half = 0; half < 2; ++half) {
                const std::int64_t key = keyBegin + (warp * Rows + m) * 16 + half * 8 + lane / 4;
                if (key < a.held) valueNorms[m][half] = args.valueNorms[head / (a.queryHeads / a.kvHeads) * a.held + key];
            }
    }

    const MapPart<Rows> cells(a, head, keyBegin + warp * Rows * 16);
    float total[Rows][2] = {}, bin[Rows][2] = {}; // of keys (warp·Rows + m)·16 + lane/4 (+ 8): of all queries, and of those of one map row
    const std::int64_t first = max(keyBegin - past, std::int64_t{0}); // the first query that sees the first key
    // Tiles do not cross the rows of a map.
    const bool mapped = Kind == Sum::weights && a.map != nullptr;
    const auto tileEnd = [&](std::int64_t begin) {
        const std::int64_t end = min(begin + Queries, a.queries);
        if (!mapped) return end;
        const std::int64_t row = past + begin - a.mapRowBegin, next = (row < 0 ? 0 : row / a.rowBin + 1) * a.rowBin + a.mapRowBegin - past;
        return min(end, next);
    };
    const auto fetch = [&](int buffer, std::int64_t begin, std::int64_t end) {
        const auto rowsOf = [&](std::int64_t stride) { return [=](int row) { return begin + row < end ? (begin + row) * stride : -1; }; };
        if constexpr (Changes) loadRows<T, Dim, Threads>(tiles + (2 + buffer) * Sizes::Tile, o, Queries, rowsOf(args.oRow)); // one group of copies more
        loadRows<T, Dim, Threads>(tiles + buffer * Sizes::Tile, q, Queries, rowsOf(a.qRow));
        if (threadIdx.x < Queries) rowNorms[buffer][threadIdx.x] = begin + threadIdx.x < end ? norms[begin + threadIdx.x] * Unit : INFINITY; // no such row: weight 0
        if constexpr (Changes)
            if (threadIdx.x < Queries)
                outputNorms[buffer][threadIdx.x] = begin + threadIdx.x < end ? args.outputNorms[head * a.queries + begin + threadIdx.x] : 0.0f;
    };
    std::int64_t begin = first, end = first < a.queries ? tileEnd(first) : first;
    int buffer = 0;
    if (begin < a.queries) fetch(0, begin, end);
    while (begin < a.queries) {
        const std::int64_t nextEnd = end < a.queries ? tileEnd(end) : end;
        if (end < a.queries) {
            fetch(buffer ^ 1, end, nextEnd);
            waitForCopies<Changes ? 2 : 1>();
        } else {
            waitForCopies<0>();
        }
        __syncthreads();
        float scores[Rows][Tiles][4] = {}, both[Changes ? Rows : 1][Changes ? Tiles : 1][4] = {}; // both: ⟨v, o⟩
        products<T, Dim>(scores, keys, tiles + buffer * Sizes::Tile);
        if constexpr (Changes) products<T, Dim>(both, values, tiles + (2 + buffer) * Sizes::Tile);
        float sums[Rows][2] = {}; // of the tile: long sums in three stages lose less
        const auto addUp = [&](auto masked) {
            const int sees = static_cast<int>(past + begin - keyBegin) - (warp * Rows * 16 + lane / 4); // the tile's first query, of the thread's first key on
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const int column = n * 8 + lane % 4 * 2 + c;
                    const float norm = rowNorms[buffer][column];
                    for (int m = 0; m < Rows; ++m)
                        for (int half = 0; half < 2; ++half) {
                            float weight = power2(fmaf(scores[m][n][half * 2 + c], scale, -norm));
                            if (decltype(masked)::value && m * 16 + half * 8 > sees + column) weight = 0;
                            if constexpr (Changes) {
                                const float s = scores[m][n][half * 2 + c] * a.scale, size = valueNorms[m][half], ov = both[m][n][half * 2 + c];
                                float change = s * s * fmaxf(size + outputNorms[buffer][column] - 2 * ov, 0); // as key, of a weight of 1
                                if (args.kind != 1) change += size;
                                if (args.kind == 2) change += 2 * s * (size - ov);
                                weight *= weight * fmaxf(change, 0);
                            }
                            sums[m][half] += weight;
                        }
                }
        };
        if (past + begin < keyBegin + Keys - 1) // some query of the tile does not see some key
            addUp(std::true_type{});
        else
            addUp(std::false_type{});
        const bool binEnds = mapped && past + begin >= a.mapRowBegin && (end == a.queries || (past + end - a.mapRowBegin) % a.rowBin == 0);
        for (int m = 0; m < Rows; ++m)
            for (int half = 0; half < 2; ++half) {
                total[m][half] += sums[m][half];
                bin[m][half] = past + begin < a.mapRowBegin ? 0.0f : bin[m][half] + sums[m][half];
            }
        if (binEnds) { // the same for every thread
            cells.add(a, (past + begin - a.mapRowBegin) / a.rowBin, bin);
            for (int m = 0; m < Rows; ++m) bin[m][0] = bin[m][1] = 0;
        }
        __syncthreads(); // before the buffer is written again
        begin = end, end = nextEnd, buffer ^= 1;
    }
    if (!a.columnSum) return;
    for (int m = 0; m < Rows; ++m)
        for (int half = 0; half < 2; ++half) {
            const float sum = quadSum(total[m][half]);
            const std::int64_t key = keyBegin + (warp * Rows + m) * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && key < a.held) a.columnSum[head * a.columnSumHead + key] += sum;
        }
}

template <class T, int Dim, Sum Kind> cudaError_t launch(const ChangeSumsArgs& args, cudaStream_t stream) {
    using Sizes = SumsSizes<Dim, Kind>;
    constexpr int Bytes = static_cast<int>(sizeof(T)) * Sizes::Elements;
    static const cudaError_t allowed = cudaFuncSetAttribute(attention_sums_kernel<T, Dim, Kind>, cudaFuncAttributeMaxDynamicSharedMemorySize, Bytes);
    if (allowed != cudaSuccess) return allowed;
    const dim3 grid(static_cast<unsigned>((args.sums.held + Keys - 1) / Keys), static_cast<unsigned>(args.sums.queryHeads));
    attention_sums_kernel<T, Dim, Kind><<<grid, Threads, Bytes, stream>>>(args);
    return cudaGetLastError();
}

template <Sum Kind> cudaError_t launchTyped(const ChangeSumsArgs& args, CudaElement element, cudaStream_t stream) {
    if (const cudaError_t done = launchWarpgroupSums(args, Kind, element, stream); done != cudaErrorNotSupported) return done;
    const auto sized = [&](auto zero) {
        using T = decltype(zero);
        return args.sums.dim == 64 ? launch<T, 64, Kind>(args, stream) : launch<T, 128, Kind>(args, stream);
    };
    return element == CudaElement::bf16 ? sized(__nv_bfloat16{}) : sized(__half{});
}

// A row by Dim / 8 lanes; a block takes rows in steps of all its lanes, several asked for at once.
template <class T, int Dim> __global__ void __launch_bounds__(Threads) squared_norms_kernel(const SquaredNormsArgs a) {
    constexpr int Lanes = Dim / 8, Step = Threads / Lanes, Steps = 8;
    const int part = threadIdx.x % Lanes;
    const std::int64_t head = blockIdx.y, first = static_cast<std::int64_t>(blockIdx.x) * Steps * Step + threadIdx.x / Lanes;
    const T* x = static_cast<const T*>(a.x) + head * a.head + part * 8;
    uint4 words[Steps];
#pragma unroll
    for (int i = 0; i < Steps; ++i)
        words[i] = first + i * Step < a.rows ? *reinterpret_cast<const uint4*>(x + (first + i * Step) * a.row) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
        float sum = 0;
        for (const unsigned word : {words[i].x, words[i].y, words[i].z, words[i].w}) {
            const float2 two = unpacked<T>(word);
            sum = fmaf(two.x, two.x, fmaf(two.y, two.y, sum));
        }
#pragma unroll
        for (int step = Lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(EveryLane, sum, step);
        if (part == 0 && first + i * Step < a.rows) a.norms[head * a.rows + first + i * Step] = sum;
    }
}

__global__ void __launch_bounds__(256) prompt_check_kernel(const PromptCheckArgs a) {
    const std::int64_t head = blockIdx.y, i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const std::int32_t held = a.lengths[0];
    bool plain = a.lengths[head] == held;
    if (i < a.capacity && i < held) plain &= a.positions[head * a.positionsHead + i] == i;
    if (head == 0 && i < a.queries) plain &= a.queryPositions[i] == i + held - a.queries;
    if (!plain) atomicOr(a.found, 1);
    if (head == 0 && i == 0) a.found[1] = held;
}

bool inWords(const void* p, std::int64_t head, std::int64_t row) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && head % 8 == 0 && row % 8 == 0; }

} // namespace

double mapUnit() { return 1 / MapScale; }

bool takesAttentionSums(const AttentionSumsArgs& a, CudaElement element) {
    return element != CudaElement::f32 && (a.dim == 64 || a.dim == 128) && a.queries > 0 && inWords(a.q, a.qHead, a.qRow) && inWords(a.k, a.kHead, a.kRow);
}

bool takesChangeSums(const ChangeSumsArgs& a, CudaElement element) {
    return takesAttentionSums(a.sums, element) && (a.kind == 0 || (inWords(a.v, a.vHead, a.vRow) && inWords(a.o, a.oHead, a.oRow)));
}

cudaError_t launchSquaredNorms(const SquaredNormsArgs& a, CudaElement element, cudaStream_t stream) {
    if (element == CudaElement::f32 || (a.dim != 64 && a.dim != 128) || !inWords(a.x, a.head, a.row)) return cudaErrorNotSupported;
    const auto sized = [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t rows = Threads * 8 / (a.dim / 8); // of a block
        const dim3 grid(static_cast<unsigned>((a.rows + rows - 1) / rows), static_cast<unsigned>(a.heads));
        a.dim == 64 ? squared_norms_kernel<T, 64><<<grid, Threads, 0, stream>>>(a) : squared_norms_kernel<T, 128><<<grid, Threads, 0, stream>>>(a);
        return cudaGetLastError();
    };
    return element == CudaElement::bf16 ? sized(__nv_bfloat16{}) : sized(__half{});
}

cudaError_t launchPromptCheck(const PromptCheckArgs& a, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((a.capacity + 255) / 256), static_cast<unsigned>(a.kvHeads)); // queries ≤ capacity
    prompt_check_kernel<<<grid, 256, 0, stream>>>(a);
    return cudaGetLastError();
}

cudaError_t launchAttentionSums(const AttentionSumsArgs& args, CudaElement element, cudaStream_t stream) {
    if (!takesAttentionSums(args, element)) return cudaErrorNotSupported;
    ChangeSumsArgs all;
    all.sums = args;
    return launchTyped<Sum::weights>(all, element, stream);
}

cudaError_t launchChangeSums(const ChangeSumsArgs& args, CudaElement element, cudaStream_t stream) {
    if (!takesChangeSums(args, element)) return cudaErrorNotSupported;
    return args.kind == 0 ? launchTyped<Sum::squares>(args, element, stream) : launchTyped<Sum::changes>(args, element, stream);
}

} // namespace keepsight::cuda
