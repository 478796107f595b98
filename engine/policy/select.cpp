#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <numeric>

namespace keepsight {
namespace {

struct Candidate {
    float score;
    std::int32_t index, head;
};

// Entry indices are in ascending position, so "larger position" is "larger index".
bool better(const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.index != b.index ? a.index > b.index : a.head < b.head;
}

float comparable(float score) { return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score; }

// Scores on the host; undefined scores prefer the newer.
class Scores {
public:
    explicit Scores(const at::Tensor& scores) : m_host(scores.defined() ? scores.to(at::kCPU, at::kFloat).contiguous() : at::Tensor()) {}
    Candidate at(std::size_t head, std::int32_t index) const {
        const float s = m_host.defined() ? comparable(m_host.data_ptr<float>()[static_cast<std::int64_t>(head) * m_host.size(1) + index]) : static_cast<float>(index);
        return {s, index, static_cast<std::int32_t>(head)};
    }
    bool defined() const { return m_host.defined(); }

private:
    at::Tensor m_host;
};

// Among `count` entries.
Protect affordable(const Protect& wanted, std::int32_t keep, std::int32_t count) { return affordable(wanted, std::min(keep, count)); }

void sayWhatGaveWay(const Protect& wanted, const Protect& got, std::int32_t keep, std::string* notice) {
    if (notice && (got.sinks < wanted.sinks || got.recent < wanted.recent))
        *notice = "the budget of " + std::to_string(keep) + " holds " + std::to_string(got.sinks) + " of " + std::to_string(wanted.sinks) + " sinks and " +
                  std::to_string(got.recent) + " of " + std::to_string(wanted.recent) + " recent tokens";
}

// Appends the `keep` entries that stay of [begin, end), ascending.
void selectRange(const Scores& scores, std::size_t head, std::int32_t begin, std::int32_t end, std::int32_t keep, const Protect& protect,
                 std::vector<std::int32_t>& kept, std::string* notice) {
    const std::int32_t count = end - begin;
    if (count <= keep) {
        for (std::int32_t i = begin; i < end; ++i) kept.push_back(i);
        return;
    }
    const Protect p = affordable(protect, keep, count);
    sayWhatGaveWay(protect, p, keep, notice);
    const std::int32_t chosen = keep - p.sinks - p.recent, last = end - p.recent;
    for (std::int32_t i = begin; i < begin + p.sinks; ++i) kept.push_back(i);
    if (chosen > 0 && !scores.defined()) {
        for (std::int32_t i = last - chosen; i < last; ++i) kept.push_back(i);
    } else if (chosen > 0) {
        // The chosen-th best value parts them; of those equal to it the newest stay. No sort: one more pass finds them in order.
        std::vector<float> values;
        values.reserve(static_cast<std::size_t>(last - begin));
        for (std::int32_t i = begin + p.sinks; i < last; ++i) values.push_back(scores.at(head, i).score);
        std::vector<float> ranked = values;
        std::nth_element(ranked.begin(), ranked.begin() + (chosen - 1), ranked.end(), std::greater<>());
        const float cutoff = ranked[static_cast<std::size_t>(chosen - 1)];
        const auto above = std::ranges::count_if(values, [&](float v) { return v > cutoff; });
        auto spare = std::ranges::count(values, cutoff) - (chosen - above); // older ones that are equal and go
        for (std::size_t i = 0; i < values.size(); ++i)
            if (values[i] > cutoff || (values[i] == cutoff && spare-- <= 0)) kept.push_back(begin + p.sinks + static_cast<std::int32_t>(i));
    }
    for (std::int32_t i = last; i < end; ++i) kept.push_back(i);
}

void selectHead(const Scores& scores, std::size_t head, std::int32_t held, const Plan& plan, std::vector<std::int32_t>& kept, std::string* notice) {
    const std::int32_t keep = std::max(1, plan.keep);
    kept.reserve(static_cast<std::size_t>(std::min(held, keep)));
    if (plan.chunk <= 0 || held <= keep) {
        selectRange(scores, head, 0, held, keep, plan.protect, kept, notice);
        return;
    }
    for (std::int32_t begin = 0; begin < held; begin += plan.chunk) {
        const std::int32_t end = std::min(begin + plan.chunk, held), count = end - begin;
        const double share = plan.removed >= 0 ? 1.0 - plan.removed : static_cast<double>(keep) / held;
        const Protect here{begin == 0 ? plan.protect.sinks : 0, end == held ? plan.protect.recent : 0};
        selectRange(scores, head, begin, end, std::max(1, static_cast<std::int32_t>(count * share)), here, kept, notice);
    }
}

// AdaKV: every head is sure of its protected entries and the best of its floor; the rest of keep × heads goes to the best of all heads.
Selection selectAdaptive(const Scores& scores, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice) {
    Selection out;
    out.keep.resize(held.size());
    const std::int32_t keep = std::max(1, plan.keep), floorOf = static_cast<std::int32_t>(keep * plan.adaptiveFloor);
    std::int64_t left = static_cast<std::int64_t>(keep) * static_cast<std::int64_t>(held.size());
    std::vector<Candidate> open;
    for (std::size_t h = 0; h < held.size(); ++h) {
        const Protect p = affordable(plan.protect, keep, held[h]);
        sayWhatGaveWay(plan.protect, p, keep, notice);
        std::vector<std::int32_t>& kept = out.keep[h];
        for (std::int32_t i = 0; i < p.sinks; ++i) kept.push_back(i);
        for (std::int32_t i = held[h] - p.recent; i < held[h]; ++i) kept.push_back(i);
        std::vector<Candidate> candidates;
        for (std::int32_t i = p.sinks; i < held[h] - p.recent; ++i) candidates.push_back(scores.at(h, i));
        const auto sure = static_cast<std::ptrdiff_t>(std::clamp<std::int64_t>(floorOf - static_cast<std::int64_t>(kept.size()), 0, static_cast<std::int64_t>(candidates.size())));
        if (sure > 0) std::nth_element(candidates.begin(), candidates.begin() + (sure - 1), candidates.end(), better);
        for (std::ptrdiff_t i = 0; i < sure; ++i) kept.push_back(candidates[static_cast<std::size_t>(i)].index);
        open.insert(open.end(), candidates.begin() + sure, candidates.end());
        left -= static_cast<std::int64_t>(kept.size());
    }
    const auto taken = static_cast<std::ptrdiff_t>(std::clamp<std::int64_t>(left, 0, static_cast<std::int64_t>(open.size())));
    if (taken > 0 && taken < static_cast<std::ptrdiff_t>(open.size())) std::nth_element(open.begin(), open.begin() + (taken - 1), open.end(), better);
    for (std::ptrdiff_t i = 0; i < taken; ++i) out.keep[static_cast<std::size_t>(open[static_cast<std::size_t>(i)].head)].push_back(open[static_cast<std::size_t>(i)].index);
    for (auto& kept : out.keep) std::sort(kept.begin(), kept.end());
    return out;
}

} // namespace

Selection select(const at::Tensor& tensor, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice) {
    const Scores scores(tensor);
    if (plan.adaptive) return selectAdaptive(scores, held, plan, notice);
    Selection out;
    out.keep.resize(held.size());
    const auto heads = static_cast<std::int64_t>(held.size());
    [[maybe_unused]] const bool large = std::accumulate(held.begin(), held.end(), std::int64_t{0}) > 1 << 15;
    std::vector<std::string> notices(held.size());
    std::exception_ptr failed; // nothing may leave a parallel region
#pragma omp parallel for schedule(static) if (large)
    for (std::int64_t number = 0; number < heads; ++number) {
        try {
            const auto h = static_cast<std::size_t>(number);
            selectHead(scores, h, held[h], plan, out.keep[h], notice ? &notices[h] : nullptr);
        } catch (...) {
#pragma omp critical
            failed = std::current_exception();
        }
    }
    if (failed) std::rethrow_exception(failed);
    for (std::string& said : notices)
        if (!said.empty()) *notice = std::move(said);
    return out;
}

Explanation explainEntry(const at::Tensor& tensor, const CacheLayer& entries, const Plan& plan, const Selection& selection, HeadIndex head, std::int32_t index) {
    const Scores scores(tensor);
    const auto h = static_cast<std::size_t>(head.value);
    const std::vector<std::int32_t>& kept = selection.keep[h];
    const std::int32_t n = entries.held[h];
    const Protect p = affordable(plan.protect, std::max(1, plan.keep), n);
    const auto isProtected = [&](std::int32_t i) { return i < p.sinks || i >= n - p.recent; };
    const at::Tensor positions = entries.positions[head.value].to(at::kCPU).contiguous();
    const std::int32_t* position = positions.data_ptr<std::int32_t>();

    Explanation out;
    out.head = head;
    out.found = true;
    out.position = position[index];
    out.kept = std::binary_search(kept.begin(), kept.end(), index);
    out.budget = static_cast<int>(kept.size());
    if (!scores.defined()) out.note = "This policy goes by position alone: the newer a token, the higher its score.";
    const Candidate asked = scores.at(h, index);
    out.score = asked.score;
    std::optional<Candidate> lastIn, bestOut;
    std::size_t next = 0;
    out.rank = isProtected(index) ? 0 : 1;
    for (std::int32_t i = 0; i < n; ++i) {
        const bool in = next < kept.size() && kept[next] == i;
        next += in;
        if (isProtected(i)) continue;
        const Candidate c = scores.at(h, i);
        ++out.candidates;
        out.slots += in;
        if (out.rank > 0 && better(c, asked)) ++out.rank;
        if (in && (!lastIn || better(*lastIn, c))) lastIn = c;
        if (!in && (!bestOut || better(c, *bestOut))) bestOut = c;
    }
    if (out.rank == 0) {
        out.protectedBy = index < p.sinks ? "sink" : "recent";
        return out;
    }
    if (lastIn) {
        out.cutoff = lastIn->score;
        out.lastKept = position[lastIn->index];
        out.margin = out.kept && bestOut ? out.score - static_cast<double>(bestOut->score) : out.score - out.cutoff;
    }
    return out;
}

int budgetThatKeeps(const Policy& policy, const Place& place, const Plan& now, bool kept, int most, const std::function<bool(const Policy&, const Plan&)>& keptWith) {
    if (!policyEntry(policy.spec().id).info.usesBudget || most < 1) return -1;
    const auto with = [&](int tokens) {
        PolicySpec spec = policy.spec();
        spec.budget = Budget::kept(tokens);
        const std::unique_ptr<const Policy> other = makePolicy(spec);
        return keptWith(*other, other->planFor(place));
    };
    int low = kept ? 0 : std::min(now.keep, most - 1), high = most; // not kept with low, kept with high
    if (!with(high)) return -1;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        (with(middle) ? high : low) = middle;
    }
    return high;
}

} // namespace keepsight
