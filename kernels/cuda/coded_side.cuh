// Keys or values of one KV head, stored in any form (kernels/packed.h), as a warp reads them: units of 16 entries become a tile in shared memory.
//
// A lane takes channels 4i … 4i + 3 of a row and those half a row later, which are RoPE's pairs and, at 4 bits, lie in the same bytes. The codes of the
// next unit, and scales by token, are on their way to shared memory while the present one is computed on, what else goes with them to registers. Codes of
// up to 4 bits become numbers two at a time, by a table of which every lane has a copy in banks of its own. Exact values beside the codes are few: a
// lane takes one of them each. Where keys are turned they are put in as the difference they make, so that no lane has to know which of its channels
// have one.
#pragma once

#include "kernels/cuda/coded_table.cuh"
#include "kernels/cuda/decode_walks.cuh"
#include "kernels/quant.h"

#include <algorithm>
#include <climits>

namespace keepsight::cuda {

// Across: codes may be one array of all heads.
template <class T, int Dim, bool Across>
struct CodedSide {
    static constexpr int Half = Dim / 2, Parts = Dim / 8, Together = Parts <= 8 ? 4 : Parts <= 16 ? 2 : 1, Steps = TileEntries / Together; // rows at once
    static constexpr int MostGroups = 8; // of scales and zeros by token that are fetched ahead
    // Parts of shared memory, in bytes: codes of a unit and scales and zeros by token as they lie in memory, the row of scale and of zero that a lane is at;
    // codes may be those of an array across heads, whose scales and zeros come last.
    static constexpr int TokenBytes = TileEntries * MostGroups * 2 + 16, CodeBytes = std::max(TileEntries * Dim + 16, Across ? 4 * Steps * 128 : 0),
                         RowBytes = 2 * 32 * 16, SharedBytes = CodeBytes + 2 * TokenBytes + RowBytes + (Across ? 4 * Steps * 256 : 0);
    static constexpr bool Even = Dim / 8 % 4 == 0; // words of a row's high bits lie in one plane
    using Entries = Tile<T, Dim>;

    // What a lane has of a row. Worked out again for every unit: kept, it would take registers of the loop's.
    struct Place {
        int lane = static_cast<int>(threadIdx.x) % 32, part, sub, bits;
        __device__ explicit Place(int codeBits) : bits(codeBits) {
            asm volatile("" : "+r"(lane), "+r"(bits)); // no value the compiler knows already
            part = lane % Parts, sub = min(lane / Parts, Together - 1);
        }
        __device__ bool active() const { return Parts * Together == 32 || lane < Parts * Together; }
        __device__ int row(int step) const { return step * Together + sub; }
        __device__ int rowBytes() const { return static_cast<int>(packedBytes(Dim, bits)); }
    };

    const PackedSideArgs& a;
    char* shared; // [SharedBytes] of the warp
    CodeTable<!Across> table;
    bool byToken;
    int groupFactor; // of channel / (channels of a group) as a product, in 2⁻¹⁶
    // Of the head.
    int head = 0, firstEnd = 0, tailBegin = 0, exactCount = 0;
    unsigned across = 0; // values of the heads before
    unsigned columns = 0; // in use
    __device__ bool isAcross() const { return Across && a.acrossWidth; }
    const std::uint8_t* codes = nullptr;
    // Of the unit that comes next.
    int row = 0, rowEnd = 0; // of scale and zero, and the code before which it ends: the lane's
    int cursor = 0, place = INT_MAX, rowChannel = 0; // of exact values
    unsigned short exact = 0, rowExact = 0;

