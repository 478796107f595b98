// The plug-in: tensors → argument structs for the CUDA kernels, registered with the dispatcher when the library is loaded.
// Arguments were checked by ops.cpp. What has no kernel here runs in ATen calls (bind/composite.cpp).
#include "kernels/bind/implementations.h"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/plugin.h"

#include <c10/cuda/CUDAFunctions.h>
#include <torch/library.h>
#include <algorithm>

namespace keepsight::cuda {
namespace {

std::int64_t entryBytes(const at::Tensor& t) {
    std::int64_t n = static_cast<std::int64_t>(t.element_size());
    for (std::int64_t d = 2; d < t.dim(); ++d) n *= t.size(d);
    return n;
}

at::Tensor gatherEntries(const at::Tensor& source, const at::Tensor& index, const at::Tensor& counts, int64_t capacity) {
    const c10::cuda::CUDAGuard guard(source.device());
    const at::Tensor src = source.contiguous(), rows = index.contiguous(), kept = counts.contiguous();
    std::vector<int64_t> sizes = src.sizes().vec();
    sizes[1] = capacity;
    at::Tensor out = at::empty(sizes, src.options());
    MoveEntriesArgs a;
    a.entry = entryBytes(src);
    a.from = static_cast<const std::uint8_t*>(src.const_data_ptr());
    a.to = static_cast<std::uint8_t*>(out.mutable_data_ptr());
    a.fromHead = src.size(1) * a.entry;
    a.toHead = capacity * a.entry;
    a.index = rows.const_data_ptr<std::int32_t>();
    a.indexHead = rows.size(1);
    a.counts = kept.const_data_ptr<std::int32_t>();
    a.heads = src.size(0);
    a.zeroTo = capacity;
    check(launchMoveEntries(a, std::min(capacity, rows.size(1)), stream()), "gather_entries");
    return out;
}

// In place a block could overwrite what another still reads, so the kept entries go through a copy.
void compactEntries(at::Tensor& x, const at::Tensor& index, const at::Tensor& counts) {
    const int64_t places = std::min(x.size(1), index.size(1));
    if (places == 0 || x.numel() == 0) return;
    const at::Tensor kept = gatherEntries(x, index, counts, places);
    x.narrow(1, 0, places).copy_(kept);
}

void appendEntries(at::Tensor& dst, const at::Tensor& source, const at::Tensor& lengths) {
    const c10::cuda::CUDAGuard guard(dst.device());
    const at::Tensor src = source.contiguous(), held = lengths.contiguous();
    AppendEntriesArgs a;
    a.entry = entryBytes(dst);
    a.from = static_cast<const std::uint8_t*>(src.const_data_ptr());
    a.to = static_cast<std::uint8_t*>(dst.mutable_data_ptr());
    a.fromRow = a.entry;
    a.fromHead = src.size(1) * a.entry;
    a.toHead = dst.stride(0) * static_cast<std::int64_t>(dst.element_size());
    a.lengths = held.const_data_ptr<std::int32_t>();
    a.heads = dst.size(0);
    a.rows = src.size(1);
    check(launchAppendEntries(a, stream()), "append_entries");
}

at::Tensor rmsNorm(const at::Tensor& input, const at::Tensor& weight, double eps) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = input.contiguous(), w = weight.to(at::kFloat).contiguous();
    at::Tensor y = at::empty_like(x);
    RmsNormArgs a;
    a.x = x.const_data_ptr();
    a.weight = w.const_data_ptr<float>();
    a.y = y.mutable_data_ptr();
    a.width = x.size(-1);
    a.rows = a.width ? x.numel() / a.width : 0;
    a.eps = static_cast<float>(eps);
    check(launchRmsNorm(a, elementOf(x), stream()), "rms_norm");
    return y;
}

at::Tensor siluMul(const at::Tensor& input) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = input.contiguous();
    at::Tensor y = at::empty({x.size(0), x.size(1) / 2}, x.options());
    SiluMulArgs a;
    a.x = x.const_data_ptr();
    a.y = y.mutable_data_ptr();
    a.rows = x.size(0);
    a.width = x.size(1) / 2;
    check(launchSiluMul(a, elementOf(x), stream()), "silu_mul");
    return y;
}

at::Tensor rope(const at::Tensor& input, const at::Tensor& positions, const at::Tensor& inverseFrequencies, double sign) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = input.stride(2) == 1 ? input : input.contiguous(), where = positions.contiguous(), inverse = inverseFrequencies.contiguous();
    at::Tensor y = at::empty(x.sizes(), x.options());
    RopeArgs a;
    a.x = x.const_data_ptr();
    a.xHead = x.stride(0);
    a.xRow = x.stride(1);
    a.y = y.mutable_data_ptr();
    a.heads = x.size(0);
    a.rows = x.size(1);
    a.dim = x.size(2);
    a.positions = where.const_data_ptr<std::int32_t>();
    a.positionHead = where.dim() == 2 ? where.size(1) : 0;
    a.inverseFrequencies = inverse.const_data_ptr<float>();
    a.sign = static_cast<float>(sign);
    check(launchRope(a, elementOf(x), stream()), "rope");
    return y;
}

