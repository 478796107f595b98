// Scores worked out of keys and values alone: LagKV's spread, each row read twice, and quadratic forms of keys on the matrix units.
#include "kernels/cuda/launch_scores.h"
#include "kernels/cuda/tile.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

// ---- lag_spread: a block a partition of a head, a warp a row at a time, a lane pairs of channels 64 apart.

constexpr int SpreadWarps = 8, MostChannels = 256;

template <class T> struct alignas(2 * sizeof(T)) PairOf {
    T x, y;
};

template <class T, int Pairs>
__global__ void __launch_bounds__(SpreadWarps * 32) lag_spread_kernel(LagSpreadArgs a) {
    __shared__ float lows[SpreadWarps][MostChannels], highs[SpreadWarps][MostChannels];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = static_cast<int>(a.dim);
    const std::int64_t part = blockIdx.x, head = blockIdx.y;
    const auto row = [&](std::int64_t t) { return static_cast<const T*>(a.x) + head * a.xHead + t * a.xRow; };
    const auto channel = [&](int pair) { return 2 * lane + 64 * pair; };

    float low[Pairs][2], high[Pairs][2];
#pragma unroll
    for (int p = 0; p < Pairs; ++p) low[p][0] = low[p][1] = INFINITY, high[p][0] = high[p][1] = -INFINITY;
    for (std::int64_t t = warp; t < a.lag; t += SpreadWarps)
#pragma unroll
        for (int p = 0; p < Pairs; ++p) {
            if (channel(p) >= dim) continue;
            const PairOf<T> two = *reinterpret_cast<const PairOf<T>*>(row((part + 1) * a.lag + t) + channel(p));
            low[p][0] = fminf(low[p][0], wide(two.x)), low[p][1] = fminf(low[p][1], wide(two.y));
            high[p][0] = fmaxf(high[p][0], wide(two.x)), high[p][1] = fmaxf(high[p][1], wide(two.y));
        }
#pragma unroll
    for (int p = 0; p < Pairs; ++p)
        if (channel(p) < dim)
#pragma unroll
            for (int i = 0; i < 2; ++i) lows[warp][channel(p) + i] = low[p][i], highs[warp][channel(p) + i] = high[p][i];
    __syncthreads();
    float range[Pairs][2];
#pragma unroll
    for (int p = 0; p < Pairs; ++p)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            range[p][i] = 1;
            if (channel(p) >= dim) continue;
            float least = INFINITY, most = -INFINITY;
            for (int w = 0; w < SpreadWarps; ++w) least = fminf(least, lows[w][channel(p) + i]), most = fmaxf(most, highs[w][channel(p) + i]);
            low[p][i] = least, range[p][i] = fmaxf(most - least, LagLeastRange);
        }

    float* out = a.out + (head * (a.partitions - 1) + part) * a.lag;
    for (std::int64_t t = warp; t < a.lag; t += SpreadWarps) {
        float x[Pairs][2], sum = 0, squares = 0;
#pragma unroll
        for (int p = 0; p < Pairs; ++p) {
            x[p][0] = x[p][1] = 0;
            if (channel(p) >= dim) continue;
            const PairOf<T> two = *reinterpret_cast<const PairOf<T>*>(row(part * a.lag + t) + channel(p));
            x[p][0] = (wide(two.x) - low[p][0]) / range[p][0], x[p][1] = (wide(two.y) - low[p][1]) / range[p][1];
            sum += x[p][0] + x[p][1];
        }
        const float mean = warpSum(sum) / static_cast<float>(dim);
#pragma unroll
        for (int p = 0; p < Pairs; ++p)
            if (channel(p) < dim)
#pragma unroll
                for (int i = 0; i < 2; ++i) squares += (x[p][i] - mean) * (x[p][i] - mean);
        squares = warpSum(squares);
        if (lane == 0) out[t] = sqrtf(squares / static_cast<float>(dim - 1));
    }
}

// ---- quadratic_forms: kᵀFk = kᵀUk with U upper triangular, so that half of the products are zero and left out. A block holds U of one query head in
// shared memory, as three bf16 numbers that add up to it, and takes keys by 32 a warp: K·U by columns of 8, each met at once by the same keys' elements.

constexpr int FormWarps = 8, Tiles = 2, WarpKeys = 16 * Tiles, BlockKeys = FormWarps * WarpKeys, Parts = 3;

__device__ float dotOfPair(unsigned pair, float x, float y) { return __uint_as_float(pair << 16) * x + __uint_as_float(pair & 0xffff0000u) * y; }

template <int Dim> constexpr int formPitch = Dim + 8; // elements: rows begin in different banks
template <int Dim> constexpr int formBytes = Parts * Dim * formPitch<Dim> * 2;

