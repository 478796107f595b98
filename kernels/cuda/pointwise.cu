// RMSNorm, SiLU-gate and RoPE; fp32 inside, one block per row (norm) or a flat grid (the others).
#include "kernels/cuda/element.cuh"

namespace keepsight::cuda {
namespace {

constexpr int Threads = 256;

// y = x · rsqrt(mean(x²) + eps) · w; block = one row; the sum goes through warps in a fixed order.
template <class T> __global__ void rms_norm_kernel(RmsNormArgs a) {
    const T* x = static_cast<const T*>(a.x) + blockIdx.x * a.width;
    T* y = static_cast<T*>(a.y) + blockIdx.x * a.width;
    float sum = 0;
    for (std::int64_t i = threadIdx.x; i < a.width; i += Threads) sum += wide(x[i]) * wide(x[i]);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    __shared__ float warps[Threads / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < Threads / 32; ++w) total += warps[w];
    const float scale = rsqrtf(total / static_cast<float>(a.width) + a.eps);
    for (std::int64_t i = threadIdx.x; i < a.width; i += Threads) y[i] = narrow<T>(wide(x[i]) * scale * a.weight[i]);
}

template <class T> __global__ void silu_mul_kernel(SiluMulArgs a) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * Threads + threadIdx.x;
    if (i >= a.rows * a.width) return;
    const std::int64_t row = i / a.width, column = i % a.width;
    const T* x = static_cast<const T*>(a.x) + row * 2 * a.width;
    const float gate = wide(x[column]);
    static_cast<T*>(a.y)[i] = narrow<T>(gate / (1.0f + expf(-gate)) * wide(x[column + a.width]));
}

// Pairs (i, i + D/2) turn by position · frequency; sinf and cosf reduce large angles exactly enough in fp32.
template <class T> __global__ void rope_kernel(RopeArgs a) {
    const std::int64_t half = a.dim / 2, i = static_cast<std::int64_t>(blockIdx.x) * Threads + threadIdx.x;
    if (i >= a.heads * a.rows * half) return;
    const std::int64_t pair = i % half, row = i / half % a.rows, head = i / half / a.rows;
    const float angle = static_cast<float>(a.positions[head * a.positionHead + row]) * a.inverseFrequencies[pair];
    const float cosine = cosf(angle), sine = sinf(angle) * a.sign;
    const T* x = static_cast<const T*>(a.x) + head * a.xHead + row * a.xRow;
    T* y = static_cast<T*>(a.y) + (head * a.rows + row) * a.dim;
    const float first = wide(x[pair]), second = wide(x[pair + half]);
    y[pair] = narrow<T>(first * cosine - second * sine);
    y[pair + half] = narrow<T>(second * cosine + first * sine);
}

unsigned blocksFor(std::int64_t items) { return static_cast<unsigned>((items + Threads - 1) / Threads); }

} // namespace

cudaError_t launchRmsNorm(const RmsNormArgs& args, CudaElement element, cudaStream_t stream) {
    if (args.rows == 0) return cudaSuccess;
    return forElement(element, [&](auto zero) {
        rms_norm_kernel<decltype(zero)><<<static_cast<unsigned>(args.rows), Threads, 0, stream>>>(args);
        return cudaGetLastError();
    });
}

cudaError_t launchSiluMul(const SiluMulArgs& args, CudaElement element, cudaStream_t stream) {
    if (args.rows * args.width == 0) return cudaSuccess;
    return forElement(element, [&](auto zero) {
        silu_mul_kernel<decltype(zero)><<<blocksFor(args.rows * args.width), Threads, 0, stream>>>(args);
        return cudaGetLastError();
    });
}

cudaError_t launchRope(const RopeArgs& args, CudaElement element, cudaStream_t stream) {
    const std::int64_t pairs = args.heads * args.rows * (args.dim / 2);
    if (pairs == 0) return cudaSuccess;
    return forElement(element, [&](auto zero) {
        rope_kernel<decltype(zero)><<<blocksFor(pairs), Threads, 0, stream>>>(args);
        return cudaGetLastError();
    });
}

} // namespace keepsight::cuda
