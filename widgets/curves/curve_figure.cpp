#include "widgets/curves/curve_figure.h"

#include "engine/data/error.h"
#include "widgets/base/axis.h"
#include "widgets/curves/curves_model.h"
#include "widgets/lanes/lane_color.h"

#include <QPolygonF>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

constexpr double LegendIcon = 20, LegendGap = 10, MarkerSize = 3.4;
constexpr int MarkersPerLine = 8;

// Towards white instead of transparent: some readers of PDF and SVG draw transparency as a picture.
QColor pale(const QColor& color) { return QColor((color.red() + 2 * 255) / 3, (color.green() + 2 * 255) / 3, (color.blue() + 2 * 255) / 3); }

void paintMarker(QPainter& painter, LaneIndex lane, const QPointF& at) {
    const QColor color = laneColor(lane);
    painter.save();
    if (laneMarkerHollow(lane))
        painter.setPen(QPen(color, 0.8)), painter.setBrush(Qt::white);
    else
        painter.setPen(Qt::NoPen), painter.setBrush(color);
    const double r = MarkerSize / 2;
    switch (laneMarker(lane)) {
    case LaneMarker::disc: painter.drawEllipse(at, r, r); break;
    case LaneMarker::square: painter.drawRect(QRectF(at.x() - r, at.y() - r, 2 * r, 2 * r)); break;
    case LaneMarker::triangle: painter.drawPolygon(QPolygonF{at + QPointF(0, -1.2 * r), at + QPointF(1.15 * r, r), at + QPointF(-1.15 * r, r)}); break;
    case LaneMarker::diamond: painter.drawPolygon(QPolygonF{at + QPointF(0, -1.35 * r), at + QPointF(1.35 * r, 0), at + QPointF(0, 1.35 * r), at + QPointF(-1.35 * r, 0)}); break;
    }
    painter.restore();
}

class CurveFigure final : public Figure {
public:
    CurveFigure(const QString& kind, std::shared_ptr<const Trace> trace, const PictureFocus& focus) : m_kind(kind), m_data(picture(*trace, kind.toStdString(), focus)) {
        const std::size_t series = m_data.shape.at(1);
        for (std::size_t i = 0; i < series; ++i)
            m_titles << laneTitle(*trace, LaneIndex{static_cast<std::int32_t>(i)});
        for (std::size_t i = 0; i < m_data.x.size(); ++i)
            for (std::size_t s = 0; s < series; ++s) {
                const double y = value(i, s);
                if (!std::isfinite(y)) continue;
                m_low = std::min(m_low, y);
                m_high = std::max(m_high, y);
            }
        if (!(m_low <= m_high)) throw UsageError("figure " + kind.toStdString() + ": the trace has no point of this curve");
    }

    QString name() const override { return QString::fromStdString(m_data.name); }
    PictureData data() const override { return m_data; }

    QSizeF sizeForWidth(double width) const override {
        const PlotStyle style = PlotStyle::paper();
        return {width, std::clamp(width * 0.5, 110.0, 260.0) + legendHeight(width, style) + bottomAxisHeight(style)};
    }

    void paint(QPainter& painter, const QSizeF& size) const override {
        const PlotStyle style = PlotStyle::paper();
        const AxisRange y = valueRange();
        const double left = leftAxisWidth(y, style), top = legendHeight(size.width(), style) + 3;
        const QRectF plot(left + 2, top, size.width() - left - 2 - style.textSize, size.height() - top - bottomAxisHeight(style) - 1);
        double first = m_data.x.front(), last = m_data.x.back();
        if (first == last) last = first + 1;
        const AxisRange x{first, last, false, true};

        const double height = textHeight(style);
        painter.setPen(QPen(style.grid, style.lineWidth));
        for (const Tick& tick : ticks(y, std::max(2, static_cast<int>(plot.height() / (height * 1.9))))) {
            const double at = yAt(plot, y, tick.value);
            painter.drawLine(QPointF(plot.left(), at), QPointF(plot.right(), at));
        }
        for (std::size_t s = 0; s < m_data.shape.at(1); ++s)
            paintSeries(painter, plot, x, y, s);
        paintBottomAxis(painter, plot, x, label(m_data.xName, m_data.xUnit), style);
        paintLeftAxis(painter, plot, y, label(inBytes() ? "stored KV" : m_data.valueName, unit()), style, false);
        paintLegend(painter, size.width(), style);
    }

private:
    double value(std::size_t point, std::size_t series) const { return m_data.values[point * m_data.shape.at(1) + series] * factor(); }
    bool inBytes() const { return m_data.unit == "bytes" || m_data.unit == "B"; }
    double factor() const { return inBytes() ? 1e-6 : 1.0; } // megabytes read better than bytes
    std::string unit() const { return inBytes() ? "MB" : m_data.unit; }

    static QString label(const std::string& name, const std::string& unit) {
        const QString text = QString::fromStdString(name);
        return unit.empty() ? text : QStringLiteral("%1 [%2]").arg(text, QString::fromStdString(unit));
    }

