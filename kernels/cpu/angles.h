// RoPE's angles.
#pragma once

#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

// Sine and cosine of fp32 angles of any size met here (|a| < 2^30): reduced by multiples of π/2 in fp64, then polynomials on
// [−π/4, π/4] in fp64, so that the fp32 results are correctly rounded in all but a few cases.
inline void sineCosine(const float* angles, std::int64_t count, float* sine, float* cosine) {
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

#ifdef __FMA__
// Of |angles| < 2^22 in fp32, to 2^−23 and faster: products are not rounded, so reduction by two parts of π/2 is enough.
KEEPSIGHT_INLINE void sineCosine(Floats angle, Floats& sine, Floats& cosine) {
    asm("" : "+v"(angle)); // rounded, whatever product it is
    const Floats shifted = angle * 0.636619772f + 12582912.f, turns = shifted - 12582912.f; // 1.5 · 2^23: the nearest integer
    const Floats high = angle - turns * 1.57079637050628662109375f, r = high + turns * 4.37113900018624283e-8f, r2 = r * r;
    const Floats s = r + r * r2 * ((-1.9515295891e-4f * r2 + 8.3321608736e-3f) * r2 + -1.6666654611e-1f);
    const Floats c = (((2.443315711809948e-5f * r2 + -1.388731625493765e-3f) * r2 + 4.166664568298827e-2f) * r2 + -0.5f) * r2 + 1.f;
    const Words quadrant = (Words)shifted;
    const auto odd = (quadrant & 1) != 0;
    sine = (Floats)((Words)(odd ? c : s) ^ (quadrant << 30 & 0x80000000u));
    cosine = (Floats)((Words)(odd ? s : c) ^ ((quadrant + 1) << 30 & 0x80000000u));
}
#endif

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
