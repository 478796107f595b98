// Attention of one new query over ragged entries of which most are codes (kernels/packed.h): decode_attention.cu's walks over units of 32
// entries.
//
// Keys and values of a head turn from exact entries to codes and back at places of their own; these cut a head into five segments at most,
// and segments into units, so that a unit has one source of keys and one of values. A unit of codes has 32 entries (16 where that many
// share a scale along channels, whose groups it never crosses), one with exact entries 8: either takes about as much room. One warp of a block brings the
// units of its share into a ring, the others take turns at them (packed_stream.cuh). The counts are read on the device, so one captured graph serves every
// step. The maximum a head's weights are taken against follows with slack: most tiles need no exchange between lanes to see that it still serves.
#include "kernels/cuda/decode_walks.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/packed_stream.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int Warps = 12;      // of a block, those that copy included: with one more there would be 128 registers for each in place of 168
constexpr int MostCopiers = 4; // of these, where there is no copy engine; else one
constexpr int Held = 1;        // heads in hand: a second one would take the place of units on their way
template <class T, int Dim>
using PackedWalks = DecodeWalks<T, Dim, Warps - 1, Held>;

// What is needed for every unit, and would else be read anew from the kernel's parameters each time.
__device__ __forceinline__ int inRegister(int x) {
    asm("mov.b32 %0, %0;" : "+r"(x));
    return x;
}

template <class T, int Dim, int Bits, bool ByChannel>
struct PackedShared { // of a block: queries, the ring, outputs and what the kernel says
    using Places = PackedPlaces<T, Dim, Bits, ByChannel>;
    static constexpr int HeadBytes = sizeof(Cuts) + Segments * sizeof(Segment), StoredBytes = PackedQueries<T, Dim, Bits, ByChannel>::StoredBytes;
    // heads: of a walk. Without the ring.
    static std::size_t fixedBytes(int warps, int heads, int kvHeads, int walks) {
        return static_cast<std::size_t>(PackedWalks<T, Dim>::outputBytes(warps, heads) + StoredBytes + warps * (Held * TileHeads * 8) + kvHeads * HeadBytes +
                                        (kvHeads + 3 * walks + 2 + Held) * 4);
    }
};

template <class T, int Dim, int Bits, bool ByChannel>
__global__ void __launch_bounds__(Warps * 32, 1)
    packed_attention_kernel(const __grid_constant__ PackedAttentionArgs args, const __grid_constant__ DecodeScratch s, int warps, int stages) {
    letLaterKernelsStart(); // they wait for the end before they read the output
    extern __shared__ __align__(128) char shared[];
    using Sizes = PackedShared<T, Dim, Bits, ByChannel>;
    using Places = typename Sizes::Places;
    using Copier = PackedCopier<T, Dim, Bits, ByChannel>;
    using Walks = PackedWalks<T, Dim>;
    using Codes = CodeTile<Dim, Bits>;
    using Outputs = PackedOutputs<T, Dim, Bits>;
    const AttentionArgs& a = args.attention;
    const int warp = static_cast<int>(threadIdx.x) / 32; // those from `warps` on only copy
    const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
    const int group = static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads), parts = (group + TileHeads - 1) / TileHeads,
              walks = static_cast<int>(a.kvHeads) * parts, together = min(group, TileHeads);
    char *ring = shared + Sizes::StoredBytes, *behind = ring + stages * Places::Stage;
    float* allOutputs = reinterpret_cast<float*>(behind);
    float2* tops = reinterpret_cast<float2*>(behind + Walks::outputBytes(warps, together)); // [Held, warps, 8]
    Cuts* cuts = reinterpret_cast<Cuts*>(tops + Held * warps * TileHeads);                    // [kvHeads]
    Segment* segments = reinterpret_cast<Segment*>(cuts + a.kvHeads);                         // [kvHeads, Segments]
    int* units = reinterpret_cast<int*>(segments + a.kvHeads * Segments);                     // [kvHeads]
    int* first = units + a.kvHeads;                                                           // [walks + 1]
    int* last = first + walks + 1;                                                            // [Held]
    int2* takers = reinterpret_cast<int2*>(last + Held + (a.kvHeads + walks + 1 + Held) % 2); // [walks] first block, how many

    const int groupTokens = static_cast<int>(args.keys.groupTokens),
              codeRows = ByChannel && groupTokens % Codes::Rows ? TileEntries : Codes::Rows;
    const Places places(ring, stages);
    const int copiers = static_cast<int>(blockDim.x) / 32 - warps;
    if (warp == warps) places.initBarriers(stages, copiers);
    waitForEarlierKernels();
    if (warp == 0)
        flattenHeads(static_cast<int>(a.kvHeads), parts, 1, units, first,
                     [&](int h) { return h < a.kvHeads ? cutHead(args, h, codeRows, ExactRows, ByChannel, cuts[h], segments + h * Segments) : 0; });
    __syncthreads();
    const int tiles = first[walks], blocks = blocksFor(first, walks, min(warps, MaxWarps), static_cast<int>(gridDim.x)),
              block = static_cast<int>(blockIdx.x);
    const Walks share{a, s, group, parts, warps, block, allOutputs, tops, last, takers, Walks::outputFloats(together)};
    share.clearEmpty(first, walks);
    if (block >= blocks) return;
    int begin = shareBegin(block, tiles, blocks);
    const int end = shareBegin(block + 1, tiles, blocks);
    int walk = walkOfTile(first, walks, begin);
    if (warp >= warps) {
        Copier{args, places, cuts, segments, first, parts, codeRows, groupTokens & (groupTokens - 1) ? -1 : __ffs(groupTokens) - 1, begin, end, walk, warp - warps, copiers, {stages}}.run();
        return;
    }
    share.findTakers(first, walks, blocks);

    const float scale = a.scale * Log2E;
    const int keyGroups = ByChannel ? 1 : inRegister(static_cast<int>(args.keys.groups)), valueGroups = inRegister(static_cast<int>(args.values.groups)), apart = inRegister(warps);
    const bool keepScores = inRegister(s.scores ? 1 : 0);
    PackedQueries<T, Dim, Bits, ByChannel> queries;
    queries.stored = shared;
    Outputs outputs;
    PackedTurn turn{inRegister(stages)};
    unsigned slot = static_cast<unsigned>(warp); // of the place
    const auto toSlot = [&] {
        turn.advance(static_cast<int>(slot / Places::Units));
        slot %= Places::Units;
    };
    toSlot();
    const auto readAhead = [&](int of) { // of a walk
        const Walk w(group, parts, of);
        queries.expect(static_cast<const T*>(a.q.data) + w.queryHead * a.q.head, a.q.head, w.queryHeads);
    };
    int waiting = 0, waitingWalk[Held] = {};
    readAhead(walk);
