// Inputs and stored sides shared by the quantizer tests.
#pragma once

#include "engine/cache/quantizer.h"
#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <QtTest>
#include <cmath>
#include <memory>
#include <numeric>
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

// Every quantizer, and variants in which something else happens.
inline std::vector<std::string> specs() {
    std::vector<std::string> out;
    for (const QuantEntry& entry : quantRegistry())
        if (entry.make) out.push_back(entry.info.id);
    for (const char* text : {"kivi:bits=4,group=16,residual=32", "kivi:bits=8", "hqq_rtn:axis_key=0,axis_value=1,residual=5",
                             "hqq_rtn:bits=2,group=16,axis_value=1", "outlier_rtn:threshold=1.5,axis_value=1", "kvquant:bits=2,qnorm=on",
                             "kvquant:bits=3,outliers=0.05,first=4", "kvquant:outliers=0", "kvquant:levels=uniform",
                             "kvquant:levels=normalfloat,bits=8", "layerquant:range_bits=16", "layerquant:begin=0,end=0,bits=2"})
        out.push_back(text);
    return out;
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

// What attention reads: all entries of a side, zero behind them, [heads, capacity, dim].
inline at::Tensor denoted(const ops::PackedSide& side, std::int64_t capacity, const SideShape& shape) {
    const auto options = at::TensorOptions().dtype(shape.dtype);
    const std::int64_t heads = shape.kvHeads, dim = shape.headDim;
    const auto counts = side.counts.accessor<std::int32_t, 2>();
    std::vector<std::int64_t> codes;
    for (std::int64_t h = 0; h < heads; ++h)
        codes.push_back(counts[1][h]);
    at::Tensor decoded = at::zeros({heads, *std::max_element(codes.begin(), codes.end()), dim}, options);
    const auto levels = side.levels.defined() ? std::optional(side.levels) : std::nullopt;
    if (side.across && decoded.size(1) > 0) {
        const std::int64_t group = side.codes.size(1);
        at::Tensor table = at::empty({1, group, side.scale.size(2)}, at::kFloat);
        ops::dequantize_entries(table, side.codes, side.bits, side.scale, side.zero, at::full({1, 1}, group, at::kInt), {}, {group}, {0});
        std::int64_t begin = 0, all = std::accumulate(codes.begin(), codes.end(), std::int64_t{0});
        const at::Tensor rows = table.narrow(2, 0, all * dim / group).reshape({-1, dim});
        for (std::int64_t h = 0; h < heads; begin += codes[static_cast<std::size_t>(h++)])
            decoded[h].narrow(0, 0, codes[static_cast<std::size_t>(h)]).copy_(rows.narrow(0, begin, codes[static_cast<std::size_t>(h)]));
    } else if (decoded.size(1) > 0) {
        at::Tensor ends = side.ends;
        if (!ends.defined() && side.groupTokens > 1)
            ends = (at::arange(1, side.scale.size(1) + 1, at::kLong) * side.groupTokens).to(at::kInt).expand({heads, -1}).contiguous();
        ops::dequantize_entries(decoded, side.codes, side.bits, side.scale, side.zero, ends.defined() ? std::optional(ends) : std::nullopt, levels,
                                codes, std::vector<std::int64_t>(codes.size(), 0));
    }
    at::Tensor out = at::zeros({heads, capacity, dim}, options);
    for (std::int64_t h = 0; h < heads; ++h) {
        at::Tensor rows = decoded[h].narrow(0, 0, codes[static_cast<std::size_t>(h)]);
        if (side.exact.defined()) {
            const std::int64_t n = side.exactCounts[h].item<std::int32_t>();
            const at::Tensor places = side.places[h].narrow(0, 0, n).to(at::kLong);
            if (n > 1) TORCH_CHECK((places.diff() > 0).all().item<bool>(), "places are not ascending");
            rows.view({-1}).index_copy_(0, places, side.exact[h].narrow(0, 0, n).to(shape.dtype));
        }
        if (side.rowExact.defined())
            rows.scatter_(1, side.rowChannels[h].narrow(0, 0, rows.size(0)).to(at::kLong),
                          side.rowExact[h].narrow(0, 0, rows.size(0)).to(shape.dtype));
        std::int64_t begin = 0;
        const at::Tensor parts[] = {side.first.defined() ? side.first[h] : at::Tensor(), rows, side.tail[h]};
        for (int part = 0; part < 3; ++part) {
            const std::int64_t n = counts[part][h];
            if (n > 0) out[h].narrow(0, begin, n).copy_(parts[part].narrow(0, 0, n));
            begin += n;
        }
    }
    return out;
}

inline double worst(const at::Tensor& a, const at::Tensor& b) {
    return a.numel() ? (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>() : 0;
}

} // namespace keepsight::testing
