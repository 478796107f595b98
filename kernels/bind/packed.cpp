// Attention over entries of which most are codes: schema, checks, the CPU binding and the ATen form.
#include "kernels/bind/packed.h"

#include "kernels/bind/checks.h"
#include "kernels/bind/cpu.h"
#include "kernels/bind/implementations.h"
#include "kernels/quant.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace keepsight::ops {
namespace {

constexpr auto Op = "packed_attention";
using OptionalTensor = std::optional<at::Tensor>;

void checkSide(const std::string& name, const PackedSide& side, const at::Tensor& q, int64_t heads) {
    const int64_t dim = q.size(2);
    const auto check = [&](const char* part, const at::Tensor& t, std::initializer_list<int64_t> sizes, at::ScalarType type) {
        const std::string argument = name + " " + part;
        checkShape(Op, argument.c_str(), t, sizes);
        checkType(Op, argument.c_str(), t, type);
        checkSameDevice(Op, argument.c_str(), t, q);
    };
    const auto refused = [&](const char* part, const std::string& expected, int64_t found) {
        refuse(Op, (name + " " + part).c_str(), expected, std::to_string(found));
    };
    check("counts", side.counts, {3, heads}, at::kInt);
    if (side.first.defined()) check("first entries", side.first, {heads, Any, dim}, q.scalar_type());
    if (side.tail.defined()) check("last entries", side.tail, {heads, Any, dim}, q.scalar_type());
    if (!side.codes.defined()) return;
    if (side.bits != 2 && side.bits != 4 && side.bits != 8) refused("bits", "2, 4 or 8", side.bits);
    if (side.groupTokens < 1) refused("tokens of a group", "at least 1", side.groupTokens);
    check("codes", side.codes, {heads, Any, packedBytes(dim, static_cast<int>(side.bits))}, at::kByte);
    check("scale", side.scale, {heads, Any, Any}, at::kHalf);
    check("zero", side.zero, {heads, side.scale.size(1), side.scale.size(2)}, at::kHalf);
    if (side.scale.size(2) == 0 || dim % side.scale.size(2) != 0)
        refused("groups of a row", "a divisor of the head size " + std::to_string(dim), side.scale.size(2));
    if (side.codes.size(1) > 0 && side.scale.size(1) == 0) refused("rows of scale", "enough for the codes", 0);
}

// What only the CPU can look at without waiting: each head's entries are there, as many keys as values.
void checkCounts(const std::string& name, const PackedSide& side, const at::Tensor& lengths) {
    const int64_t heads = lengths.size(0);
    const int32_t* counts = side.counts.const_data_ptr<int32_t>();
    const auto rows = [](const at::Tensor& t) { return t.defined() ? t.size(1) : 0; };
    const int64_t held[] = {rows(side.first), rows(side.codes), rows(side.tail)},
                  described = side.codes.defined() ? rows(side.scale) * side.groupTokens : 0;
    for (int64_t h = 0; h < heads; ++h) {
        int64_t all = 0;
        const std::string place = " at head " + std::to_string(h);
        for (int64_t part = 0; part < 3; ++part) {
            const int64_t n = counts[part * heads + h];
            if (n < 0 || n > held[part])
                refuse(Op, (name + " count").c_str(), "in 0 … " + std::to_string(held[part]),
                       std::to_string(n) + " of part " + std::to_string(part) + place);
            all += n;
        }
        if (counts[heads + h] > described)
            refuse(Op, (name + " rows of scale").c_str(), "enough for " + std::to_string(counts[heads + h]) + " codes",
                   std::to_string(rows(side.scale)) + place);
        if (const int32_t length = lengths.const_data_ptr<int32_t>()[h]; all != length)
            refuse(Op, (name + " counts").c_str(), "the head's length, " + std::to_string(length) + ", in sum",
                   std::to_string(all) + place);
    }
}

at::Tensor packedAttentionCpu(const at::Tensor& qIn, const PackedTensors& keyTensors, int64_t keyBits, int64_t keyGroupTokens,
                              const PackedTensors& valueTensors, int64_t valueBits, int64_t valueGroupTokens, const at::Tensor& positionsIn,
                              const at::Tensor& lengthsIn, const at::Tensor& queryPositionIn, double scale, const OptionalTensor& columnSum,
                              const OptionalTensor& lastRows, const OptionalTensor& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const at::Tensor q = rowsDense(qIn), positions = positionsIn.contiguous(), lengths = lengthsIn.contiguous(),
                     queryPosition = queryPositionIn.contiguous();
    const PackedSide keys = packedSide(keyTensors, keyBits, keyGroupTokens), values = packedSide(valueTensors, valueBits, valueGroupTokens);
    const int32_t* length = lengths.const_data_ptr<int32_t>();
    for (int64_t h = 0; h < lengths.size(0); ++h)
        if (length[h] > positions.size(1))
            refuse(Op, "length", "in 0 … " + std::to_string(positions.size(1)),
                   std::to_string(length[h]) + " at head " + std::to_string(h));
    checkCounts("key", keys, lengths);
    checkCounts("value", values, lengths);
    PackedAttentionArgs packed;
    packed.keys = packedSideArgs(keys), packed.values = packedSideArgs(values);
    AttentionArgs& args = packed.attention;
    args.element = elementOf(q);
    args.q = {q.const_data_ptr(), q.stride(0), q.stride(1)};
    args.queryHeads = q.size(0), args.kvHeads = positions.size(0), args.queries = 1, args.capacity = positions.size(1),
    args.dim = q.size(2);
    args.positions = positions.const_data_ptr<int32_t>(), args.lengths = length;
    args.queryPositions = queryPosition.const_data_ptr<int32_t>();
    args.scale = static_cast<float>(scale);
    collect(args, columnSum, lastRows, map, rowBegin, rowBin, colBin);
    at::Tensor out = at::empty({1, q.size(0) * q.size(2)}, q.options());
    args.out = out.data_ptr();
    onCpu(Op, [&](const CpuKernels& kernels) { kernels.packedAttention(packed); });
    return out;
}

// All entries of a side in fp32, [Hkv, capacity, D]; what lies behind a head's last one is no entry. Reads no count on the host.
at::Tensor denseSide(const PackedSide& side, int64_t capacity, int64_t dim) {
    const int64_t heads = side.counts.size(1);
    const at::Tensor entry = at::arange(capacity, side.counts.options()).unsqueeze(0); // [1, C]
    at::Tensor out = at::zeros({heads, capacity, dim}, side.counts.options().dtype(at::kFloat)),
               before = at::zeros({heads, 1}, side.counts.options());
    const auto place = [&](int64_t part, const at::Tensor& rows) { // entries of the part from `before` on
        const at::Tensor count = side.counts[part].unsqueeze(1), own = entry - before;
        if (rows.defined() && rows.size(1) > 0) {
            const at::Tensor from = own.clamp(0, rows.size(1) - 1).to(at::kLong).unsqueeze(-1).expand({heads, capacity, dim});
            const at::Tensor within = (own >= 0).logical_and_(own < count).unsqueeze(-1);
            out = at::where(within, rows.to(at::kFloat).gather(1, from), out);
        }
        before = before + count;
    };
    at::Tensor decoded;
    if (side.codes.defined() && side.codes.size(1) > 0) {
        const int64_t codes = side.codes.size(1), groups = side.scale.size(2);
        const at::Tensor row = at::arange(codes, side.counts.options()).floor_divide(side.groupTokens).clamp_max_(side.scale.size(1) - 1);
        const auto rowsOf = [&](const at::Tensor& t) { return t.index_select(1, row).to(at::kFloat).unsqueeze(-1); }; // [Hkv, codes, n, 1]
        decoded = unpack_codes(side.codes, side.bits, dim).to(at::kFloat).view({heads, codes, groups, dim / groups});
        decoded = decoded.mul_(rowsOf(side.scale)).add_(rowsOf(side.zero)).view({heads, codes, dim});
    }
    place(0, side.first), place(1, decoded), place(2, side.tail);
    return out;
}

at::Tensor packedAttentionComposite(const at::Tensor& q, const PackedTensors& keys, int64_t keyBits, int64_t keyGroupTokens,
                                    const PackedTensors& values, int64_t valueBits, int64_t valueGroupTokens, const at::Tensor& positions,
                                    const at::Tensor& lengths, const at::Tensor& queryPosition, double scale,
                                    const OptionalTensor& columnSum, const OptionalTensor& lastRows, const OptionalTensor& map,
                                    int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const auto dense = [&](const PackedTensors& side, int64_t bits, int64_t groupTokens) {
        return denseSide(packedSide(side, bits, groupTokens), positions.size(1), q.size(2));
    };
    const auto orNone = [](const OptionalTensor& t) { return t ? *t : at::Tensor(); };
    AttentionStats stats{orNone(columnSum), orNone(lastRows), orNone(map), rowBegin, rowBin, colBin};
    return attention(q.to(at::kFloat), dense(keys, keyBits, keyGroupTokens), dense(values, valueBits, valueGroupTokens), positions, lengths,
                     queryPosition, scale, &stats)
        .to(q.scalar_type());
}

} // namespace

