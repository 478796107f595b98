// Attention of one new query over ragged entries stored in any form (kernels/packed.h): decode_attention.cu's walks over units of 16 entries, which a
// warp makes numbers of in shared memory (coded_side.cuh) and then treats as a tile of dense ones. packed_attention.cu is faster for what it takes.
//
// Keys and values of a head turn from exact entries to codes and back at places of their own; a unit has one source of each (packed_cuts.cuh). A warp
// takes a run of neighbouring units, so that it finds its place in ascending lists once and walks on from there. One tile a warp is enough: keys are
// done with before values come. The counts are read on the device, so one captured graph serves every step.
#include "kernels/cuda/coded_side.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/packed_cuts.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

template <int Dim>
constexpr int Warps = 8; // of a block, fewer where shared memory is short
template <class T, int Dim>
using CodedWalks = DecodeWalks<T, Dim, Warps<Dim>, 1>;

template <class T, int Dim, bool Across>
struct CodedShared { // sizes of the parts of a block's shared memory
    static constexpr int SideWords = 2 * CodedSide<T, Dim, Across>::SharedWords, HeadBytes = sizeof(Cuts) + Segments * sizeof(Segment) + 8;
    static constexpr int firstPart(int warps, int blocks) { // code tables, then tiles, and outputs where the tiles were
        return 2 * CodeTableBytes + std::max(warps * Tile<T, Dim>::Bytes, CodedWalks<T, Dim>::outputBytes(warps, blocks));
    }
    static std::size_t bytes(int warps, int kvHeads, int walks, int blocks) {
        return static_cast<std::size_t>(CodeTableBytes + firstPart(warps, blocks) + warps * (SideWords * 4 + TileEntries * 4 + TileHeads * 8) + kvHeads * HeadBytes +
                                        (kvHeads + 3 * walks + 3) * 4 + 8);
    }
};

struct Unit {
    int entry = 0, rows = 0; // 0: none
    bool keys = false, values = false; // are codes
};

