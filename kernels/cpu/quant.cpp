// x̃ = level(code) · scale + zero. A row's codes are unpacked into bytes first: with planes (quant.h) that is shift and mask on whole
// vectors.
#include "kernels/quant.h"

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr std::int64_t RowsPerTask = 64;

template <int Bits>
void unpackPlanes(const std::uint8_t* from, std::int64_t dim, std::uint8_t* to, int shiftTo) { // to |= code << shiftTo
    const std::int64_t bytes = planeBytes(dim, Bits);
    for (int plane = 0; plane < 8 / Bits; ++plane) {
        const std::int64_t first = plane * bytes, count = least(bytes, dim - first);
        for (std::int64_t i = 0; i < count; ++i) {
            const auto code = static_cast<std::uint8_t>((from[i] >> (plane * Bits)) & ((1 << Bits) - 1));
            to[first + i] = shiftTo ? static_cast<std::uint8_t>(to[first + i] | (code << shiftTo)) : code;
        }
    }
}

void unpackRow(const std::uint8_t* from, std::int64_t dim, int bits, std::uint8_t* to) {
    switch (bits) {
    case 2:
        return unpackPlanes<2>(from, dim, to, 0);
    case 3:
        unpackPlanes<2>(from, dim, to, 0);
        return unpackPlanes<1>(from + planeBytes(dim, 2), dim, to, 2);
    case 4:
        return unpackPlanes<4>(from, dim, to, 0);
    default:
        std::memcpy(to, from, static_cast<std::size_t>(dim));
    }
}

struct Row {
    const std::uint8_t *codes, *scale, *zero; // unpacked codes; halves
    const float* levels;
    std::int64_t dim, width; // width: neighbours that share a scale
};

float level(const Row& row, std::int64_t i) { return row.levels ? row.levels[row.codes[i]] : static_cast<float>(row.codes[i]); }
Floats levels(const Row& row, std::int64_t i) {
    if (!row.levels) return toFloats(widen(row.codes + i));
    float looked[Lanes];
    for (int k = 0; k < Lanes; ++k)
        looked[k] = row.levels[row.codes[i + k]];
    return load(looked);
}

void scaleRow(const Row& row, float* out) {
    if (row.width == 1) {
        std::int64_t i = 0;
        for (; i + Lanes <= row.dim; i += Lanes)
            store(out + i, levels(row, i) * loadHalves(row.scale + 2 * i) + loadHalves(row.zero + 2 * i));
        for (; i < row.dim; ++i)
            out[i] = level(row, i) * loadHalf(row.scale + 2 * i) + loadHalf(row.zero + 2 * i);
        return;
    }
    for (std::int64_t first = 0, group = 0; first < row.dim; first += row.width, ++group) {
        const float scale = loadHalf(row.scale + 2 * group), zero = loadHalf(row.zero + 2 * group);
        const std::int64_t end = first + row.width;
        std::int64_t i = first;
        for (; i + Lanes <= end; i += Lanes)
            store(out + i, levels(row, i) * scale + zero);
        for (; i < end; ++i)
            out[i] = level(row, i) * scale + zero;
    }
}

} // namespace

void dequantizeEntries(const DequantizeEntriesArgs& args) {
    std::int64_t longest = 0;
    for (std::int64_t h = 0; h < args.heads; ++h)
        longest = most(longest, args.counts[h]);
    const std::int64_t tasks = (longest + RowsPerTask - 1) / RowsPerTask, rowBytes = packedBytes(args.dim, args.bits);
    const std::int64_t padded = roundUp(args.dim + Lanes, 64);
    Buffer<std::uint8_t> bytes(omp_get_max_threads() * padded);
    Buffer<float> rows(omp_get_max_threads() * padded);
    const auto* scales = static_cast<const std::uint8_t*>(args.scale);
    const auto* zeros = static_cast<const std::uint8_t*>(args.zero);
#pragma omp parallel for schedule(static) if (args.heads * longest * args.dim > 32768)
    for (std::int64_t task = 0; task < args.heads * tasks; ++task) {
        const std::int64_t h = task / tasks, first = task % tasks * RowsPerTask, end = least(first + RowsPerTask, args.counts[h]);
        std::uint8_t* codes = bytes.data() + omp_get_thread_num() * padded;
        float* wide = rows.data() + omp_get_thread_num() * padded;
        const std::int32_t* ends = args.ends ? args.ends + h * args.endsHead : nullptr;
        std::int64_t group = 0;
        for (std::int64_t r = first; r < end; ++r) {
            while (ends && group + 1 < args.endsHead && r >= ends[group])
                ++group;
            unpackRow(args.codes + h * args.codesHead + r * rowBytes, args.dim, args.bits, codes);
            const std::int64_t parameters = 2 * (h * args.parametersHead + (ends ? group : r) * args.groups);
            const std::int64_t place = h * args.outHead + (args.offsets[h] + r) * args.dim;
            const Row row{codes, scales + parameters, zeros + parameters, args.levels, args.dim, args.dim / args.groups};
            if (args.element == Element::f32) {
                scaleRow(row, static_cast<float*>(args.out) + place);
            } else {
                scaleRow(row, wide);
                fromFp32(wide, args.dim, at(args.out, args.element, place), args.element);
            }
        }
    }
}

} // namespace keepsight::KEEPSIGHT_ISA
