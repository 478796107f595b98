// RoPE of a new token's queries and key, and its entry appended behind every head: one launch in place of six.
// Blocks [0, queryHeads) turn a query each; the others write one KV head's key, value and position and then raise its length, which nobody
// else reads meanwhile.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

template <class T> __device__ void turn(const T* from, T* to, std::int64_t half, float position, const float* frequencies) {
    for (std::int64_t i = threadIdx.x; i < half; i += blockDim.x) {
        const float angle = position * frequencies[i], cosine = cosf(angle), sine = sinf(angle), a = wide(from[i]), b = wide(from[i + half]);
        to[i] = narrow<T>(a * cosine - b * sine);
        to[i + half] = narrow<T>(b * cosine + a * sine);
    }
}

template <class T> __global__ void rope_append_kernel(RopeAppendArgs a) {
    letLaterKernelsStart();
    waitForEarlierKernels();
    const std::int64_t block = blockIdx.x, half = a.dim / 2;
    const T* qkv = static_cast<const T*>(a.qkv);
    const std::int32_t now = *a.position;
    const auto position = static_cast<float>(now);
    if (block < a.queryHeads) {
        turn(qkv + block * a.dim, static_cast<T*>(a.q) + block * a.dim, half, position, a.inverseFrequencies);
        return;
    }
    const std::int64_t head = block - a.queryHeads, slot = a.lengths[head];
    turn(qkv + block * a.dim, static_cast<T*>(a.keys) + head * a.keysHead + slot * a.dim, half, position, a.inverseFrequencies);
    const T* value = qkv + (block + a.kvHeads) * a.dim;
    T* to = static_cast<T*>(a.values) + head * a.valuesHead + slot * a.dim;
    for (std::int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) to[i] = value[i];
    if (threadIdx.x == 0) a.positions[head * a.positionsHead + slot] = now;
    __syncthreads();
    if (threadIdx.x == 0) a.lengths[head] = static_cast<std::int32_t>(slot) + 1;
}

} // namespace

cudaError_t launchRopeAppend(const RopeAppendArgs& args, CudaElement element, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(args.queryHeads + args.kvHeads), threads = static_cast<unsigned>(std::clamp<std::int64_t>(args.dim / 2, 32, 256));
    return forElement(element, [&](auto zero) {
        cudaLaunchAttribute early;
        const cudaLaunchConfig_t config = overlapping(dim3(blocks), dim3(threads), 0, stream, early);
        return cudaLaunchKernelEx(&config, rope_append_kernel<decltype(zero)>, args);
    });
}

} // namespace keepsight::cuda
