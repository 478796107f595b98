// knorm: the L2 norm of a key tells how much attention it will receive; the lower the more.
//
// Paper: "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", arXiv:2406.11430. score[h, t] = −‖k[h, t]‖₂, each KV
// head for itself; RoPE is a rotation and leaves the norm as it is. Nothing is protected, as in the paper and kvpress.
// keep = high is TokenSkipping's reverse reading.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>

namespace keepsight {
namespace {

class KNorm final : public Policy {
public:
    KNorm(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_low = params.choice("keep") == "low";
        m_skipLayers = params.integer("skip_layers");
    }
    bool skips(LayerIndex layer) const override { return layer.value < m_skipLayers; }
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
    at::Tensor score(const LayerView& view, const Plan&, const at::Tensor&) const override {
        const at::Tensor norm = at::linalg_vector_norm(view.keys, 2, {-1}, false, at::kFloat); // [kvHeads, C]
        return m_low ? -norm : norm;
    }

private:
    bool m_low = true;
    int m_skipLayers = 0;
};

} // namespace

PolicyEntry knorm_policy();
PolicyEntry knorm_policy() {
    PolicyInfo info{"knorm",
                    {"prune", "l2norm"},
                    PolicyKind::evict,
                    "Keeps the keys with the smallest L2 norm, without looking at attention.",
                    "L2 norm strategy, arXiv:2406.11430",
                    std::vector<ParamInfo>{{"keep", ParamInfo::Type::choice, "low", 0, 0, {"low", "high"}, "", "Which norms stay: low (the paper) or high (TokenSkipping's reading)."},
                     {"skip_layers", ParamInfo::Type::integer, "0", 0, 1024, {}, "layers", "First layers left uncompressed (the paper's code: 2)."},
                     timingParam("prefill_end"),
                     ropeParam("original")} + sharedParams(Shared::keys)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<KNorm>(i, spec); }};
}

} // namespace keepsight
