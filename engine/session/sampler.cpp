#include "engine/session/sampler.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace keepsight {
namespace {

// SplitMix64 of a counter: no state to save, the same on every machine.
double uniform(std::uint64_t seed, std::uint64_t draw) {
    std::uint64_t z = seed + (draw + 1) * 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

} // namespace

TokenId argmaxToken(std::span<const float> logits) {
    constexpr std::size_t Lanes = 16; // a comparison that is false for NaN, side by side: large vocabularies are looked through at every token
    float tops[Lanes];
    std::fill(tops, tops + Lanes, -std::numeric_limits<float>::infinity());
    std::size_t i = 0;
    for (; i + Lanes <= logits.size(); i += Lanes)
        for (std::size_t j = 0; j < Lanes; ++j) tops[j] = logits[i + j] > tops[j] ? logits[i + j] : tops[j];
    for (; i < logits.size(); ++i) tops[0] = logits[i] > tops[0] ? logits[i] : tops[0];
    const auto found = std::ranges::find(logits, *std::max_element(tops, tops + Lanes));
    return found == logits.end() ? 0 : static_cast<TokenId>(found - logits.begin()); // nothing but NaN: 0
}

TokenId sampleToken(std::span<const float> logits, const SamplerSpec& spec, std::uint64_t seed, std::uint64_t draw) {
    if (spec.temperature <= 0.0) return argmaxToken(logits);
    const double top = logits[static_cast<std::size_t>(argmaxToken(logits))];
    std::vector<double> weight(logits.size());
    double total = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        weight[i] = std::isnan(logits[i]) ? 0.0 : std::exp((logits[i] - top) / spec.temperature);
        total += weight[i];
    }
    std::vector<TokenId> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto likelier = [&](TokenId a, TokenId b) {
        const double wa = weight[static_cast<std::size_t>(a)], wb = weight[static_cast<std::size_t>(b)];
        return wa > wb || (wa == wb && a < b);
    };
    std::sort(order.begin(), order.end(), likelier);
    double nucleus = 0;
    std::size_t size = 0;
    while (size < order.size() && (size == 0 || nucleus < spec.topP * total)) nucleus += weight[static_cast<std::size_t>(order[size++])];
    double left = uniform(seed, draw) * nucleus;
    for (std::size_t i = 0; i < size; ++i) {
        left -= weight[static_cast<std::size_t>(order[i])];
        if (left < 0) return order[i];
    }
    return order[size - 1];
}

double negativeLogLikelihood(std::span<const float> logits, TokenId token) {
    const at::Tensor all = at::from_blob(const_cast<float*>(logits.data()), {static_cast<std::int64_t>(logits.size())}, at::kFloat);
    return at::logsumexp(all.to(at::kDouble), 0).item<double>() - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

} // namespace keepsight
