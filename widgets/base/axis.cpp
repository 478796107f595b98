#include "widgets/base/axis.h"

#include <QFontInfo>
#include <QFontMetricsF>
#include <QPaintEngine>
#include <QPainterPath>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

constexpr double PaperScale = 16; // paper text is laid out 16 times larger, where rounding to pixels does not show

double textScale(const PlotStyle& style) { return style.onPaper ? PaperScale : 1.0; }

QFont fontOf(const PlotStyle& style, bool bold) {
    QFont font = style.font;
    if (style.onPaper) {
        font.setFamilies(
            {QStringLiteral("Liberation Sans"), QStringLiteral("Arial"), QStringLiteral("Helvetica"), QStringLiteral("DejaVu Sans")});
        font.setHintingPreference(QFont::PreferNoHinting);
    }
    font.setPixelSize(std::max(1, static_cast<int>(std::lround(style.textSize * textScale(style)))));
    font.setBold(bold);
    return font;
}

double tickLength(const PlotStyle& style) { return style.textSize * 0.35; }

double along(const AxisRange& range, double value) { // 0 … 1 from min to max
    const double span = range.max - range.min;
    if (!range.logarithmic) return span == 0 ? 0.5 : (value - range.min) / span;
    return std::log(value / range.min) / std::log(range.max / range.min);
}

std::vector<Tick> decadeTicks(const AxisRange& range, int most) {
    std::vector<Tick> result;
    const int first = static_cast<int>(std::ceil(std::log10(range.min) - 1e-9)),
              last = static_cast<int>(std::floor(std::log10(range.max) + 1e-9));
    const int stride = std::max(1, (last - first + most) / std::max(1, most));
    const bool few = last - first < 2;
    for (int decade = first - 1; decade <= last; ++decade) {
        if (!few && (decade < first || (last - decade) % stride != 0)) continue;
        for (const int digit : {1, 2, 5}) {
            const double value = digit * std::pow(10.0, decade);
            if ((digit == 1 || few) && value >= range.min * (1 - 1e-9) && value <= range.max * (1 + 1e-9))
                result.push_back({value, shortNumber(value)});
        }
    }
    return result;
}

} // namespace

PlotStyle PlotStyle::screen(const QPalette& palette, const QFont& font) {
    PlotStyle style;
    const bool dark = palette.color(QPalette::Base).lightness() < 128;
    style.textSize = std::max(9.0, QFontInfo(font).pixelSize() * 0.9);
    style.ink = palette.color(QPalette::Text);
    style.background = palette.color(QPalette::Base);
    const auto mix = [&style](double t) {
        const QColor a = style.background, b = style.ink;
        return QColor::fromRgbF(float(a.redF() + (b.redF() - a.redF()) * t), float(a.greenF() + (b.greenF() - a.greenF()) * t),
                                float(a.blueF() + (b.blueF() - a.blueF()) * t));
    };
    style.faint = mix(0.68);
    style.grid = mix(0.14);
    style.accent = dark ? QColor(0xf0, 0x8a, 0x4b) : QColor(0xc4, 0x53, 0x1b);
    style.lineWidth = 1;
    style.onPaper = false;
    style.font = font;
    return style;
}

QString shortNumber(double value) {
    if (value == 0) return QStringLiteral("0");
    const double size = std::abs(value);
    if (size >= 1e-3 && size < 1e6) return QString::number(value, 'g', size >= 1000 ? 7 : 4);
    QString text = QString::number(value, 'e', 1); // "1.0e-04"
    text.replace(QStringLiteral(".0e"), QStringLiteral("e"))
        .replace(QStringLiteral("e-0"), QStringLiteral("e-"))
        .replace(QStringLiteral("e+0"), QStringLiteral("e"));
    return text.replace(QStringLiteral("e+"), QStringLiteral("e"));
}

std::vector<Tick> ticks(const AxisRange& range, int most) {
    most = std::max(1, most);
    if (!(std::isfinite(range.min) && std::isfinite(range.max)) || range.max < range.min) return {};
    if (range.logarithmic && range.min > 0) return decadeTicks(range, most);
    const double span = range.max - range.min;
    if (span <= 0) return {{range.min, shortNumber(range.min)}};
    double step = std::pow(10.0, std::floor(std::log10(span / most)));
    for (const double factor : {2.0, 2.5, 2.0}) { // 1, 2, 5, 10
        if (span / step <= most) break;
        step *= factor;
    }
    if (range.integers) step = std::max(1.0, step);
    std::vector<Tick> result;
    const auto first = static_cast<std::int64_t>(std::ceil(range.min / step - 1e-9)),
               last = static_cast<std::int64_t>(std::floor(range.max / step + 1e-9));
    for (std::int64_t i = first; i <= last; ++i) {
        const double value = static_cast<double>(i) * step;
        const int decimals = std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 12);
        const bool plain = std::max(std::abs(range.min), std::abs(range.max)) < 1e6 && step >= 1e-4;
        result.push_back({value, plain ? QString::number(value, 'f', decimals) : shortNumber(value)});
    }
    return result;
}

double textWidth(const QString& text, const PlotStyle& style, bool bold) {
    return QFontMetricsF(fontOf(style, bold)).horizontalAdvance(text) / textScale(style);
}

double textHeight(const PlotStyle& style) { return QFontMetricsF(fontOf(style, false)).height() / textScale(style); }

