// Attention of one new query over ragged entries stored in any form (kernels/packed.h): decode_attention.cu's walks over units of 16 entries, which a
// warp makes numbers of in shared memory (coded_side.cuh) and then treats as a tile of dense ones. packed_attention.cu is faster for what it takes.
//
// Keys and values of a head turn from exact entries to codes and back at places of their own; a unit has one source of each (packed_cuts.cuh). A warp
// takes a run of neighbouring units, so that it finds its place in ascending lists once and walks on from there. One tile a warp is enough: keys are
// done with before values come. The counts are read on the device, so one captured graph serves every step.
#pragma once

#include "kernels/cuda/coded_side.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/packed_cuts.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

template <int Dim, bool Across>
constexpr int Warps = Dim > 128 || Across ? 8 : 12; // of a block, fewer where shared memory is short
template <class T, int Dim, bool Across>
using CodedWalks = DecodeWalks<T, Dim, Warps<Dim, Across>, 1>;

template <class T, int Dim, bool Across>
struct CodedShared { // sizes of the parts of a block's shared memory
    static constexpr int SideBytes = CodedSide<T, Dim, Across>::SharedBytes, HeadBytes = sizeof(Cuts) + Segments * sizeof(Segment) + 8;
    static constexpr int firstPart(int warps) { // code tables, then tiles, and outputs where the tiles were
        return 2 * CodeTable<!Across>::Bytes + std::max(warps * Tile<T, Dim>::Bytes, CodedWalks<T, Dim, Across>::outputBytes(warps));
    }
    static std::size_t bytes(int warps, int kvHeads, int walks) {
        return static_cast<std::size_t>(firstPart(warps) + warps * (2 * SideBytes + TileEntries * 4 + TileHeads * 8) + kvHeads * HeadBytes +
                                        (kvHeads + 3 * walks + 3) * 4 + 16);
    }
};

struct Unit {
    int entry = 0, rows = 0; // 0: none
    bool keys = false, values = false; // are codes
};

