// compose: one policy's choice, then another's among what it left.
//
// kvpress 0.5.5, ComposedPress (no paper). Of T entries B are to stay: the first policy keeps n = ⌊T·(B/T)^share⌋, the second B of these; share = 0.5
// lets both keep the same part, √(B/T). The second one sees the survivors only: its attention is normalised over them, its means are theirs.
//   order = score (default, as kvpress): survivors are handed on from the first policy's best to its worst, because kvpress leaves them as its top-k
//       returned them. A second policy that goes by place is then surprising: snapkv's window, which always stays, is what the first liked least, and
//       its pooling mixes entries that are no neighbours in the text. Policies that judge each entry by itself (knorm, keydiff) do not notice.
//       Its attention is masked by place in that order, as kvpress masks by index; small differences of rounding can swap neighbours there.
//   order = text: survivors stay in reading order and are masked by their true positions; what the second policy's authors meant.
// Where we differ: the budget is one number for both, so that exactly B stay; kvpress rounds down twice. first_with and second_with hold their parameters;
// the timing is this one's. Policies that need a memory of their own, and second ones that need sums over all queries, cannot be composed, nor can
// parameters that set how many tokens stay.
#include "engine/data/error.h"
#include "engine/policy/policy.h"
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <numeric>

namespace keepsight {

#define KEEPSIGHT_POLICY(id) PolicyEntry id##_policy();
#define KEEPSIGHT_POLICIES(family) std::vector<PolicyEntry> family##_policies();
#include "engine/policy/policies.def"
#undef KEEPSIGHT_POLICY
#undef KEEPSIGHT_POLICIES

namespace {

enum class Part { first, second };

std::unique_ptr<const Policy> nested(const std::string& id, const ParamValues& params, int budget, const std::string& timing) {
    PolicySpec spec;
    spec.id = id;
    spec.params = params;
    spec.budget = Budget::kept(budget);
    if (const auto& known = policyEntry(id).info.params; std::ranges::find(known, "timing", &ParamInfo::name) != known.end()) spec.params["timing"] = timing;
    return makePolicy(spec);
}

class Compose final : public Policy {
public:
    Compose(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_first = params.choice("first");
        m_second = params.choice("second");
        m_share = params.real("share");
        m_inText = params.choice("order") == "text";
        m_timing = params.choice("timing");
        m_firstWith = settings("first_with", m_first, params.choice("first_with"));
        m_secondWith = settings("second_with", m_second, params.choice("second_with"));
    }

    Needs needs(std::int64_t prompt) const override {
        const int keep = static_cast<int>(std::min<std::int64_t>(budget(prompt), prompt));
        Needs out = part(Part::first, between(prompt, prompt, keep))->needs(prompt);
        const Needs more = part(Part::second, keep)->needs(prompt);
        out.lastRows = std::max(out.lastRows, more.lastRows);
        out.queryMoments = std::max(out.queryMoments, more.queryMoments);
        out.entries = out.entries || more.entries;
        return out;
    }
    at::Tensor statistic(const LayerView& view, const Plan& plan, const at::Tensor& sums) const override {
        return part(Part::first, plan.keep)->statistic(view, plan, sums);
    }
    // The first policy's; the second one's depend on what it leaves.
    at::Tensor score(const LayerView& view, const Plan& plan, const at::Tensor& statistic) const override {
        return part(Part::first, plan.keep)->score(view, plan, statistic);
    }
    std::string scoreKey(const Plan& plan) const override { return part(Part::first, plan.keep)->scoreKey(plan); }
    // Where one entry has to go, the first policy mostly leaves as many as will stay: the second one has nothing to choose.
    std::optional<std::string> workKey(const Place& place, const Plan& plan) const override {
        if (between(place.held, place.seen, plan.keep) != plan.keep) return std::nullopt;
        const std::unique_ptr<const Policy> first = part(Part::first, plan.keep);
        return first->brings() ? std::nullopt : first->workKey(place, first->planFor(place)); // a fresh one at every call could not keep what it brought
    }