template <class T, int Dim, bool Across>
__global__ void __launch_bounds__(Warps<Dim> * 32, 1)
    coded_attention_kernel(const __grid_constant__ PackedAttentionArgs args, const __grid_constant__ DecodeScratch s, const int firstPart) {
    letLaterKernelsStart(); // they wait for the end before they read the output
    extern __shared__ __align__(128) char unaligned[];
    char* shared = unaligned + (0u - static_cast<unsigned>(__cvta_generic_to_shared(unaligned))) % CodeTableBytes;
    using Sizes = CodedShared<T, Dim, Across>;
    using Side = CodedSide<T, Dim, Across>;
    const AttentionArgs& a = args.attention;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32, kvHeads = static_cast<int>(a.kvHeads);
    const int group = static_cast<int>(a.queryHeads) / kvHeads, parts = (group + TileHeads - 1) / TileHeads, walks = kvHeads * parts;
    float* tables = reinterpret_cast<float*>(shared); // of keys, of values
    char *tiles = shared + 2 * CodeTableBytes, *tile = tiles + warp * Tile<T, Dim>::Bytes;
    unsigned* tokens = reinterpret_cast<unsigned*>(shared + firstPart);              // [warps, SideWords]
    float* places = reinterpret_cast<float*>(tokens + warps * Sizes::SideWords);     // [warps, TileEntries]
    float2* tops = reinterpret_cast<float2*>(places + warps * TileEntries);          // [warps, 8] (max, sum)
    uint2* before = reinterpret_cast<uint2*>(tops + warps * TileHeads);              // [kvHeads] values of the heads before, keys' and values'
    int2* takers = reinterpret_cast<int2*>(before + kvHeads);                        // [walks] first block, how many
    Cuts* cuts = reinterpret_cast<Cuts*>(takers + walks);                            // [kvHeads]
    Segment* segments = reinterpret_cast<Segment*>(cuts + kvHeads);                  // [kvHeads, Segments]
    int *units = reinterpret_cast<int*>(segments + kvHeads * Segments), *first = units + kvHeads, *last = first + walks + 1; // [kvHeads], [walks + 1], [1]

    if (warp == 0)
        flattenHeads(kvHeads, parts, 1, units, first, [&](int h) {
            return h < kvHeads ? cutHead(args, h, TileEntries, TileEntries, false, cuts[h], segments + h * Segments) : 0;
        });
    if constexpr (Across)
#pragma unroll 1
        for (int h = static_cast<int>(threadIdx.x); h < kvHeads; h += static_cast<int>(blockDim.x)) {
            unsigned keys = 0, values = 0;
#pragma unroll 4
            for (int i = 0; i < h; ++i)
                keys += args.keys.counts[kvHeads + i], values += args.values.counts[kvHeads + i];
            before[h] = make_uint2(keys * Dim, values * Dim);
        }
    fillCodeTable(tables, args.keys), fillCodeTable(tables + CodeTableBytes / 4, args.values);
    __syncthreads();
    const int unitsAll = first[walks], blocks = blocksFor(first, walks, min(warps, MaxWarps), static_cast<int>(gridDim.x)), block = static_cast<int>(blockIdx.x);
    const CodedWalks<T, Dim> share{a, s, group, parts, warps, block, reinterpret_cast<float*>(tiles), tops, last, takers};
    share.clearEmpty(first, walks);
    if (block >= blocks) return;
    share.findTakers(first, walks, blocks);

    TileScores<T, Dim, 1> scores;
    TileOutputs<T, Dim> outputs;
    Side keys(args.keys, tokens + warp * Sizes::SideWords, tables),
        values(args.values, tokens + warp * Sizes::SideWords + Side::SharedWords, tables + CodeTableBytes / 4);
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
        const Cuts cut = cuts[w.head];
        const auto unitAt = [&](int of) {
            if (of >= numbers) return Unit{};
            const Segment* all = segments + w.head * Segments;
#pragma unroll 1
            while (of >= all[segment].unitsEnd)
                ++segment;
            const Segment in = all[segment];
            const int entry = in.origin + of * TileEntries;
            return Unit{entry, min(TileEntries, in.end - entry), entry >= cut.keysFirst && entry < cut.keysTail, entry >= cut.valuesFirst && entry < cut.valuesTail};
        };
        const auto ask = [](Side& side, bool codes, const Unit& of, int firstEnd) {
            if (codes)
                side.fetch(of.entry - firstEnd, of.rows);
            else
                Side::commit();
        };
        Unit unit = unitAt(number);
        if (unit.rows) {
            const uint2 past = Across ? before[w.head] : make_uint2(0, 0);
            keys.enter(w.head, cut.keysFirst, cut.keysTail, past.x), values.enter(w.head, cut.valuesFirst, cut.valuesTail, past.y);
            turn.positions = args.turn.byRank ? nullptr : a.positionsOf(w.head);
            keys.start(unit.entry), values.start(unit.entry);
            turn.aim(unit.entry, unit.rows);
            ask(keys, unit.keys, unit, cut.keysFirst), ask(values, unit.values, unit, cut.valuesFirst);
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
            ask(keys, next.keys, next, cut.keysFirst);
            float p[4], shrink0, shrink1;
            scores.dot(tile, p);
            hideAndKeep(p, a.scale * Log2E, unit.entry, unit.entry + unit.rows, a, s, w);
            softmax.add(p, shrink0, shrink1);
            __syncwarp(); // read before the values come
            values.template unpack<false>(tile, unit.entry, unit.rows, unit.values, turn);
            ask(values, next.values, next, cut.valuesFirst);
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
    int warps = Warps<Dim>;
#pragma unroll 1
    while (warps > 1 && Sizes::bytes(warps, kvHeads, walks, blocks) > static_cast<std::size_t>(device.sharedPerBlock))
        --warps;
    const std::size_t bytes = Sizes::bytes(warps, kvHeads, walks, blocks);
    const auto kernel = coded_attention_kernel<T, Dim, Across>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)); error != cudaSuccess)
        return error;
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(warps * 32), bytes, stream>>>(args, scratch, Sizes::firstPart(warps, blocks));
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || !scratch.scores) return error;
    return launchDecodeWeights(args.attention, scratch, stream);
}

bool inTiles(const void* p, std::int64_t head) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && head % 8 == 0; }

bool takesSide(const PackedSideArgs& side, std::int64_t dim) {
    if (!side.counts || !inTiles(side.first, side.firstHead) || !inTiles(side.tail, side.tailHead)) return false;
    const bool bytewise = side.acrossWidth || (side.bits == 3 && dim % 32 != 0); // else words are read
    return !side.codes || bytewise || (reinterpret_cast<std::uintptr_t>(side.codes) % 4 == 0 && side.codesHead % 4 == 0);
}

} // namespace

bool takesCodedAttention(const PackedAttentionArgs& args, CudaElement element) {
    const AttentionArgs& a = args.attention;
    return element != CudaElement::f32 && a.dim != 32 && hasHeadSize(a.dim) && a.queries == 1 && !a.map && a.lastCount <= 1 && inTiles(a.q.data, a.q.head) &&
           takesSide(args.keys, a.dim) && takesSide(args.values, a.dim);
}

cudaError_t launchCodedAttention(const PackedAttentionArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                                 cudaStream_t stream) {
    if (!takesCodedAttention(args, element)) return cudaErrorNotSupported;
    const auto with = [&](auto zero, auto dim) {
        using T = decltype(zero);
        constexpr int Dim = decltype(dim)::value;
        if constexpr (Dim == 32 || std::is_same_v<T, float>)
            return cudaErrorNotSupported;
        else
            return args.keys.acrossWidth || args.values.acrossWidth ? launch<T, Dim, true>(args, scratch, device, stream) : launch<T, Dim, false>(args, scratch, device, stream);
    };
    return forHeadSize(args.attention.dim, [&](auto dim) { return forElement(element, [&](auto zero) { return with(zero, dim); }); });
}

} // namespace keepsight::cuda
