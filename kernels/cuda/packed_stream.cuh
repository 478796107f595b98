// How units of packed entries get to the warps that attend to them: a ring in shared memory, which one warp of the block fills for all others.
//
// Copying by each warp for itself takes as many instructions as half of the attending. The copy engine takes whole units (all rows are there, and both sides are codes or
// both exact) a few at a time: a place of the ring has room for some neighbours, whose parts lie behind each other in the cache and in the place. Other units, and all where there is no
// engine, are copied by the lanes (cp.async; then several warps do it). Either way each lane arrives once at the place's barrier, so that whoever waits
// need not know which. Codes lie as CodeTile has them, exact rows as in the cache.
#pragma once

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/packed_cuts.cuh"
#include "kernels/cuda/packed_tile.cuh"

namespace keepsight::cuda {

// The ring. In memory of a block: codes of all places, then rows of scale and zero, then what is said of the units, then barriers.
template <class T, int Dim, int Bits, bool ByChannel>
struct PackedPlaces {
    using Codes = CodeTile<Dim, Bits>;
    static constexpr int atLeast(int a, int b) { return a > b ? a : b; }
    static constexpr int Units = Codes::Row == 128 ? 4 : 8; // of a place: the more, the longer the pieces that are asked for
    static constexpr int ExactBytes = ExactRows * Dim * static_cast<int>(sizeof(T)), Part = atLeast(Codes::Bytes, ExactBytes), Grain = 512;
    static constexpr int TokenRows = Codes::Rows * Codes::Blocks * 2 + 16; // bytes of scale or zero of a unit, which start anywhere in 16
    static constexpr int KeyRows = ByChannel ? Dim * 2 : TokenRows, KeyZero = Units * KeyRows, ValueZero = Units * TokenRows; // of a unit; from scale to zero
    static constexpr int CodeBytes = 2 * Units * Part, RowBytes = 2 * (KeyZero + ValueZero), Stage = CodeBytes + RowBytes + Units * static_cast<int>(sizeof(int4)) + 16;
    static_assert(Codes::Bytes % Grain == 0 && ExactBytes % Grain == 0);
    static constexpr int Keys = 1 << 16, Values = 1 << 17, OffsetShift = 18;

    char *codes, *rows;
    // Of a unit: the entry of row 0; low | high << 8 | Keys or Values that are codes | where its codes are, in Grains, << OffsetShift; where in its side's rows those of row 0 are.
    // Rows low … high − 1 are entries.
    int4* abouts;
    std::uint64_t *full, *free;

    __device__ PackedPlaces(char* shared, int stages)
        : codes(shared), rows(codes + stages * CodeBytes), abouts(reinterpret_cast<int4*>(rows + stages * RowBytes)), full(reinterpret_cast<std::uint64_t*>(abouts + stages * Units)),
          free(full + stages) {}
    __device__ char* codesAt(int stage, int side) const { return codes + stage * CodeBytes + side * (Units * Part); }
    __device__ char* rowsAt(int stage, int side) const { return rows + stage * RowBytes + side * (2 * KeyZero); }
    // By a warp, before the block meets. Every lane arrives for itself: racecheck does not follow one that does it for all.
    __device__ void initBarriers(int stages, int copiers) const {
        if (threadIdx.x % 32 == 0)
#pragma unroll 1
            for (int i = 0; i < stages; ++i)
                initBarrier(full + i, copiers * 32), initBarrier(free + i, Units * 32);
        showToCopyEngine();
    }
};

// Which place it is, and how often the ring has been gone round.
struct PackedTurn {
    int stages, stage = 0;
    unsigned phase = 0;
    __device__ void advance(int places) {
        stage += places;
#pragma unroll 1
        while (stage >= stages)
            stage -= stages, phase ^= 1;
    }
};

// One of the warps that fill the ring.
template <class T, int Dim, int Bits, bool ByChannel>
struct PackedCopier {
    using Places = PackedPlaces<T, Dim, Bits, ByChannel>;
    using Codes = CodeTile<Dim, Bits>;
    using Exact = Tile<T, Dim>;
    static constexpr int Both = Places::Keys | Places::Values;

