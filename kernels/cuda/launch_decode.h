// Kernels of a decoded token; see launch.h for the conventions.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/decode.h"
#include "kernels/packed.h"

namespace keepsight::cuda {

// bf16 and fp16, width a multiple of 8 whose x leaves room for three steps of weights in a block's shared memory, weight, x and norm on 16-byte
// addresses; others: cudaErrorNotSupported.
bool takesMatvec(const MatvecArgs& args, CudaElement element, const CudaDevice& device);
cudaError_t launchMatvec(const MatvecArgs& args, CudaElement element, const CudaDevice& device, cudaStream_t stream);
cudaError_t launchRopeAppend(const RopeAppendArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchBinRow(const BinRowArgs& args, cudaStream_t stream);

// Head sizes as hasHeadSize(), at least one chosen entry, rows and heads 16 bytes apart; others: cudaErrorNotSupported. Scratch as for
// launchDecodeAttention(); args.attention.positions and lengths are not read.
bool takesSparseAttention(const SparseAttentionArgs& args, CudaElement element);
cudaError_t launchSparseAttention(const SparseAttentionArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                                  cudaStream_t stream);

// bf16 and fp16, head sizes 64 and 128, rows on 16-byte addresses; others: cudaErrorNotSupported.
bool takesAttentionSums(const AttentionSumsArgs& args, CudaElement element);
cudaError_t launchAttentionSums(const AttentionSumsArgs& args, CudaElement element, cudaStream_t stream);
double mapUnit(); // what 1 in a fixed-point map stands for

// bf16 and fp16, head sizes 64 and 128, one query, keys and values in equally many bits, pointers and heads on 16-byte addresses. Scales by token
// (groupTokens 1, dim / groups 32, 64 or 128), of keys also by channel (groups dim, groupTokens a multiple of 16). Others:
// cudaErrorNotSupported. Scratch as for launchDecodeAttention(); args.attention.positions and lengths are not read.
bool takesPackedAttention(const PackedAttentionArgs& args, CudaElement element);
cudaError_t launchPackedAttention(const PackedAttentionArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                                  cudaStream_t stream);
// The same for every form, slower: bf16 and fp16, head sizes 64 and 128, exact entries and the query on 16-byte addresses, codes on words of 4 bytes. args.attention.positions are read where keys are turned by them.
bool takesCodedAttention(const PackedAttentionArgs& args, CudaElement element);
cudaError_t launchCodedAttention(const PackedAttentionArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                                 cudaStream_t stream);

} // namespace keepsight::cuda