    Selection choose(const LayerView& view, const Place& place, const Plan& plan, const at::Tensor& scores, LayerMemory*, std::string* notice) const override {
        const int n = between(place.held, place.seen, plan.keep);
        const Plan before = part(Part::first, n)->planFor(place);
        const Selection left = select(scores, view.entries.held, before, notice);
        const std::vector<std::vector<std::int32_t>> order = handedOn(left, scores, view.entries.held, before); // entries in the second one's order

        const auto heads = static_cast<std::int64_t>(order.size());
        CacheLayer entries;
        for (const auto& row : order) entries.held.push_back(static_cast<std::int32_t>(row.size()));
        const std::int64_t most = entries.maxHeld();
        at::Tensor index = at::zeros({heads, most}, at::kLong);
        for (std::int64_t h = 0; h < heads; ++h)
            for (std::size_t i = 0; i < order[static_cast<std::size_t>(h)].size(); ++i)
                index.data_ptr<std::int64_t>()[h * most + static_cast<std::int64_t>(i)] = order[static_cast<std::size_t>(h)][i];
        index = index.to(view.keys.device());
        entries.lengths = at::tensor(entries.held, at::kInt).to(view.keys.device());
        entries.positions = view.entries.positions.gather(1, index);
        // Out of text order there is no position to mask by: kvpress lets each query see all entries but those behind its own place from the end.
        if (!m_inText && scores.defined())
            entries.positions = (at::arange(most, entries.lengths.options()).unsqueeze(0) + (newest(view) + 1 - entries.lengths.unsqueeze(1))).contiguous();
        entries.keys = gathered(view.keys, index);
        entries.values = gathered(view.values, index);
        const LayerView survivors{view.layer,  view.config, entries, view.queries, view.queryPositions, entries.keys, entries.values, view.scale, {}, view.inverseFrequencies,
                                  view.moments, {}};
        const std::unique_ptr<const Policy> second = part(Part::second, plan.keep);
        const Place where = among(place, most);
        const Plan after = second->planFor(where);
        const at::Tensor again = second->score(survivors, after, second->statistic(survivors, after, {}));
        Selection out = second->choose(survivors, where, after, again, nullptr, notice);
        for (std::size_t h = 0; h < out.keep.size(); ++h) {
            for (std::int32_t& i : out.keep[h]) i = order[h][static_cast<std::size_t>(i)];
            std::ranges::sort(out.keep[h]);
        }
        return out;
    }

    void amend(Explanation& e, const LayerView&, const Place& place, const Plan& plan) const override {
        e.note = "Scores and ranks are those of " + m_first + ", which keeps " + std::to_string(between(place.held, place.seen, plan.keep)) + "; " + m_second + " chose among these.";
    }

protected:
    Plan plan(const Place& place, int budget) const override {
        Plan p{.keep = budget, .protect = {}, .window = 0, .notice = {}};
        if (budget >= place.held) return p;
        const int n = between(place.held, place.seen, budget);
        const Plan before = part(Part::first, n)->planFor(place), after = part(Part::second, budget)->planFor(among(place, n));
        p.window = before.window;
        p.protect = before.protect; // with the first one's scores
        for (const auto& [id, notice] : {std::pair(m_first, before.notice), std::pair(m_second, after.notice)})
            if (!notice.empty()) p.notice += (p.notice.empty() ? "" : "; ") + id + ": " + notice;
        return p;
    }

private:
    std::unique_ptr<const Policy> part(Part which, int budget) const {
        return which == Part::first ? nested(m_first, m_firstWith, budget, m_timing) : nested(m_second, m_secondWith, budget, m_timing);
    }

    // "window=16;kernel=7" as parameters of `id`.
    ParamValues settings(const std::string& name, const std::string& id, std::string text) const {
        const std::string what = "policy compose: " + name;
        if (text.empty()) return {};
        std::ranges::replace(text, ';', ',');
        const ParamValues out = parseParams(what, id + ":" + text);
        for (const char* ours : {"timing", "granularity"})
            if (out.contains(ours)) throw UsageError(what + ": '" + ours + "' cannot be set for one of the two");
        const std::unique_ptr<const Policy> policy = nested(id, out, 512, m_timing);
        for (const int layer : {0, 7})
            if (policy->planFor(Place::afterPrompt(1024, LayerIndex{layer}, 8)).keep != 512 || policy->rope() != RopeMode::original)
                throw UsageError(what + ": expected parameters that leave the number of tokens and their positions to compose, found '" + text + "'");
        return out;
    }

    // How many the first policy leaves of `held`, of which `keep` will stay.
    int between(std::int64_t held, std::int64_t seen, int keep) const {
        const Budget& b = m_spec.budget;
        const bool exact = b.kind == Budget::Kind::ratio && held == seen && keep == Policy::budget(seen); // the ratio before it was rounded down
        const double kept = exact ? 1 - b.compressionRatio : static_cast<double>(keep) / static_cast<double>(held);
        const auto n = static_cast<std::int64_t>(static_cast<double>(held) * std::pow(kept, m_share));
        return static_cast<int>(std::clamp<std::int64_t>(n, std::min<std::int64_t>(keep, held), held));
    }

    static Place among(Place place, std::int64_t survivors) {
        place.held = place.seen = place.fresh = place.prompt = survivors;
        place.quantizer = nullptr; // its share is in our budget already
        return place;
    }

