// Kernels of the kvc policies' sums; see launch.h for the conventions.
#pragma once

#include "kernels/cuda/launch_decode.h"

namespace keepsight::cuda {

// launchDecodeAttention() that leaves what weights are made of in `scratch` (scores, logSums and visible, all needed) and writes the output,
// args.out, in fp32 to nearly its precision; without `output` values are not read, and args.out, still needed, holds nothing.
cudaError_t launchDecodeScores(const AttentionArgs& args, CudaElement element, bool output, const DecodeScratch& scratch, const CudaDevice& device,
                               cudaStream_t stream);
// One query. Head sizes as hasHeadSize(), rows and heads 16 bytes apart. args.attention.out: [queryHeads, dim] fp32 for the output. Scratch as for
// launchDecodeAttention(), with scores.
cudaError_t launchOutputChange(const OutputChangeArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                               cudaStream_t stream);

// Many queries, the newest of the entries that every head holds; arrays as AttentionSumsArgs has them.
struct ChangeSumsArgs {
    AttentionSumsArgs sums;             // columnSum receives the changes of a prompt; kind value: Σ of squared weights alone. No map
    int kind = 0;                       // as ops::OutputChange
    const void *v = nullptr, *o = nullptr; // o: the rows' outputs, [queryHeads, queries, dim] by their strides; neither for kind value
    std::int64_t vHead = 0, vRow = 0, oHead = 0, oRow = 0;
    const float *valueNorms = nullptr;  // [kvHeads, held] ‖v‖²
    const float *outputNorms = nullptr; // [queryHeads, queries] ‖o‖²
};
// As takesAttentionSums().
bool takesChangeSums(const ChangeSumsArgs& args, CudaElement element);
cudaError_t launchChangeSums(const ChangeSumsArgs& args, CudaElement element, cudaStream_t stream);

// Whether every head holds equally many entries, each at its own position, and the queries are the newest of them: found [2], zeros before, becomes
// {1 where it is not so, how many}.
struct PromptCheckArgs {
    const std::int32_t *positions = nullptr, *lengths = nullptr, *queryPositions = nullptr; // [kvHeads, capacity], [kvHeads], [queries]
    std::int64_t positionsHead = 0, kvHeads = 0, capacity = 0, queries = 0;
    std::int32_t* found = nullptr;
};
cudaError_t launchPromptCheck(const PromptCheckArgs& args, cudaStream_t stream);

// norms [heads, rows] of ‖x‖², x by its strides on 16-byte addresses. bf16 and fp16, head sizes 64 and 128; others: cudaErrorNotSupported.
struct SquaredNormsArgs {
    const void* x = nullptr;
    std::int64_t head = 0, row = 0, heads = 0, rows = 0, dim = 0;
    float* norms = nullptr;
};
cudaError_t launchSquaredNorms(const SquaredNormsArgs& args, CudaElement element, cudaStream_t stream);

// The sums of many queries on compute capability 9.0 (warpgroup_sums.cu); cudaErrorNotSupported: not this device, or not these arguments.
enum class Sum { weights, squares, changes };
cudaError_t launchWarpgroupSums(const ChangeSumsArgs& args, Sum kind, CudaElement element, cudaStream_t stream);

} // namespace keepsight::cuda
