// top_k and soft_vote in ATen calls: right on any device, and what the CPU runs.
#include "kernels/bind/implementations.h"

#include <ATen/ATen.h>
#include <limits>

namespace keepsight::ops {
namespace {

// A score and its index become one integer, so that no two are equal and the order of a library's top-k cannot matter.
at::Tensor topKComposite(const at::Tensor& scores, const at::Tensor& counts, int64_t k) {
    constexpr int64_t Nothing = std::numeric_limits<int64_t>::min();
    const int64_t heads = scores.size(0), capacity = scores.size(1), taken = std::min(k, capacity);
    at::Tensor out = at::full({heads, k}, -1, counts.options());
    if (heads == 0 || taken == 0) return out;
    const at::Tensor clean = scores.masked_fill(scores.isnan(), -INFINITY).add(0.0f).contiguous(),
                     bits = clean.view(at::kInt).to(at::kLong); // −0 + 0 = 0
    const at::Tensor order = at::where(bits >= 0, bits, bits.bitwise_xor(0x7fffffff)), index = at::arange(capacity, bits.options());
    const at::Tensor held = index.unsqueeze(0) < counts.unsqueeze(1);
    const at::Tensor keys = (order * (int64_t{1} << 32) + index).masked_fill(held.logical_not(), Nothing);
    const at::Tensor best = std::get<0>(at::topk(keys, taken, 1, true, false));
    const at::Tensor chosen = std::get<0>(best.bitwise_and(0xffffffff).masked_fill(best == Nothing, capacity).sort(1));
    out.narrow(1, 0, taken).copy_(chosen.masked_fill(chosen == capacity, -1));
    return out;
}

at::Tensor softVoteComposite(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& lengths, int64_t begin, int64_t end,
                             double scale) {
    const int64_t heads = keys.size(0), count = end - begin;
    const at::Tensor hidden = (at::arange(begin, end, lengths.options()).unsqueeze(0) >= lengths.unsqueeze(1)).unsqueeze(1); // [Hkv, 1, count]
    const bool allHeld = lengths.device().is_cpu() && lengths.min().item<int32_t>() >= end; // asking a device would wait for it
    at::Tensor held = keys.narrow(1, begin, count).to(at::kFloat);
    if (!allHeld) held = held.masked_fill(hidden.transpose(1, 2), 0); // behind the held ones lies anything
    const at::Tensor dots = at::matmul(queries.to(at::kFloat).view({heads, -1, keys.size(2)}), held.transpose(1, 2)).mul_(scale).masked_fill_(hidden, -INFINITY);
    return at::softmax(dots, -1).masked_fill_(hidden, 0).sum(at::IntArrayRef{0, 1}); // heads without a candidate come out as NaN and end as 0
}

} // namespace

void registerSelect(torch::Library& library) {
    library.impl("top_k", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, topKComposite));
    library.impl("soft_vote", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, softVoteComposite));
}

} // namespace keepsight::ops
