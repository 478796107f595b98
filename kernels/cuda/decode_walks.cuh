// What decode attention does with the walks of a block's share, whatever their entries lie in: the warps' outputs are added up in shared
// memory; a walk shared by several blocks is put together by the one that finishes last, slice by slice in their order, so runs repeat bit
// for bit. And what a warp makes of the scores of a tile.
#pragma once

#include "kernels/cuda/tile.cuh"

#include <cfloat>

namespace keepsight::cuda {

constexpr float Log2E = 1.4426950408889634f;
constexpr int MaxWarps = 8, Waiting = 2; // of a block, fewer where shared memory is short; heads in hand

// Entries that the query sees of a head whose last one, of n, lies behind it; positions ascend. By a whole warp, uniform.
template <class PositionOf>
__device__ int visibleEntries(const PositionOf& positionOf, int n, int now) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int low = 0, high = n - 1; // entries before low are seen, entry high is not
#pragma unroll 1
    while (low < high) {
        const int step = (high - low + 32) / 33, probe = low + step * (lane + 1) - 1;
        const int seen = __popc(__ballot_sync(EveryLane, probe < high && positionOf(probe) <= now));
        if (seen < 32) high = min(high, low + step * (seen + 1) - 1);
        low += step * seen;
    }
    return low;
}

// Scores of a tile whose first entry is `at`, scaled: hidden from entry `visible` on, and kept for the statistics where they are asked for.
__device__ inline void hideAndKeep(float (&p)[4], float scale, int at, int visible, const AttentionArgs& a, const DecodeScratch& s, const Walk& w) {
    const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
    const int mine = at + Tile<float, 32>::entry(r); // the same in all tiles
#pragma unroll
    for (int i = 0; i < 4; ++i)
        p[i] *= scale;
    if (at + TileEntries > visible) {
        if (mine >= visible) p[0] = p[1] = -INFINITY;
        if (mine + 8 >= visible) p[2] = p[3] = -INFINITY;
    }
    if (s.scores)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (mine + i / 2 * 8 < visible && 2 * c + i % 2 < w.queryHeads)
                s.scores[(w.queryHead + 2 * c + i % 2) * a.capacity + mine + i / 2 * 8] = p[i];
}

// The softmax of a walk by one warp, tile by tile: maximum and sum of the weights so far of heads 2c and 2c + 1.
struct RunningSoftmax {
    float top0 = -FLT_MAX, top1 = -FLT_MAX, sum0 = 0, sum1 = 0;

    // Scores become weights against the maximum so far; what was added up before shrinks by shrink0, shrink1.
    __device__ __forceinline__ void add(float (&p)[4], float& shrink0, float& shrink1) {
        float high0 = fmaxf(p[0], p[2]), high1 = fmaxf(p[1], p[3]);
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
            high0 = fmaxf(high0, __shfl_xor_sync(EveryLane, high0, step));
            high1 = fmaxf(high1, __shfl_xor_sync(EveryLane, high1, step));
        }
        high0 = fmaxf(high0, top0), high1 = fmaxf(high1, top1);
        shrink0 = power2(top0 - high0), shrink1 = power2(top1 - high1);
        top0 = high0, top1 = high1;
        p[0] = power2(p[0] - top0), p[1] = power2(p[1] - top1), p[2] = power2(p[2] - top0), p[3] = power2(p[3] - top1);
        sum0 = sum0 * shrink0 + p[0] + p[2], sum1 = sum1 * shrink1 + p[1] + p[3];
    }
    __device__ __forceinline__ void store(float2* tops) { // [8] of the warp
        const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            sum0 += __shfl_xor_sync(EveryLane, sum0, step), sum1 += __shfl_xor_sync(EveryLane, sum1, step);
        if (r == 0) tops[2 * c] = make_float2(top0, sum0), tops[2 * c + 1] = make_float2(top1, sum1);
    }
};

// Of the block's first warps: those that attend, if others only copy.
__device__ inline void meet(int warps) { asm volatile("bar.sync 1, %0;" ::"r"(warps * 32) : "memory"); }

// Slices of a walk, in `count` slots from `slot` on, put together by so many warps. Every thread works out the weights it needs for itself: nothing to
// meet for, and all that it reads is asked for at once.
template <class T, int Dim>
__device__ void combine(const AttentionArgs& a, const DecodeScratch& s, const Walk& w, std::int64_t slot, int count, int warps) {
    constexpr int Together = 16; // slices
    T* out = static_cast<T*>(a.out) + static_cast<std::int64_t>(w.queryHead) * Dim;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < w.queryHeads * (Dim / 2); i += warps * 32) {
        const int g = i / (Dim / 2), d = i % (Dim / 2) * 2;
        float top = -FLT_MAX, sum = 0;
        float2 o = make_float2(0, 0);
#pragma unroll 1
        for (int k = 0; k < count; k += Together) {
            float2 part[Together], x[Together];
#pragma unroll
            for (int j = 0; j < Together; ++j) {
                const std::int64_t place = (slot + min(k + j, count - 1)) * TileHeads + g;
                part[j] = __ldcg(&s.parts[place]);
                x[j] = __ldcg(reinterpret_cast<const float2*>(s.outputs + place * Dim + d));
            }
            float high = top;
#pragma unroll
            for (int j = 0; j < Together; ++j)
                high = fmaxf(high, part[j].x); // one that is there twice changes nothing
            const float shrink = power2(top - high);
            sum *= shrink, o.x *= shrink, o.y *= shrink, top = high;
#pragma unroll
            for (int j = 0; j < Together; ++j) {
                const float weight = k + j < count ? power2(part[j].x - top) : 0.0f;
                sum += weight * part[j].y, o.x += weight * x[j].x, o.y += weight * x[j].y;
            }
        }
        const float scale = sum > 0 ? 1 / sum : 0.0f; // nothing visible: 0
        out[g * Dim + d] = narrow<T>(o.x * scale), out[g * Dim + d + 1] = narrow<T>(o.y * scale);
        if (d == 0 && s.logSums) s.logSums[w.queryHead + g] = top + log2f(sum);
    }
}

