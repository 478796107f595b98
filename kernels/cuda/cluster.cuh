// Clusters of blocks, which see each other's shared memory; elsewhere than on compute capability 9 only those of one block exist.
#pragma once

#include "kernels/cuda/overlap.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#include <cooperative_groups.h>
#define KEEPSIGHT_CLUSTERS
#endif

namespace keepsight::cuda {

#ifdef KEEPSIGHT_CLUSTERS
template <int Blocks>
struct Cluster {
    __device__ static int rank() { return Blocks == 1 ? 0 : static_cast<int>(cooperative_groups::this_cluster().block_rank()); }
    __device__ static void arrive() { // barrier in two halves; a block's own threads meet, too
        if constexpr (Blocks == 1)
            __syncthreads();
        else
            asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    }
    __device__ static void wait() {
        if constexpr (Blocks > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
    template <class T>
    __device__ static T* of(T* mine, int other) { // the same variable of another block
        return Blocks == 1 ? mine : cooperative_groups::this_cluster().map_shared_rank(mine, other);
    }
};
#else
template <int Blocks>
struct Cluster {
    __device__ static int rank() { return 0; }
    __device__ static void arrive() { __syncthreads(); }
    __device__ static void wait() {}
    template <class T>
    __device__ static T* of(T* mine, int) {
        return mine;
    }
};
#endif

// Clusters lie along x. attributes [2]: kept by the caller until the launch.
inline cudaLaunchConfig_t overlappingClusters(int blocks, dim3 grid, dim3 block, std::size_t sharedBytes, cudaStream_t stream, cudaLaunchAttribute* attributes) {
    cudaLaunchConfig_t config = overlapping(grid, block, sharedBytes, stream, attributes[0]);
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = static_cast<unsigned>(blocks), attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.numAttrs = blocks > 1 ? 2 : 1;
    return config;
}

} // namespace keepsight::cuda
