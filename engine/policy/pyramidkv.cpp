// pyramidkv: snapkv's votes, with more budget for the lower layers than for the upper ones.
//
// Paper: PyramidKV, arXiv:2406.02069. Low layers spread their attention over the whole prompt, high ones gather it on few tokens. With w the window,
// C the mean budget of a layer (window included), N the prompt, L layers: the top layer's prefix gets min = (C − w)/β, the bottom layer's
// max = 2(C − w) − min, the others lie on the line between. If max exceeds the N − w prefix tokens there are, it becomes N − w and min grows so that the
// mean stays. Scores and window are snapkv's.
//   form = exact: budgets as above plus w, rounded by largest remainder, so that all layers together keep exactly L·C.
//   form = original (KVCache-Factory): min and the step between two layers are floored, which keeps more than C on average (the notice says how
//       much); every layer gets C where N < 2(C − w).
//   form = kvpress (default, as kvpress 0.5.5): C − w stands for the N(1 − c) tokens of the ratio and the window is not added again, so that the mean
//       is the ratio's; where the top layer would get less than w, all get the same (with w = 64 and β = 20 that is most budgets below 1300).
// Where we differ: the papers' runs use w 8, κ 7, max; kvpress's w 64, κ 5, average are our defaults. A window that a layer's budget cannot hold is
// shrunk to half of that budget, and the notice says so.
#include "engine/policy/policy.h"
#include "engine/policy/snap_votes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace keepsight {
namespace {

struct Line {
    double bottom = 0, top = 0; // of the lowest and of the highest layer
};

Line pyramid(double mean, double beta, double most) {
    Line line{2 * mean - mean / beta, mean / beta};
    if (line.bottom >= most) line = {most, 2 * mean - most};
    return line;
}

double stepOf(const Line& line, int layers) { return layers > 1 ? (line.bottom - line.top) / (layers - 1) : 0.0; }

// Layer by layer, Σ = layers · capacity.
int exactShare(const Line& prefix, int window, int capacity, const Place& place) {
    if (place.layers <= 1) return capacity;
    const auto count = static_cast<std::size_t>(place.layers);
    std::vector<std::int64_t> whole(count);
    std::vector<double> rest(count);
    for (std::size_t l = 0; l < count; ++l) {
        const double share = window + prefix.bottom - static_cast<double>(l) * stepOf(prefix, place.layers);
        whole[l] = static_cast<std::int64_t>(std::floor(share));
        rest[l] = share - std::floor(share);
    }
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return rest[a] > rest[b]; });
    std::int64_t left = static_cast<std::int64_t>(capacity) * place.layers - std::accumulate(whole.begin(), whole.end(), std::int64_t{0});
    for (std::size_t i = 0; left > 0; i = (i + 1) % count, --left) ++whole[order[i]];
    return static_cast<int>(whole[static_cast<std::size_t>(place.layer.value)]);
}

std::string oneDecimal(double v) {
    const auto tenths = static_cast<std::int64_t>(std::llround(v * 10));
    return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10);
}