    // all: values of all heads' codes, of an array across them.
    __device__ CodedSide(const PackedSideArgs& args, char* place, const char* codeTable, unsigned all) : a(args), shared(place), table(codeTable) {
        if (isAcross()) columns = (all + static_cast<unsigned>(a.acrossRows) - 1) / static_cast<unsigned>(a.acrossRows);
        const int width = isAcross() ? Dim : Dim / static_cast<int>(a.groups);
        groupFactor = (65535 + width) / width; // exact up to Dim
        byToken = !a.ends && !isAcross() && a.groupTokens == 1 && a.groups <= MostGroups && width % 4 == 0;
    }
    __device__ static unsigned short sixteen(const SixteenBits& values, std::int64_t i) { return static_cast<const unsigned short*>(values.data)[i]; }
    __device__ static float asFloat(const SixteenBits& values, unsigned short x) { return values.bf16 ? __uint_as_float(static_cast<unsigned>(x) << 16) : unpacked<__half>(x).x; }
    __device__ const __half* parameters(const void* from) const { return static_cast<const __half*>(from) + head * a.parametersHead; }
    __device__ int groupOf(int channel) const { return channel * groupFactor >> 16; }

    __device__ void enter(int of, int codesFrom, int tailFrom, unsigned valuesBefore) {
        head = of, firstEnd = codesFrom, tailBegin = tailFrom, across = valuesBefore;
        codes = a.codes + head * (isAcross() ? 0 : a.codesHead);
        exactCount = a.places ? a.exactCounts[head] : 0;
    }
    // At the first unit of a run: where its rows of scale and zero and its exact values begin.
    __device__ void start(int entry) {
        const int code = max(entry - firstEnd, 0);
        if (!byToken && !isAcross() && a.codes) {
            const std::int32_t* ends = a.ends + head * a.endsHead;
            row = a.ends ? visibleEntries([=](int i) { return ends[i]; }, static_cast<int>(a.parameterRows), code)
                         : min(code / static_cast<int>(a.groupTokens), static_cast<int>(a.parameterRows) - 1);
            readRow(Place(a.bits).part);
        }
        if (!exactCount) return;
        const std::int32_t* places = a.places + head * a.placesHead;
        cursor = visibleEntries([=](int i) { return places[i]; }, exactCount + 1, code * Dim - 1);
        nextExact();
    }
    __device__ void readRow(int part) {
        std::int64_t end = INT_MAX;
        if (row + 1 < a.parameterRows) end = a.ends ? a.ends[head * a.endsHead + row] : (row + 1) * a.groupTokens;
        rowEnd = static_cast<int>(min(end, std::int64_t{INT_MAX}));
        const __half *scale = parameters(a.scale) + row * a.groups, *zero = parameters(a.zero) + row * a.groups;
        unsigned rowScale[4], rowZero[4];
        const bool inFours = a.groups == Dim && (reinterpret_cast<std::uintptr_t>(scale) | reinterpret_cast<std::uintptr_t>(zero)) % 8 == 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int channel = h * Half + part * 4;
            if (inFours) {
                const uint2 x = *reinterpret_cast<const uint2*>(scale + channel), y = *reinterpret_cast<const uint2*>(zero + channel);
                rowScale[2 * h] = x.x, rowScale[2 * h + 1] = x.y, rowZero[2 * h] = y.x, rowZero[2 * h + 1] = y.y;
            } else {
                const auto two = [&](const __half* from, int k) { return packed<__half>(wide(from[groupOf(channel + k)]), wide(from[groupOf(channel + k + 1)])); };
                rowScale[2 * h] = two(scale, 0), rowScale[2 * h + 1] = two(scale, 2), rowZero[2 * h] = two(zero, 0), rowZero[2 * h + 1] = two(zero, 2);
            }
        }
        *rowPlace(0) = make_uint4(rowScale[0], rowScale[1], rowScale[2], rowScale[3]), *rowPlace(1) = make_uint4(rowZero[0], rowZero[1], rowZero[2], rowZero[3]);
    }
    __device__ uint4* rowPlace(int zero) const { return reinterpret_cast<uint4*>(shared + CodeBytes + 2 * TokenBytes) + zero * 32 + threadIdx.x % 32; }
    __device__ void rowFloats(float (&scale)[8], float (&zero)[8]) const { // of the row the lane is at
        const uint4 s = *rowPlace(0), z = *rowPlace(1);
        const unsigned words[8] = {s.x, s.y, s.z, s.w, z.x, z.y, z.z, z.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float2 x = unpacked<__half>(words[k]), y = unpacked<__half>(words[4 + k]);
            scale[2 * k] = x.x, scale[2 * k + 1] = x.y, zero[2 * k] = y.x, zero[2 * k + 1] = y.y;
        }
    }
    __device__ void findRow(int code, int part) { // codes ascend
        if (code < rowEnd) return;
        const std::int32_t* ends = a.ends + head * a.endsHead;
        const int rows = static_cast<int>(a.parameterRows);
        if (a.ends)
            do
                ++row;
            while (row + 1 < rows && code >= ends[row]);
        else
            row = min(code / static_cast<int>(a.groupTokens), rows - 1);
        readRow(part);
    }
    __device__ void nextExact() {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        place = INT_MAX;
        if (cursor + lane >= exactCount) return;
        place = a.places[head * a.placesHead + cursor + lane];
        exact = sixteen(a.exact, head * a.exact.head + cursor + lane);
    }