    const PackedAttentionArgs& a;
    const Places& places;
    const Cuts* cuts;        // [kvHeads]
    const Segment* segments; // [kvHeads, Segments]
    const int* first;        // of flattenHeads()
    int parts, codeRows, groupShift, begin, end, walk, number, copiers; // one copier: the engine does it
    PackedTurn turn;
    int segment = 0;
    // Of the segment that the next unit is in: where it ends, in units of the block; entry of unit 0; what it holds.
    int limit = 0, origin = 0, begins = 0, ends = 0, kinds = 0, head = 0;
    int byThreads = 0; // places that threads may have written and the engine not since

    __device__ void run() {
#pragma unroll 1
        for (int place = begin; place < end;) {
            waitForPlace();
            if (place >= limit) enterSegment(place);
            const int units = wholeUnits(place, entryOf(place));
            if (units >= Places::Units && kinds == Both) {
                if (const int done = askForPlaces(entryOf(place), units / Places::Units)) {
                    place += done * Places::Units;
                    continue;
                }
            }
            copyPlace(place);
            place += Places::Units;
        }
    }

private:
    __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
    __device__ int rows() const { return kinds == Both ? codeRows : ExactRows; }
    __device__ int entryOf(int unit) const { return origin + rows() * unit; }
    // That the engine can copy, from this one on, in the segment.
    __device__ int wholeUnits(int unit, int entry) const {
        if (!HasCopyEngine || copiers > 1 || (kinds != 0 && (kinds != Both || codeRows != Codes::Rows)) || entry < begins) return 0;
        return min(min(end, limit) - unit, (ends - entry) / rows());
    }
    __device__ void waitForPlace() {
        waitFor(places.free + turn.stage, turn.phase ^ 1);
        if (byThreads > 0) {
            --byThreads;
            showToCopyEngine();
        }
    }
    __device__ int channelRow(int code) const { return groupShift >= 0 ? code >> groupShift : code / static_cast<int>(a.keys.groupTokens); }
    __device__ void describe(int slot, int entry, int low, int high, int offset, int keyPlace, int valuePlace) const {
        places.abouts[turn.stage * Places::Units + slot] =
            make_int4(entry, low | high << 8 | kinds | offset / Places::Grain << Places::OffsetShift, keyPlace, valuePlace);
    }
    __device__ void enterSegment(int unit) {
#pragma unroll 1
        while (unit >= first[walk + 1])
            ++walk, segment = 0;
        head = walk / parts;
#pragma unroll 1
        while (unit - first[walk] >= segments[head * Segments + segment].unitsEnd)
            ++segment;
        const Cuts cut = cuts[head];
        const Segment in = segments[head * Segments + segment];
        begins = in.begin, ends = in.end, limit = first[walk] + in.unitsEnd;
        kinds = (begins >= cut.keysFirst && begins < cut.keysTail ? Places::Keys : 0) | (begins >= cut.valuesFirst && begins < cut.valuesTail ? Places::Values : 0);
        origin = in.origin - rows() * first[walk];
    }
    // Any units, one after the other.
    __device__ void copyPlace(int place) {
        std::uint64_t* full = places.full + turn.stage;
        bool copied = false;
#pragma unroll 1
        for (int slot = number; slot < Places::Units && place + slot < end;) {
            if (place + slot >= limit) enterSegment(place + slot);
            const int entry = entryOf(place + slot), units = min(wholeUnits(place + slot, entry), Places::Units - slot);
            if (units > 0 && kinds == 0) {
                askForExact(full, entry, slot, units);
                slot += units;
            } else if (units > 0 && askForCodes(full, entry, slot, units)) {
                slot += units;
            } else {
                copyByThreads(entry, max(begins - entry, 0), min(ends - entry, rows()), slot);
                copied = true;
                slot += copiers;
            }
        }
        if (copied) {
            byThreads = turn.stages;
            __threadfence_block(); // what arrives later, for the copies, may arrive without the rest
            arriveWhenCopied(full);
        } else {
            arrive(full);
        }
        turn.advance(1);
    }
    // Where rows of scale and zero are, in bytes from the first head's; of the units' keys or values. code: of the first entry.
    __device__ std::int64_t keyRowsAt(int code) const {
        return head * a.keys.parametersHead * 2 + static_cast<std::int64_t>(ByChannel ? channelRow(code) : code) * keyStep();
    }
    __device__ std::int64_t valueRowsAt(int code) const { return head * a.values.parametersHead * 2 + static_cast<std::int64_t>(code) * valueStep(); }
    __device__ int keyStep() const { return ByChannel ? Dim * 2 : static_cast<int>(a.keys.groups) * 2; }
    __device__ int valueStep() const { return static_cast<int>(a.values.groups) * 2; }
    __device__ const std::uint8_t* codesFrom(const PackedSideArgs& side, int code) const { return side.codes + head * side.codesHead + static_cast<std::int64_t>(code) * Codes::Row; }

