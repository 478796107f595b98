// Attention over entries of which most are codes: schema, checks, the CPU binding and the ATen form.
#include "kernels/bind/packed.h"

#include "kernels/bind/checks.h"
#include "kernels/bind/cpu.h"
#include "kernels/bind/implementations.h"
#include "kernels/quant.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <algorithm>
#include <limits>

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
    const auto sixteenBits = [&](const char* part, const at::Tensor& t, std::initializer_list<int64_t> sizes) {
        const std::string argument = name + " " + part;
        checkShape(Op, argument.c_str(), t, sizes);
        checkSameDevice(Op, argument.c_str(), t, q);
        if (t.scalar_type() != at::kHalf && t.scalar_type() != at::kBFloat16) refuse(Op, argument.c_str(), "fp16 or bf16", c10::toString(t.scalar_type()));
    };
    check("counts", side.counts, {3, heads}, at::kInt);
    if (side.first.defined()) check("first entries", side.first, {heads, Any, dim}, q.scalar_type());
    if (side.tail.defined()) check("last entries", side.tail, {heads, Any, dim}, q.scalar_type());
    if (!side.codes.defined()) return;
    if (side.bits != 2 && side.bits != 3 && side.bits != 4 && side.bits != 8) refused("bits", "2, 3, 4 or 8", side.bits);
    const int bits = static_cast<int>(side.bits);
    if (side.across) {
        check("scale", side.scale, {1, 1, Any}, at::kHalf);
        check("zero", side.zero, {1, 1, side.scale.size(2)}, at::kHalf);
        check("codes", side.codes, {1, Any, packedBytes(side.scale.size(2), bits)}, at::kByte);
        if (side.codes.size(1) * side.scale.size(2) > std::numeric_limits<int32_t>::max())
            refused("values of all heads", "fewer than 2^31", side.codes.size(1) * side.scale.size(2));
    } else {
        if (side.groupTokens < 1) refused("tokens of a group", "at least 1", side.groupTokens);
        check("codes", side.codes, {heads, Any, packedBytes(dim, bits)}, at::kByte);
        check("scale", side.scale, {heads, Any, Any}, at::kHalf);
        check("zero", side.zero, {heads, side.scale.size(1), side.scale.size(2)}, at::kHalf);
        if (side.scale.size(2) == 0 || dim % side.scale.size(2) != 0)
            refused("groups of a row", "a divisor of the head size " + std::to_string(dim), side.scale.size(2));
        if (side.codes.size(1) > 0 && side.scale.size(1) == 0) refused("rows of scale", "enough for the codes", 0);
    }
    if (side.ends.defined()) {
        check("group ends", side.ends, {heads, Any}, at::kInt);
        if (side.across) refuse(Op, (name + " group ends").c_str(), "none where groups go across heads", shapeText(side.ends.sizes()));
        if (side.ends.size(1) > side.scale.size(1) || (side.ends.size(1) == 0 && side.codes.size(1) > 0))
            refused("rows of scale", "one for each of the " + std::to_string(side.ends.size(1)) + " groups, at least one", side.scale.size(1));
    }
    if (side.levels.defined()) check("levels", side.levels, {int64_t{1} << bits}, at::kFloat);
    if (side.exact.defined() || side.places.defined() || side.exactCounts.defined()) {
        sixteenBits("exact values", side.exact, {heads, Any});
        check("places", side.places, {heads, side.exact.size(1)}, at::kInt);
        check("exact counts", side.exactCounts, {heads}, at::kInt);
        if (side.codes.size(1) * dim > std::numeric_limits<int32_t>::max())
            refused("values of a head with exact ones", "fewer than 2^31", side.codes.size(1) * dim);
    }
    if (side.rowExact.defined() || side.rowChannels.defined()) {
        sixteenBits("exact values of a code", side.rowExact, {heads, Any, Any});
        checkShape(Op, (name + " channels").c_str(), side.rowChannels, {heads, side.rowExact.size(1), side.rowExact.size(2)});
        checkSameDevice(Op, (name + " channels").c_str(), side.rowChannels, q);
        if (const auto type = side.rowChannels.scalar_type(); type != at::kByte && type != at::kShort)
            refuse(Op, (name + " channels").c_str(), "uint8 or int16", c10::toString(type));
        if (!side.across && side.rowExact.size(1) < side.codes.size(1))
            refused("rows of exact values", "one for each of the " + std::to_string(side.codes.size(1)) + " codes", side.rowExact.size(1));
    }
}