void paintText(QPainter& painter, const QRectF& rect, int alignment, const QString& text, const PlotStyle& style, const QColor& color,
               bool bold) {
    const double scale = textScale(style);
    const QFont font = fontOf(style, bold);
    const QFontMetricsF metrics(font);
    const QString shown = metrics.elidedText(text, Qt::ElideRight, rect.width() * scale + 1);
    const double width = metrics.horizontalAdvance(shown) / scale;
    double x = rect.left(), y = rect.center().y() + (metrics.ascent() - metrics.descent()) / 2 / scale;
    if (alignment & Qt::AlignRight) x = rect.right() - width;
    if (alignment & Qt::AlignHCenter) x = rect.center().x() - width / 2;
    if (alignment & Qt::AlignTop) y = rect.top() + metrics.ascent() / scale;
    if (alignment & Qt::AlignBottom) y = rect.bottom() - metrics.descent() / scale;
    painter.save();
    painter.translate(x, y);
    painter.scale(1 / scale, 1 / scale);
    if (painter.paintEngine()->type() == QPaintEngine::SVG) { // SVG files cannot carry the font
        QPainterPath path;
        path.addText(0, 0, font, shown);
        painter.fillPath(path, color);
    } else {
        painter.setFont(font);
        painter.setPen(color);
        painter.drawText(QPointF(0, 0), shown);
    }
    painter.restore();
}

void paintTextUpwards(QPainter& painter, const QRectF& rect, int alignment, const QString& text, const PlotStyle& style,
                      const QColor& color) {
    painter.save();
    painter.translate(rect.left(), rect.bottom());
    painter.rotate(-90);
    paintText(painter, QRectF(0, 0, rect.height(), rect.width()), alignment, text, style, color);
    painter.restore();
}

double bottomAxisHeight(const PlotStyle& style, bool label) { return tickLength(style) + textHeight(style) * (label ? 2.15 : 1.1); }

double leftAxisWidth(const AxisRange& range, const PlotStyle& style, bool label) {
    double widest = 0;
    for (const Tick& tick : ticks(range, 8))
        widest = std::max(widest, textWidth(tick.text, style));
    return tickLength(style) * 1.8 + widest + (label ? textHeight(style) * 1.3 : 0);
}

void paintBottomAxis(QPainter& painter, const QRectF& plot, const AxisRange& range, const QString& label, const PlotStyle& style) {
    painter.save();
    painter.setPen(QPen(style.faint, style.lineWidth));
    painter.drawLine(plot.bottomLeft(), plot.bottomRight());
    const double length = tickLength(style), height = textHeight(style);
    double widest = textWidth(shortNumber(range.max), style);
    std::vector<Tick> marks = ticks(range, std::max(2, static_cast<int>(plot.width() / (widest + 2.2 * style.textSize))));
    double free = -1e9; // numbers never touch, and stay near their axis so that neighbouring plots' do not either
    const double over = style.textSize * 0.12;
    for (const Tick& tick : marks) {
        const double x = plot.left() + along(range, tick.value) * plot.width(), half = textWidth(tick.text, style) / 2;
        painter.drawLine(QPointF(x, plot.bottom()), QPointF(x, plot.bottom() + length));
        const double centre = std::max(plot.left() - over + half, std::min(x, plot.right() + over - half));
        if (centre - half < free) continue;
        paintText(painter, QRectF(centre - half - 1, plot.bottom() + length, 2 * half + 2, height), Qt::AlignHCenter | Qt::AlignTop,
                  tick.text, style, style.faint);
        free = centre + half + style.textSize * 0.5;
    }
    if (!label.isEmpty())
        paintText(painter, QRectF(plot.left(), plot.bottom() + length + height * 1.05, plot.width(), height),
                  Qt::AlignHCenter | Qt::AlignTop, label, style, style.faint);
    painter.restore();
}

void paintLeftAxis(QPainter& painter, const QRectF& plot, const AxisRange& range, const QString& label, const PlotStyle& style,
                   bool downwards) {
    painter.save();
    painter.setPen(QPen(style.faint, style.lineWidth));
    painter.drawLine(plot.topLeft(), plot.bottomLeft());
    const double length = tickLength(style), height = textHeight(style);
    double widest = 0;
    for (const Tick& tick : ticks(range, std::max(2, static_cast<int>(plot.height() / (height * 1.9))))) {
        const double t = along(range, tick.value), y = downwards ? plot.top() + t * plot.height() : plot.bottom() - t * plot.height();
        const double width = textWidth(tick.text, style);
        widest = std::max(widest, width);
        painter.drawLine(QPointF(plot.left() - length, y), QPointF(plot.left(), y));
        paintText(painter, QRectF(plot.left() - length * 1.5 - width - 1, y - height / 2, width + 1, height),
                  Qt::AlignRight | Qt::AlignVCenter, tick.text, style, style.faint);
    }
    if (!label.isEmpty()) {
        const double right = plot.left() - length * 1.7 - widest;
        paintTextUpwards(painter, QRectF(right - height * 1.1, plot.top(), height, plot.height()), Qt::AlignHCenter | Qt::AlignVCenter,
                         label, style, style.faint);
    }
    painter.restore();
}

double colorBarHeight(const PlotStyle& style, bool label) { return style.textSize * 0.8 + bottomAxisHeight(style, label); }

void paintColorBar(QPainter& painter, const QRectF& bar, const ColorScale& scale, const QString& label, const PlotStyle& style) {
    painter.save();
    painter.setRenderHint(QPainter::Antialiasing, false);
    for (int i = 0; i < 256; ++i) { // each strip reaches under the next one, so that no seams can show
        const double x = bar.left() + bar.width() * i / 256;
        painter.fillRect(QRectF(x, bar.top(), std::min(bar.right() - x, bar.width() / 128), bar.height()), QColor::fromRgb(scale.entry(i)));
    }
    painter.restore();
    paintBottomAxis(painter, bar, {scale.min(), scale.max(), scale.logarithmic(), false}, label, style);
}

} // namespace keepsight
