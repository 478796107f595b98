// RMSNorm: y = x / sqrt(mean(x²) + eps) · w. SiLU gate: y = a / (1 + e^−a) · b. RoPE: see sineCosine. Rows are independent.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

#include <cmath>

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr std::int64_t Serial = 16384; // values below which threads cost more than they bring

// Sine and cosine of fp32 angles of any size met here (|a| < 2^30): reduced by multiples of π/2 in fp64, then polynomials on
// [−π/4, π/4] in fp64, so that the fp32 results are correctly rounded in all but a few cases.
void sineCosine(const float* angles, std::int64_t count, float* sine, float* cosine) {
    for (std::int64_t i = 0; i < count; ++i) {
        const double a = static_cast<double>(angles[i]);
        const double shifted = a * 0.63661977236758134308 + 6755399441055744.0;
        const double turns = shifted - 6755399441055744.0;
        std::int64_t quadrant;
        __builtin_memcpy(&quadrant, &shifted, 8);
        const double r = (a - turns * 1.57079632679489655800) - turns * 6.12323399573676603587e-17;
        const double r2 = r * r;
        double s = 2.7557319223985893e-6 - r2 * 2.5052108385441719e-8;
        s = -1.9841269841269841e-4 + r2 * s;
        s = 8.3333333333333333e-3 + r2 * s;
        s = -1.6666666666666667e-1 + r2 * s;
        s = r + r * r2 * s;
        double c = -2.7557319223985891e-7 + r2 * 2.0876756987868099e-9;
        c = 2.4801587301587302e-5 + r2 * c;
        c = -1.3888888888888889e-3 + r2 * c;
        c = 4.1666666666666667e-2 + r2 * c;
        c = 1.0 - 0.5 * r2 + r2 * r2 * c;
        const bool swap = quadrant & 1;
        const double ss = swap ? c : s, cc = swap ? s : c;
        sine[i] = static_cast<float>(quadrant & 2 ? -ss : ss);
        cosine[i] = static_cast<float>((quadrant + 1) & 2 ? -cc : cc);
    }
}

} // namespace

void rmsNorm(const RmsNormArgs& args) {
    const std::int64_t width = args.width, padded = roundUp(width, Lanes);
    Buffer<float> scratch(omp_get_max_threads() * padded);
#pragma omp parallel for schedule(static) if (args.rows > 1 && args.rows * width > Serial)
    for (std::int64_t row = 0; row < args.rows; ++row) {
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
    }
}

void siluMul(const SiluMulArgs& args) {
    const std::int64_t width = args.width, piece = 1024, pieces = (width + piece - 1) / piece;
#pragma omp parallel for schedule(static) if (args.rows * width > Serial)
    for (std::int64_t task = 0; task < args.rows * pieces; ++task) {
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
    }
}

void rope(const RopeArgs& args) {
    const std::int64_t half = args.dim / 2, tables = args.positionHead ? args.heads : 1;
    const std::int64_t threads = omp_get_max_threads(), perThread = roundUp(3 * half + 2 * args.dim, 16);
    Buffer<float> scratch(threads * perThread);
    const std::int64_t heads = args.positionHead ? 1 : args.heads; // that share one set of angles
#pragma omp parallel for schedule(static) if (args.heads * args.rows * args.dim > Serial)
    for (std::int64_t task = 0; task < tables * args.rows; ++task) {
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
    }
}

} // namespace keepsight::KEEPSIGHT_ISA
