// keydiff: a key unlike the others is worth keeping.
//
// Paper: KeyDiff, arXiv:2504.15364. μ = mean over the held keys of k/‖k‖ (after RoPE), each KV head for itself; score[t] = −cos(k[t], μ). Keys that
// point where most of them point are interchangeable; the distinct ones draw attention. Needs no queries, so it works with any attention kernel.
// Defaults and numerics are kvpress 0.5.5's (norms clamped at 1e-12 for μ, at 1e-8 in the cosine). The paper goes through the prompt block by block;
// chunk = N is the nearest here: every N tokens have a μ of their own.
#include "engine/policy/chunks.h"
#include "engine/policy/policy.h"

#include <ATen/ATen.h>

namespace keepsight {
namespace {

class KeyDiff final : public Policy {
public:
    using Policy::Policy;
    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor&) const override {
        return scoreInChunks(view, plan.chunk, [](const at::Tensor& keys, const at::Tensor&, const at::Tensor& lengths) {
            const at::Tensor k = keys.to(at::kFloat), norm = k.norm(2, {2}), behind = at::arange(k.size(1), lengths.options()).unsqueeze(0) >= lengths.unsqueeze(1);
            const at::Tensor weight = norm.clamp_min(1e-12).reciprocal().masked_fill(behind, 0) / lengths.unsqueeze(1); // [heads, n]
            const at::Tensor mean = at::matmul(weight.unsqueeze(1), k);                                               // [heads, 1, D]
            const at::Tensor length = norm.clamp_min(1e-8) * mean.norm(2, {2}).clamp_min(1e-8);
            return at::matmul(k, mean.transpose(1, 2)).squeeze(2) / length.neg(); // [heads, n]
        });
    }
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
};

} // namespace

PolicyEntry keydiff_policy();
PolicyEntry keydiff_policy() {
    PolicyInfo info{"keydiff",
                    {"key_diff"},
                    PolicyKind::evict,
                    "Keeps the keys that differ most from the mean direction of all keys.",
                    "KeyDiff, arXiv:2504.15364",
                    std::vector<ParamInfo>{timingParam("prefill_end"), ropeParam("original")} + sharedParams(Shared::keys)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<KeyDiff>(i, spec); }};
}

} // namespace keepsight
