#include "engine/policy/select.h"

#include "engine/policy/in_parallel.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <bit>
#include <cmath>
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

// Calls f for every head, in parallel where there is much to do.
template <class F>
void forHeads(const std::vector<std::int32_t>& held, const F& f) {
    const bool much = std::accumulate(held.begin(), held.end(), std::int64_t{0}) > 1 << 15;
    inParallel(static_cast<std::int64_t>(held.size()), much, [&](std::int64_t h) { f(static_cast<std::size_t>(h)); });
}

// Calls f(i), ascending, for the `count` best of the values, 1 … all of them.
template <class F>
void forBest(const std::vector<float>& values, std::int32_t count, const F& f) {
    // The count-th best value parts them; of those equal to it the newest stay. No sort: one more pass finds them in order.
    std::vector<float> ranked = values;
    std::nth_element(ranked.begin(), ranked.begin() + (count - 1), ranked.end(), std::greater<>());
    const float cutoff = ranked[static_cast<std::size_t>(count - 1)];
    const auto above = std::ranges::count_if(values, [&](float v) { return v > cutoff; });
    auto spare = std::ranges::count(values, cutoff) - (count - above); // older ones that are equal and go
    for (std::size_t i = 0; i < values.size(); ++i)
        if (values[i] > cutoff || (values[i] == cutoff && spare-- <= 0)) f(i);
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
        std::vector<float> values;
        values.reserve(static_cast<std::size_t>(last - begin));
        for (std::int32_t i = begin + p.sinks; i < last; ++i) values.push_back(scores.at(head, i).score);
        forBest(values, chosen, [&](std::size_t i) { kept.push_back(begin + p.sinks + static_cast<std::int32_t>(i)); });
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

// Of a head, with what others are weighed against.
struct OpenHead {
    Protect safe;
    std::vector<float> values; // of the entries between those that are safe
    std::vector<char> stays;
    static constexpr std::size_t Bins = 4096;
    std::vector<std::int64_t> bins; // how many that do not stay so far have each beginning of a rank

    // Ascends as the numbers do.
    static std::uint32_t rank(float x) {
        const auto bits = std::bit_cast<std::uint32_t>(x + 0.0f); // −0 becomes 0
        return bits >> 31 ? ~bits : bits | 1u << 31;
    }
    static std::size_t bin(float x) { return rank(x) / (~0u / Bins + 1); }
};

// The number-th best (1 …) of all values that do not stay so far. Heads have counted theirs: only those of one bin have to be ranked.
float cutoffOf(const std::vector<OpenHead>& heads, std::int64_t number) {
    std::size_t bin = OpenHead::Bins;
    std::int64_t before = 0, here = 0;
    do {
        before += here, here = 0;
        --bin;
        for (const OpenHead& head : heads) here += head.bins[bin];
    } while (before + here < number);
    std::vector<float> ranked;
    ranked.reserve(static_cast<std::size_t>(here));
    for (const OpenHead& head : heads)
        if (head.bins[bin] > 0)
            for (std::size_t i = 0; i < head.values.size(); ++i)
                if (!head.stays[i] && OpenHead::bin(head.values[i]) == bin) ranked.push_back(head.values[i]);
    const auto cutoff = ranked.begin() + (number - before - 1);
    std::nth_element(ranked.begin(), cutoff, ranked.end(), std::greater<>());
    return *cutoff;
}

// AdaKV: every head is sure of its protected entries and the best of its floor; the rest of keep × heads goes to the best of all heads.
Selection selectAdaptive(const Scores& scores, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice) {
    const std::int32_t keep = std::max(1, plan.keep), floorOf = static_cast<std::int32_t>(keep * plan.adaptiveFloor);
    std::vector<OpenHead> heads(held.size());
    std::vector<std::int64_t> taken(held.size());
    for (std::size_t h = 0; h < held.size(); ++h) {
        heads[h].safe = affordable(plan.protect, keep, held[h]);
        sayWhatGaveWay(plan.protect, heads[h].safe, keep, notice);
    }
    forHeads(held, [&](std::size_t h) {
        OpenHead& head = heads[h];
        const Protect& p = head.safe;
        head.values.reserve(static_cast<std::size_t>(held[h]));
        for (std::int32_t i = p.sinks; i < held[h] - p.recent; ++i) head.values.push_back(scores.at(h, i).score);
        head.stays.assign(head.values.size(), 0);
        const auto sure = std::clamp<std::int32_t>(floorOf - p.sinks - p.recent, 0, static_cast<std::int32_t>(head.values.size()));
        if (sure > 0) forBest(head.values, sure, [&](std::size_t i) { head.stays[i] = 1; });
        head.bins.assign(OpenHead::Bins, 0);
        for (std::size_t i = 0; i < head.values.size(); ++i) head.bins[OpenHead::bin(head.values[i])] += !head.stays[i];
        taken[h] = p.sinks + p.recent + sure;
    });
    std::int64_t left = static_cast<std::int64_t>(keep) * static_cast<std::int64_t>(held.size()), open = 0;
    for (std::size_t h = 0; h < held.size(); ++h) left -= taken[h], open += held[h] - taken[h];
    if (left >= open) {
        for (OpenHead& head : heads) head.stays.assign(head.values.size(), 1);
    } else if (left > 0) {
        const float cutoff = cutoffOf(heads, left);
        std::vector<std::vector<Candidate>> equals(held.size());
        forHeads(held, [&](std::size_t h) {
            OpenHead& head = heads[h];
            taken[h] = 0;
            for (std::size_t i = 0; i < head.values.size(); ++i) {
                if (head.stays[i]) continue;
                if (head.values[i] > cutoff)
                    head.stays[i] = 1, ++taken[h];
                else if (head.values[i] == cutoff)
                    equals[h].push_back({cutoff, head.safe.sinks + static_cast<std::int32_t>(i), static_cast<std::int32_t>(h)});
            }
        });
        left -= std::accumulate(taken.begin(), taken.end(), std::int64_t{0});
        std::vector<Candidate> ties;
        for (const auto& of : equals) ties.insert(ties.end(), of.begin(), of.end());
        std::partial_sort(ties.begin(), ties.begin() + left, ties.end(), better);
        for (std::int64_t i = 0; i < left; ++i) {
            const Candidate& c = ties[static_cast<std::size_t>(i)];
            OpenHead& head = heads[static_cast<std::size_t>(c.head)];
            head.stays[static_cast<std::size_t>(c.index - head.safe.sinks)] = 1;
        }
    }
    Selection out;
    out.keep.resize(held.size());
    forHeads(held, [&](std::size_t h) {
        const OpenHead& head = heads[h];
        const auto between = static_cast<std::int32_t>(head.values.size());
        for (std::int32_t i = 0; i < held[h]; ++i)
            if (const std::int32_t at = i - head.safe.sinks; at < 0 || at >= between || head.stays[static_cast<std::size_t>(at)]) out.keep[h].push_back(i);
    });
    return out;
}

} // namespace

Selection select(const at::Tensor& tensor, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice) {
    if (tensor.defined() && !tensor.device().is_cpu() && selectsThere(held, plan)) {
        const std::int32_t keep = std::max(1, plan.keep);
        sayWhatGaveWay(plan.protect, affordable(plan.protect, keep), keep, notice);
        return selectThere(tensor, held, plan);
    }
    const Scores scores(tensor);
    if (plan.adaptive) return selectAdaptive(scores, held, plan, notice);
    Selection out;
    out.keep.resize(held.size());
    std::vector<std::string> notices(held.size());
    forHeads(held, [&](std::size_t h) { selectHead(scores, h, held[h], plan, out.keep[h], notice ? &notices[h] : nullptr); });
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
    // Not kept with low, kept with high. A budget that kept the token bounds what it takes: some votes change with the budget, and more of it need not do better.
    int low = kept ? 0 : std::min(now.keep, most - 1), high = kept ? std::min(now.keep, most) : most;
    if (!with(high) && (high == most || !with(high = most))) return -1;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        (with(middle) ? high : low) = middle;
    }
    return high;
}

} // namespace keepsight
