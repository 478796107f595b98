// Colour as a value: the same scale draws the screen, the tooltip's swatch, the colour bar and the export.
#pragma once

#include <QColor>
#include <array>

namespace keepsight {

enum class ColorMap {
    viridis,   // maps
    cividis,   // needle grid
    diverging, // differences: blue, near white in the middle, red
    greys      // white to near black
};

class ColorScale {
public:
    ColorScale() : ColorScale(ColorMap::viridis, 0.0, 1.0) {}
    // Logarithmic scales need 0 < min < max; else the scale is linear. An empty range is widened.
    ColorScale(ColorMap map, double min, double max, bool logarithmic = false);
    static ColorScale ramp(const QColor& low, const QColor& high, double min, double max); // linear, two stops
    static ColorScale symmetric(double magnitude);                                         // diverging over ±magnitude

    double min() const { return m_min; }
    double max() const { return m_max; }
    bool logarithmic() const { return m_logarithmic; }
    ColorScale withRange(double min, double max) const;
    ColorScale withLogarithmic(bool on) const;
    ColorScale withMissing(const QColor& color) const;

    double fraction(double value) const;   // 0 … 1, clamped; NaN stays NaN
    double valueAt(double fraction) const; // inverse of fraction()
    int index(double value) const;         // 0 … 255, −1: missing
    QRgb color(double value) const;        // opaque; the missing colour for NaN
    QRgb entry(int index) const { return index < 0 ? m_missing : m_table[static_cast<std::size_t>(index)]; }
    QColor inkOn(double value) const; // black or white, whichever reads better on color(value)

    friend bool operator==(const ColorScale&, const ColorScale&) = default;

private:
    void setRange(double min, double max, bool logarithmic);

    std::array<QRgb, 256> m_table{};
    QRgb m_missing = qRgb(216, 216, 216);
    double m_min = 0, m_max = 1;
    bool m_logarithmic = false;
    double m_low = 0, m_factor = 255; // index = (value or its log2 − m_low) · m_factor
};

} // namespace keepsight
