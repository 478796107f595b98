// Kernels of a decoded token; see launch.h for the conventions.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/decode.h"

namespace keepsight::cuda {

// bf16 and fp16, width a multiple of 8, weight and x on 16-byte addresses; others: cudaErrorNotSupported.
bool takesMatvec(const MatvecArgs& args, CudaElement element);
cudaError_t launchMatvec(const MatvecArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchRopeAppend(const RopeAppendArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchBinRow(const BinRowArgs& args, cudaStream_t stream);

// bf16 and fp16, head sizes 64 and 128, rows on 16-byte addresses; others: cudaErrorNotSupported.
bool takesAttentionSums(const AttentionSumsArgs& args, CudaElement element);
cudaError_t launchAttentionSums(const AttentionSumsArgs& args, CudaElement element, cudaStream_t stream);
double mapUnit(); // what 1 in a fixed-point map stands for

} // namespace keepsight::cuda
