// layerquant: trades bits for tokens, layer by layer, at the same nominal memory.
//
// Paper: More tokens, lower precision, arXiv:2412.12706. The budget C counts 16-bit tokens; a layer packed at b bits keeps C · 16 / b
// tokens, chosen as snapkv does (window 8, kernel 7, max pooling), and the quantizer of the same name packs them. Which layers get how many
// bits is the quantizer's to say. Decoded tokens stay in full precision.
// Where we differ: the code that came with the method inverts which layers it packs and ignores the bits it is given; ours does what was meant.
#include "engine/policy/policy.h"
#include "engine/policy/snap_votes.h"

#include <algorithm>

namespace keepsight {
namespace {

class LayerQuantPolicy final : public Policy {
public:
    LayerQuantPolicy(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_window = params.integer("window");
        m_kernel = params.integer("kernel");
        m_pool = params.choice("pool");
    }
    Needs needs(std::int64_t prompt) const override { return {.lastRows = static_cast<int>(std::min<std::int64_t>(m_window, prompt))}; }
    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor&) const override { return snapVotes(view, plan.window, m_kernel, m_pool, m_agg); }
    std::string scoreKey(const Plan& plan) const override { return std::to_string(plan.window); }

protected:
    Plan plan(const Place& place, int budget) const override {
        Plan p{.keep = budget, .protect = {}, .window = static_cast<int>(std::min<std::int64_t>(m_window, place.held)), .notice = {}};
        if (budget < place.held && budget <= p.window) p.window = std::max(1, budget / 2);
        p.protect.recent = p.window;
        return p;
    }

private:
    int m_window = 8, m_kernel = 7;
    std::string m_pool = "max";
};

} // namespace

PolicyEntry layerquant_policy();
PolicyEntry layerquant_policy() {
    PolicyInfo info{"layerquant",
                    {"layer_quant"},
                    PolicyKind::evict,
                    "Keeps more tokens in the layers that are packed in fewer bits, at the same memory.",
                    "More tokens, lower precision, arXiv:2412.12706",
                    {{"window", ParamInfo::Type::integer, "8", 1, 4096, {}, "tokens", "Last tokens whose queries vote; they always stay."},
                     {"kernel", ParamInfo::Type::integer, "7", 1, 255, {}, "tokens", "Width of the pooling over neighbours, odd; 1: none.", true},
                     {"pool", ParamInfo::Type::choice, "max", 0, 0, {"avg", "max"}, "", "How neighbouring votes are pooled."},
                     aggParam(),
                     ropeParam("original")},
                    true,
                    "layerquant:equal_memory=nominal"};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<LayerQuantPolicy>(i, spec); }};
}

} // namespace keepsight