at::Tensor packed_attention(const at::Tensor& q, const PackedSide& keys, const PackedSide& values, const at::Tensor& positions,
                            const at::Tensor& lengths, const at::Tensor& queryPosition, double scale, AttentionStats* stats) {
    checkShape(Op, "query", q, {Any, 1, Any});
    checkFloat(Op, "query", q);
    checkShape(Op, "positions", positions, {Any, Any});
    const int64_t heads = positions.size(0);
    if (heads == 0 || q.size(0) == 0 || q.size(0) % heads != 0)
        refuse(Op, "query heads", "a positive multiple of the " + std::to_string(heads) + " KV heads", std::to_string(q.size(0)));
    if (q.size(2) == 0) refuse(Op, "head size", "positive", "0");
    checkShape(Op, "lengths", lengths, {heads});
    checkShape(Op, "query position", queryPosition, {1});
    for (const at::Tensor* t : {&positions, &lengths, &queryPosition}) {
        checkType(Op, "positions and lengths", *t, at::kInt);
        checkSameDevice(Op, "positions and lengths", *t, q);
    }
    checkSide("key", keys, q, heads);
    checkSide("value", values, q, heads);
    const CheckedStats s = checkStats(Op, stats, q, positions);
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::packed_attention", "").typed<PackedAttention>();
    return typed.call(q, packedTensors(keys), keys.bits, keys.groupTokens, packedTensors(values), values.bits, values.groupTokens,
                      positions, lengths, queryPosition, scale, s.columnSum, s.lastRows, s.map, s.rowBegin, s.rowBin, s.colBin);
}

void definePackedOperators(torch::Library& m) {
    m.def("packed_attention(Tensor q, Tensor?[] keys, int key_bits, int key_group_tokens, Tensor?[] values, int value_bits, int "
          "value_group_tokens, "
          "Tensor positions, Tensor lengths, Tensor query_position, float scale, Tensor(a!)? column_sum, Tensor(b!)? last_rows, "
          "Tensor(c!)? map, "
          "int map_row_begin, int row_bin, int col_bin) -> Tensor");
}
void registerPackedCpu(torch::Library& m) { m.impl("packed_attention", torch::dispatch(c10::DispatchKey::CPU, packedAttentionCpu)); }
void registerPackedComposite(torch::Library& m) {
    m.impl("packed_attention", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, packedAttentionComposite));
}

} // namespace keepsight::ops