struct Collected { // what attention() may collect, as the dispatcher hands it over
    const OptionalTensor &columnSum, &lastRows, &map;
    MapBins bins;
};

// One query; with starts, k and v [Hkv, N, D] and positions show every head the same rows, and it begins at its own.
at::Tensor attentionOne(const char* operation, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const OptionalTensor& starts,
                        const at::Tensor& lengths, int64_t capacity, const at::Tensor& queryPosition, double scale, const Collected& c) {
    const c10::cuda::CUDAGuard guard(q.device());
    const at::Tensor query = inTiles(q), keys = inTiles(k), values = inTiles(v), places = positions.contiguous(), held = lengths.contiguous();
    const OptionalTensor first = starts ? OptionalTensor(starts->contiguous()) : std::nullopt;
    at::Tensor out = at::empty({1, q.size(0) * q.size(2)}, q.options());
    AttentionArgs a;
    describeQuery(a, query, k.size(0), capacity, queryPosition, scale);
    a.k = {keys.const_data_ptr(), keys.stride(0), keys.stride(1), first ? first->const_data_ptr<std::int32_t>() : nullptr};
    a.v = {values.const_data_ptr(), values.stride(0), values.stride(1), a.k.starts};
    a.positions = places.const_data_ptr<std::int32_t>();
    a.lengths = held.const_data_ptr<std::int32_t>();
    a.out = out.mutable_data_ptr();
    decodeOne(operation, a, q, c.columnSum, c.lastRows, c.map, c.bins,
              [&](const DecodeScratch& s, const CudaDevice& device) { return launchDecodeAttention(a, elementOf(q), s, device, stream()); });
    return out;
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                     const at::Tensor& queryPositions, double scale, const OptionalTensor& columnSum, const OptionalTensor& lastRows, const OptionalTensor& map,
                     int64_t mapRowBegin, int64_t rowBin, int64_t colBin) {
    if (q.size(1) != 1 || !hasHeadSize(q.size(2)))
        return composite<decltype(attention)>("attention", q, k, v, positions, lengths, queryPositions, scale, columnSum, lastRows, map, mapRowBegin, rowBin, colBin);
    return attentionOne("attention", q, k, v, positions, {}, lengths, k.size(1), queryPositions, scale, {columnSum, lastRows, map, {mapRowBegin, rowBin, colBin}});
}

at::Tensor raggedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& starts, const at::Tensor& lengths,
                           int64_t capacity, const at::Tensor& queryPositions, double scale, const OptionalTensor& columnSum, const OptionalTensor& lastRows,
                           const OptionalTensor& map, int64_t mapRowBegin, int64_t rowBin, int64_t colBin) {
    if (q.size(1) != 1 || !hasHeadSize(q.size(2)))
        return composite<decltype(raggedAttention)>("ragged_attention", q, k, v, positions, starts, lengths, capacity, queryPositions, scale, columnSum, lastRows, map, mapRowBegin,
                                                    rowBin, colBin);
    const int64_t heads = starts.size(0);
    return attentionOne("ragged_attention", q, ops::shownToHeads(k, heads), ops::shownToHeads(v, heads), positions, starts, lengths, capacity, queryPositions, scale,
                        {columnSum, lastRows, map, {mapRowBegin, rowBin, colBin}});
}

at::Tensor topK(const at::Tensor& scores, const at::Tensor& counts, int64_t k) {
    const c10::cuda::CUDAGuard guard(scores.device());
    const at::Tensor rows = scores.stride(1) == 1 ? scores : scores.contiguous(), held = counts.contiguous();
    at::Tensor out = at::empty({scores.size(0), k}, counts.options());
    TopKArgs a;
    a.scores = rows.const_data_ptr<float>();
    a.row = rows.stride(0);
    a.rows = rows.size(0);
    a.capacity = rows.size(1);
    a.k = k;
    a.counts = held.const_data_ptr<std::int32_t>();
    a.out = out.mutable_data_ptr<std::int32_t>();
    const CudaDevice& device = deviceOf(scores);
    TopKScratch s;
    Scratch scratch;
    scratch.add(s.candidates, topKCandidates(a, device));
    scratch.allocate(scores);
    check(launchTopK(a, s, device, stream()), "top_k");
    return out;
}

