// kvcV, kvcK, kvcVK and their variants: drops the entry without which the attention output would change least.
//
// Paper: OBCache (Optimal Brain Cache), arXiv:2510.07651; the names are those of kv-cache-pruner, which calls the family kvc (obc… still works). Of
// one query row, with a the weight of an entry, s its scaled logit, v its value and o the row's output, the output moves by −a·v when the
// value is taken away, by −a·s·(v − o) when the key is. Squared and summed over rows (ops::output_change):
//   V   S_V = Σ a²‖v‖²        K   S_K = Σ (a·s)²‖v − o‖²        VK   Σ ‖a·v + a·s·(v − o)‖² = S_V + S_K + S_X
//   VK_no_cross   S_V + S_K   V_p1   (Σ a)·‖v‖₁
// Rows: the last num_recent queries of the prompt, then each decoded token's row is added. _fullhist counts every prompt query, as h2o does; +tova
// the newest row alone, replaced at each step: then nothing is protected, and num_recent only adds to num_heavy. +maxpool and +avgpool pool
// the scores of the candidates over `kernel` neighbours before selecting, as SnapKV does; what is summed stays unpooled.
// Keeps the num_recent newest and the num_heavy best of the older ones; after the prefill, and with decode_evict again after every token.
//
// Where we differ from kv-cache-pruner: scores of a group's query heads become one per KV head (agg), where it stores a copy of the cache for each
// query head (granularity=query_head does so too); sums are fp32 (a² underflows in half precision); _fullhist stays so with ratios; the
// default is the budget, with its shares of 5% recent and 95% heavy. recent_ratio, heavy_ratio and cache_ratio are shares of the prompt, for good.
#include "engine/data/error.h"
#include "engine/policy/policy.h"
#include "engine/policy/snap_votes.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

struct Variant {
    std::string name;   // behind kvc
    RowSum sum = RowSum::value;
    enum class Rows { window, all, newest } rows = Rows::window;
    enum class Pool { none, max, average } pool = Pool::none;
};

std::vector<Variant> variants() {
    struct Base {
        const char* name;
        RowSum sum;
    };
    std::vector<Variant> out;
    for (const Base& base : {Base{"V", RowSum::value}, {"K", RowSum::key}, {"VK", RowSum::joint}, {"VK_no_cross", RowSum::independent}, {"V_p1", RowSum::attention}}) {
        const std::string name = base.name;
        out.push_back({name, base.sum});
        out.push_back({name + "+tova", base.sum, Variant::Rows::newest});
        out.push_back({name + "+maxpool", base.sum, Variant::Rows::window, Variant::Pool::max});
        out.push_back({name + "+avgpool", base.sum, Variant::Rows::window, Variant::Pool::average});
        out.push_back({name + "_fullhist", base.sum, Variant::Rows::all});
    }
    return out;
}

const Variant& variantOf(const std::string& id) {
    static const std::vector<Variant> all = variants();
    return *std::ranges::find_if(all, [&](const Variant& v) { return id == "kvc" + v.name; });
}

