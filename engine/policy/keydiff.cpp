// keydiff: a key unlike the others is worth keeping.
//
// Paper: KeyDiff, arXiv:2504.15364. μ = mean over the held keys of k/‖k‖ (after RoPE), each KV head for itself; score[t] = −cos(k[t], μ). Keys that
// point where most of them point are interchangeable; the distinct ones draw attention. Needs no queries, so it works with any attention kernel.
// Defaults and numerics are kvpress 0.5.5's (norms clamped at 1e-12 for μ, at 1e-8 in the cosine). The paper goes through the prompt block by block;
// chunk = N is the nearest here: every N tokens have a μ of their own.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {
namespace {

class KeyDiff final : public Policy {
public:
    using Policy::Policy;
    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor&) const override {
        const CacheLayer& entries = view.entries;
        at::Tensor scores = at::zeros({view.config.kvHeads, entries.capacity()}, view.keys.options().dtype(at::kFloat));
        for (std::size_t h = 0; h < entries.held.size(); ++h) {
            const auto head = static_cast<std::int64_t>(h), held = static_cast<std::int64_t>(entries.held[h]);
            const std::int64_t length = plan.chunk > 0 ? plan.chunk : held;
            for (std::int64_t begin = 0; begin < held; begin += length) {
                const std::int64_t count = std::min(length, held - begin);
                const at::Tensor k = view.keys[head].narrow(0, begin, count).to(at::kFloat);                        // [count, D]
                const at::Tensor mu = (k / k.norm(2, {1}, true).clamp_min(1e-12)).mean(0, true); // [1, D]
                scores[head].narrow(0, begin, count).copy_(at::cosine_similarity(k, mu, 1, 1e-8).neg());
            }
        }
        return scores;
    }
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
