// LagKV's spread: a partition of a head at a time, its rows against the channels' extremes over the rows of the next one.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

#include <cmath>

namespace keepsight::KEEPSIGHT_ISA {
namespace {

// The deviation over n numbers of (x − low) / range; scaled: room for them, maybe x itself.
float spreadOf(const float* x, const float* low, const float* range, float* scaled, std::int64_t n) {
    Floats sums{};
    float rest = 0;
    std::int64_t i = 0;
    for (; i + Lanes <= n; i += Lanes) {
        const Floats value = (load(x + i) - load(low + i)) / load(range + i);
        store(scaled + i, value);
        sums += value;
    }
    for (; i < n; ++i) scaled[i] = (x[i] - low[i]) / range[i], rest += scaled[i];
    const float mean = (sum(sums) + rest) / static_cast<float>(n);
    Floats squares{};
    rest = 0;
    for (i = 0; i + Lanes <= n; i += Lanes) {
        const Floats off = load(scaled + i) - mean;
        squares += off * off;
    }
    for (; i < n; ++i) rest += (scaled[i] - mean) * (scaled[i] - mean);
    return std::sqrt((sum(squares) + rest) / static_cast<float>(n - 1));
}

void widenRange(const float* x, float* low, float* high, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + Lanes <= n; i += Lanes) {
        const Floats value = load(x + i), least = load(low + i);
        store(low + i, value < least ? value : least);
        store(high + i, maximum(value, load(high + i)));
    }
    for (; i < n; ++i) {
        low[i] = x[i] < low[i] ? x[i] : low[i];
        high[i] = x[i] > high[i] ? x[i] : high[i];
    }
}

} // namespace

void lagSpread(const LagSpreadArgs& args) {
    const std::int64_t scored = args.partitions - 1, lag = args.lag, dim = args.dim, wide = roundUp(dim, 16);
    Buffer<float> scratch(omp_get_max_threads() * 3 * wide);
    each(args.heads * scored, args.heads * scored > 1, [&](std::int64_t task) {
        const std::int64_t head = task / scored, part = task % scored;
        float *x = scratch.data() + omp_get_thread_num() * 3 * wide, *low = x + wide, *range = low + wide;
        const auto row = [&](std::int64_t t) -> const float* {
            const void* from = at(args.x, args.element, head * args.xHead + t * args.xRow);
            if (args.element == Element::f32) return static_cast<const float*>(from);
            toFp32(from, args.element, dim, x);
            return x;
        };
        const std::int64_t behind = (part + 1) * lag;
        const float* first = row(behind); // range holds the largest until it is known
        std::memcpy(low, first, static_cast<std::size_t>(dim) * 4);
        std::memcpy(range, first, static_cast<std::size_t>(dim) * 4);
        for (std::int64_t t = 1; t < lag; ++t) widenRange(row(behind + t), low, range, dim);
        for (std::int64_t i = 0; i < dim; ++i) {
            const float between = range[i] - low[i];
            range[i] = between > LagLeastRange ? between : LagLeastRange;
        }
        for (std::int64_t t = 0; t < lag; ++t) args.out[task * lag + t] = spreadOf(row(part * lag + t), low, range, x, dim);
    });
}

} // namespace keepsight::KEEPSIGHT_ISA
