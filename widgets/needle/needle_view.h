// Length × depth grid of pass-key scores, one grid for each lane side by side.
#pragma once

#include "widgets/base/plot_view.h"
#include "widgets/needle/needle_model.h"

#include <optional>

namespace keepsight {

class NeedleView : public PlotView {
    Q_OBJECT
public:
    explicit NeedleView(QWidget* parent = nullptr);
    std::unique_ptr<Figure> figure() const override; // the focused lane

    struct Cell {
        int grid = 0, depth = 0, length = 0;
        friend bool operator==(const Cell&, const Cell&) = default;
    };
    std::optional<Cell> selected() const { return m_selected; } // by click or arrow keys
    QPointF pointOf(const Cell& cell);                          // centre, widget coordinates

protected:
    QString emptyText() const override;
    void rebuild(QPainter& painter, const QSizeF& size) override;
    void paintOverlay(QPainter& painter) override;
    void focusChanged(const Focus& now, const Focus& before) override;
    void traceChanged() override;
    QString toolTipAt(const QPointF& point) const override;
    void mousePressEvent(QMouseEvent* event) override;
    void keyPressEvent(QKeyEvent* event) override;

private:
    std::optional<Cell> hit(const QPointF& point) const;
    QRectF rectOf(const Cell& cell) const;
    QString describe(const Cell& cell) const;
    void select(const Cell& cell);

    NeedleModel m_model;
    std::vector<QRectF> m_plots;
    std::optional<Cell> m_selected;
};

} // namespace keepsight