    AxisRange valueRange() const {
        if (m_kind == QLatin1String("ppl")) {
            const double room = std::max(1.05, std::pow(m_high / m_low, 0.05));
            return {m_low / room, m_high * room, m_high / m_low > 12, false};
        }
        const double room = std::max({(m_high - m_low) * 0.08, m_high * 0.02, 1e-9});
        return {std::max(0.0, m_low - room), m_high + room, false, false};
    }

    static double yAt(const QRectF& plot, const AxisRange& range, double value) {
        const double t = range.logarithmic ? std::log(value / range.min) / std::log(range.max / range.min) : (value - range.min) / (range.max - range.min);
        return plot.bottom() - t * plot.height();
    }

    void paintLine(QPainter& painter, const std::vector<QPointF>& points, const QPen& pen) const {
        painter.setPen(pen);
        painter.setBrush(Qt::NoBrush);
        QPolygonF part; // ends at gaps
        for (const QPointF& point : points) {
            if (!std::isnan(point.y())) {
                part << point;
                continue;
            }
            if (part.size() > 1) painter.drawPolyline(part);
            part.clear();
        }
        if (part.size() > 1) painter.drawPolyline(part);
    }

    void paintSeries(QPainter& painter, const QRectF& plot, const AxisRange& x, const AxisRange& y, std::size_t series) const {
        const LaneIndex lane{static_cast<std::int32_t>(series)};
        const QColor color = laneColor(lane);
        std::vector<double> values, smooth;
        std::vector<double> xs;
        const bool tpot = m_kind == QLatin1String("tpot");
        for (std::size_t i = 0; i < m_data.x.size(); ++i) {
            if (std::isnan(value(i, series)) && tpot) continue; // lanes end at different points
            values.push_back(value(i, series));
            xs.push_back(plot.left() + (m_data.x[i] - x.min) / (x.max - x.min) * plot.width());
        }
        for (std::size_t i = 0; tpot && i < values.size(); ++i)
            smooth.push_back(runningMedian(values, i + 1, smoothingWindow(values.size())));
        const auto points = [&](const std::vector<double>& of) {
            std::vector<QPointF> out;
            for (std::size_t i = 0; i < of.size(); ++i)
                out.emplace_back(xs[i], std::isfinite(of[i]) ? yAt(plot, y, of[i]) : NotMeasured);
            return out;
        };
        if (!smooth.empty()) paintLine(painter, points(values), QPen(pale(color), 0.5, Qt::SolidLine, Qt::FlatCap, Qt::RoundJoin));
        const std::vector<QPointF> line = points(smooth.empty() ? values : smooth);
        paintLine(painter, line, pen(lane));
        const std::size_t every = std::max<std::size_t>(1, line.size() / MarkersPerLine);
        for (std::size_t i = every / 2 + series * every / 8; i < line.size(); i += every) // shifted, so that equal lines show both
            if (!std::isnan(line[i].y())) paintMarker(painter, lane, line[i]);
    }

    static QPen pen(LaneIndex lane) {
        QPen pen(laneColor(lane), 1.1, Qt::SolidLine, Qt::FlatCap, Qt::RoundJoin);
        if (const QList<qreal> dash = laneDash(lane); !dash.isEmpty()) pen.setDashPattern(dash);
        return pen;
    }

    // Entries flow from the left and wrap.
    template <class Place>
    double layoutLegend(double width, const PlotStyle& style, const Place& place) const {
        const double height = textHeight(style) * 1.15;
        double x = 0, y = 0;
        for (int i = 0; i < m_titles.size(); ++i) {
            const double entry = LegendIcon + 4 + textWidth(m_titles[i], style) + LegendGap;
            if (x > 0 && x + entry - LegendGap > width) {
                x = 0;
                y += height;
            }
            place(i, QRectF(x, y, entry - LegendGap, height));
            x += entry;
        }
        return y + height;
    }
    double legendHeight(double width, const PlotStyle& style) const {
        return layoutLegend(width, style, [](int, const QRectF&) {});
    }
    void paintLegend(QPainter& painter, double width, const PlotStyle& style) const {
        layoutLegend(width, style, [&](int i, const QRectF& rect) {
            const LaneIndex lane{i};
            const double y = rect.center().y();
            painter.setPen(pen(lane));
            painter.drawLine(QPointF(rect.left(), y), QPointF(rect.left() + LegendIcon, y));
            paintMarker(painter, lane, {rect.left() + LegendIcon / 2, y});
            paintText(painter, rect.adjusted(LegendIcon + 4, 0, 2, 0), Qt::AlignLeft | Qt::AlignVCenter, m_titles[i], style, style.ink);
        });
    }

    QString m_kind;
    PictureData m_data;
    QStringList m_titles;
    double m_low = std::numeric_limits<double>::infinity(), m_high = -std::numeric_limits<double>::infinity();
};

} // namespace

std::unique_ptr<Figure> curveFigure(const QString& kind, std::shared_ptr<const Trace> trace, const PictureFocus& focus) {
    if (kind != QLatin1String("ppl") && kind != QLatin1String("tpot") && kind != QLatin1String("memory"))
        throw UsageError("curve: expected ppl, tpot or memory, found '" + kind.toStdString() + "'");
    if (!trace) throw UsageError("figure " + kind.toStdString() + ": there is no run to draw");
    return std::make_unique<CurveFigure>(kind, std::move(trace), focus);
}

} // namespace keepsight
