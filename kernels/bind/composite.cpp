// Every operator in ATen calls: right on any device, for devices (or operators of a device) without a kernel of their own.
#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"

#include <ATen/ATen.h>

namespace keepsight::ops {
namespace {

at::Tensor halves(const at::Tensor& blocks, int64_t first) { // two bytes of each block as a number, [rows, blocks, 1] fp32
    return blocks.narrow(2, first, 2).contiguous().view(at::kHalf).to(at::kFloat);
}

at::Tensor dequantizeComposite(const at::Tensor& packed, int64_t weightType, int64_t columns, at::ScalarType dtype) {
    const auto type = static_cast<Stored>(weightType);
    const int64_t rows = packed.size(0);
    switch (type) {
    case Stored::f32:
        return packed.contiguous().view(at::kFloat).to(dtype);
    case Stored::f16:
        return packed.contiguous().view(at::kHalf).to(dtype);
    case Stored::bf16:
        return packed.contiguous().view(at::kBFloat16).to(dtype);
    default:
        break;
    }
    const at::Tensor blocks = packed.contiguous().view({rows, columns / 32, blockBytes(type)}), d = halves(blocks, 0);
    const auto nibbles = [&](int64_t first) {
        const at::Tensor bytes = blocks.narrow(2, first, 16);
        return at::cat({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, 2).to(at::kFloat);
    };
    at::Tensor values;
    if (type == Stored::q8_0)
        values = blocks.narrow(2, 2, 32).contiguous().view(at::kChar).to(at::kFloat) * d;
    else if (type == Stored::q4_0)
        values = (nibbles(2) - 8) * d;
    else
        values = nibbles(4) * d + halves(blocks, 2);
    return values.reshape({rows, columns}).to(dtype);
}

at::Tensor linearComposite(const at::Tensor& x, const at::Tensor& packed, int64_t weightType, int64_t columns,
                           const std::optional<at::Tensor>& bias) {
    const at::Tensor weights = dequantizeComposite(packed, weightType, columns, at::kFloat);
    return at::linear(x.to(at::kFloat), weights, bias ? std::optional<at::Tensor>(bias->to(at::kFloat)) : std::nullopt).to(x.scalar_type());
}

at::Tensor embeddingComposite(const at::Tensor& ids, const at::Tensor& packed, int64_t weightType, int64_t columns, at::ScalarType dtype) {
    return dequantizeComposite(packed.index_select(0, ids), weightType, columns, dtype);
}

at::Tensor rmsNormComposite(const at::Tensor& x, const at::Tensor& weight, double eps) {
    const at::Tensor wide = x.to(at::kFloat);
    return (wide * at::rsqrt(wide.square().mean(-1, true) + eps) * weight.to(at::kFloat)).to(x.scalar_type());
}

at::Tensor siluMulComposite(const at::Tensor& x) {
    const int64_t half = x.size(1) / 2;
    return (at::silu(x.narrow(1, 0, half).to(at::kFloat)) * x.narrow(1, half, half).to(at::kFloat)).to(x.scalar_type());
}

at::Tensor ropeComposite(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& inverseFrequencies, double sign) {
    const at::Tensor angles = positions.to(at::kFloat).unsqueeze(-1) * inverseFrequencies, cosine = angles.cos(),
                     sine = angles.sin() * sign;
    const int64_t half = x.size(2) / 2;
    const at::Tensor a = x.narrow(2, 0, half).to(at::kFloat), b = x.narrow(2, half, half).to(at::kFloat);
    return at::cat({a * cosine - b * sine, b * cosine + a * sine}, 2).to(x.scalar_type());
}

// Weights of queries [begin, begin + count): [Hkv, G, count, C] fp32.
at::Tensor weightsOf(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& positions, const at::Tensor& lengths,
                     const at::Tensor& queryPositions, double scale, int64_t begin, int64_t count) {
    const int64_t heads = keys.size(0), capacity = keys.size(1);
    const at::Tensor rows = q.narrow(1, begin, count).to(at::kFloat).reshape({heads, q.size(0) / heads, count, q.size(2)});
    const at::Tensor held = at::arange(capacity, lengths.options()).unsqueeze(0) < lengths.unsqueeze(1);          // [Hkv, C]
    const at::Tensor seen = positions.unsqueeze(1) <= queryPositions.narrow(0, begin, count).view({1, count, 1}); // [Hkv, count, C]
    const at::Tensor hidden = (seen & held.unsqueeze(1)).logical_not().unsqueeze(1);
    const at::Tensor clean = keys.masked_fill(held.logical_not().unsqueeze(-1), 0); // what lies behind the held entries may be anything
    const at::Tensor scores = at::matmul(rows, clean.unsqueeze(1).transpose(2, 3)).mul_(scale).masked_fill_(hidden, -INFINITY);
    return at::softmax(scores, -1).masked_fill_(hidden, 0); // rows that see nothing come out as NaN and end as 0
}

at::Tensor attentionComposite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions,
                              const at::Tensor& lengths, const at::Tensor& queryPositions, double scale,
                              const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                              const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const int64_t heads = k.size(0), queries = q.size(1), capacity = k.size(1), dim = q.size(2);
    const int64_t last = lastRows ? lastRows->size(1) : 0;
    at::Tensor out = at::empty({queries, q.size(0) * dim}, q.options());
    const at::Tensor keys = k.to(at::kFloat), held = at::arange(capacity, lengths.options()).unsqueeze(0) < lengths.unsqueeze(1);
    const at::Tensor values = v.to(at::kFloat).masked_fill(held.logical_not().unsqueeze(-1), 0);
    at::Tensor columns; // [Hkv, C, map columns], 1 where an entry belongs to a bin
    if (map) columns = (at::floor_divide(positions, colBin).unsqueeze(-1) == at::arange(map->size(2), positions.options())).to(at::kFloat);
    constexpr int64_t Block = 128;
    for (int64_t begin = 0; begin < queries; begin += Block) {
        const int64_t count = std::min(Block, queries - begin);
        const at::Tensor weights = weightsOf(q, keys, positions, lengths, queryPositions, scale, begin, count);
        const at::Tensor mixed = at::matmul(weights, values.unsqueeze(1)); // [Hkv, G, count, D]
        out.narrow(0, begin, count).copy_(mixed.permute({2, 0, 1, 3}).reshape({count, q.size(0) * dim}));
        if (columnSum) columnSum->add_(weights.sum(2).view({q.size(0), capacity}));
        if (const int64_t from = std::max(begin, queries - last); lastRows && from < begin + count)
            lastRows->narrow(1, from - (queries - last), begin + count - from)
                .copy_(weights.narrow(2, from - begin, begin + count - from).reshape({q.size(0), begin + count - from, capacity}));
        if (!map) continue;
        at::Tensor binned = at::matmul(weights, columns.unsqueeze(1)); // [Hkv, G, count, columns]
        binned = map->size(0) == heads ? binned.mean(1) : binned.reshape({q.size(0), count, map->size(2)});
        const at::Tensor distance = queryPositions.narrow(0, begin, count) - rowBegin, row = at::floor_divide(distance, rowBin);
        const at::Tensor inside = (distance >= 0) & (row < map->size(1));
        map->index_add_(1, row.clamp(0, map->size(1) - 1).to(at::kLong), binned * inside.to(at::kFloat).view({1, count, 1}));
    }
    return out;
}

// Every head's entries gathered into a row of their own.
at::Tensor raggedAttentionComposite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& starts,
                                    const at::Tensor& lengths, int64_t capacity, const at::Tensor& queryPositions, double scale,
                                    const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                                    const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const at::Tensor index = (starts.unsqueeze(1) + at::arange(capacity, starts.options())).clamp_max(k.size(0) - 1).view({-1}); // what lies behind a head is never looked at
    const auto dense = [&](const at::Tensor& x) { return x.index_select(0, index).view({starts.size(0), capacity, x.size(1)}); };
    return attentionComposite(q, dense(k), dense(v), dense(positions.unsqueeze(1)).squeeze(2), lengths, queryPositions, scale, columnSum, lastRows, map, rowBegin, rowBin, colBin);
}

at::Tensor attentionRowsComposite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                                  const at::Tensor& queryPositions, double scale) {
    return weightsOf(q, k.to(at::kFloat), positions, lengths, queryPositions, scale, 0, q.size(1))
        .reshape({q.size(0), q.size(1), k.size(1)});
}

