// What a prompt's attention weights sum up to, from queries, keys and the log-sum-exp of each query's row, which a fused attention leaves: the
// weights themselves are never stored. Σ over the queries for every key, and binned maps.
//
// A block takes 128 keys of one query head and holds them as matrix-core fragments in registers; 64 queries at a time come through shared
// memory, twice buffered. Keys are the rows of the product, so that a key's sum stays in the registers of one thread and its three neighbours:
// no atomics and one fixed order, so that runs repeat bit for bit. Early keys are seen by most queries: their blocks come first.
// Map cells are summed as 64-bit fixed point, which is exact in any order.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_decode.h"

namespace keepsight::cuda {
namespace {

constexpr int Warps = 4, Threads = Warps * 32, Keys = Warps * 32, Queries = 64;
constexpr double MapScale = 1099511627776.0; // 2^40

__device__ inline std::uint32_t sharedAddress(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void copyAhead(void* to, const void* from, bool real) { // 16 bytes; zeros where there is no such row
    const int bytes = real ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(to)), "l"(from), "r"(bytes));
}

__device__ inline void load4(std::uint32_t (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(sharedAddress(p)));
}

__device__ inline float quadSum(float v) { // of four neighbouring threads
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

template <class T> __device__ inline void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
template <> __device__ inline void multiply<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ inline void multiply<__half>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows of Dim elements in 16-byte words; word w of row r lies at w ^ (r % 8), so that eight rows' words hit different banks.
template <class T, int Dim> __device__ inline T* place(T* tile, int row, int word) { return tile + row * Dim + ((word ^ (row & 7)) * 8); }

template <class T, int Dim> __device__ inline void loadRows(T* tile, const T* from, std::int64_t stride, std::int64_t begin, int rows, std::int64_t end) {
    constexpr int Words = Dim / 8;
    for (int i = threadIdx.x; i < rows * Words; i += Threads) {
        const int row = i / Words, word = i % Words;
        const bool real = begin + row < end;
        copyAhead(place<T, Dim>(tile, row, word), from + (real ? begin + row : 0) * stride + word * 8, real);
    }
    asm volatile("cp.async.commit_group;");
}

template <class T, int Dim> __global__ void __launch_bounds__(Threads) attention_sums_kernel(AttentionSumsArgs a) {
    constexpr int Depth = Dim / 16, Tiles = Queries / 8;
    extern __shared__ uint4 memory[];
    T* const tiles = reinterpret_cast<T*>(memory);            // two of [Queries, Dim]; first one of [Keys, Dim]
    __shared__ float rowNorms[2][Queries], binSums[Keys];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t head = blockIdx.y, keyBegin = static_cast<std::int64_t>(blockIdx.x) * Keys, past = a.held - a.queries;
    const T* q = static_cast<const T*>(a.q) + head * a.qHead;
    const T* k = static_cast<const T*>(a.k) + head / (a.queryHeads / a.kvHeads) * a.kHead;
    const float* norms = a.logSumExp + head * a.queries;
    constexpr float Log2e = 1.4426950408889634f;
    const float scale = a.scale * Log2e;

    loadRows<T, Dim>(tiles, k, a.kRow, keyBegin, Keys, a.held);
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    std::uint32_t keys[2][Depth][4];
    for (int m = 0; m < 2; ++m)
        for (int d = 0; d < Depth; ++d) load4(keys[m][d], place<T, Dim>(tiles, warp * 32 + m * 16 + lane % 16, d * 2 + lane / 16));
    __syncthreads();

    float total[2][2] = {}, bin[2][2] = {}; // of keys warp·32 + m·16 + lane/4 (+ 8): of all queries, and of those of one map row
    const std::int64_t first = max(keyBegin - past, std::int64_t{0}); // the first query that sees the first key
    // Tiles do not cross the rows of a map.
    const bool mapped = a.map != nullptr;
    const auto tileEnd = [&](std::int64_t begin) {
        const std::int64_t end = min(begin + Queries, a.queries);
        if (!mapped) return end;
        const std::int64_t row = past + begin - a.mapRowBegin, next = (row < 0 ? 0 : row / a.rowBin + 1) * a.rowBin + a.mapRowBegin - past;
        return min(end, next);
    };
    const auto fetch = [&](int buffer, std::int64_t begin, std::int64_t end) {
        loadRows<T, Dim>(tiles + buffer * Queries * Dim, q, a.qRow, begin, Queries, end);
        if (threadIdx.x < Queries) rowNorms[buffer][threadIdx.x] = begin + threadIdx.x < end ? norms[begin + threadIdx.x] * Log2e : INFINITY; // no such row: weight 0
    };
    std::int64_t begin = first, end = first < a.queries ? tileEnd(first) : first;
    int buffer = 0;
    if (begin < a.queries) fetch(0, begin, end);
    while (begin < a.queries) {
        const std::int64_t nextEnd = end < a.queries ? tileEnd(end) : end;
        if (end < a.queries) {
            fetch(buffer ^ 1, end, nextEnd);
            asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        __syncthreads();
        const T* tile = tiles + buffer * Queries * Dim;
        float scores[2][Tiles][4] = {};
#pragma unroll
        for (int d = 0; d < Depth; ++d)
#pragma unroll
            for (int n = 0; n < Tiles; n += 2) {
                std::uint32_t b[4]; // two tiles of 8 queries, 16 dimensions
                load4(b, place<T, Dim>(const_cast<T*>(tile), n * 8 + (lane / 16) * 8 + lane % 8, d * 2 + lane / 8 % 2));
                for (int m = 0; m < 2; ++m) {
                    multiply<T>(scores[m][n], keys[m][d], b[0], b[1]);
                    multiply<T>(scores[m][n + 1], keys[m][d], b[2], b[3]);
                }
            }
        float sums[2][2] = {}; // of the tile: long sums in three stages lose less
        const bool edge = past + begin < keyBegin + Keys - 1; // some query of the tile does not see some key
#pragma unroll
        for (int n = 0; n < Tiles; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int column = n * 8 + lane % 4 * 2 + c;
                const float norm = rowNorms[buffer][column];
                const std::int64_t sees = past + begin + column - keyBegin; // keys up to that one of the block
                for (int m = 0; m < 2; ++m)
                    for (int half = 0; half < 2; ++half) {
                        float weight = exp2f(fmaf(scores[m][n][half * 2 + c], scale, -norm));
                        if (edge && warp * 32 + m * 16 + half * 8 + lane / 4 > sees) weight = 0;
                        sums[m][half] += weight;
                    }
            }
        const bool binEnds = mapped && past + begin >= a.mapRowBegin && (end == a.queries || (past + end - a.mapRowBegin) % a.rowBin == 0);
        for (int m = 0; m < 2; ++m)
            for (int half = 0; half < 2; ++half) {
                total[m][half] += sums[m][half];
                bin[m][half] = past + begin < a.mapRowBegin ? 0.0f : bin[m][half] + sums[m][half];
                if (!binEnds) continue;
                const float sum = quadSum(bin[m][half]);
                if (lane % 4 == 0) binSums[warp * 32 + m * 16 + half * 8 + lane / 4] = sum;
                bin[m][half] = 0;
            }
        if (binEnds) { // the same for every thread
            __syncthreads();
            const std::int64_t row = (past + begin - a.mapRowBegin) / a.rowBin, firstCell = keyBegin / a.columnBin, cell = firstCell + threadIdx.x;
            const std::int64_t from = max(cell * a.columnBin, keyBegin) - keyBegin, to = min(min((cell + 1) * a.columnBin, keyBegin + Keys), a.held) - keyBegin;
            if (row < a.mapRows && cell < a.mapColumns && from < to) {
                double sum = 0;
                for (std::int64_t i = from; i < to; ++i) sum += binSums[i];
                const std::int64_t mapHead = head * a.mapHeads / a.queryHeads;
                atomicAdd(a.map + (mapHead * a.mapRows + row) * a.mapColumns + cell, static_cast<unsigned long long>(sum * a.mapHeads / a.queryHeads * MapScale + 0.5));
            }
        }
        __syncthreads(); // before the buffer, or the bins' sums, are written again
        begin = end, end = nextEnd, buffer ^= 1;
    }
    if (!a.columnSum) return;
    for (int m = 0; m < 2; ++m)
        for (int half = 0; half < 2; ++half) {
            const float sum = quadSum(total[m][half]);
            const std::int64_t key = keyBegin + warp * 32 + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && key < a.held) a.columnSum[head * a.columnSumHead + key] += sum;
        }
}

template <class T, int Dim> cudaError_t launch(const AttentionSumsArgs& args, cudaStream_t stream) {
    constexpr std::size_t Bytes = sizeof(T) * Dim * (2 * Queries > Keys ? 2 * Queries : Keys);
    static const cudaError_t allowed = cudaFuncSetAttribute(attention_sums_kernel<T, Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(Bytes));
    if (allowed != cudaSuccess) return allowed;
    const dim3 grid(static_cast<unsigned>((args.held + Keys - 1) / Keys), static_cast<unsigned>(args.queryHeads));
    attention_sums_kernel<T, Dim><<<grid, Threads, Bytes, stream>>>(args);
    return cudaGetLastError();
}

template <class T> cudaError_t launchDim(const AttentionSumsArgs& args, cudaStream_t stream) {
    switch (args.dim) {
    case 64: return launch<T, 64>(args, stream);
    case 128: return launch<T, 128>(args, stream);
    default: return cudaErrorNotSupported;
    }
}

} // namespace

double mapUnit() { return 1 / MapScale; }

bool takesAttentionSums(const AttentionSumsArgs& a, CudaElement element) {
    const auto aligned = [](const void* p, std::int64_t head, std::int64_t row) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && head % 8 == 0 && row % 8 == 0; };
    return element != CudaElement::f32 && (a.dim == 64 || a.dim == 128) && a.queries > 0 && aligned(a.q, a.qHead, a.qRow) && aligned(a.k, a.kHead, a.kRow);
}

cudaError_t launchAttentionSums(const AttentionSumsArgs& args, CudaElement element, cudaStream_t stream) {
    if (!takesAttentionSums(args, element)) return cudaErrorNotSupported;
    return element == CudaElement::bf16 ? launchDim<__nv_bfloat16>(args, stream) : launchDim<__half>(args, stream);
}

} // namespace keepsight::cuda