    __device__ static void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); } // once for each unit and side, were there nothing to ask for
    // `bytes` from anywhere, by the warp, as they lie in pieces of 16 bytes.
    __device__ static void copy(char* to, const void* from, int bytes, int lane) {
        const int before = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % 16);
        const char* source = static_cast<const char*>(from) - before;
        const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
#pragma unroll 1
        for (int i = lane * 16; i < before + bytes; i += 512)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target + i), "l"(source + i), "r"(min(before + bytes - i, 16)) : "memory");
    }
    __device__ const std::uint8_t* rowsAt(int code, int rowBytes) const { return codes + static_cast<std::int64_t>(code) * rowBytes; }
    __device__ const char* copied(const void* from, int place) const { return shared + place + reinterpret_cast<std::uintptr_t>(from) % 16; }
    __device__ const __half* tokensAt(const void* from, int code) const { return parameters(from) + static_cast<std::int64_t>(code) * a.groups; }
    // Asks for the codes from `code` on, `rows` of them.
    __device__ __forceinline__ void fetch(int code, int rows) {
        const int last = rows - 1;
        const Place at(a.bits);
        if (isAcross())
            fetchAcross(code, last, at);
        else
            copy(shared, rowsAt(code, at.rowBytes()), rows * at.rowBytes(), at.lane);
        if (byToken) {
            const int bytes = rows * static_cast<int>(a.groups) * 2;
            copy(shared + CodeBytes, tokensAt(a.scale, code), bytes, at.lane), copy(shared + CodeBytes + TokenBytes, tokensAt(a.zero, code), bytes, at.lane);
        } else if (!isAcross()) {
            findRow(code + min(at.sub, last), at.part);
        }
        commit();
        if (a.rowChannels && at.lane < rows * static_cast<int>(a.rowExactCount)) readRowExact(code, at.lane);
    }
    __device__ void readRowExact(int code, int i) { // the i-th exact value of the unit
        const std::int64_t at = static_cast<std::int64_t>(code) * a.rowExactCount + i, from = head * a.channelsHead + at;
        rowChannel = a.wideChannels ? static_cast<const std::int16_t*>(a.rowChannels)[from] : static_cast<const std::uint8_t*>(a.rowChannels)[from];
        rowExact = sixteen(a.rowExact, head * a.rowExact.head + at);
    }

    // Entry e of the tile, turned.
    template <bool Turned>
    __device__ __forceinline__ static void put(char* tile, int e, float (&x)[8], const float (&frequencies)[4], float position, const Place& at) {
        if constexpr (Turned)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float2 by = unitCosineSine(__fmul_rn(position, frequencies[k])); // rounded as ops::rope rounds the angle
                const float low = x[k], high = x[4 + k];
                x[k] = low * by.x - high * by.y, x[4 + k] = high * by.x + low * by.y;
            }
        if (!at.active()) return;
        const int part = at.part;
        char* to = tile + part % 2 * 8;
        *reinterpret_cast<uint2*>(to + (e * Entries::Pitch + (part / 2 ^ e % 8)) * 16) = make_uint2(packed<T>(x[0], x[1]), packed<T>(x[2], x[3]));
        *reinterpret_cast<uint2*>(to + (e * Entries::Pitch + ((Half / 8 + part / 2) ^ e % 8)) * 16) = make_uint2(packed<T>(x[4], x[5]), packed<T>(x[6], x[7]));
    }
    template <bool Turned>
    __device__ static void readFrequencies(const UnitTurn& turn, int part, float (&to)[4]) {
        if constexpr (Turned)
#pragma unroll
            for (int k = 0; k < 4; ++k)
                to[k] = __ldg(turn.frequencies + part * 4 + k);
    }

    // A lane's codes of a row, two to a byte: channel 4 · part + k in the low bits of byte k, the one half a row later in the high ones.
    template <int Bits>
    __device__ __forceinline__ static unsigned fourBytes(const char* row, int part) {
        if constexpr (Bits == 4) {
            return *reinterpret_cast<const unsigned*>(row + part * 4);
        } else if constexpr (Bits == 2) {
            return *reinterpret_cast<const unsigned*>(row + part * 4 % (Dim / 4)) >> 2 * (part * 4 / (Dim / 4));
        } else if constexpr (Even) {
            const unsigned low = *reinterpret_cast<const unsigned*>(row + part * 4 % (Dim / 4)) >> 2 * (part * 4 / (Dim / 4)),
                           high = *reinterpret_cast<const unsigned*>(row + Dim / 4 + part * 4 % (Dim / 8)) >> (part * 4 / (Dim / 8));
            return (low & 0x33333333u) | (high & 0x11111111u) << 2;
        } else {
            unsigned w = 0;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int channel = part * 4 + k;
                const unsigned low = static_cast<unsigned char>(row[channel % (Dim / 4)]) >> 2 * (channel / (Dim / 4)),
                               high = static_cast<unsigned char>(row[Dim / 4 + channel % (Dim / 8)]) >> (channel / (Dim / 8));
                w |= ((low & 0x33u) | (high & 0x11u) << 2) << (8 * k);
            }
            return w;
        }
    }

    template <int Bits>
    __device__ __forceinline__ void numbers(const char* row, int part, float (&x)[8]) const { // what a lane's codes of a row stand for
        if constexpr (Bits == 8) {
            const unsigned w[2] = {*reinterpret_cast<const unsigned*>(row + part * 4), *reinterpret_cast<const unsigned*>(row + Half + part * 4)};
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                const unsigned byte = w[k / 4] >> (k % 4 * 8) & 0xff;
                x[k] = a.levels ? __ldg(a.levels + byte) : __uint_as_float(0x4b000000u | byte) - 8388608.0f;
            }
        } else {
            const unsigned w = fourBytes<Bits>(row, part);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float2 two = table.two(w, k);
                x[k] = two.x, x[4 + k] = two.y;
            }
        }
    }

    // The codes asked for last, to a tile. Bits 0: any number of them. Entries that are not there become the last one again.
    enum class Scales { ofToken, byToken, oneRow, rows }; // ofToken: one group of channels
    template <bool Turned, int Bits, Scales Of>
    __device__ __forceinline__ void decode(char* tile, int code, int last, const UnitTurn& turn, const Place& at) {
        const int rowBytes = Bits == 0 ? at.rowBytes() : static_cast<int>(packedBytes(Dim, Bits)), groups = static_cast<int>(a.groups);
        const char* raw = copied(rowsAt(code, rowBytes), 0);
        const auto *scaleOf = reinterpret_cast<const __half*>(copied(tokensAt(a.scale, code), CodeBytes)),
                   *zeroOf = reinterpret_cast<const __half*>(copied(tokensAt(a.zero, code), CodeBytes + TokenBytes));
        const int lowGroup = groupOf(at.part * 4), highGroup = groupOf(Half + at.part * 4);
        float frequencies[4], scale[8], zero[8];
        readFrequencies<Turned>(turn, at.part, frequencies);
        constexpr bool Rows = Of == Scales::oneRow || Of == Scales::rows;
        if constexpr (Rows) rowFloats(scale, zero);
#pragma unroll(Of == Scales::rows ? 1 : 4)
        for (int s = 0; s < Steps; ++s) {
            const int e = at.row(s), of = min(e, last);
            const char* row = raw + of * rowBytes;
            float x[8];
            if constexpr (Bits == 0)
                at.bits == 4 ? numbers<4>(row, at.part, x) : at.bits == 2 ? numbers<2>(row, at.part, x) : at.bits == 3 ? numbers<3>(row, at.part, x) : numbers<8>(row, at.part, x);
            else
                numbers<Bits>(row, at.part, x);
            if constexpr (!Rows) {
                const bool one = Of == Scales::ofToken;
                const int first = one ? of : of * groups + lowGroup, second = one ? of : of * groups + highGroup;
                const float low = wide(scaleOf[first]), lowZero = wide(zeroOf[first]), high = one ? low : wide(scaleOf[second]), highZero = one ? lowZero : wide(zeroOf[second]);
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    x[k] = fmaf(x[k], low, lowZero), x[4 + k] = fmaf(x[4 + k], high, highZero);
            } else {
                if constexpr (Of == Scales::rows)
                    if (code + of >= rowEnd) findRow(code + of, at.part), rowFloats(scale, zero);
#pragma unroll
                for (int k = 0; k < 8; ++k)
                    x[k] = fmaf(x[k], scale[k], zero[k]);
            }
            put<Turned>(tile, e, x, frequencies, Turned ? turn.shared[of] : 0.0f, at);
        }
    }
    template <bool Turned, int Bits>
    __device__ __forceinline__ void decode(char* tile, int code, int rows, const UnitTurn& turn) {
        const Place at(a.bits);
        if (byToken && !Turned && a.groups == 1)
            decode<Turned, Bits, Scales::ofToken>(tile, code, rows - 1, turn, at);
        else if (byToken)
            decode<Turned, Bits, Scales::byToken>(tile, code, rows - 1, turn, at);
        else if (__all_sync(EveryLane, code + rows <= rowEnd))
            decode<Turned, Bits, Scales::oneRow>(tile, code, rows - 1, turn, at);
        else
            decode<Turned, 0, Scales::rows>(tile, code, rows - 1, turn, at);
    }

    // Of an array across all heads: one value, and four neighbours of which the first is at a multiple of four.
    __device__ float levelOf(unsigned code) const { return a.levels ? a.levels[code] : static_cast<float>(code); }
    __device__ static unsigned codeAt(const std::uint8_t* row, std::int64_t width, int bits, std::int64_t column) {
        const int low = bits == 3 ? 2 : bits;
        const std::int64_t bytes = planeBytes(width, low), high = planeBytes(width, 1);
        unsigned code = row[column % bytes] >> (column / bytes * low) & ((1u << low) - 1);
        if (bits == 3) code |= (row[bytes + column % high] >> (column / high) & 1u) << 2;
        return code;
    }
    __device__ float acrossAt(unsigned f) const {
        const unsigned column = f % columns;
        const unsigned code = codeAt(codes + f / columns * packedBytes(a.acrossWidth, a.bits), a.acrossWidth, a.bits, column);
        return fmaf(levelOf(code), wide(static_cast<const __half*>(a.scale)[column]), wide(static_cast<const __half*>(a.zero)[column]));
    }
    // Where four neighbours lie, of which the first is at a multiple of four.
    struct AcrossPlace {
        unsigned row, column;
        __device__ AcrossPlace(unsigned f, unsigned width) : row(f / width), column(f - row * width) {}
        __device__ void advance(unsigned by, unsigned width) {
            column += by;
#pragma unroll 1
            while (column >= width)
                column -= width, ++row;
        }
    };
    __device__ bool acrossInFours() const { // planes in whole words, rows in whole fours
        const std::int64_t w = a.acrossWidth, low = a.bits == 3 ? 1 : a.bits;
        return w * low % 32 == 0 && columns % 4 == 0 &&
               (reinterpret_cast<std::uintptr_t>(a.codes) % 4 | reinterpret_cast<std::uintptr_t>(a.scale) % 8 | reinterpret_cast<std::uintptr_t>(a.zero) % 8) == 0;
    }
    // Both fours of every step: each(step, half, row, column). Steps behind the last row stay at one before.
    template <class Each>
    __device__ __forceinline__ void eachFour(int code, int last, const Place& at, const Each& each) const {
        const unsigned f = across + static_cast<unsigned>(code + min(at.sub, last)) * Dim + at.part * 4;
        AcrossPlace first(f, columns), second(f + Half, columns);
#pragma unroll 4
        for (int s = 0; s < Steps; ++s) {
            each(s, 0, first.row, first.column), each(s, 1, second.row, second.column);
            if (at.row(s + 1) <= last) first.advance(Together * Dim, columns), second.advance(Together * Dim, columns);
        }
    }
    __device__ static unsigned planeOf(unsigned column, unsigned bytes) { // of at most four
        return (column >= bytes) + (column >= 2 * bytes) + (column >= 3 * bytes);
    }
    __device__ uint2* acrossParameters(int half, int zero, int step) const {
        return reinterpret_cast<uint2*>(shared + CodeBytes + 2 * TokenBytes + RowBytes) + ((half * 2 + zero) * Steps + step) * 32 + threadIdx.x % 32;
    }
    __device__ unsigned* acrossWords(int number, int step) const { return reinterpret_cast<unsigned*>(shared) + (number * Steps + step) * 32 + threadIdx.x % 32; }
    template <int Size>
    __device__ static void copyAcross(void* to, const void* from) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from), "n"(Size) : "memory");
    }
    __device__ __forceinline__ void fetchAcross(int code, int last, const Place& at) const {
        if (!acrossInFours()) return;
        const unsigned bytes = static_cast<unsigned>(planeBytes(a.acrossWidth, at.bits == 3 ? 2 : at.bits)), high = static_cast<unsigned>(planeBytes(a.acrossWidth, 1)),
                       rowBytes = bytes + (at.bits == 3 ? high : 0);
        eachFour(code, last, at, [&](int s, int half, unsigned row, unsigned column) {
            const std::uint8_t* from = codes + static_cast<std::int64_t>(row) * rowBytes;
            copyAcross<4>(acrossWords(half, s), from + column - planeOf(column, bytes) * bytes);
            if (at.bits == 3) copyAcross<4>(acrossWords(2 + half, s), from + bytes + column % high);
            copyAcross<8>(acrossParameters(half, 0, s), static_cast<const __half*>(a.scale) + column);
            copyAcross<8>(acrossParameters(half, 1, s), static_cast<const __half*>(a.zero) + column);
        });
    }
    template <bool Turned>
    __device__ __forceinline__ void decodeAcross(char* tile, int code, int rows, const UnitTurn& turn) const {
        const Place at(a.bits);
        const int last = rows - 1;
        float frequencies[4], x[8];
        readFrequencies<Turned>(turn, at.part, frequencies);
        if (!acrossInFours()) {
#pragma unroll 1
            for (int s = 0; s < Steps; ++s) {
                const int of = min(at.row(s), last);
                const unsigned f = across + static_cast<unsigned>(code + of) * Dim + at.part * 4;
#pragma unroll
                for (int k = 0; k < 8; ++k)
                    x[k] = acrossAt(f + k % 4 + k / 4 * Half);
                put<Turned>(tile, at.row(s), x, frequencies, Turned ? turn.shared[of] : 0.0f, at);
            }
            return;
        }
        const unsigned low = at.bits == 3 ? 2 : static_cast<unsigned>(at.bits), bytes = static_cast<unsigned>(planeBytes(a.acrossWidth, static_cast<int>(low))),
                       high = static_cast<unsigned>(planeBytes(a.acrossWidth, 1));
        eachFour(code, last, at, [&](int s, int half, unsigned, unsigned column) {
            unsigned w = *acrossWords(half, s) >> (planeOf(column, bytes) * low);
            if (at.bits == 3) w = (w & 0x03030303u) | (*acrossWords(2 + half, s) >> (column / high) & 0x01010101u) << 2;
            const uint2 scale = *acrossParameters(half, 0, s), zero = *acrossParameters(half, 1, s);
            const float2 s0 = unpacked<__half>(scale.x), s1 = unpacked<__half>(scale.y), z0 = unpacked<__half>(zero.x), z1 = unpacked<__half>(zero.y);
            const float by[4] = {s0.x, s0.y, s1.x, s1.y}, plus[4] = {z0.x, z0.y, z1.x, z1.y};
#pragma unroll
            for (int k = 0; k < 4; ++k)
                x[half * 4 + k] = fmaf(at.bits == 8 ? levelOf(w >> (8 * k) & 0xff) : table.one(w >> (8 * k)), by[k], plus[k]);
            if (half == 1) put<Turned>(tile, at.row(s), x, frequencies, Turned ? turn.shared[min(at.row(s), last)] : 0.0f, at);
        });
    }
    template <bool Turned>
    __device__ __forceinline__ void copyExact(char* tile, int entry, int rows, const UnitTurn& turn) const { // not codes
        const Place at(a.bits);
        float frequencies[4];
        readFrequencies<Turned>(turn, at.part, frequencies);
        const bool tail = entry >= tailBegin;
        const T* from = static_cast<const T*>(tail ? a.tail : a.first) + head * (tail ? a.tailHead : a.firstHead) + static_cast<std::int64_t>(entry - (tail ? tailBegin : 0)) * Dim;
#pragma unroll 1
        for (int s = 0; s < Steps; ++s) {
            const int e = at.row(s), of = min(e, rows - 1);
            float x[8];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint2 word = *reinterpret_cast<const uint2*>(from + of * Dim + h * Half + at.part * 4);
                const float2 low = unpacked<T>(word.x), high = unpacked<T>(word.y);
                x[4 * h] = low.x, x[4 * h + 1] = low.y, x[4 * h + 2] = high.x, x[4 * h + 3] = high.y;
            }
            put<Turned>(tile, e, x, frequencies, Turned ? turn.shared[of] : 0.0f, at);
        }
    }

    // What code `code` + e of the head stands for in one channel; it is one of those asked for last.
    __device__ float valueOf(int code, int e, int channel) const {
        const int i = code + e;
        if (isAcross()) return acrossAt(across + static_cast<unsigned>(i) * Dim + channel);
        const int rowBytes = static_cast<int>(packedBytes(Dim, a.bits)), low = a.bits == 3 ? 2 : a.bits;
        const auto* raw = reinterpret_cast<const unsigned char*>(copied(rowsAt(code, rowBytes), 0)) + e * rowBytes;
        const int planes = Dim * low / 8, plane = static_cast<int>(planeOf(static_cast<unsigned>(channel), static_cast<unsigned>(planes)));
        unsigned number = raw[channel - plane * planes] >> (plane * low) & ((1u << low) - 1);
        if (a.bits == 3) number |= (raw[planes + channel % (Dim / 8)] >> (channel / (Dim / 8)) & 1u) << 2;
        const float level = a.bits == 8 ? levelOf(number) : table.one(number);
        int r = 0, high = static_cast<int>(a.parameterRows) - 1;
        if (high == 0) {
            r = 0;
        } else if (!a.ends) {
            r = a.groupTokens == 1 ? i : min(i / static_cast<int>(a.groupTokens), high);
        } else {
#pragma unroll 1
            while (r < high) {
                const int middle = (r + high) / 2;
                if (a.ends[head * a.endsHead + middle] <= i)
                    r = middle + 1;
                else
                    high = middle;
            }
        }
        const std::int64_t at = static_cast<std::int64_t>(r) * a.groups + groupOf(channel);
        return fmaf(level, wide(__ldg(parameters(a.scale) + at)), wide(__ldg(parameters(a.zero) + at)));
    }
    __device__ static T& element(char* tile, int e, int channel) {
        return *reinterpret_cast<T*>(tile + (e * Entries::Pitch + (channel / 8 ^ e % 8)) * 16 + channel % 8 * 2);
    }
    // One exact value a lane, of those that are `mine`. By all lanes.
    template <bool Turned>
    __device__ __forceinline__ void replace(char* tile, bool mine, int e, int channel, float value, int code, const UnitTurn& turn) const {
        if constexpr (!Turned) {
            if (mine) element(tile, e, channel) = narrow<T>(value);
        } else {
            const float position = turn.shared[mine ? e : 0];
            const int low = channel % Half;
            float2 more = make_float2(0, 0);
            if (mine) {
                const float2 by = unitCosineSine(__fmul_rn(position, __ldg(turn.frequencies + low)));
                const float difference = value - valueOf(code, e, channel);
                more = channel < Half ? make_float2(difference * by.x, difference * by.y) : make_float2(-difference * by.y, difference * by.x);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) { // both channels of a pair may have one
                if (mine && channel / Half == half) {
                    T &first = element(tile, e, low), &second = element(tile, e, low + Half);
                    first = narrow<T>(wide(first) + more.x), second = narrow<T>(wide(second) + more.y);
                }
                __syncwarp();
            }
        }
    }
    template <bool Turned>
    __device__ __forceinline__ void replaceAll(char* tile, int code, int rows, const UnitTurn& turn) {
        if (exactCount) {
            const int end = (code + rows) * Dim;
#pragma unroll 1
            for (unsigned mine = EveryLane; mine == EveryLane;) {
                const int at = arrived(place);
                mine = __ballot_sync(EveryLane, at < end);
                if (mine) replace<Turned>(tile, at < end, at / Dim - code, at % Dim, asFloat(a.exact, arrived(exact)), code, turn);
                cursor += __popc(mine);
                if (mine) nextExact();
            }
        }
        if (a.rowChannels)
#pragma unroll 1
            for (int i = static_cast<int>(threadIdx.x) % 32, count = rows * static_cast<int>(a.rowExactCount), all = 0; all < count; i += 32, all += 32) {
                if (all > 0 && i < count) readRowExact(code, i);
                replace<Turned>(tile, i < count, i / static_cast<int>(a.rowExactCount), arrived(rowChannel), asFloat(a.rowExact, arrived(rowExact)), code, turn);
            }
    }

    // A unit to its tile.
    template <bool Turned>
    __device__ __forceinline__ void unpack(char* tile, int entry, int rows, bool areCodes, const UnitTurn& turn) {
        if constexpr (Turned) turn.begin();
        if (!areCodes) {
            copyExact<Turned>(tile, entry, rows, turn);
        } else {
            const int code = entry - firstEnd;
            asm volatile("cp.async.wait_group 1;" ::: "memory"); // all but what the other side asked for since
            __syncwarp();
            if (isAcross())
                decodeAcross<Turned>(tile, code, rows, turn);
            else if (a.bits == 4)
                decode<Turned, 4>(tile, code, rows, turn);
            else if (a.bits == 2)
                decode<Turned, 2>(tile, code, rows, turn);
            else if (a.bits == 3)
                decode<Turned, 3>(tile, code, rows, turn);
            else
                decode<Turned, 8>(tile, code, rows, turn);
            __syncwarp();
            replaceAll<Turned>(tile, code, rows, turn);
        }
        __syncwarp();
    }
};

} // namespace keepsight::cuda
