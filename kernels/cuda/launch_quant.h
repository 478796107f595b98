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
cudaError_t launchPackGroups(const PackGroupsArgs& args, cudaStream_t stream); // 2, 4 or 8 bits

} // namespace keepsight::cuda