    static Position newest(const LayerView& view) {
        if (view.queryPositions.defined() && view.queryPositions.numel() > 0) return view.queryPositions[-1].item<Position>();
        const at::Tensor last = (view.entries.lengths.to(at::kLong) - 1).clamp_min(0).unsqueeze(1);
        return view.entries.positions.gather(1, last).max().item<Position>();
    }

    static at::Tensor gathered(const at::Tensor& x, const at::Tensor& index) { // [H, C, D], [H, M] → [H, M, D], whole rows at a time
        const at::Tensor rows = index + at::arange(x.size(0), index.options()).unsqueeze(1) * x.size(1);
        return x.contiguous().view({-1, x.size(2)}).index_select(0, rows.view({-1})).view({x.size(0), index.size(1), x.size(2)});
    }

    std::vector<std::vector<std::int32_t>> handedOn(const Selection& left, const at::Tensor& scores, const std::vector<std::int32_t>& held, const Plan& plan) const {
        std::vector<std::vector<std::int32_t>> order = left.keep;
        if (m_inText || !scores.defined()) return order;
        const at::Tensor host = scores.to(at::kCPU, at::kFloat).contiguous();
        std::vector<std::pair<float, std::int32_t>> ranked; // entries are unique: no two are equal
        for (std::size_t h = 0; h < order.size(); ++h) {
            const float* s = host.const_data_ptr<float>() + static_cast<std::int64_t>(h) * host.size(1);
            const auto sure = [&](std::int32_t i) { return i < plan.protect.sinks || i >= held[h] - plan.protect.recent; }; // comes before any score
            const auto open = std::ranges::stable_partition(order[h], sure);
            ranked.clear();
            for (const std::int32_t i : open) ranked.emplace_back(std::isnan(s[i]) ? INFINITY : -s[i], i);
            std::ranges::sort(ranked);
            std::ranges::transform(ranked, open.begin(), &std::pair<float, std::int32_t>::second);
        }
        return order;
    }

    std::string m_first, m_second, m_timing;
    ParamValues m_firstWith, m_secondWith;
    double m_share = 0.5;
    bool m_inText = false;
};

// Policies that choose as many as they are told, by nothing but what they are shown.
std::vector<std::string> composable(Part part) {
    std::vector<PolicyEntry> entries;
    const auto add = [&](std::vector<PolicyEntry> family) { entries.insert(entries.end(), family.begin(), family.end()); };
#define KEEPSIGHT_POLICY(id) \
    if (std::string_view(#id) != "compose") entries.push_back(id##_policy());
#define KEEPSIGHT_POLICIES(family) add(family##_policies());
#include "engine/policy/policies.def"
#undef KEEPSIGHT_POLICY
#undef KEEPSIGHT_POLICIES
    std::vector<std::string> ids;
    for (const PolicyEntry& entry : entries) {
        if (entry.info.kind != PolicyKind::evict || !entry.info.usesBudget) continue;
        PolicySpec spec;
        spec.id = entry.info.id;
        spec.budget = Budget::kept(512);
        const std::unique_ptr<const Policy> policy = entry.make(entry.info, spec);
        const Needs needs = policy->needs(1024);
        const bool told = policy->planFor(Place::afterPrompt(1024, LayerIndex{0}, 8)).keep == 512 && policy->planFor(Place::afterPrompt(1024, LayerIndex{7}, 8)).keep == 512;
        if (told && !policy->remember() && (part == Part::first || (!needs.columnSums && !needs.decodeSums))) ids.push_back(entry.info.id);
    }
    return ids;
}

} // namespace

PolicyEntry compose_policy() {
    PolicyInfo info{"compose",
                    {"composed"},
                    PolicyKind::evict,
                    "Lets one policy choose among what another one left.",
                    "kvpress, ComposedPress",
                    {{"first", ParamInfo::Type::choice, "knorm", 0, 0, composable(Part::first), "", "The policy that chooses first."},
                     {"first_with", ParamInfo::Type::settings, "", 0, 0, {}, "", "Its parameters, separated by semicolons: window=16;kernel=7; empty: its defaults."},
                     {"second", ParamInfo::Type::choice, "snapkv", 0, 0, composable(Part::second), "", "The policy that chooses among what is left."},
                     {"second_with", ParamInfo::Type::settings, "", 0, 0, {}, "", "Its parameters, likewise."},
                     {"share", ParamInfo::Type::real, "0.5", 0, 1, {}, "", "How much of the work the first one does: 0 none, 0.5 both remove the same part, 1 all."},
                     {"order", ParamInfo::Type::choice, "score", 0, 0, {"score", "text"}, "",
                      "How the second one finds the entries: from the first one's best to its worst, as in kvpress, or as they stand in the text."},
                     timingParam("prefill_end"),
                     ropeParam("original")}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<Compose>(i, spec); }};
}

} // namespace keepsight
