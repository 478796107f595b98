// random: the baseline that any method has to beat.
//
// score[h, t] uniform in [0, 1), from one CPU generator seeded anew for every layer and every choice: the layers of a model keep the same entries, a
// run repeats on any device, and the numbers are kvpress 0.5.5's RandomPress(seed) to the last bit (torch.rand over [1, kvHeads, T], in fp32 whatever
// the cache holds). kvpress without a seed repeats nothing; our default is seed 0. With chunk = N every chunk draws the same numbers, as kvpress's do.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

namespace keepsight {
namespace {

class Random final : public Policy {
public:
    Random(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec), m_seed(Params(info, spec).integer("seed")) {}
    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor&) const override {
        const std::int64_t held = view.entries.maxHeld(), length = plan.chunk > 0 ? plan.chunk : held;
        const at::Device device = view.entries.lengths.device();
        at::Tensor scores = at::zeros({view.config.kvHeads, view.entries.capacity()}, at::TensorOptions().dtype(at::kFloat).device(device));
        if (steady(held, plan)) {
            scores.narrow(1, 0, held).copy_(remembered(view.config.kvHeads, held, device));
            return scores;
        }
        for (std::int64_t begin = 0; begin < held; begin += length) {
            const std::int64_t count = std::min(length, held - begin);
            scores.narrow(1, begin, count).copy_(draw(view.config.kvHeads, count));
        }
        return scores;
    }
    std::optional<std::string> workKey(const Place& place, const Plan& plan) const override {
        return steady(place.held, plan) ? std::optional(std::to_string(place.held)) : std::nullopt;
    }

private:
    // With a number of tokens as budget every step chooses among as many.
    static bool steady(std::int64_t held, const Plan& plan) { return plan.chunk == 0 && plan.removed < 0 && held == plan.keep + 1; }
    at::Tensor draw(std::int64_t heads, std::int64_t count) const {
        const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(m_seed));
        return at::rand({1, heads, count}, generator, at::TensorOptions().dtype(at::kFloat))[0];
    }
    // The same draw where the cache is; kept, because recorded steps read it.
    at::Tensor remembered(std::int64_t heads, std::int64_t count, at::Device device) const {
        const std::lock_guard lock(m_mutex);
        at::Tensor& drawn = m_drawn[{heads, count, device.str()}];
        if (!drawn.defined()) drawn = draw(heads, count).to(device);
        return drawn;
    }

    int m_seed;
    mutable std::mutex m_mutex;
    mutable std::map<std::tuple<std::int64_t, std::int64_t, std::string>, at::Tensor> m_drawn;
};

} // namespace

PolicyEntry random_policy();
PolicyEntry random_policy() {
    PolicyInfo info{"random",
                    {},
                    PolicyKind::evict,
                    "Keeps tokens drawn at random: the baseline.",
                    "",
                    std::vector<ParamInfo>{{"seed", ParamInfo::Type::integer, "0", 0, 2147483647, {}, "", "Which draw; the same seed keeps the same tokens."},
                                           timingParam("prefill_end"),
                                           ropeParam("original")} +
                        sharedParams(Shared::keys)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<Random>(i, spec); }};
}

} // namespace keepsight
