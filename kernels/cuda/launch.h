// What the CUDA kernels offer: plain pointers, sizes and a stream; no torch. Launchers return the launch's error.
#pragma once

#include "kernels/attention.h"
#include "kernels/entries.h"
#include "kernels/pointwise.h"
#include "kernels/select.h"

#include <cuda_runtime_api.h>

namespace keepsight::cuda {

struct CudaDevice {
    int multiprocessors = 1, sharedPerBlock = 48 << 10; // bytes a block may ask for
    bool clusters = false;                              // of thread blocks
};

enum class CudaElement { f32, bf16, f16 }; // of activations and cache; the Element of the argument structs is not read here

cudaError_t launchMoveEntries(const MoveEntriesArgs& args, std::int64_t places,
                              cudaStream_t stream); // places: index columns used; from ≠ to
cudaError_t launchAppendEntries(const AppendEntriesArgs& args, cudaStream_t stream);

cudaError_t launchRmsNorm(const RmsNormArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchSiluMul(const SiluMulArgs& args, CudaElement element, cudaStream_t stream);
cudaError_t launchRope(const RopeArgs& args, CudaElement element, cudaStream_t stream);

// One query (args.queries == 1) with columnSum and lastRows, without map; rows and heads 16 bytes apart. Scratch: slots = decodeBlocks() +
// walksOf().
struct DecodeScratch {
    float* outputs = nullptr;    // [slots, 8, dim]
    float2* parts = nullptr;     // [slots, 8] maximum and sum of a slice
    unsigned* arrived = nullptr; // [walks] 0, and 0 again afterwards
    float* scores = nullptr;     // [queryHeads, capacity] for the statistics, or null
    float* logSums = nullptr;    // [queryHeads] with scores
    int* visible = nullptr;      // [kvHeads] with scores
};
int decodeBlocks(const CudaDevice& device);
cudaError_t launchDecodeAttention(const AttentionArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                                  cudaStream_t stream);

struct TopKScratch {
    std::int32_t* candidates = nullptr; // topKCandidates() of them: a long row is searched in pieces first
};
std::int64_t topKCandidates(const TopKArgs& args, const CudaDevice& device);
cudaError_t launchTopK(const TopKArgs& args, const TopKScratch& scratch, const CudaDevice& device, cudaStream_t stream);

struct SoftVoteScratch {
    float* scores = nullptr; // [walks, candidates, width], times log2(e)
    int width = 1;           // voteWidth()
    float2* parts = nullptr; // [blocks + walks, 8] maximum and sum of a slice
};
int voteBlocks(const CudaDevice& device);
int voteWidth(std::int64_t queryHeads, std::int64_t kvHeads);
cudaError_t launchSoftVote(const SoftVoteArgs& args, CudaElement element, const SoftVoteScratch& scratch, const CudaDevice& device,
                           cudaStream_t stream);

struct DropLowestScratch {
    std::int32_t* victims = nullptr; // [kvHeads] entry that goes, or the capacity
    uint4* edges = nullptr;          // dropLowestEdges() of them
};
std::int64_t dropLowestEdges(const DropLowestArgs& args);
bool takesDropLowest(const DropLowestArgs& args); // entries of at most 4 KB, in whole words of 4 bytes
cudaError_t launchDropLowest(const DropLowestArgs& args, const DropLowestScratch& scratch, cudaStream_t stream);

inline bool hasHeadSize(std::int64_t dim) {
    return dim == 32 || dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256;
} // of the two above

// A walk: a KV head seen by up to 8 of its query heads.
inline int walksOf(std::int64_t queryHeads, std::int64_t kvHeads) { return static_cast<int>(kvHeads * ((queryHeads / kvHeads + 7) / 8)); }

} // namespace keepsight::cuda
