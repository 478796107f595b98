// What the CUDA kernels offer: plain pointers, sizes and a stream; no torch. Launchers return the launch's error.
#pragma once

#include "kernels/attention.h"
#include "kernels/entries.h"
#include "kernels/pointwise.h"

#include <cuda_runtime_api.h>

namespace keepsight::cuda {

enum class CudaElement { f32, bf16, f16 }; // of activations and cache; the Element of the argument structs is not read here

cudaError_t launchMoveEntries(const MoveEntriesArgs& args, std::int64_t places, cudaStream_t stream); // places: index columns used; from ≠ to
cudaError_t launchAppendEntries(const AppendEntriesArgs& args, cudaStream_t stream);

cudaError_t launchRmsNorm(const RmsNormArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchSiluMul(const SiluMulArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchRope(const RopeArgs& args, CudaElement element, cudaStream_t stream);

// One query (args.queries == 1) without statistics. Head sizes 32, 64, 128 and 256; others: cudaErrorNotSupported.
// partial: [queryHeads, splits, dim + 2] fp32 of scratch.
cudaError_t launchDecodeAttention(const AttentionArgs& args, CudaElement element, float* partial, std::int64_t splits, cudaStream_t stream);
bool decodesHeadSize(std::int64_t dim);
std::int64_t decodeSplits(std::int64_t queryHeads, std::int64_t capacity, int multiprocessors); // depends on sizes only, so runs repeat bit for bit

} // namespace keepsight::cuda