    // As many whole places; 0: rows of scale and zero do not lie so that it is worth it, or possible. This is where the time goes: one warp asks for what eleven attend to.
    __device__ int askForPlaces(int entry, int count) {
        if (ByChannel && a.keys.groupTokens != Codes::Rows) return 0;
        constexpr int Entries = Places::Units * Codes::Rows;
        const Cuts cut = cuts[head];
        int key = entry - cut.keysFirst, value = entry - cut.valuesFirst;
        const int keyBytes = (ByChannel ? Places::Units : Entries) * keyStep(), valueBytes = Entries * valueStep(), all = 2 * (Places::Units * Codes::Bytes + keyBytes + valueBytes);
        const std::int64_t keyOffset = keyRowsAt(key), valueOffset = valueRowsAt(value);
        if ((keyOffset | valueOffset) & 15) return 0;
        const std::uint8_t *keyCodes = codesFrom(a.keys, key), *valueCodes = codesFrom(a.values, value);
        const char *keyScale = static_cast<const char*>(a.keys.scale) + keyOffset, *keyZero = static_cast<const char*>(a.keys.zero) + keyOffset,
                   *valueScale = static_cast<const char*>(a.values.scale) + valueOffset, *valueZero = static_cast<const char*>(a.values.zero) + valueOffset;
        const std::uint32_t codes = sharedPlace(places.codes), rows = sharedPlace(places.rows);
        int4 about = make_int4(entry + lane() * Codes::Rows, Codes::Rows << 8 | Both | lane() * Codes::Bytes / Places::Grain << Places::OffsetShift,
                               lane() * (ByChannel ? 1 : Codes::Rows) * keyStep(), lane() * Codes::Rows * valueStep());
#pragma unroll 1
        for (int i = 0;;) {
            std::uint64_t* full = places.full + turn.stage;
            if (lane() < Places::Units) places.abouts[turn.stage * Places::Units + lane()] = about;
            if (isElected()) {
                expectBytes(full, all);
                const std::uint32_t keys = codes + static_cast<unsigned>(turn.stage * Places::CodeBytes), keyRows = rows + static_cast<unsigned>(turn.stage * Places::RowBytes),
                                    valueRows = keyRows + 2 * Places::KeyZero;
                copyBulk(keys, keyCodes, Places::Units * Codes::Bytes, full);
                copyBulk(keys + Places::Units * Places::Part, valueCodes, Places::Units * Codes::Bytes, full);
                copyBulk(keyRows, keyScale, keyBytes, full);
                copyBulk(keyRows + Places::KeyZero, keyZero, keyBytes, full);
                copyBulk(valueRows, valueScale, valueBytes, full);
                copyBulk(valueRows + Places::ValueZero, valueZero, valueBytes, full);
            }
            arrive(full);
            turn.advance(1);
            if (++i == count) return count;
            waitForPlace();
            about.x += Entries, key += Entries, value += Entries;
            keyCodes += Places::Units * Codes::Bytes, valueCodes += Places::Units * Codes::Bytes;
            keyScale += keyBytes, keyZero += keyBytes, valueScale += valueBytes, valueZero += valueBytes;
        }
    }
    // Whole units of codes from `entry` on; false: rows of scale and zero begin where the engine cannot copy from.
    __device__ bool askForCodes(std::uint64_t* full, int entry, int slot, int units) const {
        const Cuts cut = cuts[head];
        const int key = entry - cut.keysFirst, value = entry - cut.valuesFirst;
        const std::int64_t keyOffset = keyRowsAt(key), valueOffset = valueRowsAt(value);
        if ((keyOffset | valueOffset) & 15) return false;
        const auto behindFirst = [&](int unit) { return ByChannel ? channelRow(key + unit * Codes::Rows) - channelRow(key) : unit * Codes::Rows; }; // rows
        if (lane() < units)
            describe(slot + lane(), entry + lane() * Codes::Rows, 0, Codes::Rows, slot * Places::Part + lane() * Codes::Bytes,
                     slot * Places::KeyRows + behindFirst(lane()) * keyStep(), slot * Places::TokenRows + lane() * Codes::Rows * valueStep());
        if (isElected()) {
            const int keyBytes = (behindFirst(units - 1) + (ByChannel ? 1 : Codes::Rows)) * keyStep(), valueBytes = units * Codes::Rows * valueStep();
            expectBytes(full, 2 * (units * Codes::Bytes + keyBytes + valueBytes));
            const std::uint32_t keys = sharedPlace(places.codesAt(turn.stage, 0)) + static_cast<unsigned>(slot * Places::Part), values = keys + Places::Units * Places::Part,
                                keyRows = sharedPlace(places.rowsAt(turn.stage, 0)) + static_cast<unsigned>(slot * Places::KeyRows),
                                valueRows = sharedPlace(places.rowsAt(turn.stage, 1)) + static_cast<unsigned>(slot * Places::TokenRows);
            copyBulk(keys, codesFrom(a.keys, key), units * Codes::Bytes, full);
            copyBulk(values, codesFrom(a.values, value), units * Codes::Bytes, full);
            copyBulk(keyRows, static_cast<const char*>(a.keys.scale) + keyOffset, keyBytes, full);
            copyBulk(keyRows + Places::KeyZero, static_cast<const char*>(a.keys.zero) + keyOffset, keyBytes, full);
            copyBulk(valueRows, static_cast<const char*>(a.values.scale) + valueOffset, valueBytes, full);
            copyBulk(valueRows + Places::ValueZero, static_cast<const char*>(a.values.zero) + valueOffset, valueBytes, full);
        }
        __syncwarp();
        return true;
    }
    __device__ const T* exactRow(const PackedSideArgs& side, int entry, int tailBegin) const {
        const bool tail = begins >= tailBegin;
        return static_cast<const T*>(tail ? side.tail : side.first) + head * (tail ? side.tailHead : side.firstHead) + static_cast<std::int64_t>(entry - (tail ? tailBegin : 0)) * Dim;
    }
    // Whole exact units.
    __device__ void askForExact(std::uint64_t* full, int entry, int slot, int units) const {
        if (lane() < units) describe(slot + lane(), entry + lane() * ExactRows, 0, ExactRows, slot * Places::Part + lane() * Places::ExactBytes, 0, 0);
        if (isElected()) {
            const std::uint32_t keys = sharedPlace(places.codesAt(turn.stage, 0)) + static_cast<unsigned>(slot * Places::Part);
            expectBytes(full, 2 * units * Places::ExactBytes);
            copyBulk(keys, exactRow(a.keys, entry, cuts[head].keysTail), units * Places::ExactBytes, full);
            copyBulk(keys + Places::Units * Places::Part, exactRow(a.values, entry, cuts[head].valuesTail), units * Places::ExactBytes, full);
        }
        __syncwarp();
    }
    // Rows of scale and zero by token, of rows low … high − 1; returns where that of row 0 is. code: of row 0.
    __device__ int copyTokenRows(const PackedSideArgs& side, unsigned to, unsigned zero, int code, int low, int high) const {
        const int rowBytes = static_cast<int>(side.groups) * 2;
        const char* from = static_cast<const char*>(lane() < 16 ? side.scale : side.zero) + head * side.parametersHead * 2 + static_cast<std::int64_t>(code + low) * rowBytes + lane() % 16 * 16;
        const int before = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % 16), bytes = (high - low) * rowBytes; // the same in all lanes
        const unsigned target = to + (lane() < 16 ? 0 : zero) + static_cast<unsigned>(lane() % 16 * 16);
        const int left = before + bytes - lane() % 16 * 16;
        if (left > 0) copyAsync(target, from - before, min(left, 16));
        if (lane() % 16 == 0 && before + bytes > 256) copyAsync(target + 256, from - before + 256, before + bytes - 256);
        return before - low * rowBytes;
    }
    __device__ void copyExact(const T* from, unsigned to, int low, int high) const { // from: row 0. Rows that are not there become others: they count as 0, but have to be numbers
#pragma unroll 1
        for (int i = 0; i < ExactRows * Exact::Chunks / 32; ++i) {
            const int row = (i * 32 + lane()) / Exact::Chunks, chunk = (i * 32 + lane()) % Exact::Chunks;
            copyAsync(to + static_cast<unsigned>((row * Exact::Chunks + chunk) * 16), from + min(max(row, low), high - 1) * Dim + chunk * Exact::Values);
        }
    }
    __device__ void copyByThreads(int entry, int low, int high, int slot) const {
        const unsigned keys = sharedPlace(places.codesAt(turn.stage, 0)) + static_cast<unsigned>(slot * Places::Part), values = keys + Places::Units * Places::Part,
                       keyRows = sharedPlace(places.rowsAt(turn.stage, 0)) + static_cast<unsigned>(slot * Places::KeyRows),
                       valueRows = sharedPlace(places.rowsAt(turn.stage, 1)) + static_cast<unsigned>(slot * Places::TokenRows);
        const Cuts cut = cuts[head];
        int keyPlace = 0, valuePlace = 0;
        if (kinds & Places::Keys) {
            const int code = entry - cut.keysFirst;
            Codes::copy(keys, a.keys.codes + head * a.keys.codesHead, code, low, high);
            if constexpr (ByChannel) {
                const int chunk = lane() % (Dim / 8) * 16;
                if (lane() < Dim / 4)
                    copyAsync(keyRows + static_cast<unsigned>((lane() < Dim / 8 ? 0 : Places::KeyZero) + chunk),
                              static_cast<const char*>(lane() < Dim / 8 ? a.keys.scale : a.keys.zero) + head * a.keys.parametersHead * 2 +
                                  static_cast<std::int64_t>(channelRow(code)) * (Dim * 2) + chunk);
            } else {
                keyPlace = copyTokenRows(a.keys, keyRows, Places::KeyZero, code, low, high);
            }
        } else {
            copyExact(exactRow(a.keys, entry, cut.keysTail), keys, low, high);
        }
        if (kinds & Places::Values) {
            const int code = entry - cut.valuesFirst;
            Codes::copy(values, a.values.codes + head * a.values.codesHead, code, low, high);
            valuePlace = copyTokenRows(a.values, valueRows, Places::ValueZero, code, low, high);
        } else {
            copyExact(exactRow(a.values, entry, cut.valuesTail), values, low, high);
        }
        if (lane() == 0) describe(slot, entry, low, high, slot * Places::Part, slot * Places::KeyRows + keyPlace, slot * Places::TokenRows + valuePlace);
    }
};

} // namespace keepsight::cuda
