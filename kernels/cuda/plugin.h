// What the plug-in's bindings share.
#pragma once

#include "kernels/cuda/launch.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <string>

namespace keepsight::cuda {

using OptionalTensor = std::optional<at::Tensor>;

inline void check(cudaError_t error, const char* operation) {
    TORCH_CHECK(error == cudaSuccess, "keepsight::", operation, ": the CUDA launch failed: ", cudaGetErrorString(error));
}

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline CudaElement elementOf(const at::Tensor& t) {
    switch (t.scalar_type()) {
    case at::kFloat:
        return CudaElement::f32;
    case at::kBFloat16:
        return CudaElement::bf16;
    case at::kHalf:
        return CudaElement::f16;
    default:
        TORCH_CHECK(false, "keepsight: expected fp32, bf16 or fp16 on the device, found ", t.scalar_type());
    }
}

// The operator's form in ATen calls, for what has no kernel here. Signature: the binding's own, decltype(matvec).
template <class Signature, class... Arguments> at::Tensor composite(const char* operation, Arguments&&... arguments) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("keepsight::") + operation).c_str(), "").typed<Signature>();
    return op.redispatch(c10::DispatchKeySet(c10::DispatchKey::CompositeExplicitAutograd), std::forward<Arguments>(arguments)...);
}

} // namespace keepsight::cuda