at::Tensor softVote(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& lengths, int64_t begin, int64_t newest, double scale) {
    if (!hasHeadSize(keys.size(2))) {
        return composite<decltype(softVote)>("soft_vote", queries, keys, lengths, begin, newest, scale);
    }
    const c10::cuda::CUDAGuard guard(keys.device());
    const at::Tensor wide = inTiles(queries.to(at::kFloat).contiguous().unsqueeze(0)).squeeze(0), rows = inTiles(keys), held = lengths.contiguous();
    at::Tensor vote = at::empty({keys.size(1)}, wide.options());
    SoftVoteArgs a;
    a.queries = wide.const_data_ptr<float>();
    a.keys = rows.const_data_ptr();
    a.keyHead = rows.stride(0);
    a.keyRow = rows.stride(1);
    a.queryHeads = wide.size(0);
    a.kvHeads = rows.size(0);
    a.dim = rows.size(2);
    a.lengths = held.const_data_ptr<std::int32_t>();
    a.begin = begin;
    a.newest = newest;
    a.capacity = rows.size(1);
    a.scale = static_cast<float>(scale);
    a.vote = vote.mutable_data_ptr<float>();
    const CudaDevice& device = deviceOf(keys);
    const std::int64_t walks = walksOf(a.queryHeads, a.kvHeads);
    SoftVoteScratch s;
    s.width = voteWidth(a.queryHeads, a.kvHeads);
    Scratch scratch;
    scratch.add(s.scores, walks * (a.capacity - begin) * s.width);
    scratch.add(s.parts, (voteBlocks(device) + walks) * 8);
    scratch.allocate(wide);
    check(launchSoftVote(a, elementOf(rows), s, device, stream()), "soft_vote");
    return vote;
}

bool entriesDense(at::TensorList moved) {
    return moved.size() <= DropLowestArgs::MostMoved && std::ranges::all_of(moved, [](const at::Tensor& t) { return t.select(0, 0).is_contiguous(); });
}

// What both evictions describe alike; false: a layout that the kernel does not take.
bool drop(const char* operation, DropLowestArgs& a, const at::Tensor& lengths, at::TensorList moved) {
    a.kvHeads = lengths.size(0);
    a.capacity = moved[0].size(1);
    a.lengths = lengths.mutable_data_ptr<std::int32_t>();
    for (const at::Tensor& t : moved) {
        const std::int64_t size = static_cast<std::int64_t>(t.element_size());
        a.moved[a.count++] = {t.mutable_data_ptr(), t.stride(0) * size, t.numel() / std::max<std::int64_t>(1, t.size(0) * t.size(1)) * size, t.size(0)};
    }
    if (!takesDropLowest(a)) return false;
    DropLowestScratch s;
    Scratch scratch;
    scratch.add(s.victims, a.kvHeads);
    scratch.add(s.edges, dropLowestEdges(a));
    scratch.allocate(lengths);
    check(launchDropLowest(a, s, stream()), operation);
    return true;
}

at::Tensor dropLowest(const OptionalTensor& scores, at::Tensor& lengths, const at::Tensor& limits, at::TensorList moved) {
    const c10::cuda::CUDAGuard guard(lengths.device());
    at::Tensor gone = at::empty({2, lengths.size(0)}, lengths.options());
    DropLowestArgs a;
    if (scores) a.scores = scores->const_data_ptr<float>(), a.scoresHead = scores->stride(0);
    a.limits = limits.const_data_ptr<std::int32_t>();
    a.gone = gone.mutable_data_ptr<std::int32_t>();
    const bool dense = entriesDense(moved) && (!scores || scores->stride(1) == 1) && lengths.is_contiguous() && limits.is_contiguous();
    if (dense && drop("drop_lowest", a, lengths, moved)) return gone;
    return composite<decltype(dropLowest)>("drop_lowest", scores, lengths, limits, moved);
}

void dropEntries(const at::Tensor& entries, at::Tensor& lengths, at::TensorList moved) {
    const c10::cuda::CUDAGuard guard(lengths.device());
    const at::Tensor which = entries.contiguous();
    DropLowestArgs a;
    a.entries = which.const_data_ptr<std::int32_t>();
    if (entries.size(1) == 1 && entriesDense(moved) && lengths.is_contiguous() && drop("drop_entries", a, lengths, moved)) return;
    composite<decltype(dropEntries)>("drop_entries", entries, lengths, moved);
}

} // namespace

TORCH_LIBRARY_IMPL(keepsight, CUDA, m) {
    m.impl("gather_entries", gatherEntries);
    m.impl("compact_entries", compactEntries);
    m.impl("append_entries", appendEntries);
    m.impl("rms_norm", rmsNorm);
    m.impl("silu_mul", siluMul);
    m.impl("rope", rope);
    m.impl("attention", attention);
    m.impl("ragged_attention", raggedAttention);
    m.impl("top_k", topK);
    m.impl("soft_vote", softVote);
    m.impl("drop_lowest", dropLowest);
    m.impl("drop_entries", dropEntries);
}

} // namespace keepsight::cuda
