// Codes of values in groups that share a scale and a zero: c = round((x − zero) / scale), x̃ = c · scale + zero.
//
// Scale and zero are rounded to fp16 first and codes are found with the rounded ones, so that |x̃ − x| ≤ scale/2 holds for what is stored;
// only where rounding moved the range inward can the outermost code be further off, by that rounding. The zero is the group's least value
// itself, not a code number as in HQQ: the same line, but −min/scale overflows fp16 when a group is nearly constant.
#pragma once

#include <ATen/core/Tensor.h>

namespace keepsight::ops {

struct Affine {
    at::Tensor scale, zero; // fp16
};
// From the least and greatest values of groups; leastScale: no finer than that.
Affine affine(const at::Tensor& low, const at::Tensor& high, int bits, double leastScale);
// Codes of x, uint8; scale and zero as x or broadcast to it.
at::Tensor codes(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero, int bits);
at::Tensor exact(const at::Tensor& x, at::ScalarType type); // rounded to a 16-bit type, never to infinity

struct PackedRows {
    at::Tensor codes, scale, zero; // [H, S, packedBytes(D)] as pack_codes makes them; [H, S, D / group] fp16
};
// Rows packed by groups of neighbouring channels. x [H, S, D] fp32; the group divides D.
PackedRows pack_groups(const at::Tensor& x, int64_t bits, int64_t group, double leastScale);

} // namespace keepsight::ops
