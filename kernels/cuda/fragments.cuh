// Tiles of 16-bit rows in shared memory as fragments of m16n8k16 matrix instructions, by ldmatrix; copies to them run ahead (cp.async).
#pragma once

#include "kernels/cuda/element.cuh"

#include <cstdint>

namespace keepsight::cuda {

__device__ inline std::uint32_t sharedAddress(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void copyAhead(void* to, const void* from, bool real) { // 16 bytes; zeros where there is no such row
    const int bytes = real ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(to)), "l"(from), "r"(bytes));
}
template <int Left> __device__ inline void waitForCopies() { asm volatile("cp.async.wait_group %0;" ::"n"(Left)); } // all groups but the newest
__device__ inline void waitForAllCopies() { asm volatile("cp.async.wait_all;"); }

__device__ inline void load4(std::uint32_t (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(sharedAddress(p)));
}

template <class T> __device__ inline void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
template <> __device__ inline void multiply<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ inline void multiply<__half>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows of Dim elements in words of 16 bytes, in whole eights; word w of row r lies at w ^ (r % 8), so that eight rows' words hit different banks.
template <int Dim> constexpr int RowPitch = (Dim / 8 + 7) / 8 * 64; // elements
template <class T, int Dim> __device__ inline T* place(T* tile, int row, int word) { return tile + row * RowPitch<Dim> + ((word ^ (row & 7)) * 8); }

// By `Threads` threads; row r lies offsetOf(r) elements behind `from`, or is zeros (below 0).
template <class T, int Dim, int Threads, class OffsetOf> __device__ inline void loadRows(T* tile, const T* from, int rows, const OffsetOf& offsetOf) {
    constexpr int Words = Dim / 8;
    for (int i = static_cast<int>(threadIdx.x); i < rows * Words; i += Threads) {
        const int row = i / Words, word = i % Words;
        const std::int64_t offset = offsetOf(row);
        copyAhead(place<T, Dim>(tile, row, word), from + (offset < 0 ? 0 : offset) + word * 8, offset >= 0);
    }
    asm volatile("cp.async.commit_group;");
}

// Products of a warp's rows, 16 · Rows of them as fragments, with the first 8 · Columns rows of a tile.
template <class T, int Dim, int Rows, int Columns>
__device__ inline void products(float (&to)[Rows][Columns][4], const std::uint32_t (&rows)[Rows][Dim / 16][4], T* tile) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int d = 0; d < Dim / 16; ++d)
#pragma unroll
        for (int n = 0; n < Columns; n += 2) {
            std::uint32_t b[4]; // two tiles of 8 rows, 16 dimensions
            load4(b, place<T, Dim>(tile, n * 8 + lane / 16 * 8 + lane % 8, d * 2 + lane / 8 % 2));
            for (int m = 0; m < Rows; ++m) {
                multiply<T>(to[m][n], rows[m][d], b[0], b[1]);
                multiply<T>(to[m][n + 1], rows[m][d], b[2], b[3]);
            }
        }
}
// Those fragments, from rows `first` … of a tile.
template <class T, int Dim, int Rows> __device__ inline void loadFragments(std::uint32_t (&rows)[Rows][Dim / 16][4], T* tile, int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < Rows; ++m)
#pragma unroll
        for (int d = 0; d < Dim / 16; ++d) load4(rows[m][d], place<T, Dim>(tile, first + m * 16 + lane % 16, d * 2 + lane / 16));
}

} // namespace keepsight::cuda