class Kvc final : public Policy {
public:
    Kvc(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec), m_variant(variantOf(info.id)) {
        const Params params(info, spec);
        m_recent = params.integer("num_recent");
        m_heavy = params.integer("num_heavy");
        m_recentRatio = params.real("recent_ratio");
        m_heavyRatio = params.real("heavy_ratio");
        m_cacheRatio = params.real("cache_ratio");
        m_fixRecent = params.flag("fix_recent");
        if (params.has("kernel")) m_kernel = params.integer("kernel");
        m_schedule = {.afterPrefill = true, .everySteps = params.flag("decode_evict") ? 1 : 0};
        const std::vector<double> layers = params.reals("layers");
        if (!layers.empty()) m_leastRemoved = *std::ranges::min_element(layers);
        check("policy " + info.id);
    }
    Needs needs(std::int64_t prompt) const override {
        Needs n{.columnSums = m_variant.rows == Variant::Rows::all, .decodeSums = m_variant.rows != Variant::Rows::newest && m_schedule.everySteps > 0, .sum = m_variant.sum};
        if (m_variant.rows == Variant::Rows::newest) n.lastRows = 1;
        if (m_variant.rows == Variant::Rows::window) n.lastRows = static_cast<int>(std::clamp<std::int64_t>(shares(prompt, largestBudget(prompt)).recent, 1, prompt));
        return n;
    }
    int budget(std::int64_t seen) const override { return total(shares(seen, Policy::budget(seen))); }
    int budgetAt(const Place& place) const override { return total(shares(place.prompt, Policy::budget(place.seen))); }
    at::Tensor statistic(const LayerView& view, const Plan& plan, const at::Tensor& sums) const override {
        if (m_variant.rows == Variant::Rows::newest) return {};
        return m_variant.rows == Variant::Rows::all ? sums : lastChanges(view, plan.window); // [queryHeads, C]
    }
    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor& statistic) const override {
        const int kvHeads = view.config.kvHeads;
        at::Tensor s = reduceGroup(m_variant.rows == Variant::Rows::newest ? lastChanges(view, 1) : statistic, kvHeads, m_agg); // [kvHeads, C]
        if (m_variant.sum == RowSum::attention) s = s * view.values.to(at::kFloat).abs().sum(-1);                              // ‖v‖₁, one for the group
        if (m_variant.pool == Variant::Pool::none) return s;
        return pooledBefore(s, view.entries.lengths, plan.protect.recent, m_kernel, m_variant.pool == Variant::Pool::max ? "max" : "avg");
    }
    std::optional<std::string> workKey(const Place&, const Plan& plan) const override { return std::to_string(plan.window) + "," + std::to_string(plan.protect.recent); }
    std::string scoreKey(const Plan& plan) const override {
        const std::string window = m_variant.rows == Variant::Rows::window ? std::to_string(plan.window) : "";
        return m_variant.pool == Variant::Pool::none ? window : window + "," + std::to_string(plan.protect.recent);
    }

protected:
    Plan plan(const Place& place, int budget) const override {
        const bool heavyGiven = m_heavy > 0 || m_heavyRatio > 0, newest = m_variant.rows == Variant::Rows::newest;
        const int recent = shares(place.prompt, heavyGiven ? Policy::budget(place.seen) : budget).recent;
        return {.keep = budget,
                .protect = {.sinks = 0, .recent = newest ? 0 : recent},
                .window = newest ? 1 : static_cast<int>(std::clamp<std::int64_t>(recent, 1, place.held)),
                .notice = {}};
    }

private:
    struct Shares {
        int recent = 0, heavy = 0;
    };
    static int total(const Shares& s) { return std::max(1, s.recent + s.heavy); }
    // What is given wins, the rest comes from the budget. Ratios are of the prompt.
    Shares shares(std::int64_t prompt, int budget) const {
        const auto of = [&](double ratio) { return static_cast<int>(std::floor(static_cast<double>(prompt) * ratio)); };
        if (m_fixRecent) {
            const int recent = m_recent > 0 ? m_recent : 16;
            return {recent, std::max(0, of(m_cacheRatio) - recent)};
        }
        if (m_cacheRatio > 0) return {std::max(1, of(0.05 * m_cacheRatio)), of(0.95 * m_cacheRatio)};
        Shares s;
        s.recent = m_recent > 0 ? m_recent : std::max(1, m_recentRatio > 0 ? of(m_recentRatio) : budget / 20);
        s.heavy = m_heavy > 0 ? m_heavy : m_heavyRatio > 0 ? of(m_heavyRatio) : std::max(0, budget - s.recent);
        return s;
    }
    int largestBudget(std::int64_t prompt) const { // of all layers
        return m_leastRemoved >= 0 ? Budget::removed(m_leastRemoved).resolve(prompt) : Policy::budget(prompt);
    }
    // The summed changes of the last `wanted` queries, as far as they are there, [queryHeads, C]; for V_p1 their summed weights.
    at::Tensor lastChanges(const LayerView& view, std::int64_t wanted) const {
        const std::int64_t count = std::min(wanted, view.queries.size(1));
        return m_variant.sum == RowSum::attention ? view.lastSums(count) : view.lastChanges(changeOf(m_variant.sum), count);
    }
    void check(const std::string& policy) const {
        const bool tokens = m_recent > 0 || m_heavy > 0, ratios = m_recentRatio > 0 || m_heavyRatio > 0, cache = m_cacheRatio > 0;
        if (m_fixRecent && !cache) throw UsageError(policy + ": fix_recent=on needs 'cache_ratio', from which the heavy tokens are counted");
        if (cache && ratios) throw UsageError(policy + ": 'cache_ratio' already says how many tokens are recent and heavy; leave out 'recent_ratio' and 'heavy_ratio'");
        if (cache && m_heavy > 0) throw UsageError(policy + ": 'cache_ratio' already says how many tokens are heavy; leave out 'num_heavy'");
        if (cache && m_recent > 0 && !m_fixRecent) throw UsageError(policy + ": 'cache_ratio' together with 'num_recent' needs fix_recent=on");
        if (tokens && ratios) throw UsageError(policy + ": give recent and heavy tokens both as numbers (num_recent, num_heavy) or both as ratios");
        if (m_leastRemoved >= 0 && (cache || m_heavy > 0 || m_heavyRatio > 0))
            throw UsageError(policy + ": 'layers' cannot share out a number of heavy tokens that is given; leave one of them out");
    }

    const Variant& m_variant;
    int m_recent = 0, m_heavy = 0, m_kernel = 7;
    double m_recentRatio = 0, m_heavyRatio = 0, m_cacheRatio = 0, m_leastRemoved = -1; // the last: of `layers`; −1: not given
    bool m_fixRecent = false;
};