#pragma unroll 1
    for (int flat = begin + warp; begin < end;) {
        const Walk w(group, parts, walk);
        const int stop = min(end, first[walk + 1]);
        queries.use(static_cast<const T*>(a.q.data) + w.queryHead * a.q.head, a.q.head, w.queryHeads, keyGroups, warps);
        if (s.visible && threadIdx.x == 0 && begin == first[walk]) s.visible[w.head] = segments[w.head * Segments + Segments - 1].end;
        int after = walk + 1; // the next one with entries
#pragma unroll 1
        while (stop < end && first[after + 1] == stop)
            ++after;
        if (stop < end) readAhead(after);
        const float codeScale0 = scale * queries.scales[0] * queries.DotUnit, codeScale1 = scale * queries.scales[1] * queries.DotUnit;
        outputs.clear();
        float top0 = -FLT_MAX, top1 = -FLT_MAX;
#pragma unroll 1
        for (; flat < stop; flat += apart) {
            // A place may be filled before one that is waited for longer: that the warps have done with its last unit says that this is not that unit's turn.
            waitFor(places.free + turn.stage, turn.phase ^ 1);
            waitFor(places.full + turn.stage, turn.phase);
            const int4 about = places.abouts[static_cast<unsigned>(turn.stage) * Places::Units + slot];
            const int offset = (about.y >> Places::OffsetShift) * Places::Grain;
            const char *keys = places.codesAt(turn.stage, 0) + offset, *values = places.codesAt(turn.stage, 1) + offset, *keyRows = places.rowsAt(turn.stage, 0) + about.z,
                       *valueRows = places.rowsAt(turn.stage, 1) + about.w;
            if (ByChannel && about.y & Places::Keys) queries.fold(keyRows, keyRows + Places::KeyZero);
            // Entries at … at + 16 · tiles − 1 of the unit, of which low … high − 1 are there; whole: both sides are codes, all are there.
            const auto attend = [&](auto tiles, auto whole, int at, int low, int high) {
                constexpr int Tiles = decltype(tiles)::value;
                constexpr bool Whole = decltype(whole)::value;
                const bool keyCodes = Whole || about.y & Places::Keys;
                const float scale0 = keyCodes ? codeScale0 : scale, scale1 = keyCodes ? codeScale1 : scale;
                const int mine = Codes::entry(r);
                float p[Tiles][4];
                if (keyCodes)
                    forGroups<ByChannel ? 1 : Codes::Blocks>(keyGroups, [&](auto groups) {
#pragma unroll
                        for (int t = 0; t < Tiles; ++t) {
                            const int row = at + t * TileEntries;
                            const char* rows = keyRows + row * groups * 2;
                            queries.dot(keys + row * Codes::Row, rows, rows + Places::KeyZero, groups, p[t]);
                        }
                    });
                else
                    queries.dotExact(keys, p[0]);
                if constexpr (!Whole)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (const int entry = at + mine + i / 2 * 8; entry < low || entry >= high) p[0][i] = -INFINITY;
                float high0 = fmaxf(p[0][0], p[0][2]), high1 = fmaxf(p[0][1], p[0][3]);
#pragma unroll
                for (int t = 1; t < Tiles; ++t)
                    high0 = fmaxf(high0, fmaxf(p[t][0], p[t][2])), high1 = fmaxf(high1, fmaxf(p[t][1], p[t][3]));
                high0 *= scale0, high1 *= scale1;
                if (keepScores)
#pragma unroll
                    for (int i = 0; i < Tiles * 4; ++i) {
                        const int entry = at + i / 4 * TileEntries + mine + i / 2 % 2 * 8;
                        if ((Whole || (entry >= low && entry < high)) && 2 * c + i % 2 < w.queryHeads)
                            s.scores[(w.queryHead + 2 * c + i % 2) * a.capacity + about.x + entry] = p[i / 4][i % 4] * (i % 2 ? scale1 : scale0);
                    }
                constexpr float Slack = Outputs::WeightLimit - Outputs::WeightTop;
                if (__any_sync(EveryLane, high0 - top0 > Slack || high1 - top1 > Slack)) {
#pragma unroll
                    for (int step = 4; step < 32; step *= 2) {
                        high0 = fmaxf(high0, __shfl_xor_sync(EveryLane, high0, step));
                        high1 = fmaxf(high1, __shfl_xor_sync(EveryLane, high1, step));
                    }
                    high0 = fmaxf(high0, top0), high1 = fmaxf(high1, top1);
                    outputs.shrink(power2(top0 - high0), power2(top1 - high1));
                    top0 = high0, top1 = high1;
                }
                const float down0 = Outputs::WeightTop - top0, down1 = Outputs::WeightTop - top1;
#pragma unroll
                for (int i = 0; i < Tiles * 4; ++i)
                    p[i / 4][i % 4] = power2(fmaf(p[i / 4][i % 4], i % 2 ? scale1 : scale0, i % 2 ? down1 : down0));
                if (Whole || about.y & Places::Values)
                    forGroups<Codes::Blocks>(valueGroups, [&](auto groups) {
                        if (!Whole || !outputs.takes(valueRows, groups)) outputs.prepare(valueRows, groups, low, high);
#pragma unroll
                        for (int t = 0; t < Tiles; ++t) {
                            const int row = at + t * TileEntries;
                            const char* rows = valueRows + row * groups * 2;
                            outputs.add(values + row * Codes::Row, rows, rows + Places::ValueZero, groups, p[t], Whole ? 0 : low - row, Whole ? TileEntries : high - row);
                        }
                    });
                else
                    outputs.addExact(values, p[0]);
            };
            if ((about.y & (1 << Places::OffsetShift) - 1) == (Codes::Rows << 8 | Places::Keys | Places::Values)) {
                attend(std::integral_constant<int, Codes::Rows / TileEntries>{}, std::true_type{}, 0, 0, Codes::Rows);
            } else {
                const int low = about.y & 0xff, high = about.y >> 8 & 0xff;
#pragma unroll 1
                for (int at = 0; at < high; at += TileEntries)
                    attend(std::integral_constant<int, 1>{}, std::false_type{}, at, low, high);
            }
            arrive(places.free + turn.stage);
            slot += static_cast<unsigned>(apart);
            toSlot();
        }
        const float2 sum = outputs.store(allOutputs + (waiting * warps + warp) * share.apart, w.queryHeads, valueGroups);
        float2* mine = tops + (waiting * warps + warp) * TileHeads;
        if (r == 0) mine[2 * c] = make_float2(top0, sum.x), mine[2 * c + 1] = make_float2(top1, sum.y);
        // As in decode_attention.cu: what waits is added up at the end, when no unit is missed meanwhile.
        waitingWalk[waiting++] = walk;
        begin = stop, walk = after;
        if (waiting == Held || begin == end) {
            share.finish(waitingWalk, waiting);
            waiting = 0;
        }
    }
}

