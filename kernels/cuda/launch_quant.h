// Kernels of packed entries; see launch.h for the conventions.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/quant.h"

namespace keepsight::cuda {

struct HeadSpans { // counts and offsets of DequantizeEntriesArgs, by value: the host knows them
    static constexpr int Most = 256;
    int count[Most] = {}, offset[Most] = {};
};
cudaError_t launchDequantize(const DequantizeEntriesArgs& args, CudaElement element, const HeadSpans& spans, cudaStream_t stream); // args.counts and offsets are not read
cudaError_t launchPackGroups(const PackGroupsArgs& args, cudaStream_t stream); // 2, 4 or 8 bits, as for the two below
constexpr std::int64_t MostInColumn = 1024, MostAcrossHeads = 128; // values of a group, and heads, that they take
cudaError_t launchAppendChannels(const AppendChannelsArgs& args, cudaStream_t stream);
cudaError_t launchRepackAcross(const RepackAcrossArgs& args, const CudaDevice& device, cudaStream_t stream);

cudaError_t launchAddBeside(const AddBesideArgs& args, cudaStream_t stream); // fewer than 2³¹ values of a head
cudaError_t launchDropBeside(const DropBesideArgs& args, cudaStream_t stream);

} // namespace keepsight::cuda
