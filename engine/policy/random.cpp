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
        if (const at::Tensor brought = broughtTo(view.entries, held); plan.chunk == 0 && brought.defined()) return brought;
        at::Tensor scores = at::zeros({view.config.kvHeads, view.entries.capacity()}, optionsOf(view.entries));
        for (std::int64_t begin = 0; begin < held; begin += length) {
            const std::int64_t count = std::min(length, held - begin);
            scores.narrow(1, begin, count).copy_(draw(view.config.kvHeads, count));
        }
        return scores;
    }
    // One draw serves all layers, if they hold equally many.
    std::optional<std::string> workKey(const Place&, const Plan& plan) const override {
        return layersAlike() && !plan.adaptive && plan.chunk == 0 ? std::optional<std::string>("drawn") : std::nullopt;
    }
    bool brings() const override { return true; }
    void beforeStep(const CacheLayer& entries, std::int64_t held) const override {
        const auto heads = static_cast<std::int64_t>(entries.held.size());
        const std::lock_guard lock(m_mutex);
        Brought& brought = m_brought[keyOf(entries)];
        if (!brought.scores.defined()) brought.scores = at::zeros({heads, entries.capacity()}, optionsOf(entries));
        if (brought.held == held) return;
        brought.held = held;
        brought.scores.narrow(1, 0, held).copy_(draw(heads, held));
    }

private:
    struct Brought { // the same tensor from step to step, because recorded ones read it
        at::Tensor scores; // [kvHeads, capacity]
        std::int64_t held = -1;
    };
    using Key = std::tuple<std::size_t, std::int64_t, std::string>; // heads, capacity, device
    static Key keyOf(const CacheLayer& entries) { return {entries.held.size(), entries.capacity(), entries.lengths.device().str()}; }
    static at::TensorOptions optionsOf(const CacheLayer& entries) { return entries.lengths.options().dtype(at::kFloat); }

    at::Tensor draw(std::int64_t heads, std::int64_t count) const {
        const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(m_seed));
        return at::rand({1, heads, count}, generator, at::TensorOptions().dtype(at::kFloat))[0];
    }
    at::Tensor broughtTo(const CacheLayer& entries, std::int64_t held) const {
        const std::lock_guard lock(m_mutex);
        const auto found = m_brought.find(keyOf(entries));
        return found != m_brought.end() && found->second.held == held ? found->second.scores : at::Tensor();
    }

    int m_seed;
    mutable std::mutex m_mutex;
    mutable std::map<Key, Brought> m_brought;
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
