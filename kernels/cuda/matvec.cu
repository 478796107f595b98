// One row times a weight matrix, at the speed the weights come from memory; RMSNorm before and SiLU gate, bias and residual after it, in one pass.
//
// A warp takes two rows of W (or a gate row and its up row); a lane loads 16 bytes of each, four steps ahead. The first loads are on their way before
// x is looked at, and with programmatic dependent launch before the kernel that makes x has ended: weights do not depend on it.
// Sums are fp32 in a fixed order, so that runs repeat bit for bit; the normed x is rounded to the element as rms_norm's output is.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"

namespace keepsight::cuda {
namespace {

constexpr int Warps = 8, Threads = Warps * 32, Ahead = 4, Step = 32 * 8; // Step: values of one row that a warp loads at once

template <class T> struct Pair;
template <> struct Pair<__nv_bfloat16> {
    static __device__ inline float2 of(std::uint32_t bits) { return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)}; }
};
template <> struct Pair<__half> {
    static __device__ inline float2 of(std::uint32_t bits) { return __half22float2(reinterpret_cast<const __half2&>(bits)); }
};

__device__ inline uint4 streamed(const uint4* p) { // read once: not worth a place in L1
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

template <class T> __device__ inline float dot8(const uint4& w, const uint4& x, float sum) {
    const std::uint32_t *a = &w.x, *b = &x.x;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 p = Pair<T>::of(a[i]), q = Pair<T>::of(b[i]);
        sum = fmaf(p.x, q.x, sum);
        sum = fmaf(p.y, q.y, sum);
    }
    return sum;
}

__device__ inline float warpSum(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

template <class T, bool Gated> __global__ void __launch_bounds__(Threads) matvec_kernel(MatvecArgs a) {
    extern __shared__ uint4 shared[]; // x as T [width]
    __shared__ float sums[Warps];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * Warps + warp;
    const std::int64_t first = Gated ? unit : 2 * unit, second = Gated ? unit + a.rows : 2 * unit + 1;
    const bool any = first < a.rows, both = Gated ? any : second < a.rows;
    const T* weight = static_cast<const T*>(a.weight);
    const uint4* rowA = reinterpret_cast<const uint4*>(weight + (any ? first : 0) * a.width);
    const uint4* rowB = reinterpret_cast<const uint4*>(weight + (both ? second : any ? first : 0) * a.width);
    const std::int64_t words = a.width / 8; // of a row
    uint4 bufferA[Ahead], bufferB[Ahead];
    const uint4 zero = {0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < Ahead; ++s) {
        const std::int64_t at = s * 32 + lane;
        bufferA[s] = any && at < words ? streamed(rowA + at) : zero;
        bufferB[s] = any && at < words ? streamed(rowB + at) : zero;
    }
    letLaterKernelsStart();
    waitForEarlierKernels();

    const uint4* x = static_cast<const uint4*>(a.x);
    if (a.norm) {
        float squares = 0;
        for (std::int64_t i = threadIdx.x; i < words; i += Threads) {
            const uint4 v = x[i];
            shared[i] = v;
            squares = dot8<T>(v, v, squares);
        }
        squares = warpSum(squares);
        if (lane == 0) sums[warp] = squares;
        __syncthreads();
        float total = 0;
        for (int w = 0; w < Warps; ++w) total += sums[w];
        const float scale = rsqrtf(total / static_cast<float>(a.width) + a.eps);
        T* own = reinterpret_cast<T*>(shared);
        for (std::int64_t i = threadIdx.x; i < words; i += Threads) // the words this thread wrote
            for (int j = 0; j < 8; ++j) own[i * 8 + j] = narrow<T>(wide(own[i * 8 + j]) * scale * a.norm[i * 8 + j]);
    } else {
        for (std::int64_t i = threadIdx.x; i < words; i += Threads) shared[i] = x[i];
    }
    __syncthreads();
    if (!any) return;

    float sumA = 0, sumB = 0;
    for (std::int64_t base = 0; base < words; base += Ahead * 32) {
#pragma unroll
        for (int s = 0; s < Ahead; ++s) {
            const std::int64_t at = base + s * 32 + lane, next = at + Ahead * 32;
            const uint4 v = at < words ? shared[at] : zero;
            sumA = dot8<T>(bufferA[s], v, sumA);
            sumB = dot8<T>(bufferB[s], v, sumB);
            bufferA[s] = next < words ? streamed(rowA + next) : zero;
            bufferB[s] = next < words ? streamed(rowB + next) : zero;
        }
    }
    sumA = warpSum(sumA);
    sumB = warpSum(sumB);
    if (lane > (Gated ? 0 : 1)) return;
    const T *bias = static_cast<const T*>(a.bias), *residual = static_cast<const T*>(a.residual);
    T* y = static_cast<T*>(a.y);
    if (Gated) {
        const float gate = wide(narrow<T>(sumA + (bias ? wide(bias[first]) : 0.0f))), up = wide(narrow<T>(sumB + (bias ? wide(bias[second]) : 0.0f)));
        float value = gate / (1.0f + expf(-gate)) * up;
        if (residual) value = wide(narrow<T>(value)) + wide(residual[first]);
        y[first] = narrow<T>(value);
    } else if (lane == 0 || both) {
        const std::int64_t row = first + lane;
        float value = lane == 0 ? sumA : sumB;
        if (bias) value += wide(bias[row]);
        if (residual) value = wide(narrow<T>(value)) + wide(residual[row]); // as a product and a sum of their own round
        y[row] = narrow<T>(value);
    }
}

template <class T, bool Gated> cudaError_t launch(const MatvecArgs& args, cudaStream_t stream) {
    const std::int64_t units = Gated ? args.rows : (args.rows + 1) / 2;
    cudaLaunchAttribute early;
    cudaLaunchConfig_t config = overlapping(dim3(static_cast<unsigned>((units + Warps - 1) / Warps)), dim3(Threads), static_cast<std::size_t>(args.width) * sizeof(T), stream, early);
    if (config.dynamicSmemBytes > 48 * 1024)
        if (const cudaError_t error = cudaFuncSetAttribute(matvec_kernel<T, Gated>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(config.dynamicSmemBytes));
            error != cudaSuccess)
            return error;
    return cudaLaunchKernelEx(&config, matvec_kernel<T, Gated>, args);
}

} // namespace

bool takesMatvec(const MatvecArgs& args, CudaElement element) {
    const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
    return element != CudaElement::f32 && args.rows > 0 && args.width > 0 && args.width % 8 == 0 && args.width <= 96 * 1024 && aligned(args.x) && aligned(args.weight);
}

cudaError_t launchMatvec(const MatvecArgs& args, CudaElement element, cudaStream_t stream) {
    if (!takesMatvec(args, element)) return cudaErrorNotSupported;
    if (element == CudaElement::bf16) return args.gated ? launch<__nv_bfloat16, true>(args, stream) : launch<__nv_bfloat16, false>(args, stream);
    return args.gated ? launch<__half, true>(args, stream) : launch<__half, false>(args, stream);
}

} // namespace keepsight::cuda
