// streaming_llm: a few first tokens (attention sinks) and a recent window.
//
// Paper: StreamingLLM, arXiv:2309.17453. B = sinks + recent. Kept tokens are renumbered from 0 (rope = cache_relative), as in the
// paper; kvpress keeps original positions (rope = original) and keeps the same tokens.
#include "engine/policy/policy.h"

#include <algorithm>

namespace keepsight {
namespace {

class StreamingLlm final : public Policy {
public:
    StreamingLlm(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_sinks = params.integer("sinks");
        m_recent = params.integer("recent");
    }
    Needs needs(std::int64_t) const override { return {.entries = false}; }
    std::optional<std::string> workKey(const Place&, const Plan&) const override { return ""; }
    int budget(std::int64_t seen) const override { return m_recent > 0 ? std::max(1, m_sinks + m_recent) : Policy::budget(seen); }

protected:
    Plan plan(const Place&, int budget) const override {
        return {.keep = budget, .protect = {.sinks = m_sinks, .recent = 0}, .window = 0, .notice = {}}; // the rest goes to the newest
    }

private:
    int m_sinks = 4, m_recent = 0;
};

} // namespace

PolicyEntry streaming_llm_policy();
PolicyEntry streaming_llm_policy() {
    PolicyInfo info{"streaming_llm",
                    {"streaming", "sink", "streamingllm"},
                    PolicyKind::evict,
                    "Keeps the first few tokens as attention sinks, and the newest.",
                    "StreamingLLM, arXiv:2309.17453",
                    {{"sinks", ParamInfo::Type::integer, "4", 0, 1 << 20, {}, "tokens", "First tokens that always stay."},
                     {"recent", ParamInfo::Type::integer, "0", 0, 1 << 24, {}, "tokens", "Newest tokens kept; 0: the budget less the sinks."},
                     timingParam("each_step"),
                     ropeParam("cache_relative")}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<StreamingLlm>(i, spec); }};
}

} // namespace keepsight
