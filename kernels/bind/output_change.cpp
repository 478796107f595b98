// How much the attention output would change without an entry, in ATen calls: right on any device. One query and several have kernels on the CPU
// (cpu/output_change.cpp) and on CUDA devices (cuda/output_change.cu, cuda/attention_sums.cu).
//
// Of one query row, with a its weight for the entry, s the scaled logit, v the entry's value and o the row's output (second-order expansion
// of the output around the entry, OBCache, arXiv:2510.07651):
//   v → (1 − ε)v changes o by −ε·a·v, k → (1 − ε)k by −ε·a·s·(v − o). Squared and summed over the rows:
//   value  S_V = Σ a²‖v‖²      key  S_K = Σ (a·s)²‖v − o‖²      cross  S_X = Σ 2a²·s·(‖v‖² − ⟨o, v⟩)
//   joint  S_V + S_K + S_X = Σ ‖a·v + a·s·(v − o)‖²             independent  S_V + S_K
// ‖v − o‖² comes from ‖v‖², ‖o‖² and the product o·vᵀ, so that nothing larger than rows × entries is ever held, for a block of rows.
#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight::ops {
namespace {

constexpr int64_t BlockRows = 128, BlockElements = int64_t{1} << 24; // of all query heads; fp32, a few tensors of that size

at::Tensor outputChangeComposite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                                 const at::Tensor& queryPositions, double scale, int64_t kindNumber, const std::optional<at::Tensor>& /*output*/,
                                 const std::optional<at::Tensor>& /*logSumExp*/) { // the weights are worked out again, exactly
    const auto kind = static_cast<OutputChange>(kindNumber);
    const int64_t heads = k.size(0), capacity = k.size(1), dim = k.size(2), queryHeads = q.size(0), group = queryHeads / heads, queries = q.size(1);
    at::Tensor out = at::zeros({queryHeads, capacity}, q.options().dtype(at::kFloat));
    if (queries == 0 || capacity == 0) return out;
    const at::Tensor held = at::arange(capacity, lengths.options()).unsqueeze(0) < lengths.unsqueeze(1); // [Hkv, C]
    const auto clean = [&](const at::Tensor& x) { return x.to(at::kFloat).masked_fill(held.logical_not().unsqueeze(-1), 0); };
    const at::Tensor keys = clean(k), values = clean(v);
    const at::Tensor valueNorms = values.square().sum(-1).repeat_interleave(group, 0).unsqueeze(1); // ‖v‖²: [Hq, 1, C]

    const int64_t block = std::clamp(BlockElements / (queryHeads * capacity), int64_t{1}, BlockRows);
    for (int64_t begin = 0; begin < queries; begin += block) {
        const int64_t count = std::min(block, queries - begin);
        const at::Tensor rowPositions = queryPositions.narrow(0, begin, count);
        // Entries lie in ascending position: those behind the block's last query need not be looked at.
        const at::Tensor reached = (positions <= rowPositions[count - 1]).logical_and_(held);
        const int64_t visible = queries > block ? reached.sum(1).max().item<int64_t>() : capacity;
        if (visible == 0) continue;
        const at::Tensor rows = q.narrow(1, begin, count).to(at::kFloat).reshape({heads, group * count, dim});
        const at::Tensor hidden = ((positions.narrow(1, 0, visible).unsqueeze(1) <= rowPositions.view({1, count, 1})) & held.narrow(1, 0, visible).unsqueeze(1))
                                      .logical_not_()
                                      .unsqueeze(1); // [Hkv, 1, count, visible]
        const at::Tensor values_ = values.narrow(1, 0, visible), norms = valueNorms.narrow(2, 0, visible);
        const at::Tensor s = at::bmm(rows, keys.narrow(1, 0, visible).transpose(1, 2)).mul_(scale).view({heads, group, count, visible});
        const at::Tensor a = at::softmax(s.masked_fill(hidden, -INFINITY), -1).masked_fill_(hidden, 0); // a row that sees nothing: 0, not NaN
        s.masked_fill_(hidden, 0);

        const auto perHead = [&](const at::Tensor& x) { return x.view({queryHeads, count, visible}); };
        at::Tensor change = perHead(a).square(); // [Hq, count, visible]
        if (kind == OutputChange::value) {
            change.mul_(norms);
        } else {
            const at::Tensor o = at::bmm(a.view({heads, group * count, visible}), values_); // [Hkv, G·count, D]
            const at::Tensor ov = perHead(at::bmm(o, values_.transpose(1, 2)));             // ⟨o, v⟩
            const at::Tensor oNorms = o.square().sum(-1).view({queryHeads, count, 1});      // ‖o‖²
            const at::Tensor as = perHead(a) * perHead(s);
            if (kind == OutputChange::key)
                change.zero_();
            else
                change.mul_(norms);
            change.addcmul_(as.square(), (norms + oNorms).sub_(ov, 2).clamp_min_(0));
            if (kind == OutputChange::joint) change.addcmul_(as.mul_(perHead(a)), norms - ov, 2);
        }
        out.narrow(1, 0, visible).add_(change.sum(1));
    }
    return out.clamp_min_(0); // all four are sums of squares
}

} // namespace

void registerOutputChange(torch::Library& library) {
    library.impl("output_change", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, outputChangeComposite));
}

} // namespace keepsight::ops