// Warps, Held: of a block and of its walks, at the most.
template <class T, int Dim, int Warps = MaxWarps, int Held = Waiting>
struct DecodeWalks {
    static constexpr int Outputs = OutputPlace<Dim>::Floats;
    __host__ __device__ static constexpr int outputFloats(int heads) { return (heads + 1) / 2 * (Outputs / (TileHeads / 2)); }
    const AttentionArgs& a;
    const DecodeScratch& s;
    int group, parts, warps, block; // warps: that attend, the block's first
    float* outputs; // [Held, warps, apart]
    float2* tops;   // [Held, warps, 8] (max, sum)
    int* last;      // [Held]
    int2* takers;   // [walks] first block, how many
    int apart = Outputs; // floats from one warp's outputs to the next: fewer will do for few heads

    // Of all warps; heads: at most as many of a walk.
    __host__ __device__ static constexpr int outputBytes(int warps, int heads = TileHeads) { return Held * warps * outputFloats(heads) * 4; }
    __device__ void clearEmpty(const int* first, int walks) const { // heads without entries: 0
#pragma unroll 1
        for (int walk = block; walk < walks; walk += static_cast<int>(gridDim.x))
            if (first[walk] == first[walk + 1]) {
                const Walk w(group, parts, walk);
#pragma unroll 1
                for (int i = static_cast<int>(threadIdx.x); i < w.queryHeads * Dim; i += static_cast<int>(blockDim.x))
                    static_cast<T*>(a.out)[static_cast<std::int64_t>(w.queryHead) * Dim + i] = narrow<T>(0);
                if (threadIdx.x == 0 && s.visible) s.visible[w.head] = 0;
            }
    }
    __device__ void findTakers(const int* first, int walks, int blocks) const {
        const int tiles = first[walks];
#pragma unroll 1
        for (int walk = static_cast<int>(threadIdx.x); walk < walks; walk += warps * 32)
            if (first[walk] < first[walk + 1]) {
                const int from = blockOfTile(first[walk], tiles, blocks);
                takers[walk] = make_int2(from, blockOfTile(first[walk + 1] - 1, tiles, blocks) - from + 1);
            }
    }
    // Adds up the warps' outputs of the walks in hand; whoever is last to add to a walk puts it together.
    __device__ __forceinline__ void finish(const int (&done)[Held], int count) const {
        meet(warps);
#pragma unroll 1
        for (int j = 0; j < count; ++j) {
            const Walk w(group, parts, done[j]);
            const bool whole = takers[done[j]].y == 1;
            const std::int64_t slot = block + done[j];
            const float2* top0 = tops + j * warps * TileHeads;
            const float* from = outputs + j * warps * apart;
#pragma unroll 1
            for (int i = static_cast<int>(threadIdx.x); i < w.queryHeads * (Dim / 2); i += warps * 32) {
                const int g = i / (Dim / 2), d = i % (Dim / 2) * 2;
                float2 part[Warps], x[Warps], o = make_float2(0, 0);
                float top = -FLT_MAX, sum = 0;
#pragma unroll
                for (int k = 0; k < Warps; ++k) {
                    part[k] = k < warps ? top0[k * TileHeads + g] : make_float2(-FLT_MAX, 0);
                    x[k] =
                        k < warps ? *reinterpret_cast<const float2*>(from + k * apart + OutputPlace<Dim>::of(g, d)) : make_float2(0, 0);
                    top = fmaxf(top, part[k].x);
                }
#pragma unroll
                for (int k = 0; k < Warps; ++k) {
                    const float shrink = power2(part[k].x - top);
                    sum += part[k].y * shrink;
                    o.x += x[k].x * shrink, o.y += x[k].y * shrink;
                }
                if (whole) {
                    T* out = static_cast<T*>(a.out) + static_cast<std::int64_t>(w.queryHead + g) * Dim + d;
                    const float scaleOut = sum > 0 ? 1 / sum : 0.0f; // nothing visible: 0
                    out[0] = narrow<T>(o.x * scaleOut), out[1] = narrow<T>(o.y * scaleOut);
                    if (d == 0 && s.logSums) s.logSums[w.queryHead + g] = top + log2f(sum);
                } else {
                    __stcg(reinterpret_cast<float2*>(s.outputs + (slot * TileHeads + g) * Dim + d), o);
                    if (d == 0) __stcg(&s.parts[slot * TileHeads + g], make_float2(top, sum));
                }
            }
        }
        meet(warps);
        if (static_cast<int>(threadIdx.x) < count) {
            __threadfence(); // for all that met
            const int walk = done[threadIdx.x], slices = takers[walk].y;
            const auto before = static_cast<unsigned>(slices - 1);
            last[threadIdx.x] = slices > 1 && atomicInc(&s.arrived[walk], before) == before; // the last one leaves 0 for the next launch
            __threadfence();
        }
        meet(warps);
#pragma unroll 1
        for (int j = 0; j < count; ++j)
            if (last[j]) {
                const int2 taker = takers[done[j]];
                combine<T, Dim>(a, s, Walk(group, parts, done[j]), taker.x + done[j], taker.y, warps);
            }
        meet(warps); // shared memory is used again
    }
};

// Weights of the query from its scores, for the statistics; after the kernel that left them in `scratch`.
cudaError_t launchDecodeWeights(const AttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream);

} // namespace keepsight::cuda