template <class T, int Dim, int Bits, bool ByChannel>
cudaError_t launch(const PackedAttentionArgs& args, const DecodeScratch& scratch, const CudaDevice& device, cudaStream_t stream) {
    using Sizes = PackedShared<T, Dim, Bits, ByChannel>;
    const int kvHeads = static_cast<int>(args.attention.kvHeads), walks = walksOf(args.attention.queryHeads, kvHeads), blocks = decodeBlocks(device),
              heads = std::min(static_cast<int>(args.attention.queryHeads) / kvHeads, TileHeads);
    // A warp waits for a place when the one that it had before has been filled; so that it cannot be a whole round ahead, the ring holds more units than there are warps.
    const int copiers = device.clusters ? 1 : MostCopiers;
    int warps = Warps - copiers, stages = 0;
    const auto fixed = [&] { return static_cast<int>(Sizes::fixedBytes(warps, heads, kvHeads, walks)); };
#pragma unroll 1
    for (;; --warps) {
        if (warps == 0) return cudaErrorNotSupported;
        stages = (device.sharedPerBlock - fixed()) / Sizes::Places::Stage;
        if (stages * Sizes::Places::Units >= warps + Sizes::Places::Units) break;
    }
    const std::size_t bytes = static_cast<std::size_t>(stages * Sizes::Places::Stage + fixed());
    const auto kernel = packed_attention_kernel<T, Dim, Bits, ByChannel>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess)
        return error;
    cudaLaunchAttribute early;
    const cudaLaunchConfig_t config =
        overlapping(dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>((warps + copiers) * 32)), bytes, stream, early);
    if (const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args, scratch, warps, stages); error != cudaSuccess || !scratch.scores) return error;
    return launchDecodeWeights(args.attention, scratch, stream);
}

