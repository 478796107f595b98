// window: the last W tokens, first in first out.
//
// No sinks: once position 0 has left, quality collapses, because models park surplus attention on the first tokens
// (StreamingLLM, arXiv:2309.17453, measures it). Shown for just that reason.
#include "engine/policy/policy.h"

namespace keepsight {
namespace {

class Window final : public Policy {
public:
    Window(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec), m_window(Params(info, spec).integer("window")) {}
    Needs needs(std::int64_t) const override { return {.entries = false}; }
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
    int budget(std::int64_t seen) const override { return m_window > 0 ? m_window : Policy::budget(seen); }

private:
    int m_window;
};

} // namespace

PolicyEntry window_policy();
PolicyEntry window_policy() {
    PolicyInfo info{"window",
                    {"fifo", "sliding_window"},
                    PolicyKind::evict,
                    "Keeps the newest tokens only.",
                    "",
                    {{"window", ParamInfo::Type::integer, "0", 0, 1 << 24, {}, "tokens", "Tokens kept; 0: the budget."}, timingParam("each_step"), ropeParam("original")}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<Window>(i, spec); }};
}

} // namespace keepsight
