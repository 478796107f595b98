// x̃ = level(code) · scale + zero, row by row (code_rows.h).
#include "kernels/cpu/code_rows.h"
#include "kernels/cpu/isa.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr std::int64_t RowsPerTask = 64;

} // namespace

void dequantizeEntries(const DequantizeEntriesArgs& args) {
    std::int64_t longest = 0;
    for (std::int64_t h = 0; h < args.heads; ++h)
        longest = most(longest, args.counts[h]);
    const std::int64_t tasks = (longest + RowsPerTask - 1) / RowsPerTask, rowBytes = packedBytes(args.dim, args.bits);
    const std::int64_t padded = roundUp(args.dim + Lanes, 64);
    Buffer<std::uint8_t> bytes(omp_get_max_threads() * padded);
    Buffer<float> rows(omp_get_max_threads() * 3 * padded);
    const auto* scales = static_cast<const std::uint8_t*>(args.scale);
    const auto* zeros = static_cast<const std::uint8_t*>(args.zero);
    const LevelTable table(args.levels, args.bits);
    each(args.heads * tasks, args.heads * longest * args.dim > 32768, [&](std::int64_t task) {
        const std::int64_t h = task / tasks, first = task % tasks * RowsPerTask, end = least(first + RowsPerTask, args.counts[h]);
        std::uint8_t* codes = bytes.data() + omp_get_thread_num() * padded;
        float *wide = rows.data() + omp_get_thread_num() * 3 * padded, *scale = wide + padded, *zero = scale + padded;
        const std::int32_t* ends = args.ends ? args.ends + h * args.endsHead : nullptr;
        std::int64_t group = 0, held = -1; // rows of scale and zero
        for (std::int64_t r = first; r < end; ++r) {
            while (ends && group + 1 < args.endsHead && r >= ends[group])
                ++group;
            if (const std::int64_t wanted = ends ? group : r; wanted != held) {
                held = wanted;
                const std::int64_t parameters = 2 * (h * args.parametersHead + held * args.groups);
                spreadHalves(scales + parameters, args.dim, args.groups, scale), spreadHalves(zeros + parameters, args.dim, args.groups, zero);
            }
            const std::int64_t place = h * args.outHead + (args.offsets[h] + r) * args.dim;
            const bool direct = args.element == Element::f32;
            decodeRow(args.codes + h * args.codesHead + r * rowBytes, args.bits, table, scale, zero, args.dim, codes, direct ? static_cast<float*>(args.out) + place : wide);
            if (!direct) fromFp32(wide, args.dim, at(args.out, args.element, place), args.element);
        }
    });
}

} // namespace keepsight::KEEPSIGHT_ISA