at::Tensor attentionSumsComposite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                                  const at::Tensor& queryPositions, double scale) {
    return attentionRowsComposite(q, k, positions, lengths, queryPositions, scale).sum(1);
}

at::Tensor alongEntries(const at::Tensor& table, const at::Tensor& x) { // [H, M] as an index or mask of x's number of dimensions
    std::vector<int64_t> sizes(static_cast<size_t>(x.dim()), 1);
    sizes[0] = table.size(0), sizes[1] = table.size(1);
    return table.view(sizes);
}

at::Tensor picked(const at::Tensor& x, const at::Tensor& index) { // [H, M, ...]; index clamped, the caller masks
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes[1] = index.size(1);
    return at::gather(x, 1, alongEntries(index.clamp(0, x.size(1) - 1).to(at::kLong), x).expand(sizes));
}

at::Tensor within(const at::Tensor& counts, int64_t places, const at::Tensor& x) {
    return alongEntries(at::arange(places, counts.options()).unsqueeze(0) < counts.unsqueeze(1), x);
}

at::Tensor gatherEntriesComposite(const at::Tensor& src, const at::Tensor& index, const at::Tensor& counts, int64_t capacity) {
    std::vector<int64_t> sizes = src.sizes().vec();
    sizes[1] = capacity;
    at::Tensor out = at::zeros(sizes, src.options());
    const int64_t places = std::min(capacity, index.size(1));
    if (places == 0 || src.numel() == 0) return out;
    const at::Tensor kept = index.narrow(1, 0, places).contiguous();
    out.narrow(1, 0, places).copy_(at::where(within(counts, places, src), picked(src, kept), at::zeros({}, src.options())));
    return out;
}

