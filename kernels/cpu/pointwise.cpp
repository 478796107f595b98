// RMSNorm: y = x / sqrt(mean(x²) + eps) · w. SiLU gate: y = a / (1 + e^−a) · b. RoPE: see sineCosine. Rows are independent.
#include "kernels/cpu/angles.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

#include <cmath>

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr std::int64_t Serial = 16384; // values below which threads cost more than they bring

} // namespace

void rmsNorm(const RmsNormArgs& args) {
    const std::int64_t width = args.width, padded = roundUp(width, Lanes);
    Buffer<float> scratch(omp_get_max_threads() * padded);
    each(args.rows, args.rows > 1 && args.rows * width > Serial, [&](std::int64_t row) {
        float* x = scratch.data() + omp_get_thread_num() * padded;
        toFp32(at(args.x, args.element, row * width), args.element, width, x);
        for (std::int64_t i = width; i < padded; ++i)
            x[i] = 0;
        Floats squares{};
        for (std::int64_t i = 0; i < padded; i += Lanes) {
            const Floats v = load(x + i);
            squares += v * v;
        }
        const float factor = 1.f / std::sqrt(sum(squares) / static_cast<float>(width) + args.eps);
        std::int64_t i = 0;
        for (; i + Lanes <= width; i += Lanes)
            store(x + i, load(x + i) * factor * load(args.weight + i));
        for (; i < width; ++i)
            x[i] = x[i] * factor * args.weight[i];
        fromFp32(x, width, at(args.y, args.element, row * width), args.element);
    });
}

void siluMul(const SiluMulArgs& args) {
    const std::int64_t width = args.width, piece = 1024, pieces = (width + piece - 1) / piece;
    each(args.rows * pieces, args.rows * width > Serial, [&](std::int64_t task) {
        const std::int64_t row = task / pieces, first = task % pieces * piece, n = least(piece, width - first);
        alignas(64) float a[1024 + Lanes] = {}, b[1024 + Lanes] = {};
        toFp32(at(args.x, args.element, row * 2 * width + first), args.element, n, a);
        toFp32(at(args.x, args.element, row * 2 * width + width + first), args.element, n, b);
        for (std::int64_t i = 0; i < n; i += Lanes) {
            const Floats v = load(a + i);
            Floats power = v * -Log2E;
            power = power > 127.f ? broadcast(127.f) : power;
            store(a + i, v / (1.f + exp2(power)) * load(b + i));
        }
        fromFp32(a, n, at(args.y, args.element, row * width + first), args.element);
    });
}

void rope(const RopeArgs& args) {
    const std::int64_t half = args.dim / 2, tables = args.positionHead ? args.heads : 1;
    const std::int64_t threads = omp_get_max_threads(), perThread = roundUp(3 * half + 2 * args.dim, 16);
    Buffer<float> scratch(threads * perThread);
    const std::int64_t heads = args.positionHead ? 1 : args.heads; // that share one set of angles
    each(tables * args.rows, args.heads * args.rows * args.dim > Serial, [&](std::int64_t task) {
        const std::int64_t row = task % args.rows, table = task / args.rows;
        float* angles = scratch.data() + omp_get_thread_num() * perThread;
        float *sine = angles + half, *cosine = sine + half, *x = cosine + half, *y = x + args.dim;
        const float position = static_cast<float>(args.positions[table * args.positionHead + row]);
        for (std::int64_t i = 0; i < half; ++i)
            angles[i] = position * args.inverseFrequencies[i]; // rounded to fp32 before the sine is taken: what the models were run with
        sineCosine(angles, half, sine, cosine);
        for (std::int64_t h = table; h < table + heads; ++h) {
            toFp32(at(args.x, args.element, h * args.xHead + row * args.xRow), args.element, args.dim, x);
            for (std::int64_t i = 0; i < half; ++i) {
                const float s = args.sign * sine[i];
                y[i] = x[i] * cosine[i] - x[i + half] * s;
                y[i + half] = x[i + half] * cosine[i] + x[i] * s;
            }
            fromFp32(y, args.dim, at(args.y, args.element, (h * args.rows + row) * args.dim), args.element);
        }
    });
}

} // namespace keepsight::KEEPSIGHT_ISA
