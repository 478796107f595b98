#include "widgets/attention/attention_figure.h"

#include "widgets/attention/attention_model.h"
#include "widgets/base/axis.h"
#include "widgets/base/cell_renderer.h"

#include <QCoreApplication>
#include <algorithm>

namespace keepsight {
namespace {

class AttentionFigure final : public Figure {
    Q_DECLARE_TR_FUNCTIONS(AttentionFigure)
public:
    AttentionFigure(const std::shared_ptr<const Trace>& trace, const PictureFocus& focus, std::optional<ColorScale> scale)
        : m_data(picture(*trace, "attention", focus)),
          m_model(trace, focus.lane, LayerIndex{std::max(0, focus.layer.value)}, HeadIndex{std::max(0, focus.head.value)},
                  focus.perQueryHead, focus.step, true),
          m_scale(scale.value_or(m_model.scale(true))) {}

    QString name() const override { return QString::fromStdString(m_data.name); }
    PictureData data() const override { return m_data; }

    QSizeF sizeForWidth(double width) const override {
        const double plot = width - leftAxisWidth(queries(), m_style) - 6; // square cells
        return {width, std::min(plot * m_model.queries() / std::max(1, m_model.keys()), 560.0) + below() + 4};
    }

    void paint(QPainter& painter, const QSizeF& size) const override {
        const double left = leftAxisWidth(queries(), m_style);
        const QRectF plot(left, 4, size.width() - left - 6, size.height() - below() - 4);
        painter.save();
        for (const AttentionModel::Part& part : m_model.parts())
            paintCells(painter, m_model.rectOf(part, plot), part.grid, m_scale);
        if (m_model.prefillEnd() > 0 && m_model.prefillEnd() < m_model.queries()) {
            const double y = plot.top() + plot.height() * m_model.prefillEnd() / m_model.queries();
            painter.setPen(QPen(m_style.accent, 0.8));
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y));
        }
        painter.setPen(QPen(m_style.faint, m_style.lineWidth));
        painter.drawLine(plot.topRight(), plot.bottomRight());
        painter.drawLine(plot.topLeft(), plot.topRight());
        paintLeftAxis(painter, plot, queries(), tr("query position"), m_style, true);
        paintBottomAxis(painter, plot, {0, static_cast<double>(m_model.keys()), false, true}, tr("key position"), m_style);
        const double top = plot.bottom() + bottomAxisHeight(m_style) + 5;
        paintColorBar(painter, QRectF(plot.left(), top, plot.width(), m_style.textSize * 0.8), m_scale, tr("mean attention weight"),
                      m_style);
        painter.restore();
    }

private:
    AxisRange queries() const { return {0, static_cast<double>(m_model.queries()), false, true}; }
    double below() const { return bottomAxisHeight(m_style) + 5 + colorBarHeight(m_style) + 2; }

    PictureData m_data;
    AttentionModel m_model;
    ColorScale m_scale;
    PlotStyle m_style = PlotStyle::paper();
};

} // namespace

std::unique_ptr<Figure> attentionFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus, std::optional<ColorScale> scale) {
    return std::make_unique<AttentionFigure>(trace, focus, std::move(scale));
}

} // namespace keepsight