std::string summary(const Variant& v) {
    std::string out = "Drops what the attention output would miss least ";
    switch (v.sum) {
    case RowSum::value: out += "without its value"; break;
    case RowSum::key: out += "without its key"; break;
    case RowSum::joint: out += "without key and value"; break;
    case RowSum::independent: out += "without key and value, each counted by itself"; break;
    case RowSum::attention: out += "by plain weight times the size of its value"; break;
    }
    if (v.rows == Variant::Rows::newest) return out + "; only the newest query is asked.";
    if (v.rows == Variant::Rows::all) return out + "; every query so far is asked.";
    out += "; the last queries are asked";
    if (v.pool != Variant::Pool::none) out += std::string(", and ") + (v.pool == Variant::Pool::max ? "the best" : "the mean") + " of its neighbourhood counts";
    return out + ".";
}

std::vector<ParamInfo> paramsOf(const Variant& v) {
    std::vector<ParamInfo> out = {
        {"num_recent", ParamInfo::Type::integer, "0", 0, 1 << 24, {}, "tokens", "Newest tokens kept; 0: one in twenty of the budget."},
        {"num_heavy", ParamInfo::Type::integer, "0", 0, 1 << 24, {}, "tokens", "Older tokens kept by score; 0: the rest of the budget."},
        {"recent_ratio", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "Newest tokens kept, as a share of the prompt; 0: not used."},
        {"heavy_ratio", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "Older tokens kept by score, as a share of the prompt; 0: not used."},
        {"cache_ratio", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "Both together as a share of the prompt, 5% of them recent; 0: not used."},
        flagParam("fix_recent", false, "With cache_ratio: num_recent stays as given (0: 16), and the heavy tokens are the rest."),
        flagParam("decode_evict", true, "Drop again after every decoded token; off: once after the prefill, then the cache grows.")};
    if (v.pool != Variant::Pool::none) out.push_back({"kernel", ParamInfo::Type::integer, "7", 1, 255, {}, "tokens", "Width of the pooling over neighbours, odd; 1: none.", true});
    out.push_back(aggParam());
    out.push_back(ropeParam("original"));
    return out + sharedParams(Shared::attention);
}

} // namespace

std::vector<PolicyEntry> kvc_policies();
std::vector<PolicyEntry> kvc_policies() {
    std::vector<PolicyEntry> out;
    for (const Variant& v : variants())
        out.push_back({{"kvc" + v.name, {"obc" + v.name}, PolicyKind::evict, summary(v), "OBCache, arXiv:2510.07651", paramsOf(v)},
                       [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<Kvc>(i, spec); }});
    return out;
}

} // namespace keepsight
