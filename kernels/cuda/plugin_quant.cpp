// The plug-in's part for packed entries. Arguments were checked by bind/quant.cpp and bind/packed.cpp.
#include "kernels/bind/packed.h"
#include "kernels/cuda/launch_quant.h"
#include "kernels/cuda/plugin.h"

#include <torch/library.h>
#include <algorithm>

namespace keepsight::cuda {
namespace {

void dequantizeEntries(at::Tensor& out, const at::Tensor& codesIn, int64_t bits, const at::Tensor& scaleIn, const at::Tensor& zeroIn, const OptionalTensor& ends,
                       const OptionalTensor& levels, at::IntArrayRef counts, at::IntArrayRef offsets) {
    if (out.size(0) > HeadSpans::Most || out.stride(2) != 1 || out.stride(1) != out.size(2) || (*std::max_element(counts.begin(), counts.end()) >= (1 << 30))) {
        composite<decltype(dequantizeEntries)>("dequantize_entries", out, codesIn, bits, scaleIn, zeroIn, ends, levels, counts, offsets);
        return;
    }
    const c10::cuda::CUDAGuard guard(out.device());
    const auto rowsDense = [](const at::Tensor& t) { return t.stride(2) == 1 && t.stride(1) == t.size(2) ? t : t.contiguous(); };
    const at::Tensor codes = rowsDense(codesIn), scale = rowsDense(scaleIn), zero = zeroIn.stride(0) == scale.stride(0) ? rowsDense(zeroIn) : zeroIn.contiguous();
    const at::Tensor groupEnds = ends ? ends->contiguous() : at::Tensor(), table = levels ? levels->contiguous() : at::Tensor();
    TORCH_CHECK(scale.stride(0) == zero.stride(0), "keepsight::dequantize_entries: expected scale and zero to lie alike");
    DequantizeEntriesArgs a;
    a.codes = codes.const_data_ptr<std::uint8_t>(), a.codesHead = codes.stride(0), a.bits = static_cast<int>(bits);
    a.scale = scale.const_data_ptr(), a.zero = zero.const_data_ptr();
    a.parametersHead = scale.stride(0), a.groups = scale.size(2);
    if (ends) a.ends = groupEnds.const_data_ptr<std::int32_t>(), a.endsHead = groupEnds.size(1);
    if (levels) a.levels = table.const_data_ptr<float>();
    a.heads = out.size(0), a.dim = out.size(2);
    a.out = out.mutable_data_ptr(), a.outHead = out.stride(0);
    HeadSpans spans;
    for (std::size_t h = 0; h < counts.size(); ++h) spans.count[h] = static_cast<int>(counts[h]), spans.offset[h] = static_cast<int>(offsets[h]);
    check(launchDequantize(a, elementOf(out), spans, stream()), "dequantize_entries");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> packGroups(const at::Tensor& x, int64_t bits, int64_t group, double leastScale) {
    constexpr std::int64_t FewRows = 2048; // many rows: ATen's passes over all of them at once are faster than a block for each
    if (bits == 3 || x.size(0) * x.size(1) > FewRows || x.stride(2) != 1 || x.stride(1) != x.size(2) || x.size(2) > 8192)
        return composite<decltype(packGroups)>("pack_groups", x, bits, group, leastScale);
    const c10::cuda::CUDAGuard guard(x.device());
    at::Tensor codes = at::empty({x.size(0), x.size(1), packedBytes(x.size(2), static_cast<int>(bits))}, x.options().dtype(at::kByte));
    at::Tensor scale = at::empty({x.size(0), x.size(1), x.size(2) / group}, x.options().dtype(at::kHalf)), zero = at::empty_like(scale);
    PackGroupsArgs a;
    a.x = x.const_data_ptr<float>(), a.head = x.stride(0);
    a.heads = x.size(0), a.rows = x.size(1), a.dim = x.size(2), a.group = group;
    a.bits = static_cast<int>(bits);
    a.leastScale = static_cast<float>(leastScale);
    a.codes = codes.mutable_data_ptr<std::uint8_t>();
    a.scale = scale.mutable_data_ptr(), a.zero = zero.mutable_data_ptr();
    check(launchPackGroups(a, stream()), "pack_groups");
    return {codes, scale, zero};
}

bool denseRows(const at::Tensor& t) { return t.stride(2) == 1 && (t.size(1) == 1 || t.stride(1) == t.size(2)); }

void appendChannels(at::Tensor& codes, at::Tensor& scale, at::Tensor& zero, const OptionalTensor& ends, const at::Tensor& lengths, const at::Tensor& groups, const at::Tensor& x,
                    const OptionalTensor& counts, int64_t bits, int64_t group, double leastScale) {
    const bool inPlace = denseRows(codes) && denseRows(scale) && denseRows(zero) && zero.stride(0) == scale.stride(0) && (!ends || ends->stride(1) == 1);
    if (bits == 3 || group > MostInColumn || x.size(1) / group > 65535 || !inPlace)
        return composite<decltype(appendChannels)>("append_channels", codes, scale, zero, ends, lengths, groups, x, counts, bits, group, leastScale);
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor rows = denseRows(x) ? x : x.contiguous(), held = lengths.contiguous(), so = groups.contiguous(), many = counts ? counts->contiguous() : at::Tensor();
    AppendChannelsArgs a;
    a.x = rows.const_data_ptr<float>(), a.head = rows.stride(0);
    a.heads = x.size(0), a.rows = x.size(1), a.dim = x.size(2), a.group = group;
    if (counts) a.counts = many.const_data_ptr<std::int32_t>();
    a.bits = static_cast<int>(bits), a.leastScale = static_cast<float>(leastScale);
    a.codes = codes.mutable_data_ptr<std::uint8_t>(), a.codesHead = codes.stride(0);
    a.scale = scale.mutable_data_ptr(), a.zero = zero.mutable_data_ptr(), a.parametersHead = scale.stride(0);
    if (ends) a.ends = ends->mutable_data_ptr<std::int32_t>(), a.endsHead = ends->stride(0);
    a.lengths = held.const_data_ptr<std::int32_t>(), a.groups = so.const_data_ptr<std::int32_t>();
    check(launchAppendChannels(a, stream()), "append_channels");
}

void repackAcross(at::Tensor& codes, at::Tensor& scale, at::Tensor& zero, at::Tensor& lengths, const OptionalTensor& gone, const OptionalTensor& x, const OptionalTensor& counts,
                  int64_t bits, int64_t dim, double leastScale) {
    const bool inPlace = denseRows(codes) && scale.stride(2) == 1 && zero.stride(2) == 1 && lengths.is_contiguous();
    if (bits == 3 || codes.size(1) > MostInColumn || lengths.size(0) > MostAcrossHeads || !inPlace)
        return composite<decltype(repackAcross)>("repack_across", codes, scale, zero, lengths, gone, x, counts, bits, dim, leastScale);
    const c10::cuda::CUDAGuard guard(codes.device());
    const at::Tensor leave = gone ? gone->contiguous() : at::Tensor(), rows = !x ? at::Tensor() : denseRows(*x) ? *x : x->contiguous(),
                     come = counts ? counts->contiguous() : at::Tensor();
    RepackAcrossArgs a;
    a.codes = codes.mutable_data_ptr<std::uint8_t>(), a.scale = scale.mutable_data_ptr(), a.zero = zero.mutable_data_ptr();
    a.lengths = lengths.mutable_data_ptr<std::int32_t>();
    a.heads = lengths.size(0), a.dim = dim, a.group = codes.size(1), a.width = scale.size(2);
    a.bits = static_cast<int>(bits), a.leastScale = static_cast<float>(leastScale);
    if (gone) a.gone = leave.const_data_ptr<std::int32_t>(), a.goneCount = leave.size(1);
    if (x) a.x = rows.const_data_ptr<float>(), a.head = rows.stride(0), a.rows = rows.size(1);
    if (counts) a.counts = come.const_data_ptr<std::int32_t>();
    Scratch scratch;
    auto *newScale = static_cast<std::uint16_t*>(nullptr), *newZero = newScale;
    scratch.add(a.newCodes, codes.size(1) * codes.size(2));
    scratch.add(newScale, a.width), scratch.add(newZero, a.width);
    scratch.add(a.newLengths, a.heads + 1);
    scratch.allocate(codes);
    a.newScale = newScale, a.newZero = newZero;
    check(launchRepackAcross(a, deviceOf(codes), stream()), "repack_across");
}

at::Tensor addBeside(at::Tensor& places, at::Tensor& values, at::Tensor& counts, const at::Tensor& lengths, const at::Tensor& x, const OptionalTensor& outliers,
                     double threshold, const OptionalTensor& added) {
    if (!places.is_contiguous() || !values.is_contiguous() || !counts.is_contiguous())
        return composite<decltype(addBeside)>("add_beside", places, values, counts, lengths, x, outliers, threshold, added);
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor rows = x.contiguous(), which = outliers ? outliers->contiguous() : at::Tensor(), held = lengths.contiguous(), many = added ? added->contiguous() : at::Tensor();
    at::Tensor rest = at::empty_like(rows);
    AddBesideArgs a;
    a.places = places.mutable_data_ptr<std::int32_t>(), a.values = static_cast<std::uint16_t*>(values.mutable_data_ptr()), a.counts = counts.mutable_data_ptr<std::int32_t>();
    a.half = values.scalar_type() == at::kHalf;
    a.heads = places.size(0), a.capacity = places.size(1), a.rows = x.size(1), a.dim = x.size(2);
    a.x = rows.const_data_ptr<float>(), a.threshold = static_cast<float>(threshold), a.rest = rest.mutable_data_ptr<float>();
    a.lengths = held.const_data_ptr<std::int32_t>();
    if (outliers) a.outliers = which.const_data_ptr<bool>();
    if (added) a.added = many.const_data_ptr<std::int32_t>();
    check(launchAddBeside(a, stream()), "add_beside");
    return rest;
}

void dropBeside(at::Tensor& places, at::Tensor& values, at::Tensor& counts, const at::Tensor& entries, int64_t dim) {
    if (!places.is_contiguous() || !values.is_contiguous() || !counts.is_contiguous())
        return composite<decltype(dropBeside)>("drop_beside", places, values, counts, entries, dim);
    const c10::cuda::CUDAGuard guard(places.device());
    const at::Tensor leave = entries.contiguous();
    DropBesideArgs a;
    a.places = places.mutable_data_ptr<std::int32_t>(), a.values = static_cast<std::uint16_t*>(values.mutable_data_ptr()), a.counts = counts.mutable_data_ptr<std::int32_t>();
    a.heads = places.size(0), a.capacity = places.size(1), a.dim = dim, a.gone = leave.size(1);
    a.entries = leave.const_data_ptr<std::int32_t>();
    check(launchDropBeside(a, stream()), "drop_beside");
}

at::Tensor packedAttention(const at::Tensor& q, const ops::PackedTensors& keyTensors, int64_t keyBits, int64_t keyGroupTokens, bool keysAcross,
                           const ops::PackedTensors& valueTensors, int64_t valueBits, int64_t valueGroupTokens, bool valuesAcross, const at::Tensor& positions,
                           const at::Tensor& lengths, const at::Tensor& queryPosition, double scale, const OptionalTensor& inverseFrequencies, bool byRank,
                           const OptionalTensor& columnSum, const OptionalTensor& lastRows, const OptionalTensor& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const c10::cuda::CUDAGuard guard(q.device());
    const ops::PackedSide keys = ops::packedSide(keyTensors, keyBits, keyGroupTokens, keysAcross), values = ops::packedSide(valueTensors, valueBits, valueGroupTokens, valuesAcross);
    const at::Tensor query = q.contiguous(), places = positions.contiguous(), held = lengths.contiguous(), frequencies = inverseFrequencies ? inverseFrequencies->contiguous() : at::Tensor();
    PackedAttentionArgs p;
    p.keys = ops::packedSideArgs(keys), p.values = ops::packedSideArgs(values);
    if (inverseFrequencies) p.turn = {frequencies.const_data_ptr<float>(), byRank};
    AttentionArgs& a = p.attention;
    describeQuery(a, query, positions.size(0), positions.size(1), queryPosition, scale);
    a.positions = places.const_data_ptr<std::int32_t>();
    a.lengths = held.const_data_ptr<std::int32_t>();
    const bool fast = takesPackedAttention(p, elementOf(q));
    if (!fast && !takesCodedAttention(p, elementOf(q)))
        return composite<decltype(packedAttention)>("packed_attention", q, keyTensors, keyBits, keyGroupTokens, keysAcross, valueTensors, valueBits, valueGroupTokens, valuesAcross,
                                                    positions, lengths, queryPosition, scale, inverseFrequencies, byRank, columnSum, lastRows, map, rowBegin, rowBin, colBin);
    at::Tensor out = at::empty({1, q.size(0) * q.size(2)}, q.options());
    a.out = out.mutable_data_ptr();
    decodeOne("packed_attention", a, q, columnSum, lastRows, map, {rowBegin, rowBin, colBin}, [&](const DecodeScratch& s, const CudaDevice& device) {
        return (fast ? launchPackedAttention : launchCodedAttention)(p, elementOf(q), s, device, stream());
    });
    return out;
}

} // namespace

TORCH_LIBRARY_IMPL(keepsight, CUDA, m) {
    m.impl("dequantize_entries", dequantizeEntries);
    m.impl("pack_groups", packGroups);
    m.impl("append_channels", appendChannels);
    m.impl("repack_across", repackAcross);
    m.impl("add_beside", addBeside);
    m.impl("drop_beside", dropBeside);
    m.impl("packed_attention", packedAttention);
}

} // namespace keepsight::cuda