// What only the CPU can look at without waiting: each head's entries are there, as many keys as values.
void checkCounts(const std::string& name, const PackedSide& side, const at::Tensor& lengths, int64_t dim) {
    const int64_t heads = lengths.size(0);
    const int32_t* counts = side.counts.const_data_ptr<int32_t>();
    const auto rows = [](const at::Tensor& t) { return t.defined() ? t.size(1) : 0; };
    const int64_t acrossRoom = side.across && side.codes.defined() ? side.codes.size(1) * side.scale.size(2) / dim : 0,
                  perRow = std::min<int64_t>(side.groupTokens, std::numeric_limits<int32_t>::max()),
                  described = !side.codes.defined() ? 0 : side.ends.defined() ? rows(side.codes) : rows(side.scale) * perRow;
    const int64_t held[] = {rows(side.first), side.across ? acrossRoom : rows(side.codes), rows(side.tail)};
    int64_t codes = 0;
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
        if (!side.across && counts[heads + h] > described)
            refuse(Op, (name + " rows of scale").c_str(), "enough for " + std::to_string(counts[heads + h]) + " codes",
                   std::to_string(rows(side.scale)) + place);
        codes += counts[heads + h];
        if (side.rowExact.defined() && counts[heads + h] > side.rowExact.size(1))
            refuse(Op, (name + " rows of exact values").c_str(), "enough for " + std::to_string(counts[heads + h]) + " codes",
                   std::to_string(side.rowExact.size(1)) + place);
        if (side.exactCounts.defined()) {
            const int64_t n = side.exactCounts[h].item<int32_t>(), room = side.places.size(1);
            if (n < 0 || n > room) refuse(Op, (name + " exact count").c_str(), "in 0 … " + std::to_string(room), std::to_string(n) + place);
            const int64_t end = counts[heads + h] * dim;
            if (n > 0 && (side.places[h][0].item<int32_t>() < 0 || side.places[h][n - 1].item<int32_t>() >= end))
                refuse(Op, (name + " places").c_str(), "within the " + std::to_string(counts[heads + h]) + " codes",
                       std::to_string(side.places[h][0].item<int32_t>()) + " … " + std::to_string(side.places[h][n - 1].item<int32_t>()) + place);
        }
        if (const int32_t length = lengths.const_data_ptr<int32_t>()[h]; all != length)
            refuse(Op, (name + " counts").c_str(), "the head's length, " + std::to_string(length) + ", in sum",
                   std::to_string(all) + place);
    }
    if (side.across && codes > acrossRoom) refuse(Op, (name + " counts").c_str(), "at most " + std::to_string(acrossRoom) + " codes of all heads", std::to_string(codes));
}

