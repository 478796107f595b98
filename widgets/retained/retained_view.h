// Layers × positions of every KV head at the focused step; below, steps × positions of the focused head.
#pragma once

#include "widgets/base/plot_view.h"
#include "widgets/retained/retained_model.h"

#include <QRectF>
#include <optional>
#include <vector>

namespace keepsight {

class RetainedView : public PlotView {
    Q_OBJECT
public:
    explicit RetainedView(QWidget* parent = nullptr);
    std::unique_ptr<Figure> figure() const override; // the overview
    PictureData table() const override;              // steps × positions of the focused head

    struct Cell {
        HeadIndex head;
        LayerIndex layer;
        Position position = -1;
        std::optional<Step> step; // in the detail panel
    };
    std::optional<Cell> cellAt(const QPointF& point);              // widget coordinates; for clicks and tests
    QPointF pointOf(HeadIndex head, LayerIndex layer, Position p); // centre of an overview cell

protected:
    QString emptyText() const override;
    void rebuild(QPainter& painter, const QSizeF& size) override;
    void paintOverlay(QPainter& painter) override;
    void focusChanged(const Focus& now, const Focus& before) override;
    void traceChanged() override;
    QString toolTipAt(const QPointF& point) const override;
    void mousePressEvent(QMouseEvent* event) override;
    void mouseMoveEvent(QMouseEvent* event) override;

private:
    void layOut(const QSizeF& size);
    std::optional<Cell> hit(const QPointF& point) const;
    void go(const QPointF& point);

    RetainedModel m_model;
    std::vector<QRectF> m_panels; // by head
    QRectF m_detail;
};

} // namespace keepsight
