// Attention of one new query over ragged entries of which most are codes (kernels/packed.h): decode_attention.cu's walks over units of 32
// entries.
//
// Keys and values of a head turn from exact entries to codes and back at places of their own; these cut a head into five segments at most,
// and segments into units, so that a unit has one source of keys and one of values. A unit of codes has 32 entries (16 where that many
// share a scale along channels, whose groups it never crosses), one with exact entries 8: what a warp holds of either takes about as much
// room. The counts are read on the device, so one captured graph serves every step. The maximum a head's weights are taken against follows
// with slack: most tiles need no exchange between lanes to see that it still serves.
#include "kernels/cuda/decode_walks.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/packed_cuts.cuh"
#include "kernels/cuda/packed_tile.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

// Warps of a block, fewer where shared memory is short: few bits leave the processor more to do than the memory, and room for more of them.
template <int Bits>
constexpr int Warps = Bits == 8 ? 8 : 12;
constexpr int Held = 1; // heads in hand: a second one would take the place of units on their way
template <class T, int Dim, int Bits>
using PackedWalks = DecodeWalks<T, Dim, Warps<Bits>, Held>;

// A warp's ring of units. Each starts with an int4: the entry of row 0; low | high << 8 | Keys or Values that are codes; where the rows of
// scale and zero of row 0 are in the keys' and in the values' part. Rows low … high − 1 are entries.
template <class T, int Dim, int Bits, bool ByChannel>
struct PackedStream {
    using Codes = CodeTile<Dim, Bits>;
    using Exact = Tile<T, Dim>;
    static constexpr int TokenRows = Codes::Rows * Codes::Blocks * 2 + 16,
                         ExactBytes = ExactRows * Exact::Pitch * 16; // they start anywhere in 16 bytes
    static constexpr int atLeast(int a, int b) { return a > b ? a : b; }
    static constexpr int Keys = 1 << 16, Values = 1 << 17;
    static constexpr int ZeroAfter = ByChannel ? Dim * 2 : TokenRows; // of keys; of values TokenRows
    static constexpr int KeyPart = atLeast(Codes::Bytes + 2 * ZeroAfter, ExactBytes),
                         ValuePart = atLeast(Codes::Bytes + 2 * TokenRows, ExactBytes);
    static constexpr int Stage = 16 + KeyPart + ValuePart,
                         Room = (226 * 1024 - PackedWalks<T, Dim, Bits>::outputBytes(Warps<Bits>, 1)) / Warps<Bits> - 256 -
                                PackedQueries<T, Dim, Bits, ByChannel>::StoredBytes,
                         Ring = Stage * 6 <= Room ? 6 : Room / Stage;

    const PackedAttentionArgs& a;
    char* ring;              // [Ring, Stage]
    const Cuts* cuts;        // [kvHeads]
    const Segment* segments; // [kvHeads, Segments]
    const int* first;        // of flattenHeads()
    int parts, warps, codeRows, groupShift, next, end, walk, segment = 0, place = 0;
    // Of the segment that the next unit is in: where it ends, in units of the block; entry of unit 0; what it holds. Sources are the
    // lane's, of entry 0.
    int limit = 0, origin = 0, begins = 0, ends = 0, kinds = 0, head = 0;
    const std::uint8_t *keyCodes = nullptr, *valueCodes = nullptr;
    const char *keyRows = nullptr, *valueRows = nullptr;