bool isByChannel(const PackedSideArgs& side, std::int64_t dim) { return side.codes && side.groups == dim && side.groupTokens > 1; }

bool takesSide(const PackedSideArgs& side, std::int64_t dim, bool ofKeys) {
    if (!side.counts || !inTiles(side.first, side.firstHead) || !inTiles(side.tail, side.tailHead)) return false;
    if (!side.codes) return true;
    if (side.bits != 2 && side.bits != 4 && side.bits != 8) return false;
    if (!inTiles(side.codes, 0) || side.codesHead % 16 || !inTiles(side.scale, 0) || !inTiles(side.zero, 0)) return false;
    if (isByChannel(side, dim)) return ofKeys && side.groupTokens % 16 == 0 && side.parametersHead % 8 == 0;
    return side.groupTokens == 1 && side.groups > 0 && side.groups <= dim / 32 && (dim / 32) % side.groups == 0 &&
           side.parametersHead % side.groups == 0;
}

} // namespace

bool takesPackedAttention(const PackedAttentionArgs& args, CudaElement element) {
    const AttentionArgs& a = args.attention;
    if (args.unusual() || element == CudaElement::f32 || (a.dim != 64 && a.dim != 128) || a.queries != 1 || a.map || a.lastCount > 1) return false;
    if (!inTiles(a.q.data, a.q.head)) return false;
    if (args.keys.codes && args.values.codes && args.keys.bits != args.values.bits) return false;
    return takesSide(args.keys, a.dim, true) && takesSide(args.values, a.dim, false);
}

cudaError_t launchPackedAttention(const PackedAttentionArgs& given, CudaElement element, const DecodeScratch& scratch,
                                  const CudaDevice& device, cudaStream_t stream) {
    if (!takesPackedAttention(given, element)) return cudaErrorNotSupported;
    PackedAttentionArgs args = given;
    const std::int64_t dim = args.attention.dim;
    for (PackedSideArgs* side : {&args.keys, &args.values}) // without codes: any form will do
        if (!side->codes) side->groups = dim / 32, side->groupTokens = 1;
    const int bits = args.keys.codes ? args.keys.bits : args.values.codes ? args.values.bits : 8;
    const bool byChannel = isByChannel(args.keys, dim);
    const auto withForm = [&](auto zero, auto size, auto width) {
        using T = decltype(zero);
        constexpr int Dim = decltype(size)::value, Bits = decltype(width)::value;
        return byChannel ? launch<T, Dim, Bits, true>(args, scratch, device, stream)
                         : launch<T, Dim, Bits, false>(args, scratch, device, stream);
    };
    const auto withBits = [&](auto zero, auto size) {
        return bits == 2   ? withForm(zero, size, std::integral_constant<int, 2>{})
               : bits == 4 ? withForm(zero, size, std::integral_constant<int, 4>{})
                           : withForm(zero, size, std::integral_constant<int, 8>{});
    };
    const auto withSize = [&](auto zero) {
        return dim == 64 ? withBits(zero, std::integral_constant<int, 64>{}) : withBits(zero, std::integral_constant<int, 128>{});
    };
    return element == CudaElement::bf16 ? withSize(__nv_bfloat16{}) : withSize(__half{});
}

} // namespace keepsight::cuda
