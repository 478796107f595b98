#include "engine/session/sampler.h"

#include <algorithm>
#include <cmath>
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
    std::size_t best = 0;
    for (std::size_t i = 1; i < logits.size(); ++i)
        if (logits[i] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[i]))) best = i;
    return static_cast<TokenId>(best);
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
    const float top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float l : logits) sum += std::exp(static_cast<double>(l - top));
    return std::log(sum) + static_cast<double>(top) - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

} // namespace keepsight
