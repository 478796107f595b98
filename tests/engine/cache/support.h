// Inputs and stored sides shared by the quantizer tests.
#pragma once

#include "engine/cache/quantizer.h"
#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <QtTest>
#include <cmath>
#include <memory>
#include <random>

namespace keepsight::testing {

inline at::Tensor randomEntries(int heads, int tokens, int dim, unsigned seed, float scale = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0, scale);
    at::Tensor t = at::empty({heads, tokens, dim}, at::kFloat);
    for (std::int64_t i = 0; i < t.numel(); ++i)
        t.data_ptr<float>()[i] = normal(generator);
    return t;
}

inline SideShape shapeOf(int heads, int dim, at::ScalarType type = at::kFloat) { return {heads, dim, type, at::kCPU}; }

inline ModelConfig configOf(int layers, int heads, int dim) {
    ModelConfig config;
    config.layers = layers, config.kvHeads = heads, config.queryHeads = heads, config.headDim = dim;
    return config;
}

// A quantizer ready to make sides; calibrated on random entries where it wants that.
inline std::unique_ptr<Quantizer> quantizerOf(const std::string& text, int layers = 1, int heads = 3, int dim = 64) {
    auto q = makeQuantizer(parseQuantSpec(text));
    if (q && q->wantsCalibration()) {
        CalibrationSample sample;
        for (int l = 0; l < layers; ++l) {
            sample.keys.push_back(randomEntries(heads, 300, dim, 900 + static_cast<unsigned>(l)));
            sample.values.push_back(randomEntries(heads, 300, dim, 950 + static_cast<unsigned>(l)));
        }
        q->calibrate(sample);
    }
    return q;
}

inline std::unique_ptr<StoredSide> sideOf(const std::string& text, Side side, const SideShape& shape) {
    return quantizerOf(text, 1, shape.kvHeads, shape.headDim)->make(side, LayerIndex{0}, shape);
}

// Head h keeps a share of its entries that differs from head to head.
inline Selection someOf(const std::vector<std::int32_t>& held, unsigned seed) {
    std::mt19937 generator(seed);
    Selection out;
    for (std::size_t h = 0; h < held.size(); ++h) {
        auto& keep = out.keep.emplace_back();
        for (std::int32_t i = 0; i < held[h]; ++i)
            if (generator() % 5 > h % 4) keep.push_back(i);
    }
    return out;
}

inline std::vector<std::int32_t> countsOf(const Selection& s) {
    std::vector<std::int32_t> out;
    for (const auto& k : s.keep)
        out.push_back(static_cast<std::int32_t>(k.size()));
    return out;
}

// The selected rows of `dense`, zero behind them.
inline at::Tensor picked(const at::Tensor& dense, const Selection& s, std::int64_t capacity) {
    at::Tensor out = at::zeros({dense.size(0), capacity, dense.size(2)}, dense.options());
    for (std::size_t h = 0; h < s.keep.size(); ++h)
        for (std::size_t i = 0; i < s.keep[h].size(); ++i)
            out[static_cast<std::int64_t>(h)][static_cast<std::int64_t>(i)] = dense[static_cast<std::int64_t>(h)][s.keep[h][i]];
    return out;
}

inline double worst(const at::Tensor& a, const at::Tensor& b) {
    return a.numel() ? (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>() : 0;
}

} // namespace keepsight::testing
