// Kernels of a decoded token; see launch.h for the conventions.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/decode.h"

namespace keepsight::cuda {

// bf16 and fp16, width a multiple of 8, weight and x on 16-byte addresses; others: cudaErrorNotSupported.
bool takesMatvec(const MatvecArgs& args, CudaElement element);
cudaError_t launchMatvec(const MatvecArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchRopeAppend(const RopeAppendArgs& args, CudaElement element, cudaStream_t stream);

} // namespace keepsight::cuda
