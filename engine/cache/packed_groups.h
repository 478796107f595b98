// Groups of values that share a scale and a zero, stored as codes (kernels/bind/quantize.h): by token, by channel, across, with outliers beside.
#pragma once

#include "engine/cache/stored_parts.h"
#include "kernels/bind/quantize.h"

#include <functional>
#include <string>

namespace keepsight {

using ops::Affine, ops::affine, ops::codes, ops::exact, ops::goneBefore, ops::within;

struct GroupShape {
    int bits = 4, group = 64;
    double leastScale = 0;
};
// `group` neighbours of one token and head.
std::unique_ptr<PackedPart> packedByToken(const SideShape& shape, const GroupShape& groups);
// `group` consecutive tokens of one head and channel. add() wants multiples of the group. An evicted entry leaves its group smaller; the
// codes that stay, their scale and zero are never touched.
std::unique_ptr<PackedPart> packedByChannel(const SideShape& shape, const GroupShape& groups);
// What HQQ does along axis 0: all numel values of all heads in storage order, and a group is every (numel/group)-th of them, wherever that
// lands. Nothing can leave or come without other values changing groups: all of them are decoded and encoded again then.
std::unique_ptr<PackedPart> packedAcross(const SideShape& shape, const GroupShape& groups);
// Outliers are stored beside the others as 16-bit numbers with their place; `rest` packs the others with a 0 in their place.
struct OutlierTest {
    std::function<at::Tensor(const at::Tensor& x)> of; // [kvHeads, S, headDim] → bool; none:
    double threshold = 0;                              // |x| > threshold
    at::Tensor operator()(const at::Tensor& x) const { return of ? of(x) : x.abs() > threshold; }
};
std::unique_ptr<PackedPart> packedBeside(const SideShape& shape, std::unique_ptr<PackedPart> rest, OutlierTest isOutlier);

// Bits of a value in groups, with scale and zero.
double groupedBits(int headDim, const GroupShape& groups);
// Empty, or why the groups cannot be made.
std::string groupRefusal(const std::string& id, int group, int headDim);

// The 16-bit type in which exact values are stored apart from their entry: the model's own, or fp16 if that is wider.
at::ScalarType exactType(at::ScalarType model);

} // namespace keepsight
