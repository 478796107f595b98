// Programmatic dependent launch: a kernel may start while the one before it still runs, as far as it waits before it reads or writes what that one
// made. Elsewhere than on compute capability 9 both calls do nothing, and kernels follow each other as ever.
#pragma once

#include <cuda_runtime_api.h>

namespace keepsight::cuda {

// Of a kernel launched with overlapping(): until everything before it is done and visible.
__device__ inline void waitForEarlierKernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start, if it was launched with overlapping(), once all blocks have said so.
__device__ inline void letLaterKernelsStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// attribute: kept by the caller until the launch.
inline cudaLaunchConfig_t overlapping(dim3 grid, dim3 block, std::size_t sharedBytes, cudaStream_t stream, cudaLaunchAttribute& attribute) {
    attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = sharedBytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return config;
}

} // namespace keepsight::cuda
