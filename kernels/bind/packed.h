// packed_attention's keys and values as the dispatcher takes them, and as kernels do.
#pragma once

#include "kernels/bind/ops.h"
#include "kernels/packed.h"

#include <ATen/core/List.h>
#include <algorithm>
#include <limits>

namespace keepsight::ops {

// first, tail, codes, scale, zero, counts, ends, levels, exact, places, exactCounts, rowExact, rowChannels; nullopt: none there
using PackedTensors = c10::List<std::optional<at::Tensor>>;
using PackedAttention = at::Tensor(const at::Tensor& q, const PackedTensors& keys, int64_t keyBits, int64_t keyGroupTokens, bool keysAcross,
                                   const PackedTensors& values, int64_t valueBits, int64_t valueGroupTokens, bool valuesAcross,
                                   const at::Tensor& positions, const at::Tensor& lengths, const at::Tensor& queryPosition, double scale,
                                   const std::optional<at::Tensor>& inverseFrequencies, bool byRank,
                                   const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                                   const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin);

// Entries of a side as numbers, [Hkv, capacity, D], 0 behind a head's last one; keys as they are stored, turned or not. ATen calls that read no
// count on the host: they can be recorded.
at::Tensor denseEntries(const PackedSide& side, int64_t capacity, at::ScalarType dtype);

inline PackedTensors packedTensors(const PackedSide& side) {
    PackedTensors out;
    for (const at::Tensor* t : {&side.first, &side.tail, &side.codes, &side.scale, &side.zero, &side.counts, &side.ends, &side.levels, &side.exact,
                                &side.places, &side.exactCounts, &side.rowExact, &side.rowChannels})
        out.push_back(t->defined() ? std::optional(*t) : std::nullopt);
    return out;
}

// With rows that lie dense, scale and zero alike: what packedSideArgs() wants.
inline PackedSide packedSide(const PackedTensors& tensors, int64_t bits, int64_t groupTokens, bool across) {
    const auto given = [&](size_t i) { return tensors.get(i).value_or(at::Tensor()); };
    const auto dense = [](const at::Tensor& t) {
        if (!t.defined() || t.numel() == 0) return t;
        const bool is = t.dim() == 3 ? t.stride(2) == 1 && (t.size(1) == 1 || t.stride(1) == t.size(2)) : t.stride(1) == 1;
        return is ? t : t.contiguous();
    };
    const auto whole = [](const at::Tensor& t) { return t.defined() ? t.contiguous() : t; };
    PackedSide side;
    side.first = dense(given(0)), side.tail = dense(given(1)), side.codes = dense(given(2)), side.scale = dense(given(3)), side.zero = dense(given(4));
    side.bits = bits, side.groupTokens = groupTokens, side.across = across, side.counts = given(5).contiguous();
    side.ends = dense(given(6)), side.levels = whole(given(7));
    side.exact = dense(given(8)), side.places = dense(given(9)), side.exactCounts = whole(given(10));
    side.rowExact = dense(given(11)), side.rowChannels = dense(given(12));
    if (side.scale.defined() && side.scale.stride(0) != side.zero.stride(0))
        side.scale = side.scale.contiguous(), side.zero = side.zero.contiguous();
    return side;
}

inline PackedSideArgs packedSideArgs(const PackedSide& side) {
    PackedSideArgs args;
    const auto has = [](const at::Tensor& t) { return t.defined() && t.numel() > 0; };
    const auto sixteen = [](const at::Tensor& t) { return SixteenBits{t.const_data_ptr(), t.stride(0), t.scalar_type() == at::kBFloat16}; };
    if (has(side.first)) args.first = side.first.const_data_ptr(), args.firstHead = side.first.stride(0);
    if (has(side.tail)) args.tail = side.tail.const_data_ptr(), args.tailHead = side.tail.stride(0);
    args.counts = side.counts.const_data_ptr<int32_t>();
    if (!has(side.codes)) return args;
    args.codes = side.codes.const_data_ptr<uint8_t>(), args.codesHead = side.codes.stride(0), args.bits = static_cast<int>(side.bits);
    args.scale = side.scale.const_data_ptr(), args.zero = side.zero.const_data_ptr(), args.parametersHead = side.scale.stride(0);
    args.groups = side.scale.size(2), args.parameterRows = side.scale.size(1);
    args.groupTokens = std::min<int64_t>(side.groupTokens, std::numeric_limits<int32_t>::max());
    if (side.across) args.acrossWidth = side.scale.size(2), args.acrossRows = side.codes.size(1);
    if (side.ends.defined()) args.ends = side.ends.const_data_ptr<int32_t>(), args.endsHead = side.ends.stride(0), args.parameterRows = side.ends.size(1);
    if (side.levels.defined()) args.levels = side.levels.const_data_ptr<float>();
    if (has(side.places)) {
        args.exact = sixteen(side.exact), args.places = side.places.const_data_ptr<int32_t>(), args.placesHead = side.places.stride(0);
        args.exactCounts = side.exactCounts.const_data_ptr<int32_t>();
    }
    if (has(side.rowExact)) {
        args.rowExact = sixteen(side.rowExact), args.rowExactCount = side.rowExact.size(2);
        args.rowChannels = side.rowChannels.const_data_ptr(), args.channelsHead = side.rowChannels.stride(0);
        args.wideChannels = side.rowChannels.scalar_type() == at::kShort;
    }
    return args;
}

} // namespace keepsight::ops
