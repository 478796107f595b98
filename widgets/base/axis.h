// Axes, ticks, text and colour bars, drawn the same on screen and on paper.
//
// All lengths are painter units. On paper a unit is a point (1/72 in); on screen it is a device-independent pixel and fonts follow the
// widget.
#pragma once

#include "widgets/base/color_scale.h"

#include <QFont>
#include <QPainter>
#include <QPalette>
#include <QStringList>
#include <vector>

namespace keepsight {

struct PlotStyle {
    double textSize = 8; // units: points on paper, pixels on screen
    QColor ink = QColor(0x20, 0x22, 0x26), faint = QColor(0x60, 0x64, 0x6a), grid = QColor(0xe4, 0xe6, 0xe8), background = Qt::white;
    QColor accent = QColor(0xc4, 0x53, 0x1b); // focused row, column or step
    double lineWidth = 0.6;
    bool onPaper = true; // text laid out without the screen's hinting, in the figures' own font
    QFont font;          // on screen: the widget's
    static PlotStyle paper() { return {}; }
    static PlotStyle screen(const QPalette& palette, const QFont& font); // light or dark as the palette
};

struct AxisRange {
    double min = 0, max = 1; // values at the two ends of the axis
    bool logarithmic = false;
    bool integers = false; // whole numbers only: token positions, layers
};

struct Tick {
    double value = 0;
    QString text;
};

// Steps of 1, 2 or 5 times a power of ten, at most `most` of them; decades (and their halves when few) on logarithmic axes.
std::vector<Tick> ticks(const AxisRange& range, int most);
QString shortNumber(double value); // "0.25", "1e-4", "12000"; "." decimals

double textWidth(const QString& text, const PlotStyle& style, bool bold = false);
double textHeight(const PlotStyle& style);
// One line of text inside rect; elided when too long. Drawn as outlines where the device cannot embed fonts (SVG).
void paintText(QPainter& painter, const QRectF& rect, int alignment, const QString& text, const PlotStyle& style, const QColor& color,
               bool bold = false);
void paintTextUpwards(QPainter& painter, const QRectF& rect, int alignment, const QString& text, const PlotStyle& style,
                      const QColor& color);

// Axis along the bottom or left edge of `plot`: line, ticks, numbers, label. Bottom: min left, max right. Left: min at the top if
// `downwards`.
void paintBottomAxis(QPainter& painter, const QRectF& plot, const AxisRange& range, const QString& label, const PlotStyle& style);
void paintLeftAxis(QPainter& painter, const QRectF& plot, const AxisRange& range, const QString& label, const PlotStyle& style,
                   bool downwards);
double bottomAxisHeight(const PlotStyle& style, bool label = true);
double leftAxisWidth(const AxisRange& range, const PlotStyle& style, bool label = true);

// Horizontal colour bar with ticks below; bar is the coloured rectangle itself.
void paintColorBar(QPainter& painter, const QRectF& bar, const ColorScale& scale, const QString& label, const PlotStyle& style);
double colorBarHeight(const PlotStyle& style, bool label = true); // bar, ticks and label together

} // namespace keepsight
