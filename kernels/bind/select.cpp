// top_k, soft_vote, drop_lowest and drop_entries in ATen calls: right on any device, and what the CPU runs.
#include "kernels/bind/implementations.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>

namespace keepsight::ops {
namespace {

// Integers in the order of the scores, NaN as −inf.
at::Tensor orderOf(const at::Tensor& scores) {
    const at::Tensor bits = scores.masked_fill(scores.isnan(), -INFINITY).add(0.0f).contiguous().view(at::kInt).to(at::kLong); // −0 + 0 = 0
    return at::where(bits >= 0, bits, bits.bitwise_xor(0x7fffffff));
}

// A score and its index become one integer, so that no two are equal and the order of a library's top-k cannot matter.
at::Tensor topKComposite(const at::Tensor& scores, const at::Tensor& counts, int64_t k) {
    constexpr int64_t Nothing = std::numeric_limits<int64_t>::min();
    const int64_t heads = scores.size(0), capacity = scores.size(1), taken = std::min(k, capacity);
    at::Tensor out = at::full({heads, k}, -1, counts.options());
    if (heads == 0 || taken == 0) return out;
    const at::Tensor order = orderOf(scores), index = at::arange(capacity, order.options());
    const at::Tensor held = index.unsqueeze(0) < counts.unsqueeze(1);
    const at::Tensor keys = (order * (int64_t{1} << 32) + index).masked_fill(held.logical_not(), Nothing);
    const at::Tensor best = std::get<0>(at::topk(keys, taken, 1, true, false));
    const at::Tensor chosen = std::get<0>(best.bitwise_and(0xffffffff).masked_fill(best == Nothing, capacity).sort(1));
    out.narrow(1, 0, taken).copy_(chosen.masked_fill(chosen == capacity, -1));
    return out;
}

at::Tensor softVoteComposite(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& lengths, int64_t begin, int64_t newest,
                             double scale) {
    const int64_t heads = keys.size(0), capacity = keys.size(1);
    at::Tensor out = at::zeros({capacity}, queries.options().dtype(at::kFloat));
    // Asking a device would wait for it; there everything beyond the candidates is looked at and hidden.
    const int64_t end = lengths.device().is_cpu() ? std::max<int64_t>(begin, lengths.max().item<int32_t>() - newest) : capacity, count = end - begin;
    if (count == 0) return out;
    const at::Tensor hidden = (at::arange(begin, end, lengths.options()).unsqueeze(0) >= (lengths - newest).unsqueeze(1)).unsqueeze(1); // [Hkv, 1, count]
    const bool allHeld = lengths.device().is_cpu() && lengths.min().item<int32_t>() - newest >= end;
    at::Tensor held = keys.narrow(1, begin, count).to(at::kFloat);
    if (!allHeld) held = held.masked_fill(hidden.transpose(1, 2), 0); // behind the held ones lies anything
    const at::Tensor dots = at::matmul(queries.to(at::kFloat).view({heads, -1, keys.size(2)}), held.transpose(1, 2)).mul_(scale).masked_fill_(hidden, -INFINITY);
    out.narrow(0, begin, count).copy_(at::softmax(dots, -1).masked_fill_(hidden, 0).sum(at::IntArrayRef{0, 1})); // without a candidate: NaN ends as 0
    return out;
}

// What stays is found by counting, for each place it comes to, the entries that go before it.
void dropEntriesComposite(const at::Tensor& entries, at::Tensor& lengths, at::TensorList moved) {
    const int64_t heads = lengths.size(0), capacity = moved[0].size(1);
    const at::Tensor gone = entries.contiguous(), none = (gone < 0).sum(at::IntArrayRef{1}, true, at::kInt); // [Hkv, n], [Hkv, 1]
    const at::Tensor next = (gone - at::arange(gone.size(1), gone.options()) + none).masked_fill_(gone < 0, -1); // where what follows each comes to lie
    const at::Tensor place = at::arange(capacity, gone.options()).repeat({heads, 1}); // [Hkv, C]
    const at::Tensor index = place + at::searchsorted(next, place, true, true) - none;
    const at::Tensor counts = lengths - (at::searchsorted(gone, lengths.unsqueeze(1), true) - none).squeeze(1);
    for (const at::Tensor& t : moved) {
        const int64_t group = t.size(0) / heads;
        at::Tensor x = t;
        compact_entries(x, index.unsqueeze(1).expand({heads, group, capacity}).flatten(0, 1), counts.unsqueeze(1).expand({heads, group}).flatten());
    }
    lengths.copy_(counts);
}

at::Tensor dropLowestComposite(const std::optional<at::Tensor>& scores, at::Tensor& lengths, const at::Tensor& limits, at::TensorList moved) {
    constexpr int64_t Never = std::numeric_limits<int64_t>::max();
    const int64_t heads = lengths.size(0), capacity = moved[0].size(1);
    const at::Tensor index = at::arange(capacity, lengths.options().dtype(at::kLong)).unsqueeze(0), held = lengths.to(at::kLong).unsqueeze(1), l = limits.to(at::kLong);
    const at::Tensor offered = (index >= l[1]) & (index < held - l[2]), drops = held.squeeze(1) > l[0]; // [Hkv, C], [Hkv]
    at::Tensor order = index.expand({heads, capacity});
    if (scores) order = orderOf(*scores) * (int64_t{1} << 32) + index;
    const at::Tensor victim = at::where(drops, order.masked_fill(offered.logical_not(), Never).argmin(1), -1).unsqueeze(1); // [Hkv, 1]
    const at::Tensor gone = moved[0].gather(1, victim.clamp_min(0)).masked_fill(victim < 0, -1), entries = victim.to(at::kInt);
    dropEntriesComposite(entries, lengths, moved);
    return at::stack({gone.squeeze(1), entries.squeeze(1)});
}

} // namespace

void registerSelect(torch::Library& library) {
    library.impl("top_k", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, topKComposite));
    library.impl("soft_vote", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, softVoteComposite));
    library.impl("drop_entries", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, dropEntriesComposite));
    library.impl("drop_lowest", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, dropLowestComposite));
}

} // namespace keepsight::ops
