// snapkv: the last w prompt queries vote on the rest.
//
// Paper: SnapKV, arXiv:2404.14469. A: attention of the last w queries, softmax over everything they see (the window included);
// s[t] = mean of A's rows for t before the window, averaged per KV group, pooled over κ neighbours so that whole phrases stay.
// The window itself always stays; the budget includes it. Defaults are kvpress's (w 64, κ 5, average pooling); the paper's runs use
// w 32, κ 7, max. Average pooling counts the zero padding, which lowers both ends a little, as in the originals.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {
namespace {

class SnapKv final : public Policy {
public:
    SnapKv(const PolicyInfo& info, const PolicySpec& spec) : Policy(spec) {
        const Params params(info, spec);
        m_window = params.integer("window");
        m_kernel = params.integer("kernel");
        m_pool = params.choice("pool");
        m_agg = params.choice("agg");
        m_rope = ropeModeOf(params.choice("rope"));
    }
    Needs needs(std::int64_t prompt) const override { return {.lastRows = static_cast<int>(std::min<std::int64_t>(m_window, prompt))}; }
    RopeMode rope() const override { return m_rope; }

    Plan plan(std::int64_t held, int budget) const override {
        Plan p{.keep = budget, .protect = {}, .window = static_cast<int>(std::min<std::int64_t>(m_window, held)), .notice = {}};
        if (budget < held && budget <= p.window) {
            p.window = std::max(1, budget / 2);
            p.notice = "window shrunk from " + std::to_string(m_window) + " to " + std::to_string(p.window) + " tokens to fit the budget of " + std::to_string(budget);
        }
        p.protect.recent = p.window;
        return p;
    }

    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor&) const override {
        const std::int64_t held = view.entries.maxHeld(), before = held - plan.window;
        at::Tensor votes = view.lastRows(plan.window).narrow(2, 0, before).mean(1); // [queryHeads, before]
        votes = reduceGroup(votes, view.config.kvHeads, m_agg).unsqueeze(1);        // [kvHeads, 1, before]
        votes = m_pool == "max" ? at::max_pool1d(votes, m_kernel, 1, m_kernel / 2) : at::avg_pool1d(votes, m_kernel, 1, m_kernel / 2);
        at::Tensor scores = at::zeros({view.config.kvHeads, view.entries.capacity()}, votes.options());
        scores.narrow(1, 0, before).copy_(votes.squeeze(1));
        return scores;
    }
    std::string scoreKey(const Plan& plan) const override { return std::to_string(plan.window); }

private:
    int m_window = 64, m_kernel = 5;
    std::string m_pool = "avg", m_agg = "mean";
    RopeMode m_rope = RopeMode::original;
};

} // namespace

PolicyEntry snapkv_policy();
PolicyEntry snapkv_policy() {
    PolicyInfo info{"snapkv",
                    {},
                    PolicyKind::evict,
                    "Keeps what the last tokens of the prompt attend to, and these tokens themselves.",
                    "SnapKV, arXiv:2404.14469",
                    {{"window", ParamInfo::Type::integer, "64", 1, 4096, {}, "tokens", "Last prompt tokens whose queries vote; they always stay."},
                     {"kernel", ParamInfo::Type::integer, "5", 1, 255, {}, "tokens", "Width of the pooling over neighbours, odd; 1: none."},
                     {"pool", ParamInfo::Type::choice, "avg", 0, 0, {"avg", "max"}, "", "How neighbouring votes are pooled."},
                     aggParam(),
                     ropeParam("original")}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<SnapKv>(i, spec); }};
}

} // namespace keepsight
