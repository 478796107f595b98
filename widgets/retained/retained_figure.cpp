#include "widgets/retained/retained_figure.h"

#include "widgets/retained/retained_model.h"

#include <QCoreApplication>
#include <algorithm>

namespace keepsight {
namespace {

class RetainedFigure final : public Figure {
    Q_DECLARE_TR_FUNCTIONS(RetainedFigure)
public:
    RetainedFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus)
        : m_data(picture(*trace, "retained", focus)), m_model(trace, focus.lane), m_focus(focus) {
        if (m_focus.step.value < 0) m_focus.step = Step{std::max(0, m_model.steps() - 1)};
    }

    QString name() const override { return QString::fromStdString(m_data.name); }
    PictureData data() const override { return m_data; }

    QSizeF sizeForWidth(double width) const override {
        if (m_focus.layer.value >= 0) return {width, std::min(width * 0.62, 300.0)};
        const int rows = panelRows(width);
        const double panel = std::clamp(m_model.layers() * 4.0, 60.0, 190.0);
        return {width, rows * (panel + textHeight(m_style) * 1.2) + bottomAxisHeight(m_style) + 4 + (rows - 1) * 4};
    }

    void paint(QPainter& painter, const QSizeF& size) const override {
        painter.save();
        if (m_focus.layer.value >= 0)
            paintHistory(painter, size);
        else
            paintOverview(painter, size);
        painter.restore();
    }

private:
    int panelRows(double width) const {
        const int columns = std::clamp(static_cast<int>(width / 60), 1, std::max(1, m_model.heads()));
        return (m_model.heads() + columns - 1) / columns;
    }

    void paintOverview(QPainter& painter, const QSizeF& size) const {
        const AxisRange layers{-0.5, m_model.layers() - 0.5, false, true},
            positions{0, static_cast<double>(m_model.positions()), false, true};
        const int rows = panelRows(size.width()), columns = (m_model.heads() + rows - 1) / rows;
        const double left = leftAxisWidth(layers, m_style), title = textHeight(m_style) * 1.2, gap = 8;
        const double width = (size.width() - left - 4 - gap * (columns - 1)) / columns;
        const double height = (size.height() - bottomAxisHeight(m_style) - 4 - rows * title - (rows - 1) * 4) / rows;
        for (int head = 0; head < m_model.heads(); ++head) {
            const int row = head / columns, column = head % columns;
            const QRectF panel(left + column * (width + gap), title + row * (height + title + 4), width, height);
            paintText(painter, QRectF(panel.left(), panel.top() - title, width, title), Qt::AlignHCenter | Qt::AlignVCenter,
                      tr("head %1").arg(head), m_style, m_style.faint);
            paintPanel(painter, panel, m_model.overview(m_focus.step, HeadIndex{head}));
            if (column == 0) paintLeftAxis(painter, panel, layers, tr("layer"), m_style, true);
            if (head + columns >= m_model.heads()) paintBottomAxis(painter, panel, positions, tr("position"), m_style);
        }
    }

    void paintHistory(QPainter& painter, const QSizeF& size) const {
        const AxisRange steps{-0.5, m_model.steps() - 0.5, false, true},
            positions{0, static_cast<double>(m_model.positions()), false, true};
        const double left = leftAxisWidth(steps, m_style);
        const QRectF panel(left, 4, size.width() - left - 6, size.height() - bottomAxisHeight(m_style) - 8);
        paintPanel(painter, panel, m_model.history(m_focus.layer, m_focus.head));
        paintLeftAxis(painter, panel, steps, tr("step"), m_style, true);
        paintBottomAxis(painter, panel, positions, tr("position"), m_style);
    }

    void paintPanel(QPainter& painter, const QRectF& panel, const CellGrid& grid) const {
        paintCells(painter, panel, grid, retainedScale(m_style), retainedCells(m_style));
        painter.setPen(QPen(m_style.faint, m_style.lineWidth));
        painter.setBrush(Qt::NoBrush);
        painter.drawRect(panel);
    }

    PictureData m_data;
    RetainedModel m_model;
    PictureFocus m_focus;
    PlotStyle m_style = PlotStyle::paper();
};

} // namespace

ColorScale retainedScale(const PlotStyle& style) {
    const bool dark = style.background.lightness() < 128;
    return ColorScale::ramp(style.background, dark ? QColor(0xc8, 0xcc, 0xd2) : QColor(0x30, 0x32, 0x36), 0, 1);
}

CellStyle retainedCells(const PlotStyle& style) {
    CellStyle cells;
    cells.background = style.grid.rgb();
    return cells;
}

std::unique_ptr<Figure> retainedFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus) {
    return std::make_unique<RetainedFigure>(std::move(trace), focus);
}

} // namespace keepsight
