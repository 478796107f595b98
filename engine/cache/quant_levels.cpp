#include "engine/cache/quant_levels.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <vector>

namespace keepsight {
namespace {

constexpr std::int64_t MostValues = 1 << 20; // that k-means looks at
constexpr int MostSteps = 50;

} // namespace

at::Tensor uniformLevels(int bits) { return at::linspace(-1, 1, 1 << bits, at::kFloat); }

at::Tensor normalFloatLevels(int bits) {
    constexpr double Offset = 0.9677083; // the outermost quantile, as in bitsandbytes' table
    const std::int64_t half = std::int64_t{1} << (bits - 1);
    const at::Tensor above = at::special_ndtri(at::linspace(Offset, 0.5, half + 1, at::kDouble).narrow(0, 0, half));
    const at::Tensor below = at::special_ndtri(at::linspace(Offset, 0.5, half, at::kDouble).narrow(0, 0, half - 1)).neg();
    const at::Tensor all = std::get<0>(at::cat({above, below, at::zeros({1}, at::kDouble)}).sort());
    return (all / all.max()).to(at::kFloat);
}

at::Tensor nuqLevels(const at::Tensor& x, int bits) {
    at::Tensor flat = x.reshape({-1}).to(at::kCPU, at::kFloat);
    const std::int64_t stride = (flat.numel() + MostValues - 1) / MostValues;
    if (stride > 1) flat = flat.slice(0, 0, c10::nullopt, stride);
    at::Tensor levels = uniformLevels(bits);
    const std::int64_t count = flat.numel();
    if (count == 0) return levels;
    const at::Tensor sorted = std::get<0>(flat.sort()).contiguous();
    const float *begin = sorted.const_data_ptr<float>(), *end = begin + count;
    std::vector<double> sums{0}; // of the first i values
    for (const float* v = begin; v != end; ++v)
        sums.push_back(sums.back() + static_cast<double>(*v));

    std::vector<double> centres;
    for (std::int64_t i = 0; i < levels.numel(); ++i)
        centres.push_back(static_cast<double>(levels.const_data_ptr<float>()[i]));
    for (int step = 0; step < MostSteps; ++step) {
        std::vector<double> next = centres; // a centre without values stays
        std::ptrdiff_t from = 0;
        for (std::size_t c = 0; c < centres.size(); ++c) {
            const bool last = c + 1 == centres.size();
            const double bound = last ? 0 : (centres[c] + centres[c + 1]) / 2;
            const std::ptrdiff_t to =
                last ? count
                     : std::upper_bound(begin + from, end, bound, [](double b, float v) { return b < static_cast<double>(v); }) - begin;
            if (to > from)
                next[c] = (sums[static_cast<std::size_t>(to)] - sums[static_cast<std::size_t>(from)]) / static_cast<double>(to - from);
            from = to;
        }
        if (next == centres) break;
        centres = std::move(next);
    }
    return at::tensor(at::ArrayRef<double>(centres), at::kDouble).to(at::kFloat);
}

at::Tensor levelBounds(const at::Tensor& levels) {
    const std::int64_t n = levels.size(0) - 1;
    return (levels.narrow(0, 0, n) + levels.narrow(0, 1, n)).div_(2);
}

at::Tensor levelCodes(const at::Tensor& x, const at::Tensor& bounds) { return at::bucketize(x, bounds, true).to(at::kByte); }

at::Tensor matchMoments(const at::Tensor& levels, const at::Tensor& x) {
    const at::Tensor flat = x.reshape({-1}).to(at::kDouble);
    if (flat.numel() == 0) return levels;
    const at::Tensor coded = levels.index_select(0, levelCodes(flat.to(at::kFloat), levelBounds(levels)).to(at::kLong)).to(at::kDouble);
    const double m1 = flat.mean().item<double>(), m2 = coded.mean().item<double>();
    const double d1 = std::sqrt((flat - m1).square().mean().item<double>()), d2 = std::sqrt((coded - m2).square().mean().item<double>());
    return d2 > 0 ? ((levels.to(at::kDouble) - m2) * (d1 / d2) + m1).to(at::kFloat) : levels;
}

} // namespace keepsight
