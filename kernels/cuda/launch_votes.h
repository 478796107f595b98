// Kernels of the votes of window policies; see launch.h for the conventions.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/votes.h"

namespace keepsight::cuda {

// sums [queryHeads, capacity], overwritten: Σ over args' queries of each entry's weight. bf16 and fp16, head sizes as hasHeadSize(), rows and heads of q and
// k on 16-byte addresses, k by its strides; others: not taken. parts: windowParts() of them. cudaErrorNotSupported: not on this device.
bool takesWindowSums(const AttentionArgs& args, CudaElement element);
std::int64_t windowParts(const AttentionArgs& args, const CudaDevice& device);
cudaError_t launchWindowSums(const AttentionArgs& args, float* sums, float2* parts, CudaElement element, const CudaDevice& device, cudaStream_t stream);
// The same for few queries and entries, in one pass (window_once.cu); cudaErrorNotSupported: not these, or not this device.
cudaError_t launchWindowOnce(const AttentionArgs& args, float* sums, CudaElement element, const CudaDevice& device, cudaStream_t stream);

bool takesPooledVotes(const PooledVotesArgs& args); // kernels up to 255 wide
cudaError_t launchPooledVotes(const PooledVotesArgs& args, cudaStream_t stream);

} // namespace keepsight::cuda
