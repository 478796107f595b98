#include "widgets/base/pareto_figure.h"

#include "widgets/base/axis.h"

#include <QCoreApplication>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

class ParetoFigure final : public Figure {
    Q_DECLARE_TR_FUNCTIONS(ParetoFigure)
public:
    ParetoFigure(const Trace& trace, const PictureFocus& focus) : m_data(picture(trace, "pareto", focus)) {
        double largest = 0;
        for (std::size_t i = 0; i < points(); ++i)
            largest = std::max(largest, m_data.values[2 * i]);
        m_unit = largest >= 1e9 ? 1e9 : largest >= 1e6 ? 1e6 : largest >= 1e3 ? 1e3 : 1;
        for (int axis = 0; axis < 2; ++axis) {
            double low = valueAt(0, axis), high = low;
            for (std::size_t i = 1; i < points(); ++i) {
                low = std::min(low, valueAt(i, axis));
                high = std::max(high, valueAt(i, axis));
            }
            const double room = high > low ? (high - low) * 0.12 : std::max(std::abs(high) * 0.1, 1e-6);
            (axis == 0 ? m_x : m_y) = {low - room, high + room, false, false};
        }
    }

    QString name() const override { return QString::fromStdString(m_data.name); }
    PictureData data() const override { return m_data; }
    QSizeF sizeForWidth(double width) const override { return {width, std::min(width * 0.66, 320.0)}; }

    void paint(QPainter& painter, const QSizeF& size) const override {
        const double left = leftAxisWidth(m_y, m_style);
        const QRectF plot(left, 6, size.width() - left - 6, size.height() - bottomAxisHeight(m_style) - 10);
        painter.save();
        painter.setPen(QPen(m_style.grid, m_style.lineWidth));
        for (const Tick& tick : ticks(m_y, 6)) {
            const double y = yOf(plot, tick.value);
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y));
        }
        const double radius = 2.4, line = textHeight(m_style);
        for (std::size_t i = 0; i < points(); ++i) {
            const QPointF at(plot.left() + (valueAt(i, 0) - m_x.min) / (m_x.max - m_x.min) * plot.width(), yOf(plot, valueAt(i, 1)));
            painter.setPen(Qt::NoPen);
            painter.setBrush(efficient(i) ? m_style.accent : m_style.faint);
            painter.drawEllipse(at, radius, radius);
            if (i >= m_data.axes[0].labels.size()) continue;
            const QString label = QString::fromStdString(m_data.axes[0].labels[i]);
            const double width = textWidth(label, m_style) + 1;
            const bool rightwards = at.x() + radius + 3 + width <= plot.right();
            const double x = rightwards ? at.x() + radius + 3 : std::max(plot.left(), at.x() - radius - 3 - width);
            paintText(painter, QRectF(x, at.y() - line / 2, width, line), Qt::AlignLeft | Qt::AlignVCenter, label, m_style, m_style.ink);
        }
        const QString unit = m_unit >= 1e9 ? tr("GB") : m_unit >= 1e6 ? tr("MB") : m_unit >= 1e3 ? tr("kB") : tr("bytes");
        paintBottomAxis(painter, plot, m_x, tr("stored KV [%1]").arg(unit), m_style);
        paintLeftAxis(painter, plot, m_y, tr("perplexity"), m_style, false);
        painter.restore();
    }

private:
    std::size_t points() const { return m_data.values.size() / 2; }
    double valueAt(std::size_t point, int axis) const {
        return m_data.values[2 * point + static_cast<std::size_t>(axis)] / (axis == 0 ? m_unit : 1);
    }
    double yOf(const QRectF& plot, double value) const { return plot.bottom() - (value - m_y.min) / (m_y.max - m_y.min) * plot.height(); }
    bool efficient(std::size_t point) const { // no other point is at least as good in both and better in one
        for (std::size_t i = 0; i < points(); ++i) {
            const double bytes = valueAt(i, 0) - valueAt(point, 0), ppl = valueAt(i, 1) - valueAt(point, 1);
            if (bytes <= 0 && ppl <= 0 && (bytes < 0 || ppl < 0)) return false;
        }
        return true;
    }

    PictureData m_data;
    AxisRange m_x, m_y;
    double m_unit = 1;
    PlotStyle m_style = PlotStyle::paper();
};

} // namespace

std::unique_ptr<Figure> paretoFigure(const Trace& trace, const PictureFocus& focus) { return std::make_unique<ParetoFigure>(trace, focus); }

} // namespace keepsight
