// snapkv: the last w prompt queries vote on the rest.
//
// Paper: SnapKV, arXiv:2404.14469. A: attention of the last w queries, softmax over everything they see (the window included);
// s[t] = mean of A's rows for t before the window, averaged per KV group, pooled over κ neighbours so that whole phrases stay.
// The window itself always stays; the budget includes it. Defaults are kvpress's (w 64, κ 5, average pooling); the paper's runs use
// w 32, κ 7, max. Average pooling counts the zero padding, which lowers both ends a little, as in the originals.
#include "engine/policy/policy.h"
#include "engine/policy/snap_votes.h"

#include <algorithm>

namespace keepsight {
namespace {

class SnapKv final : public Policy {
public:
    SnapKv(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_window = params.integer("window");
        m_kernel = params.integer("kernel");
        m_pool = params.choice("pool");
    }
    Needs needs(std::int64_t prompt) const override { return {.lastRows = static_cast<int>(std::min<std::int64_t>(m_window, prompt))}; }
    std::optional<std::string> workKey(const Place&, const Plan& plan) const override { return std::to_string(plan.window); }
    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor&) const override {
        return snapVotes(view, plan.window, m_kernel, m_pool, m_agg);
    }
    std::string scoreKey(const Plan& plan) const override { return std::to_string(plan.window); }

protected:
    Plan plan(const Place& place, int budget) const override {
        Plan p{.keep = budget, .protect = {}, .window = static_cast<int>(std::min<std::int64_t>(m_window, place.held)), .notice = {}};
        if (budget < place.held && budget <= p.window) {
            p.window = std::max(1, budget / 2);
            p.notice = "window shrunk from " + std::to_string(m_window) + " to " + std::to_string(p.window) + " tokens to fit the budget of " + std::to_string(budget);
        }
        p.protect.recent = p.window;
        return p;
    }

private:
    int m_window = 64, m_kernel = 5;
    std::string m_pool = "avg";
};

} // namespace

PolicyEntry snapkv_policy();
PolicyEntry snapkv_policy() {
    PolicyInfo info{"snapkv",
                    {},
                    PolicyKind::evict,
                    "Keeps what the last tokens of the prompt attend to, and these tokens themselves.",
                    "SnapKV, arXiv:2404.14469",
                    std::vector<ParamInfo>{
                        {"window", ParamInfo::Type::integer, "64", 1, 4096, {}, "tokens", "Last tokens whose queries vote; they always stay."},
                        {"kernel", ParamInfo::Type::integer, "5", 1, 255, {}, "tokens", "Width of the pooling over neighbours, odd; 1: none.", true},
                        {"pool", ParamInfo::Type::choice, "avg", 0, 0, {"avg", "max"}, "", "How neighbouring votes are pooled."},
                        aggParam(),
                        timingParam("prefill_end"),
                        ropeParam("original")} +
                        sharedParams(Shared::attention)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<SnapKv>(i, spec); }};
}

} // namespace keepsight
