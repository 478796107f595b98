#include "widgets/base/color_scale.h"

#include "widgets/base/color_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace keepsight {
namespace {

constexpr std::uint32_t DivergingStops[] = {0x2a4d8f, 0x5f8fc4, 0xb4cfe6, 0xf5f5f3, 0xf0bfa6, 0xd67a5c, 0x9c2f34};
constexpr std::uint32_t GreyStops[] = {0xffffff, 0x303236};

QRgb mix(QRgb a, QRgb b, double t) {
    const auto part = [t](int x, int y) { return static_cast<int>(std::lround(x + (y - x) * t)); };
    return qRgb(part(qRed(a), qRed(b)), part(qGreen(a), qGreen(b)), part(qBlue(a), qBlue(b)));
}

std::array<QRgb, 256> interpolate(std::span<const std::uint32_t> stops) {
    std::array<QRgb, 256> table{};
    const auto last = static_cast<double>(stops.size() - 1);
    for (std::size_t i = 0; i < table.size(); ++i) {
        const double at = static_cast<double>(i) / 255.0 * last;
        const auto left = std::min(static_cast<std::size_t>(at), stops.size() - 2);
        table[i] = mix(0xff000000u | stops[left], 0xff000000u | stops[left + 1], at - static_cast<double>(left));
    }
    return table;
}

std::array<QRgb, 256> opaque(const std::array<std::uint32_t, 256>& rgb) {
    std::array<QRgb, 256> table{};
    for (std::size_t i = 0; i < rgb.size(); ++i)
        table[i] = 0xff000000u | rgb[i];
    return table;
}

std::array<QRgb, 256> tableOf(ColorMap map) {
    switch (map) {
    case ColorMap::cividis:
        return opaque(Cividis);
    case ColorMap::diverging:
        return interpolate(DivergingStops);
    case ColorMap::greys:
        return interpolate(GreyStops);
    case ColorMap::viridis:
        break;
    }
    return opaque(Viridis);
}

} // namespace

ColorScale::ColorScale(ColorMap map, double min, double max, bool logarithmic) : m_table(tableOf(map)) { setRange(min, max, logarithmic); }

ColorScale ColorScale::ramp(const QColor& low, const QColor& high, double min, double max) {
    ColorScale scale(ColorMap::greys, min, max);
    const std::uint32_t stops[] = {low.rgb(), high.rgb()};
    scale.m_table = interpolate(stops);
    return scale;
}

ColorScale ColorScale::symmetric(double magnitude) {
    const double m = std::isfinite(magnitude) && magnitude != 0 ? std::abs(magnitude) : 1.0;
    return ColorScale(ColorMap::diverging, -m, m);
}

void ColorScale::setRange(double min, double max, bool logarithmic) {
    if (!std::isfinite(min)) min = 0;
    if (!std::isfinite(max)) max = 1;
    if (max < min) std::swap(min, max);
    if (max == min) max = min + (min == 0 ? 1.0 : std::abs(min));
    m_min = min;
    m_max = max;
    m_logarithmic = logarithmic && min > 0;
    m_low = m_logarithmic ? std::log2(min) : min;
    m_factor = 255.0 / ((m_logarithmic ? std::log2(max) : max) - m_low);
}

ColorScale ColorScale::withRange(double min, double max) const {
    ColorScale scale = *this;
    scale.setRange(min, max, m_logarithmic);
    return scale;
}

ColorScale ColorScale::withLogarithmic(bool on) const {
    ColorScale scale = *this;
    scale.setRange(m_min, m_max, on);
    return scale;
}

ColorScale ColorScale::withMissing(const QColor& color) const {
    ColorScale scale = *this;
    scale.m_missing = color.rgb();
    return scale;
}

double ColorScale::fraction(double value) const {
    if (std::isnan(value)) return std::numeric_limits<double>::quiet_NaN();
    if (value <= m_min) return 0; // also zero and below on a logarithmic scale
    if (value >= m_max) return 1;
    return ((m_logarithmic ? std::log2(value) : value) - m_low) * m_factor / 255.0;
}

double ColorScale::valueAt(double fraction) const {
    const double t = std::clamp(fraction, 0.0, 1.0) * 255.0 / m_factor + m_low;
    return m_logarithmic ? std::exp2(t) : t;
}

int ColorScale::index(double value) const {
    const double f = fraction(value);
    return std::isnan(f) ? -1 : std::clamp(static_cast<int>(f * 255.0 + 0.5), 0, 255);
}

QRgb ColorScale::color(double value) const { return entry(index(value)); }

QColor ColorScale::inkOn(double value) const {
    const QRgb c = color(value);
    const auto linear = [](int channel) { return std::pow(channel / 255.0, 2.2); };
    const double luminance = 0.2126 * linear(qRed(c)) + 0.7152 * linear(qGreen(c)) + 0.0722 * linear(qBlue(c));
    return luminance > 0.18 ? QColor(Qt::black) : QColor(Qt::white); // equal contrast with both near 0.18
}

} // namespace keepsight
