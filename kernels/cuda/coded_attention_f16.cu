// The form for fp16.
#include "kernels/cuda/coded_attention.cuh"

namespace keepsight::cuda {

template cudaError_t launchCoded<__half>(const PackedAttentionArgs&, const DecodeScratch&, const CudaDevice&, cudaStream_t);

} // namespace keepsight::cuda
