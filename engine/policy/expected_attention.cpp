// expected_attention: what queries still to come would attend to, were they spread like the prompt's.
//
// Paper: Expected Attention, arXiv:2510.00636; kvpress 0.5.5, ExpectedAttentionPress. Queries before RoPE are taken for a normal distribution with the
// prompt's mean μ and covariance Σ, without the first n_sink tokens, which are outliers. R̄: mean of the rotations of the next n_future positions.
//   μ̄ = R̄μ, Σ̄ = R̄ΣR̄ᵀ, E[exp(q·k/√D)] = exp(k·μ̄/√D + kᵀΣ̄k/2D)
// over the entries behind the sinks this is normalised (a softmax of the exponent), averaged per KV group, then weighed by what the value would add:
//   score[t] = (a[t] + ε)·‖v[t]‖₂. The first n_sink tokens always stay.
// Moments are summed in fp64 during the prefill, so that no query is kept. While decoding (timing) they stay the prompt's and R̄ moves on; kvpress would
// take both from the last buffered tokens alone.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <limits>

namespace keepsight {
namespace {

// Mean rotation of `count` positions from `first` (a scalar where the cache is) on, [D, D] fp32 (pairs i, i + D/2).
at::Tensor meanRotation(const at::Tensor& inverseFrequencies, const at::Tensor& first, std::int64_t count) {
    const at::Tensor positions = (at::arange(count, first.options()) + first).to(at::kFloat);
    const at::Tensor angles = positions.unsqueeze(1) * inverseFrequencies.unsqueeze(0);                         // [count, D/2]
    const at::Tensor c = at::diag(angles.cos().mean(0)), s = at::diag(angles.sin().mean(0)); // [D/2, D/2]
    return at::cat({at::cat({c, -s}, 1), at::cat({s, c}, 1)}, 0);
}

class ExpectedAttention final : public Policy {
public:
    ExpectedAttention(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_future = params.integer("future");
        m_sinks = params.integer("sinks");
        m_covariance = params.flag("covariance");
        m_valueNorm = params.flag("vnorm");
        m_epsilon = params.real("epsilon");
    }
    Needs needs(std::int64_t) const override { return {.queryMoments = m_sinks}; }
    at::Tensor score(const LayerView& view, const Plan&, const at::Tensor&) const override {
        const CacheLayer& entries = view.entries;
        const std::int64_t behind = entries.capacity() - m_sinks, kvHeads = view.config.kvHeads, group = view.config.queryHeads / kvHeads, size = view.config.headDim;
        if (!view.moments || view.moments->count < 1 || entries.maxHeld() <= m_sinks) return {}; // nothing but sinks was seen
        const double n = static_cast<double>(view.moments->count);
        const at::Tensor last = entries.positions.gather(1, (entries.lengths.to(at::kLong) - 1).clamp_min(0).unsqueeze(1));
        const at::Tensor next = (last.max().to(at::kLong) + 1).clamp_min(view.moments->count + m_sinks);
        const at::Tensor rotation = meanRotation(view.inverseFrequencies, next, m_future);
        const at::Tensor mean = view.moments->sum / n; // [queryHeads, D] fp64
        const at::Tensor keys = view.keys.narrow(1, m_sinks, behind); // [kvHeads, behind, D]
        const at::Tensor mu = at::matmul(mean.to(at::kFloat), rotation.t()).view({kvHeads, group, size});
        at::Tensor exponent = at::matmul(mu, keys.to(at::kFloat).transpose(1, 2)) / std::sqrt(static_cast<double>(size)); // [kvHeads, group, behind]
        if (m_covariance) {
            const at::Tensor plain = (view.moments->products / n - mean.unsqueeze(2) * mean.unsqueeze(1)).to(at::kFloat);
            const at::Tensor sigma = at::matmul(rotation, at::matmul(plain, rotation.t())); // [queryHeads, D, D]
            exponent = exponent + ops::quadratic_forms(keys, sigma).view({kvHeads, group, behind}) / static_cast<double>(size) / 2;
        }
        exponent = exponent.reshape({kvHeads * group, behind});
        const at::Tensor real = at::arange(m_sinks, entries.capacity(), entries.lengths.options()).unsqueeze(0) < entries.lengths.unsqueeze(1); // [kvHeads, behind]
        exponent = exponent.masked_fill(repeatHeads(real.logical_not(), group), -std::numeric_limits<float>::infinity());
        at::Tensor expected = reduceGroup(at::softmax(exponent, 1), static_cast<int>(kvHeads), m_agg); // [kvHeads, behind]
        if (m_valueNorm) expected = (expected + m_epsilon) * at::linalg_vector_norm(view.values.narrow(1, m_sinks, behind), 2, {2}, false, at::kFloat);
        at::Tensor scores = at::zeros({kvHeads, entries.capacity()}, expected.options());
        scores.narrow(1, m_sinks, behind).copy_(expected);
        return scores;
    }

    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }

protected:
    Plan plan(const Place&, int budget) const override { return {.keep = budget, .protect = {.sinks = m_sinks, .recent = 0}, .window = 0, .notice = {}}; }

private:
    int m_future = 512, m_sinks = 4;
    bool m_covariance = true, m_valueNorm = true;
    double m_epsilon = 0;
};

} // namespace

PolicyEntry expected_attention_policy();
PolicyEntry expected_attention_policy() {
    PolicyInfo info{"expected_attention",
                    {"expected"},
                    PolicyKind::evict,
                    "Keeps what coming queries are expected to attend to, judged by how the prompt's queries are spread.",
                    "Expected Attention, arXiv:2510.00636",
                    std::vector<ParamInfo>{
                        {"future", ParamInfo::Type::integer, "512", 1, 1 << 20, {}, "tokens", "Over how many coming positions the expectation is taken."},
                        {"sinks", ParamInfo::Type::integer, "4", 0, 1 << 20, {}, "tokens", "First tokens that always stay; their queries do not count."},
                        flagParam("covariance", true, "Whether the spread of the queries counts, not only their mean."),
                        flagParam("vnorm", true, "Whether an entry's expected attention is weighed by the norm of its value."),
                        {"epsilon", ParamInfo::Type::real, "0", 0, 1, {}, "", "Added to the expected attention before it is weighed."},
                        aggParam(),
                        timingParam("prefill_end"),
                        ropeParam("original")} +
                        sharedParams(Shared::attention)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<ExpectedAttention>(i, spec); }};
}

} // namespace keepsight
