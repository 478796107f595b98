// What a group of four warps and the copy engine of compute capability 9.0a do: products of 64 × 64, copies of whole tiles.
#pragma once

#include "kernels/cuda/barrier.cuh"

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace keepsight::cuda {

// Registers of each thread, moved between groups of four warps.
template <int Count> __device__ inline void giveRegisters() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count)); }
template <int Count> __device__ inline void takeRegisters() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count)); }

// Turns of groups of four warps: a group waits until the one before has given it its turn.
__device__ inline void awaitTurn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(group + 1) : "memory"); }
__device__ inline void giveTurn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(group + 1) : "memory"); }

// A box of 64 rows of 128 bytes from column and row of a head; word w of row r lies at w ^ (r % 8), places on 1024 bytes.
__device__ inline void copyTile(void* to, const CUtensorMap& from, std::uint64_t* barrier, int column, int row, int head) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(sharedPlace(to)), "l"(&from),
                 "r"(column), "r"(row), "r"(head), "r"(sharedPlace(barrier))
                 : "memory");
}

// Such a tile as a matrix operand; the next 16 of its 64 columns are 2 further.
__device__ inline std::uint64_t operandAt(const void* tile) {
    return (sharedPlace(tile) & 0x3ffffu) >> 4 | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

// c[n][i] of a thread: row 16 · warp + lane/4 (+ 8 for i ≥ 2), column 8n + lane%4 · 2 + i%2.
using Product = float[8][4];
#define KEEPSIGHT_ROW(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define KEEPSIGHT_PRODUCT KEEPSIGHT_ROW(0), KEEPSIGHT_ROW(1), KEEPSIGHT_ROW(2), KEEPSIGHT_ROW(3), KEEPSIGHT_ROW(4), KEEPSIGHT_ROW(5), KEEPSIGHT_ROW(6), KEEPSIGHT_ROW(7)
#define KEEPSIGHT_PLACES                                                                                                                                               \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define KEEPSIGHT_MULTIPLY_REGISTERS(type)                                                                                                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " KEEPSIGHT_PLACES                            \
                 "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"                                                                                                           \
                 : KEEPSIGHT_PRODUCT                                                                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

// c (+)= a · bᵀ, 16 columns of 64 rows each; a from registers, as mma.m16n8k16 has it.
template <class T> __device__ inline void multiplyGroup(Product& c, const std::uint32_t (&a)[4], std::uint64_t b, int add) {
    if constexpr (std::is_same_v<T, __half>)
        KEEPSIGHT_MULTIPLY_REGISTERS("f16");
    else
        KEEPSIGHT_MULTIPLY_REGISTERS("bf16");
}
__device__ inline void beginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// c may be read; all but the last `Pending` groups of products are done.
template <int Pending> __device__ inline void waitForProducts(Product& c) {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : KEEPSIGHT_PRODUCT : "n"(Pending) : "memory");
}
#undef KEEPSIGHT_ROW
#undef KEEPSIGHT_PRODUCT
#undef KEEPSIGHT_PLACES
#undef KEEPSIGHT_MULTIPLY_REGISTERS

} // namespace keepsight::cuda