class PyramidKv final : public Policy {
public:
    PyramidKv(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_form = params.choice("form");
        m_beta = params.real("beta");
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
        p.protect.recent = p.window;
        if (budget >= place.seen) return p;
        const auto shrinkTo = [&](int room, int least) { // least: entries that must be left beside the window
            if (p.window + least <= room) return;
            p.window = p.protect.recent = std::max(1, room / 2);
            p.notice = "window shrunk from " + std::to_string(m_window) + " to " + std::to_string(p.window) + " tokens to fit the budget of " + std::to_string(room);
        };
        if (m_form == "kvpress") {
            p.keep = kvpressShare(place, budget, p.notice);
            shrinkTo(p.keep, 0); // kvpress's top layer may be down to the window alone
            return p;
        }
        shrinkTo(budget, 1);
        p.keep = m_form == "exact" ? exactShare(pyramid(budget - p.window, m_beta, static_cast<double>(place.seen) - p.window), p.window, budget, place)
                                   : originalShare(place, budget, p.window, p.notice);
        return p;
    }

private:
    // Operations in kvpress's order, so that halves round alike.
    int kvpressShare(const Place& place, int budget, std::string& notice) const {
        const Budget& b = m_spec.budget;
        const auto n = static_cast<double>(place.seen);
        const double target = b.kind == Budget::Kind::ratio && budget == Policy::budget(place.seen) ? n * (1 - b.compressionRatio) : budget;
        const double w = m_window, capacity = w + target;
        double top = (capacity - w) / m_beta, bottom = (capacity - w) * 2 - top;
        if (bottom >= n - w) {
            bottom = n - w;
            top = (capacity - w) * 2 - bottom;
        }
        if (!(n >= bottom && bottom >= top && top >= w)) {
            const int same = static_cast<int>(std::max<std::int64_t>(1, roundHalfEven(target)));
            notice = "the top layer would get less than the window of " + std::to_string(m_window) + ": every layer keeps " + std::to_string(same);
            return same;
        }
        return static_cast<int>(roundHalfEven(bottom - place.layer.value * stepOf({bottom, top}, place.layers)));
    }

    int originalShare(const Place& place, int capacity, int window, std::string& notice) const {
        const std::int64_t mean = capacity - window, most = place.seen - window;
        if (place.seen < 2 * mean) {
            notice = "the prompt is short for this budget: every layer keeps " + std::to_string(capacity);
            return capacity;
        }
        auto top = static_cast<std::int64_t>(static_cast<double>(mean) / m_beta), bottom = 2 * mean - top;
        if (bottom >= most) {
            bottom = most;
            top = 2 * mean - bottom;
        }
        const std::int64_t step = place.layers > 1 ? (bottom - top) / (place.layers - 1) : 0;
        if (const double real = static_cast<double>(bottom + window) - static_cast<double>(step * (place.layers - 1)) / 2; real != capacity && notice.empty())
            notice = "form=original keeps " + oneDecimal(real) + " tokens per layer on average, not " + std::to_string(capacity);
        return static_cast<int>(bottom + window - place.layer.value * step);
    }

    std::string m_form, m_pool;
    double m_beta = 20;
    int m_window = 64, m_kernel = 5;
};

} // namespace

PolicyEntry pyramidkv_policy();
PolicyEntry pyramidkv_policy() {
    PolicyInfo info{"pyramidkv",
                    {"pyramid"},
                    PolicyKind::evict,
                    "Keeps what the last tokens attend to, with more room in lower layers than in upper ones.",
                    "PyramidKV, arXiv:2406.02069",
                    std::vector<ParamInfo>{
                        {"form", ParamInfo::Type::choice, "kvpress", 0, 0, {"exact", "original", "kvpress"}, "",
                         "How the layers' budgets are reckoned: kvpress (the default, so that equal ratios keep equal tokens), exact (their mean is the budget to "
                         "the token), or original (the authors' code, which keeps a little more than asked)."},
                        {"beta", ParamInfo::Type::real, "20", 1, 1000, {}, "", "How steep the pyramid is: the top layer gets 1/beta of the mean; 1: all layers alike."},
                        {"window", ParamInfo::Type::integer, "64", 1, 4096, {}, "tokens", "Last tokens whose queries vote; they always stay."},
                        {"kernel", ParamInfo::Type::integer, "5", 1, 255, {}, "tokens", "Width of the pooling over neighbours, odd; 1: none.", true},
                        {"pool", ParamInfo::Type::choice, "avg", 0, 0, {"avg", "max"}, "", "How neighbouring votes are pooled."},
                        aggParam(),
                        timingParam("prefill_end"),
                        ropeParam("original")} +
                        sharedParams(Shared::attention)};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<PyramidKv>(i, spec); }};
}

} // namespace keepsight
