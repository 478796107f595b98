// Kept entries come in long runs (a step evicts few), so runs of consecutive indices move as one block.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {

void moveEntries(const MoveEntriesArgs& args) {
    const bool inPlace = args.from == args.to;
#pragma omp parallel for schedule(static)
    for (std::int64_t h = 0; h < args.heads; ++h) {
        const std::int32_t* index = args.index + h * args.indexHead;
        const std::uint8_t* from = args.from + h * args.fromHead;
        std::uint8_t* to = args.to + h * args.toHead;
        const std::int64_t count = args.counts[h];
        for (std::int64_t i = 0; i < count;) {
            std::int64_t end = i + 1;
            while (end < count && index[end] == index[end - 1] + 1)
                ++end;
            if (!inPlace || index[i] != i) // memmove: a run may overlap the place it moves to, further down
                std::memmove(to + i * args.entry, from + index[i] * args.entry, static_cast<std::size_t>((end - i) * args.entry));
            i = end;
        }
        if (args.zeroTo > count) std::memset(to + count * args.entry, 0, static_cast<std::size_t>((args.zeroTo - count) * args.entry));
    }
}

void appendEntries(const AppendEntriesArgs& args) {
    each(args.heads, args.heads * args.rows * args.entry > 65536, [&](std::int64_t h) {
        const std::uint8_t* from = args.from + h * args.fromHead;
        std::uint8_t* to = args.to + h * args.toHead + args.lengths[h] * args.entry;
        if (args.fromRow == args.entry) {
            std::memcpy(to, from, static_cast<std::size_t>(args.rows * args.entry));
            return;
        }
        for (std::int64_t r = 0; r < args.rows; ++r)
            std::memcpy(to + r * args.entry, from + r * args.fromRow, static_cast<std::size_t>(args.entry));
    });
}

} // namespace keepsight::KEEPSIGHT_ISA