at::Tensor packedAttentionCpu(const at::Tensor& qIn, const PackedTensors& keyTensors, int64_t keyBits, int64_t keyGroupTokens, bool keysAcross,
                              const PackedTensors& valueTensors, int64_t valueBits, int64_t valueGroupTokens, bool valuesAcross,
                              const at::Tensor& positionsIn, const at::Tensor& lengthsIn, const at::Tensor& queryPositionIn, double scale,
                              const OptionalTensor& inverseFrequencies, bool byRank, const OptionalTensor& columnSum,
                              const OptionalTensor& lastRows, const OptionalTensor& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const at::Tensor q = rowsDense(qIn), positions = positionsIn.contiguous(), lengths = lengthsIn.contiguous(),
                     queryPosition = queryPositionIn.contiguous(), frequencies = inverseFrequencies ? inverseFrequencies->contiguous() : at::Tensor();
    const PackedSide keys = packedSide(keyTensors, keyBits, keyGroupTokens, keysAcross),
                     values = packedSide(valueTensors, valueBits, valueGroupTokens, valuesAcross);
    const int32_t* length = lengths.const_data_ptr<int32_t>();
    for (int64_t h = 0; h < lengths.size(0); ++h)
        if (length[h] > positions.size(1))
            refuse(Op, "length", "in 0 … " + std::to_string(positions.size(1)),
                   std::to_string(length[h]) + " at head " + std::to_string(h));
    checkCounts("key", keys, lengths, q.size(2));
    checkCounts("value", values, lengths, q.size(2));
    PackedAttentionArgs packed;
    packed.keys = packedSideArgs(keys), packed.values = packedSideArgs(values);
    if (frequencies.defined()) packed.turn = {frequencies.const_data_ptr<float>(), byRank};
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

// Codes of a side in fp32, [Hkv, N, dim] with N ≥ every head's codes. What lies behind a head's last one is rubbish.
at::Tensor decodedRows(const PackedSide& side, int64_t capacity, int64_t dim) {
    const int64_t heads = side.counts.size(1), width = side.across ? side.scale.size(2) : dim, groups = side.scale.size(2);
    const at::Tensor codes = unpack_codes(side.codes, side.bits, width);
    at::Tensor x = side.levels.defined() ? side.levels.index_select(0, codes.reshape({-1}).to(at::kLong)).view(codes.sizes()) : codes.to(at::kFloat);
    if (side.across) {
        const int64_t rows = codes.size(1);
        const at::Tensor count = side.counts[1].to(at::kLong), before = count.cumsum(0) - count;                           // [Hkv]
        const at::Tensor columns = (count.sum() * dim + (rows - 1)).div_(rows, "floor").clamp_min_(1);                     // in use
        x = (x * side.scale.to(at::kFloat) + side.zero.to(at::kFloat)).view({-1});                                         // [g · C]
        const at::Tensor begin = ((before.unsqueeze(1) + at::arange(capacity, before.options()).unsqueeze(0)) * dim).unsqueeze(-1);
        const at::Tensor value = begin + at::arange(dim, before.options()), row = value.div(columns, "floor");
        const at::Tensor place = (row * width + (value - row * columns)).clamp_max_(x.size(0) - 1);
        return x.index_select(0, place.view({-1})).view({heads, capacity, dim});
    }
    const int64_t n = codes.size(1);
    at::Tensor row = at::arange(n, side.counts.options()); // of scale and zero
    if (side.ends.defined())
        row = at::searchsorted(side.ends.contiguous(), row.unsqueeze(0).expand({heads, n}).contiguous(), false, true).clamp_max_(side.ends.size(1) - 1);
    else
        row = row.floor_divide(side.groupTokens).clamp_max_(side.scale.size(1) - 1).to(at::kLong).unsqueeze(0).expand({heads, n});
    const auto rowsOf = [&](const at::Tensor& t) { return t.gather(1, row.unsqueeze(-1).expand({heads, n, groups})).to(at::kFloat).unsqueeze(-1); };
    return x.view({heads, n, groups, dim / groups}).mul(rowsOf(side.scale)).add_(rowsOf(side.zero)).view({heads, n, dim});
}

// The exact values that take the places of some of decoded [Hkv, N, dim].
at::Tensor withExact(const PackedSide& side, at::Tensor decoded) {
    const int64_t heads = decoded.size(0), n = decoded.size(1), dim = decoded.size(2);
    if (side.places.defined() && side.places.size(1) > 0) { // what lies behind a head's last place goes behind its last value
        const at::Tensor number = at::arange(side.places.size(1), side.exactCounts.options()).unsqueeze(0);
        const at::Tensor place = at::where(number < side.exactCounts.unsqueeze(1), side.places, n * dim).to(at::kLong).clamp_(0, n * dim);
        at::Tensor room = at::constant_pad_nd(decoded.reshape({heads, n * dim}), {0, 1});
        decoded = room.scatter_(1, place, side.exact.to(at::kFloat)).narrow(1, 0, n * dim).view({heads, n, dim});
    }
    if (side.rowExact.defined() && side.rowExact.size(2) > 0 && n > 0) {
        const int64_t rows = std::min(n, side.rowExact.size(1));
        const at::Tensor channels = side.rowChannels.narrow(1, 0, rows).to(at::kLong).clamp_(0, dim - 1);
        decoded.narrow(1, 0, rows).scatter_(2, channels, side.rowExact.narrow(1, 0, rows).to(at::kFloat));
    }
    return decoded;
}

// All entries of a side in fp32, [Hkv, capacity, D]; what lies behind a head's last one is 0. Reads no count on the host.
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
    if (side.codes.defined() && side.codes.numel() > 0 && capacity > 0) decoded = withExact(side, decodedRows(side, capacity, dim));
    place(0, side.first), place(1, decoded), place(2, side.tail);
    return out;
}