void compactEntriesComposite(at::Tensor& x, const at::Tensor& index, const at::Tensor& counts) {
    const int64_t places = std::min(x.size(1), index.size(1));
    if (places == 0 || x.numel() == 0) return;
    at::Tensor front = x.narrow(1, 0, places);
    front.copy_(at::where(within(counts, places, x), picked(x, index.narrow(1, 0, places).contiguous()), front));
}

void appendEntriesComposite(at::Tensor& dst, const at::Tensor& src, const at::Tensor& lengths) {
    const int64_t count = src.size(1);
    if (src.numel() == 0) return;
    const at::Tensor places = lengths.to(at::kLong).unsqueeze(1) + at::arange(count, lengths.options().dtype(at::kLong)).unsqueeze(0);
    dst.scatter_(1, alongEntries(places, dst).expand(src.sizes()), src);
}

} // namespace

void registerComposite(torch::Library& library) {
    const auto add = [&](const char* name, auto* function) {
        library.impl(name, torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, function));
    };
    add("linear", linearComposite);
    add("embedding", embeddingComposite);
    add("dequantize", dequantizeComposite);
    add("rms_norm", rmsNormComposite);
    add("silu_mul", siluMulComposite);
    add("rope", ropeComposite);
    add("attention", attentionComposite);
    add("ragged_attention", raggedAttentionComposite);
    add("attention_rows", attentionRowsComposite);
    add("attention_sums", attentionSumsComposite);
    add("gather_entries", gatherEntriesComposite);
    add("compact_entries", compactEntriesComposite);
    add("append_entries", appendEntriesComposite);
    registerQuantComposite(library);
    registerPackedComposite(library);
    registerScoreComposite(library);
    registerVoteComposite(library);
    registerBesideComposite(library);
}

} // namespace keepsight::ops