template <int Dim>
__global__ void __launch_bounds__(FormWarps * 32, 2) quadratic_forms_kernel(QuadraticFormsArgs a, int keysPerBlock) {
    extern __shared__ __align__(16) __nv_bfloat16 form[]; // [Parts][column][row]
    constexpr int Pitch = formPitch<Dim>, Steps = Dim / 16;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t head = blockIdx.y, kvHead = head / (a.queryHeads / a.kvHeads);
    const float* f = a.forms + head * Dim * Dim;
    for (int i = threadIdx.x; i < Dim * Dim; i += FormWarps * 32) {
        const int column = i / Dim, row = i % Dim;
        float left = row > column ? 0 : row == column ? f[i] : f[i] + f[row * Dim + column];
#pragma unroll
        for (int part = 0; part < Parts; ++part) {
            const __nv_bfloat16 piece = __float2bfloat16(left);
            form[(part * Dim + column) * Pitch + row] = piece;
            left -= __bfloat162float(piece);
        }
    }
    __syncthreads();

    const auto* keys = static_cast<const __nv_bfloat16*>(a.keys) + kvHead * a.keyHead;
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(form)) + 2 * ((lane % 8) * Pitch + lane / 8 * 8);
    const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * keysPerBlock, end = min(a.count, begin + keysPerBlock);
    for (std::int64_t first = begin + warp * WarpKeys; first < end; first += BlockKeys) {
        unsigned k[Tiles][Steps][4]; // as the matrix units take them: rows lane/4 and + 8, columns 2·(lane % 4) and + 8 of a step
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const std::int64_t t = first + tile * 16 + lane / 4 + i % 2 * 8;
                const __nv_bfloat16* key = keys + min(t, a.count - 1) * a.keyRow + lane % 4 * 2 + i / 2 * 8;
#pragma unroll
                for (int step = 0; step < Steps; ++step) k[tile][step][i] = *reinterpret_cast<const unsigned*>(key + step * 16);
            }
        float sums[Tiles][2] = {};
#pragma unroll
        for (int column = 0; column < Dim / 8; ++column) { // of 8
            float acc[Tiles][4] = {};
#pragma unroll
            for (int step = 0; step <= column / 2; step += 2) // rows up to the diagonal
#pragma unroll
                for (int part = Parts - 1; part >= 0; --part) {
                    unsigned b[4];
                    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                                 : "r"(shared + 2 * ((part * Dim + column * 8) * Pitch + step * 16)));
#pragma unroll
                    for (int tile = 0; tile < Tiles; ++tile) {
                        const auto times = [&](const unsigned (&a)[4], unsigned b0, unsigned b1) { multiplyAdd<__nv_bfloat16>(acc[tile], a[0], a[1], a[2], a[3], b0, b1); };
                        times(k[tile][step], b[0], b[1]);
                        if (step + 1 <= column / 2) times(k[tile][(step + 1) % Steps], b[2], b[3]);
                    }
                }
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                const int half = column % 2 * 2; // the products' columns are those of the keys' registers
                sums[tile][0] += dotOfPair(k[tile][column / 2][half], acc[tile][0], acc[tile][1]);
                sums[tile][1] += dotOfPair(k[tile][column / 2][half + 1], acc[tile][2], acc[tile][3]);
            }
        }
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float sum = sums[tile][half];
                sum += __shfl_xor_sync(EveryLane, sum, 1);
                sum += __shfl_xor_sync(EveryLane, sum, 2);
                const std::int64_t t = first + tile * 16 + lane / 4 + half * 8;
                if (lane % 4 == 0 && t < end) a.out[head * a.count + t] = sum;
            }
    }
}

template <int Dim>
cudaError_t launchForms(const QuadraticFormsArgs& args, cudaStream_t stream) {
    const cudaError_t error = cudaFuncSetAttribute(quadratic_forms_kernel<Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, formBytes<Dim>);
    if (error != cudaSuccess) return error;
    constexpr int KeysPerBlock = 8 * BlockKeys; // enough to make up for splitting the form
    const dim3 grid(static_cast<unsigned>((args.count + KeysPerBlock - 1) / KeysPerBlock), static_cast<unsigned>(args.queryHeads));
    quadratic_forms_kernel<Dim><<<grid, FormWarps * 32, formBytes<Dim>, stream>>>(args, KeysPerBlock);
    return cudaGetLastError();
}

} // namespace

bool takesLagSpread(const LagSpreadArgs& args, CudaElement element) {
    const std::uintptr_t pair = element == CudaElement::f32 ? 8 : 4;
    return args.dim % 2 == 0 && args.dim <= MostChannels && args.xRow % 2 == 0 && args.xHead % 2 == 0 && reinterpret_cast<std::uintptr_t>(args.x) % pair == 0;
}

cudaError_t launchLagSpread(const LagSpreadArgs& args, CudaElement element, cudaStream_t stream) {
    if (args.heads == 0 || args.partitions < 2) return cudaSuccess;
    const dim3 grid(static_cast<unsigned>(args.partitions - 1), static_cast<unsigned>(args.heads));
    return forElement(element, [&](auto x) {
        using T = decltype(x);
        const auto run = [&](auto pairs) {
            lag_spread_kernel<T, decltype(pairs)::value><<<grid, SpreadWarps * 32, 0, stream>>>(args);
            return cudaGetLastError();
        };
        if (args.dim <= 64) return run(std::integral_constant<int, 1>{});
        return args.dim <= 128 ? run(std::integral_constant<int, 2>{}) : run(std::integral_constant<int, 4>{});
    });
}

bool takesQuadraticForms(const QuadraticFormsArgs& args, CudaElement element) {
    return element == CudaElement::bf16 && (args.dim == 64 || args.dim == 128) && args.keyRow % 2 == 0 && args.keyHead % 2 == 0 &&
           reinterpret_cast<std::uintptr_t>(args.keys) % 4 == 0;
}

cudaError_t launchQuadraticForms(const QuadraticFormsArgs& args, cudaStream_t stream) {
    if (args.count == 0) return cudaSuccess;
    return args.dim == 64 ? launchForms<64>(args, stream) : launchForms<128>(args, stream);
}

} // namespace keepsight::cuda