template <class T, int Dim, bool Across>
__global__ void __launch_bounds__(Warps<Dim, Across> * 32, 1)
    coded_attention_kernel(const __grid_constant__ PackedAttentionArgs args, const __grid_constant__ DecodeScratch s, const int firstPart) {
    letLaterKernelsStart(); // they wait for the end before they read the output
    extern __shared__ __align__(128) char shared[];
    using Sizes = CodedShared<T, Dim, Across>;
    using Side = CodedSide<T, Dim, Across>;
    const AttentionArgs& a = args.attention;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32, kvHeads = static_cast<int>(a.kvHeads);
    const int group = static_cast<int>(a.queryHeads) / kvHeads, parts = (group + TileHeads - 1) / TileHeads, walks = kvHeads * parts;
    using Table = CodeTable<!Across>;
    char *tables = shared, *tiles = shared + 2 * Table::Bytes, // tables of keys, of values
        *tile = tiles + warp * Tile<T, Dim>::Bytes;
    char* sides = shared + firstPart;                                                // [warps, 2, SideBytes]
    float* places = reinterpret_cast<float*>(sides + warps * 2 * Sizes::SideBytes);  // [warps, TileEntries]
    float2* tops = reinterpret_cast<float2*>(places + warps * TileEntries);          // [warps, 8] (max, sum)
    uint2* before = reinterpret_cast<uint2*>(tops + warps * TileHeads);              // [kvHeads + 1] values of the heads before, keys' and values'
    int2* takers = reinterpret_cast<int2*>(before + kvHeads + 1);                    // [walks] first block, how many
    Cuts* cuts = reinterpret_cast<Cuts*>(takers + walks);                            // [kvHeads]
    Segment* segments = reinterpret_cast<Segment*>(cuts + kvHeads);                  // [kvHeads, Segments]
    int *units = reinterpret_cast<int*>(segments + kvHeads * Segments), *first = units + kvHeads, *last = first + walks + 1; // [kvHeads], [walks + 1], [1]

    if (warp == 0)
        flattenHeads(kvHeads, parts, 1, units, first, [&](int h) {
            return h < kvHeads ? cutHead(args, h, TileEntries, TileEntries, false, cuts[h], segments + h * Segments) : 0;
        });
    if constexpr (Across)
#pragma unroll 1
        for (int h = static_cast<int>(threadIdx.x); h <= kvHeads; h += static_cast<int>(blockDim.x)) {
            unsigned keys = 0, values = 0;
#pragma unroll 4
            for (int i = 0; i < h; ++i)
                keys += args.keys.counts[kvHeads + i], values += args.values.counts[kvHeads + i];
            before[h] = make_uint2(keys * Dim, values * Dim);
        }
    Table::fill(tables, args.keys), Table::fill(tables + Table::Bytes, args.values);
    __syncthreads();
    const int unitsAll = first[walks], blocks = blocksFor(first, walks, min(warps, MaxWarps), static_cast<int>(gridDim.x)), block = static_cast<int>(blockIdx.x);
    const CodedWalks<T, Dim, Across> share{a, s, group, parts, warps, block, reinterpret_cast<float*>(tiles), tops, last, takers};
    share.clearEmpty(first, walks);
    if (block >= blocks) return;
    share.findTakers(first, walks, blocks);

    TileScores<T, Dim, 1> scores;
    TileOutputs<T, Dim> outputs;
    const uint2 held = Across ? before[kvHeads] : make_uint2(0, 0); // by all heads
    Side keys(args.keys, sides + warp * 2 * Sizes::SideBytes, tables, held.x), values(args.values, sides + (warp * 2 + 1) * Sizes::SideBytes, tables + Table::Bytes, held.y);
    UnitTurn turn{args.turn.inverseFrequencies, places + warp * TileEntries, nullptr};
    int begin = shareBegin(block, unitsAll, blocks);
    const int end = shareBegin(block + 1, unitsAll, blocks);
    int walk = walkOfTile(first, walks, begin);
#pragma unroll 1
    while (begin < end) {
        const Walk w(group, parts, walk);
        const int stop = min(end, first[walk + 1]);
        scores.readQueries(static_cast<const T*>(a.q.data) + w.queryHead * a.q.head, a.q.head, w.queryHeads, nullptr);
        scores.useQueries();
        outputs.clear();
        RunningSoftmax softmax;
        if (s.visible && threadIdx.x == 0 && begin == first[walk]) s.visible[w.head] = segments[w.head * Segments + Segments - 1].end;

        int number = begin - first[walk] + shareBegin(warp, stop - begin, warps), segment = 0; // of the unit in its head
        const int numbers = begin - first[walk] + shareBegin(warp + 1, stop - begin, warps);
        const auto unitAt = [&](int of) {
            if (of >= numbers) return Unit{};
            const Cuts cut = cuts[w.head]; // registers are for what is on its way
            const Segment* all = segments + w.head * Segments;
#pragma unroll 1
            while (of >= all[segment].unitsEnd)
                ++segment;
            const Segment in = all[segment];
            const int entry = in.origin + of * TileEntries;
            return Unit{entry, min(TileEntries, in.end - entry), entry >= cut.keysFirst && entry < cut.keysTail, entry >= cut.valuesFirst && entry < cut.valuesTail};
        };
        const auto ask = [](Side& side, bool codes, const Unit& of) {
            if (codes)
                side.fetch(of.entry - side.firstEnd, of.rows);
            else
                Side::commit();
        };
        Unit unit = unitAt(number);
        if (unit.rows) {
            const uint2 past = Across ? before[w.head] : make_uint2(0, 0);
            const Cuts cut = cuts[w.head];
            keys.enter(w.head, cut.keysFirst, cut.keysTail, past.x), values.enter(w.head, cut.valuesFirst, cut.valuesTail, past.y);
            turn.positions = args.turn.byRank ? nullptr : a.positionsOf(w.head);
            keys.start(unit.entry), values.start(unit.entry);
            turn.aim(unit.entry, unit.rows);
            ask(keys, unit.keys, unit), ask(values, unit.values, unit);
        }
#pragma unroll 1
        while (unit.rows) {
            const Unit next = unitAt(++number);
            if (turn.frequencies) {
                keys.template unpack<true>(tile, unit.entry, unit.rows, unit.keys, turn);
                if (next.rows) turn.aim(next.entry, next.rows);
            } else {
                keys.template unpack<false>(tile, unit.entry, unit.rows, unit.keys, turn);
            }
            ask(keys, next.keys, next);
            float p[4], shrink0, shrink1;
            scores.dot(tile, p);
            hideAndKeep(p, a.scale * Log2E, unit.entry, unit.entry + unit.rows, a, s, w);
            softmax.add(p, shrink0, shrink1);
            __syncwarp(); // read before the values come
            values.template unpack<false>(tile, unit.entry, unit.rows, unit.values, turn);
            ask(values, next.values, next);
            outputs.add(tile, p, shrink0, shrink1, nullptr);
            __syncwarp();
            unit = next;
        }
        __syncthreads(); // where the tiles were, the outputs go
        outputs.store(share.outputs + warp * share.Outputs, w.queryHeads);
        softmax.store(tops + warp * TileHeads);
        const int done[1] = {walk};
        share.finish(done, 1);
        begin = stop, ++walk;
#pragma unroll 1
        while (begin < end && first[walk + 1] == begin)
            ++walk;
    }
}

template <class T, int Dim, bool Across>
cudaError_t launch(const PackedAttentionArgs& args, const DecodeScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    using Sizes = CodedShared<T, Dim, Across>;
    const int kvHeads = static_cast<int>(args.attention.kvHeads), walks = walksOf(args.attention.queryHeads, kvHeads), blocks = decodeBlocks(device);
    int warps = Warps<Dim, Across>;
#pragma unroll 1
    while (warps > 1 && Sizes::bytes(warps, kvHeads, walks) > static_cast<std::size_t>(device.sharedPerBlock))
        --warps;
    const std::size_t bytes = Sizes::bytes(warps, kvHeads, walks);
    const auto kernel = coded_attention_kernel<T, Dim, Across>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)); error != cudaSuccess)
        return error;
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(warps * 32), bytes, stream>>>(args, scratch, Sizes::firstPart(warps));
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || !scratch.scores) return error;
    return launchDecodeWeights(args.attention, scratch, stream);
}

} // namespace

// For one type of entries; instantiated by coded_attention.cu and coded_attention_f16.cu, which compile side by side.
template <class T>
cudaError_t launchCoded(const PackedAttentionArgs& args, const DecodeScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    const bool across = args.keys.acrossWidth || args.values.acrossWidth;
    const auto with = [&](auto dim) {
        constexpr int Dim = decltype(dim)::value;
        return across ? launch<T, Dim, true>(args, scratch, device, stream) : launch<T, Dim, false>(args, scratch, device, stream);
    };
    return args.attention.dim == 64 ? with(std::integral_constant<int, 64>{}) : with(std::integral_constant<int, 128>{});
}
extern template cudaError_t launchCoded<__half>(const PackedAttentionArgs&, const DecodeScratch&, const CudaDevice&, cudaStream_t);

} // namespace keepsight::cuda
