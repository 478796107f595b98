// What codes stand for and how far keys are turned, as coded_side.cuh looks it up.
#pragma once

#include "kernels/cuda/tile.cuh"
#include "kernels/packed.h"

namespace keepsight::cuda {

// Of fp32 angles of up to 2²²: what is left of whole turns is exact to 2⁻²², the units' sine and cosine to 2⁻²⁰.
__device__ __forceinline__ float2 unitCosineSine(float angle) {
    const float turns = fmaf(angle, 0.159154943f, 12582912.0f) - 12582912.0f; // 1.5 · 2²³: the nearest integer
    const float rest = fmaf(turns, 1.7484556000744883e-7f, fmaf(turns, -6.2831854820251465f, angle));
    return make_float2(__cosf(rest), __sinf(rest));
}

// A value that was asked for long before it is used: what is made of it is not to be worked out, and waited for, where it is asked for.
__device__ __forceinline__ int arrived(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
__device__ __forceinline__ unsigned short arrived(unsigned short x) {
    asm volatile("" : "+h"(x));
    return x;
}

// How a warp turns the keys of a unit.
struct UnitTurn {
    const float* frequencies;      // null: not at all
    float* shared;                 // [TileEntries] of the warp: what the unit's entries are turned by
    const std::int32_t* positions; // of the head; null: by rank
    int held = 0;                  // by a lane, for entry lane % 16 of the unit that comes next

    __device__ void aim(int entry, int rows) {
        if (!frequencies) return;
        const int e = entry + min(static_cast<int>(threadIdx.x) % TileEntries, rows - 1);
        held = positions ? positions[e] : e;
    }
    __device__ void begin() const {
        if (threadIdx.x % 32 < TileEntries) shared[threadIdx.x % 32] = static_cast<float>(arrived(held));
        __syncwarp();
    }
};

// What codes of up to 4 bits stand for, by a block, a copy for each lane: of bytes with two codes, [256, 16 lanes] pairs, or of one code, [16, 32 lanes].
// Where codes have fewer bits, whatever the bits above them are.
template <bool Pairs>
struct CodeTable {
    static constexpr int Bytes = Pairs ? 256 * 16 * 8 : 16 * 32 * 4;
    const char* lane; // the lane's copy

    __device__ explicit CodeTable(const char* table) : lane(table + (Pairs ? threadIdx.x % 16 * 8 : threadIdx.x % 32 * 4)) {}
    __device__ static void fill(char* table, const PackedSideArgs& a) {
        if (!a.codes || a.bits == 8) return;
        const unsigned mask = (1u << a.bits) - 1;
        const auto number = [&](unsigned code) { return a.levels ? __ldg(a.levels + (code & mask)) : static_cast<float>(code & mask); };
#pragma unroll 2
        for (unsigned i = threadIdx.x; i < Bytes / (Pairs ? 8 : 4); i += blockDim.x)
            if constexpr (Pairs)
                reinterpret_cast<float2*>(table)[i] = make_float2(number(i / 16), number(i / 256));
            else
                reinterpret_cast<float*>(table)[i] = number(i / 32);
    }
    __device__ __forceinline__ float2 two(unsigned w, int k) const { // of byte k
        const unsigned byte = __byte_perm(w, 0, 0x4440 | k);
        if constexpr (Pairs) return *reinterpret_cast<const float2*>(lane + byte * 128);
        return make_float2(one(byte), one(byte >> 4));
    }
    __device__ __forceinline__ float one(unsigned code) const {
        return *reinterpret_cast<const float*>(lane + (code & 15) * 128); // in either
    }
};

} // namespace keepsight::cuda