at::Tensor packedAttentionComposite(const at::Tensor& q, const PackedTensors& keyTensors, int64_t keyBits, int64_t keyGroupTokens, bool keysAcross,
                                    const PackedTensors& valueTensors, int64_t valueBits, int64_t valueGroupTokens, bool valuesAcross,
                                    const at::Tensor& positions, const at::Tensor& lengths, const at::Tensor& queryPosition, double scale,
                                    const OptionalTensor& inverseFrequencies, bool byRank, const OptionalTensor& columnSum,
                                    const OptionalTensor& lastRows, const OptionalTensor& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const int64_t capacity = positions.size(1), dim = q.size(2);
    at::Tensor keys = denseSide(packedSide(keyTensors, keyBits, keyGroupTokens, keysAcross), capacity, dim);
    const at::Tensor values = denseSide(packedSide(valueTensors, valueBits, valueGroupTokens, valuesAcross), capacity, dim);
    if (inverseFrequencies) keys = rope(keys, byRank ? at::arange(capacity, positions.options()) : positions, *inverseFrequencies);
    const auto orNone = [](const OptionalTensor& t) { return t ? *t : at::Tensor(); };
    AttentionStats stats{orNone(columnSum), orNone(lastRows), orNone(map), rowBegin, rowBin, colBin, {}};
    return attention(q.to(at::kFloat), keys, values, positions, lengths, queryPosition, scale, &stats).to(q.scalar_type());
}

} // namespace

at::Tensor denseEntries(const PackedSide& side, int64_t capacity, at::ScalarType dtype) {
    int64_t dim = 0;
    if (side.first.defined() || side.tail.defined())
        dim = (side.first.defined() ? side.first : side.tail).size(2);
    else if (side.codes.defined() && !side.across) // whole bytes
        dim = side.codes.size(2) * 8 / side.bits;
    else
        refuse("unpacking", "first or last entries", "given, if only for the head size", "none");
    return denseSide(side, capacity, dim).to(dtype);
}

at::Tensor packed_attention(const at::Tensor& q, const PackedSide& keys, const PackedSide& values, const at::Tensor& positions, const at::Tensor& lengths,
                            const at::Tensor& queryPosition, double scale, AttentionStats* stats, const KeyTurn& turn) {
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
    const at::Tensor& frequencies = turn.inverseFrequencies;
    if (frequencies.defined()) {
        if (q.size(2) % 2) refuse(Op, "head size", "even where keys are turned", std::to_string(q.size(2)));
        checkShape(Op, "inverse frequencies", frequencies, {q.size(2) / 2});
        checkType(Op, "inverse frequencies", frequencies, at::kFloat);
        checkSameDevice(Op, "inverse frequencies", frequencies, q);
    }
    const CheckedStats s = checkStats(Op, stats, q, positions.size(0), positions.size(1));
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::packed_attention", "").typed<PackedAttention>();
    return typed.call(q, packedTensors(keys), keys.bits, keys.groupTokens, keys.across, packedTensors(values), values.bits, values.groupTokens,
                      values.across, positions, lengths, queryPosition, scale, frequencies.defined() ? OptionalTensor(frequencies) : std::nullopt,
                      turn.byRank, s.columnSum, s.lastRows, s.map, s.rowBegin, s.rowBin, s.colBin);
}

void definePackedOperators(torch::Library& m) {
    m.def("packed_attention(Tensor q, Tensor?[] keys, int key_bits, int key_group_tokens, bool keys_across, Tensor?[] values, int value_bits, "
          "int value_group_tokens, bool values_across, Tensor positions, Tensor lengths, Tensor query_position, float scale, "
          "Tensor? inverse_frequencies, bool by_rank, Tensor(a!)? column_sum, Tensor(b!)? last_rows, Tensor(c!)? map, "
          "int map_row_begin, int row_bin, int col_bin) -> Tensor");
}
void registerPackedCpu(torch::Library& m) { m.impl("packed_attention", torch::dispatch(c10::DispatchKey::CPU, packedAttentionCpu)); }
void registerPackedComposite(torch::Library& m) {
    m.impl("packed_attention", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, packedAttentionComposite));
}

} // namespace keepsight::ops