    // The lane's part of rows of scale and zero by token: 16 lanes each.
    __device__ static const char* tokenRows(const PackedSideArgs& side, int head, int firstEnd) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        return static_cast<const char*>(lane < 16 ? side.scale : side.zero) + head * side.parametersHead * 2 -
               static_cast<std::int64_t>(firstEnd) * (side.groups * 2) + lane % 16 * 16;
    }
    __device__ void enterSegment() {
        const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
        while (next >= first[walk + 1])
            ++walk, segment = 0;
        head = walk / parts;
#pragma unroll 1
        while (next - first[walk] >= segments[head * Segments + segment].unitsEnd)
            ++segment;
        const Cuts cut = cuts[head];
        const Segment in = segments[head * Segments + segment];
        begins = in.begin, ends = in.end, limit = first[walk] + in.unitsEnd;
        kinds = (begins >= cut.keysFirst && begins < cut.keysTail ? Keys : 0) |
                (begins >= cut.valuesFirst && begins < cut.valuesTail ? Values : 0);
        origin = in.origin - rows() * first[walk];
        keyCodes = a.keys.codes + head * a.keys.codesHead - static_cast<std::int64_t>(cut.keysFirst) * Codes::Row + lane * 16;
        valueCodes = a.values.codes + head * a.values.codesHead - static_cast<std::int64_t>(cut.valuesFirst) * Codes::Row + lane * 16;
        if constexpr (ByChannel)
            keyRows = static_cast<const char*>(lane < Dim / 8 ? a.keys.scale : a.keys.zero) + head * a.keys.parametersHead * 2 +
                      lane % (Dim / 8) * 16;
        else
            keyRows = tokenRows(a.keys, head, cut.keysFirst);
        valueRows = tokenRows(a.values, head, cut.valuesFirst);
    }
    __device__ int rows() const { return kinds == (Keys | Values) ? codeRows : ExactRows; }
    // Rows of scale and zero by token, of rows low … high − 1; returns where that of row 0 is.
    __device__ int copyTokenRows(const PackedSideArgs& side, const char* mine, unsigned to, int entry, int low, int high) const {
        const int lane = static_cast<int>(threadIdx.x) % 32, rowBytes = static_cast<int>(side.groups) * 2;
        const char* from = mine + static_cast<std::int64_t>(entry + low) * rowBytes;
        const int before = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % 16),
                  bytes = (high - low) * rowBytes; // the same in all lanes
        const unsigned target = to + (lane < 16 ? 0 : TokenRows) + lane % 16 * 16;
        const int left = before + bytes - lane % 16 * 16;
        if (left > 0) copyAsync(target, from - before, min(left, 16));
        if (lane % 16 == 0 && before + bytes > 256) copyAsync(target + 256, from - before + 256, before + bytes - 256);
        return Codes::Bytes + before - low * rowBytes;
    }
    __device__ int copyChannelRows(unsigned to, int begin) const {
        const int lane = static_cast<int>(threadIdx.x) % 32,
                  row = groupShift >= 0 ? begin >> groupShift : begin / static_cast<int>(a.keys.groupTokens);
        if (lane < Dim / 4) copyAsync(to + lane * 16, keyRows + static_cast<std::int64_t>(row) * (Dim * 2));
        return Codes::Bytes;
    }
    __device__ void copyExact(const PackedSideArgs& side, unsigned to, int entry, int low, int high, int tailBegin) const {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        const bool tail = begins >= tailBegin;
        const T* from = static_cast<const T*>(tail ? side.tail : side.first) + head * (tail ? side.tailHead : side.firstHead) +
                        static_cast<std::int64_t>(entry - (tail ? tailBegin : 0)) * Dim;
#pragma unroll 1
        for (int i = 0; i < ExactRows * Exact::Chunks / 32; ++i) {
            const int row = (i * 32 + lane) / Exact::Chunks, chunk = (i * 32 + lane) % Exact::Chunks;
            copyAsync(to + (row * Exact::Pitch + (chunk ^ row)) * 16, from + min(max(row, low), high - 1) * Dim + chunk * Exact::Values);
        }
    }
    __device__ void fetch() { // asks for the next unit, Ring − 1 ahead of the one in use
        if (next < end) {
            if (next >= limit) enterSegment();
            const int entry = origin + rows() * next, low = max(begins - entry, 0), high = min(ends - entry, rows());
            char* to = ring + (place == 0 ? Ring - 1 : place - 1) * Stage;
            const unsigned keys = static_cast<unsigned>(__cvta_generic_to_shared(to)) + 16, values = keys + KeyPart;
            const Cuts& cut = cuts[head];
            int keyPlace = 0, valuePlace = 0;
            if (high - low == Codes::Rows) { // codes of both
                Codes::copy(keys, keyCodes + static_cast<std::int64_t>(entry) * Codes::Row);
                Codes::copy(values, valueCodes + static_cast<std::int64_t>(entry) * Codes::Row);
            } else {
                if (kinds & Keys)
                    Codes::copy(keys, a.keys.codes + head * a.keys.codesHead, entry - cut.keysFirst, low, high);
                else
                    copyExact(a.keys, keys, entry, low, high, cut.keysTail);
                if (kinds & Values)
                    Codes::copy(values, a.values.codes + head * a.values.codesHead, entry - cut.valuesFirst, low, high);
                else
                    copyExact(a.values, values, entry, low, high, cut.valuesTail);
            }
            if (kinds & Keys) {
                if constexpr (ByChannel)
                    keyPlace = copyChannelRows(keys + Codes::Bytes, entry - cut.keysFirst);
                else
                    keyPlace = copyTokenRows(a.keys, keyRows, keys + Codes::Bytes, entry, low, high);
            }
            if (kinds & Values) valuePlace = copyTokenRows(a.values, valueRows, values + Codes::Bytes, entry, low, high);
            if (threadIdx.x % 32 == 0) *reinterpret_cast<int4*>(to) = make_int4(entry, low | high << 8 | kinds, keyPlace, valuePlace);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        next += warps;
    }
    __device__ void begin() {
#pragma unroll 1
        for (place = 1; place < Ring; ++place)
            fetch();
        place = 0;
    }
    __device__ const char* current() {
        fetch();
        asm volatile("cp.async.wait_group %0;" ::"n"(Ring - 1) : "memory");
        __syncwarp();
        return ring + place * Stage;
    }
    __device__ void release() {
        __syncwarp(); // read before the place is filled again
        place = place == Ring - 1 ? 0 : place + 1;
    }
};

