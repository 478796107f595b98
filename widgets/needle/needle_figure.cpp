#include "widgets/needle/needle_figure.h"

#include <QCoreApplication>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

QString score(double value) { return value == 0 || value == 1 ? QString::number(value, 'f', 0) : QString::number(value, 'f', 2); }

class NeedleFigure final : public Figure {
    Q_DECLARE_TR_FUNCTIONS(NeedleFigure)
public:
    NeedleFigure(const std::shared_ptr<const Trace>& trace, const PictureFocus& focus)
        : m_data(picture(*trace, "needle", focus)), m_model(trace), m_grid(std::max(0, m_model.gridOf(focus.lane))) {}

    QString name() const override { return QString::fromStdString(m_data.name); }
    PictureData data() const override { return m_data; }

    QSizeF sizeForWidth(double width) const override {
        const double rows = std::clamp(static_cast<double>(m_model.depths().size()) * 17.0, 40.0, 360.0);
        return {width, rows + below() + 4};
    }

    void paint(QPainter& painter, const QSizeF& size) const override {
        if (m_model.empty()) return;
        const double left = needleLeftWidth(m_model, m_style);
        const QRectF plot(left, 4, size.width() - left - 4, size.height() - below() - 4);
        painter.save();
        paintNeedleGrid(painter, plot, m_model, m_model.grids()[m_grid], m_style, CellStyle::paper(), true);
        const double top = plot.bottom() + bottomAxisHeight(m_style) + 5;
        paintColorBar(painter, QRectF(plot.left(), top, plot.width(), m_style.textSize * 0.8), needleScale(), tr("score"), m_style);
        painter.restore();
    }

private:
    double below() const { return bottomAxisHeight(m_style) + 5 + colorBarHeight(m_style) + 2; }

    PictureData m_data;
    NeedleModel m_model;
    std::size_t m_grid;
    PlotStyle m_style = PlotStyle::paper();
};

} // namespace

ColorScale needleScale() { return ColorScale(ColorMap::cividis, 0, 1); }

double needleLeftWidth(const NeedleModel& model, const PlotStyle& style) {
    double widest = 0;
    for (const double depth : model.depths())
        widest = std::max(widest, textWidth(shortNumber(depth), style));
    return widest + style.textSize * 0.7 + textHeight(style) * 1.45;
}

void paintNeedleGrid(QPainter& painter, const QRectF& plot, const NeedleModel& model, const NeedleGrid& grid, const PlotStyle& style,
                     const CellStyle& cells, bool leftAxis) {
    const int rows = static_cast<int>(model.depths().size()), cols = static_cast<int>(model.lengths().size());
    CellGrid values;
    values.rows = rows;
    values.cols = cols;
    for (const NeedleCell& cell : grid.cells)
        values.values.push_back(static_cast<float>(cell.score)); // NaN: not run
    const ColorScale scale = needleScale();
    paintCells(painter, plot, values, scale, cells);

    const double width = plot.width() / cols, height = plot.height() / rows;
    painter.setPen(QPen(style.background, style.lineWidth));
    for (int col = 1; col < cols; ++col)
        painter.drawLine(QPointF(plot.left() + col * width, plot.top()), QPointF(plot.left() + col * width, plot.bottom()));
    for (int row = 1; row < rows; ++row)
        painter.drawLine(QPointF(plot.left(), plot.top() + row * height), QPointF(plot.right(), plot.top() + row * height));
    const bool fits = width > textWidth(QStringLiteral("0.00"), style) + 2 && height > textHeight(style);
    for (int row = 0; fits && row < rows; ++row)
        for (int col = 0; col < cols; ++col) {
            const double value = model.cell(grid, row, col).score;
            if (!std::isnan(value))
                paintText(painter, QRectF(plot.left() + col * width, plot.top() + row * height, width, height), Qt::AlignCenter,
                          score(value), style, scale.inkOn(value));
        }

    const double line = textHeight(style), gap = style.textSize * 0.35;
    double free = -1e9;
    for (int col = 0; col < cols; ++col) { // numbers never touch
        const QString text = shortNumber(model.lengths()[static_cast<std::size_t>(col)]);
        const double half = textWidth(text, style) / 2, x = plot.left() + (col + 0.5) * width;
        if (x - half < free) continue;
        paintText(painter, QRectF(x - half - 1, plot.bottom() + gap, 2 * half + 2, line), Qt::AlignHCenter | Qt::AlignTop, text, style,
                  style.faint);
        free = x + half + style.textSize * 0.6;
    }
    paintText(painter, QRectF(plot.left(), plot.bottom() + gap + line * 1.05, plot.width(), line), Qt::AlignHCenter | Qt::AlignTop,
              QCoreApplication::translate("NeedleFigure", "length [tokens]"), style, style.faint);
    if (!leftAxis) return;
    free = -1e9;
    const double left = plot.left() - needleLeftWidth(model, style);
    for (int row = 0; row < rows; ++row) {
        const double y = plot.top() + (row + 0.5) * height;
        if (y - line / 2 < free) continue;
        paintText(painter, QRectF(left, y - line / 2, plot.left() - left - gap, line), Qt::AlignRight | Qt::AlignVCenter,
                  shortNumber(model.depths()[static_cast<std::size_t>(row)]), style, style.faint);
        free = y + line / 2;
    }
    paintTextUpwards(painter, QRectF(left + line * 0.15, plot.top(), line, plot.height()), Qt::AlignCenter,
                     QCoreApplication::translate("NeedleFigure", "depth [%]"), style, style.faint);
}

std::unique_ptr<Figure> needleFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus) {
    return std::make_unique<NeedleFigure>(trace, focus);
}

} // namespace keepsight
