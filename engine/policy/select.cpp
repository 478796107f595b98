#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace keepsight {
namespace {

// Entry indices are in ascending position, so "larger position" is "larger index".
std::vector<std::int32_t> topOf(const float* scores, std::int32_t begin, std::int32_t end, std::int32_t count) {
    struct Candidate {
        float score;
        std::int32_t index;
    };
    std::vector<Candidate> candidates(static_cast<std::size_t>(end - begin));
    for (std::int32_t i = begin; i < end; ++i) {
        const float s = scores[i];
        candidates[static_cast<std::size_t>(i - begin)] = {std::isnan(s) ? -std::numeric_limits<float>::infinity() : s, i};
    }
    const auto better = [](const Candidate& a, const Candidate& b) { return a.score > b.score || (a.score == b.score && a.index > b.index); };
    std::nth_element(candidates.begin(), candidates.begin() + (count - 1), candidates.end(), better);
    std::vector<std::int32_t> out(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = candidates[i].index;
    std::sort(out.begin(), out.end());
    return out;
}

} // namespace

Selection select(const at::Tensor& scores, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice) {
    Selection out;
    out.keep.resize(held.size());
    const at::Tensor host = scores.defined() ? scores.to(at::kCPU, at::kFloat).contiguous() : at::Tensor();
    for (std::size_t h = 0; h < held.size(); ++h) {
        const std::int32_t n = held[h], keep = std::max(1, plan.keep);
        std::vector<std::int32_t>& kept = out.keep[h];
        if (n <= keep) {
            kept.resize(static_cast<std::size_t>(n));
            std::iota(kept.begin(), kept.end(), 0);
            continue;
        }
        const std::int32_t sinks = std::min({plan.protect.sinks, keep, n}), recent = std::min({plan.protect.recent, keep - sinks, n - sinks});
        if (notice && (sinks < plan.protect.sinks || recent < plan.protect.recent))
            *notice = "the budget of " + std::to_string(keep) + " holds " + std::to_string(sinks) + " of " + std::to_string(plan.protect.sinks) + " sinks and " +
                      std::to_string(recent) + " of " + std::to_string(plan.protect.recent) + " recent tokens";
        const std::int32_t chosen = keep - sinks - recent, end = n - recent;
        kept.reserve(static_cast<std::size_t>(keep));
        for (std::int32_t i = 0; i < sinks; ++i) kept.push_back(i);
        if (chosen > 0) {
            if (host.defined()) {
                const std::vector<std::int32_t> top = topOf(host.data_ptr<float>() + static_cast<std::int64_t>(h) * host.size(1), sinks, end, chosen);
                kept.insert(kept.end(), top.begin(), top.end());
            } else {
                for (std::int32_t i = end - chosen; i < end; ++i) kept.push_back(i);
            }
        }
        for (std::int32_t i = end; i < n; ++i) kept.push_back(i);
    }
    return out;
}

} // namespace keepsight
