// packed_attention's keys and values as the dispatcher takes them, and as kernels do.
#pragma once

#include "kernels/bind/ops.h"
#include "kernels/packed.h"

#include <ATen/core/List.h>

namespace keepsight::ops {

using PackedTensors = c10::List<std::optional<at::Tensor>>; // first, tail, codes, scale, zero, counts; nullopt: none there
using PackedAttention = at::Tensor(const at::Tensor& q, const PackedTensors& keys, int64_t keyBits, int64_t keyGroupTokens,
                                   const PackedTensors& values, int64_t valueBits, int64_t valueGroupTokens, const at::Tensor& positions,
                                   const at::Tensor& lengths, const at::Tensor& queryPosition, double scale,
                                   const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                                   const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin);

inline PackedTensors packedTensors(const PackedSide& side) {
    PackedTensors out;
    out.reserve(6);
    for (const at::Tensor* t : {&side.first, &side.tail, &side.codes, &side.scale, &side.zero, &side.counts})
        out.push_back(t->defined() ? std::optional(*t) : std::nullopt);
    return out;
}

// With rows that lie dense, scale and zero alike: what packedSideArgs() wants.
inline PackedSide packedSide(const PackedTensors& tensors, int64_t bits, int64_t groupTokens) {
    const auto given = [&](size_t i) { return tensors.get(i).value_or(at::Tensor()); };
    const auto dense = [](const at::Tensor& t) {
        const bool is = !t.defined() || t.numel() == 0 || (t.stride(2) == 1 && (t.size(1) == 1 || t.stride(1) == t.size(2)));
        return is ? t : t.contiguous();
    };
    PackedSide side{dense(given(0)), dense(given(1)), dense(given(2)), bits,
                    dense(given(3)), dense(given(4)), groupTokens,     given(5).contiguous()};
    if (side.scale.defined() && side.scale.stride(0) != side.zero.stride(0))
        side.scale = side.scale.contiguous(), side.zero = side.zero.contiguous();
    return side;
}

inline PackedSideArgs packedSideArgs(const PackedSide& side) {
    PackedSideArgs args;
    const auto has = [](const at::Tensor& t) { return t.defined() && t.size(1) > 0; };
    if (has(side.first)) args.first = side.first.const_data_ptr(), args.firstHead = side.first.stride(0);
    if (has(side.tail)) args.tail = side.tail.const_data_ptr(), args.tailHead = side.tail.stride(0);
    args.counts = side.counts.const_data_ptr<int32_t>();
    if (!has(side.codes)) return args;
    args.codes = side.codes.const_data_ptr<uint8_t>(), args.codesHead = side.codes.stride(0), args.bits = static_cast<int>(side.bits);
    args.scale = side.scale.const_data_ptr(), args.zero = side.zero.const_data_ptr(), args.parametersHead = side.scale.stride(0);
    args.groups = side.scale.size(2), args.groupTokens = side.groupTokens;
    return args;
}

} // namespace keepsight::ops