template <class T, int Dim, int Bits, bool ByChannel>
struct PackedShared { // sizes of the parts of a block's shared memory
    using Stream = PackedStream<T, Dim, Bits, ByChannel>;
    static constexpr int RingBytes = Stream::Ring * Stream::Stage, HeadBytes = sizeof(Cuts) + Segments * sizeof(Segment),
                         StoredBytes = PackedQueries<T, Dim, Bits, ByChannel>::StoredBytes;
    static std::size_t bytes(int warps, int kvHeads, int walks, int blocks) {
        return static_cast<std::size_t>(warps * (RingBytes + StoredBytes + Held * TileHeads * 8) +
                                        PackedWalks<T, Dim, Bits>::outputBytes(warps, blocks) + kvHeads * HeadBytes +
                                        (kvHeads + 3 * walks + 2 + Held) * 4);
    }
};

template <class T, int Dim, int Bits, bool ByChannel>
__global__ void __launch_bounds__(Warps<Bits> * 32, 1)
    packed_attention_kernel(const __grid_constant__ PackedAttentionArgs args, const __grid_constant__ DecodeScratch s) {
    letLaterKernelsStart(); // they wait for the end before they read the output
    extern __shared__ __align__(128) char shared[];
    using Sizes = PackedShared<T, Dim, Bits, ByChannel>;
    using Stream = typename Sizes::Stream;
    using Codes = CodeTile<Dim, Bits>;
    using Outputs = PackedOutputs<T, Dim, Bits>;
    const AttentionArgs& a = args.attention;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
    float* allOutputs = reinterpret_cast<float*>(shared + warps * Sizes::RingBytes);
    char* stored =
        shared + warps * Sizes::RingBytes + PackedWalks<T, Dim, Bits>::outputBytes(warps, static_cast<int>(gridDim.x)); // of queries
    float2* tops = reinterpret_cast<float2*>(stored + warps * Sizes::StoredBytes);                                      // [Held, warps, 8]
    Cuts* cuts = reinterpret_cast<Cuts*>(tops + Held * warps * TileHeads);                                              // [kvHeads]
    Segment* segments = reinterpret_cast<Segment*>(cuts + a.kvHeads);     // [kvHeads, Segments]
    int* units = reinterpret_cast<int*>(segments + a.kvHeads * Segments); // [kvHeads]
    int* first = units + a.kvHeads;                                       // [walks + 1]
    const int group = static_cast<int>(a.queryHeads) / static_cast<int>(a.kvHeads), parts = (group + TileHeads - 1) / TileHeads,
              walks = static_cast<int>(a.kvHeads) * parts;
    int* last = first + walks + 1;                                                            // [Held]
    int2* takers = reinterpret_cast<int2*>(last + Held + (a.kvHeads + walks + 1 + Held) % 2); // [walks] first block, how many

    const int groupTokens = static_cast<int>(args.keys.groupTokens),
              codeRows = ByChannel && groupTokens % Codes::Rows ? TileEntries : Codes::Rows;
    const int groupShift = groupTokens & (groupTokens - 1) ? -1 : __ffs(groupTokens) - 1;
    if (warp == 0)
        flattenHeads(static_cast<int>(a.kvHeads), parts, 1, units, first,
                     [&](int h) { return h < a.kvHeads ? cutHead(args, h, codeRows, ExactRows, ByChannel, cuts[h], segments + h * Segments) : 0; });
    __syncthreads();
    const int tiles = first[walks], blocks = blocksFor(first, walks, min(warps, MaxWarps), static_cast<int>(gridDim.x)),
              block = static_cast<int>(blockIdx.x);
    const PackedWalks<T, Dim, Bits> share{a, s, group, parts, warps, block, allOutputs, tops, last, takers};
    share.clearEmpty(first, walks);
    if (block >= blocks) return;
    share.findTakers(first, walks, blocks);

    const float scale = a.scale * Log2E;
    const int keyGroups = ByChannel ? 1 : static_cast<int>(args.keys.groups), valueGroups = static_cast<int>(args.values.groups);
    PackedQueries<T, Dim, Bits, ByChannel> queries;
    queries.stored = stored + warp * Sizes::StoredBytes;
    Outputs outputs;
    int begin = shareBegin(block, tiles, blocks);
    const int end = shareBegin(block + 1, tiles, blocks);
    int walk = walkOfTile(first, walks, begin);
    Stream stream{args, shared + warp * Sizes::RingBytes, cuts, segments, first, parts, warps, codeRows, groupShift, begin + warp, end,
                  walk};
    const auto readAhead = [&](int of) { // of a walk
        const Walk w(group, parts, of);
        queries.expect(static_cast<const T*>(a.q.data) + w.queryHead * a.q.head, a.q.head, w.queryHeads);
    };
    int waiting = 0, waitingWalk[Held] = {};
    readAhead(walk);
    stream.begin();
#pragma unroll 1
    for (int flat = begin + warp; begin < end;) {
        const Walk w(group, parts, walk);
        const int stop = min(end, first[walk + 1]);
        queries.use(static_cast<const T*>(a.q.data) + w.queryHead * a.q.head, a.q.head, w.queryHeads, keyGroups);
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
        for (; flat < stop; flat += warps) {
            const char* keys = stream.current();
            const int4 about = *reinterpret_cast<const int4*>(keys);
            keys += 16;
            const char* values = keys + Stream::KeyPart;
            const int low = about.y & 0xff, high = about.y >> 8 & 0xff;
            const bool keyCodes = about.y & Stream::Keys, valueCodes = about.y & Stream::Values;
            if (ByChannel && keyCodes) queries.fold(keys + about.z, keys + about.z + Stream::ZeroAfter);
            if (valueCodes)
                outputs.prepare(values + about.w, valueGroups, low, high);
            else
                outputs.become(false);
            const float scale0 = keyCodes ? codeScale0 : scale, scale1 = keyCodes ? codeScale1 : scale;
            // Entries at … at + 16 · tiles − 1 of the unit; whole: both sides are codes, all are entries.
            const auto attend = [&](auto tiles, auto whole, int at) {
                constexpr int Tiles = decltype(tiles)::value;
                constexpr bool Whole = decltype(whole)::value;
                const int mine = Tile<T, Dim>::entry(r);
                const auto within = [&](int entry) { return Whole || (entry >= low && entry < high); };
                float p[Tiles][4];
                if (Whole || keyCodes)
                    forGroups<ByChannel ? 1 : Codes::Blocks>(keyGroups, [&](auto groups) {
#pragma unroll
                        for (int t = 0; t < Tiles; ++t) {
                            const int row = at + t * TileEntries;
                            const char* rows = keys + about.z + row * groups * 2;
                            queries.dot(keys + row * Codes::Row, rows, rows + Stream::ZeroAfter, groups, p[t]);
                        }
                    });
                else
                    queries.dotExact(keys, p[0]);
                float high0 = -INFINITY, high1 = -INFINITY;
#pragma unroll
                for (int t = 0; t < Tiles; ++t) {
                    const int entry = at + t * TileEntries + mine;
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        p[t][i] = within(entry + i / 2 * 8) ? p[t][i] * (i % 2 ? scale1 : scale0) : -INFINITY;
                    high0 = fmaxf(high0, fmaxf(p[t][0], p[t][2])), high1 = fmaxf(high1, fmaxf(p[t][1], p[t][3]));
                }
                if (s.scores)
#pragma unroll
                    for (int i = 0; i < Tiles * 4; ++i) {
                        const int entry = at + i / 4 * TileEntries + mine + i / 2 % 2 * 8;
                        if (within(entry) && 2 * c + i % 2 < w.queryHeads)
                            s.scores[(w.queryHead + 2 * c + i % 2) * a.capacity + about.x + entry] = p[i / 4][i % 4];
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
                    p[i / 4][i % 4] = power2(p[i / 4][i % 4] + (i % 2 ? down1 : down0));
                if (Whole || valueCodes)
                    forGroups<Codes::Blocks>(valueGroups, [&](auto groups) {
#pragma unroll
                        for (int t = 0; t < Tiles; ++t) {
                            const int row = at + t * TileEntries;
                            const char* rows = values + about.w + row * groups * 2;
                            outputs.add(values + row * Codes::Row, rows, rows + Stream::TokenRows, groups, p[t], Whole ? 0 : low - row,
                                        Whole ? TileEntries : high - row);
                        }
                    });
                else
                    outputs.addExact(values, p[0]);
            };
            if (high - low == Codes::Rows)
                attend(std::integral_constant<int, Codes::Rows / TileEntries>{}, std::true_type{}, 0);
            else
#pragma unroll 1
                for (int at = 0; at < high; at += TileEntries)
                    attend(std::integral_constant<int, 1>{}, std::false_type{}, at);
            stream.release();
        }
        const float2 sum = outputs.store(allOutputs + (waiting * warps + warp) * share.Outputs, w.queryHeads, valueGroups);
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
    const int kvHeads = static_cast<int>(args.attention.kvHeads), walks = walksOf(args.attention.queryHeads, kvHeads),
              blocks = decodeBlocks(device);
    int warps = Warps<Bits>;
#pragma unroll 1
    while (warps > 1 && Sizes::bytes(warps, kvHeads, walks, blocks) > static_cast<std::size_t>(device.sharedPerBlock))
        --warps;
    const std::size_t bytes = Sizes::bytes(warps, kvHeads, walks, blocks);
    const auto kernel = packed_attention_kernel<T, Dim, Bits, ByChannel>;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess)
        return error;
    if (const cudaError_t error = cudaMemsetAsync(scratch.arrived, 0, sizeof(unsigned) * static_cast<std::size_t>(walks), stream);
        error != cudaSuccess)
        return error;
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(warps * 32), bytes, stream>>>(args, scratch);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || !scratch.scores) return error;
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
