// Loads and stores of one element as fp32; a warp's sum of one.
#pragma once

#include "kernels/cuda/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

namespace keepsight::cuda {

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float wide(__half x) { return __half2float(x); }
template <class T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16(x); }
template <> __device__ inline __half narrow<__half>(float x) { return __float2half(x); }

__device__ inline float warpSum(float v) { // in all lanes
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// Calls f with a value of the element's type.
template <class F> cudaError_t forElement(CudaElement element, F&& f) {
    switch (element) {
    case CudaElement::f32:
        return f(float{});
    case CudaElement::bf16:
        return f(__nv_bfloat16{});
    case CudaElement::f16:
        return f(__half{});
    }
    return cudaErrorInvalidValue;
}

// Calls f with the head size as a type; cudaErrorNotSupported for those without kernels (hasHeadSize() in launch.h).
template <class F> cudaError_t forHeadSize(std::int64_t dim, F&& f) {
    switch (dim) {
    case 32:
        return f(std::integral_constant<int, 32>{});
    case 64:
        return f(std::integral_constant<int, 64>{});
    case 80:
        return f(std::integral_constant<int, 80>{});
    case 96:
        return f(std::integral_constant<int, 96>{});
    case 128:
        return f(std::integral_constant<int, 128>{});
    case 256:
        return f(std::integral_constant<int, 256>{});
    default:
        return cudaErrorNotSupported;
    }
}

} // namespace keepsight::cuda
