#include "widgets/retained/retained_view.h"

#include "widgets/retained/retained_figure.h"

#include <QMouseEvent>
#include <algorithm>
#include <cmath>

namespace keepsight {

RetainedView::RetainedView(QWidget* parent) : PlotView(parent) {
    setAccessibleName(tr("Retained"));
    setAccessibleDescription(tr("Which tokens each layer and KV head still holds at the focused step. Arrow keys move layer and token, "
                                "Page Up and Page Down the head; the context menu shows the numbers as a table."));
}

void RetainedView::traceChanged() { m_model = RetainedModel(trace(), focus().lane); }

void RetainedView::focusChanged(const Focus& now, const Focus& before) {
    if (now.lane != before.lane) m_model = RetainedModel(trace(), focus().lane);
    Focus samePosition = now;
    samePosition.position = before.position;
    if (samePosition == before)
        update(); // the token is only an overlay
    else
        invalidate();
}

QString RetainedView::emptyText() const {
    if (!trace()) return tr("Run Score or Generate to see which tokens every layer and head keeps.");
    if (m_model.empty()) return tr("This run recorded no retained sets; run Score or Generate with retention recording on.");
    return {};
}

std::unique_ptr<Figure> RetainedView::figure() const {
    if (!trace() || m_model.empty()) return {};
    return retainedFigure(trace(), {focus().lane, focus().step, LayerIndex{-1}, HeadIndex{-1}, false});
}

PictureData RetainedView::table() const {
    if (!trace() || m_model.empty()) return {};
    return picture(*trace(), "retained", {focus().lane, focus().step, focus().layer, focus().head, false});
}

void RetainedView::layOut(const QSizeF& size) {
    const PlotStyle style = plotStyle();
    const AxisRange layers{-0.5, m_model.layers() - 0.5, false, true}, steps{-0.5, m_model.steps() - 0.5, false, true};
    const double left = std::max(leftAxisWidth(layers, style), leftAxisWidth(steps, style)), right = 8, title = textHeight(style) * 1.3;
    const double axis = bottomAxisHeight(style, false) + 2;
    const double detailHeight = size.height() > 230 && m_model.steps() > 1 ? std::floor(size.height() * 0.36) : 0;
    const double overviewHeight = size.height() - detailHeight, width = size.width() - left - right, gap = 10;
    const int columns = std::clamp(static_cast<int>(width / 56), 1, m_model.heads()), rows = (m_model.heads() + columns - 1) / columns;
    const double panelWidth = (width - gap * (columns - 1)) / columns,
                 panelHeight = (overviewHeight - axis - rows * title - (rows - 1) * 2) / rows;
    m_panels.clear();
    for (int head = 0; head < m_model.heads(); ++head) {
        const QRectF panel(left + head % columns * (panelWidth + gap), title + head / columns * (panelHeight + title + 2), panelWidth,
                           panelHeight);
        m_panels.emplace_back(panel.toAlignedRect());
    }
    m_detail = {};
    if (detailHeight > 0) {
        const double top = overviewHeight + title + 2;
        m_detail = QRectF(left, top, width, size.height() - top - bottomAxisHeight(style, true) - 2).toAlignedRect();
    }
}

void RetainedView::rebuild(QPainter& painter, const QSizeF& size) {
    layOut(size);
    const PlotStyle style = plotStyle();
    const ColorScale scale = retainedScale(style);
    const CellStyle cells = retainedCells(style);
    const Focus f = focus();
    const AxisRange layers{-0.5, m_model.layers() - 0.5, false, true}, positions{0, static_cast<double>(m_model.positions()), false, true};
    const double title = textHeight(style) * 1.3;
    const qreal ratio = devicePixelRatioF();
    const auto pixels = [ratio](const QRectF& panel) { return (panel.size() * ratio).toSize(); };
    const auto draw = [&](const QRectF& panel, const CellGrid& grid) {
        QImage image = renderCells(grid, pixels(panel), ratio, scale, cells);
        image.setDevicePixelRatio(ratio);
        painter.drawImage(panel.topLeft(), image);
        painter.setPen(QPen(style.grid.darker(130), 1));
        painter.setBrush(Qt::NoBrush);
        painter.drawRect(panel.adjusted(-0.5, -0.5, 0.5, 0.5));
    };
    for (int head = 0; head < m_model.heads(); ++head) {
        const QRectF& panel = m_panels[static_cast<std::size_t>(head)];
        if (panel.width() < 2 || panel.height() < 2) continue;
        const bool focused = head == f.head.value;
        paintText(painter, QRectF(panel.left(), panel.top() - title, panel.width(), title), Qt::AlignHCenter | Qt::AlignVCenter,
                  tr("head %1").arg(head), style, focused ? style.ink : style.faint, focused);
        draw(panel, m_model.overview(f.step, HeadIndex{head}, pixels(panel)));
        if (panel.left() == m_panels.front().left()) paintLeftAxis(painter, panel, layers, tr("layer"), style, true);
        if (panel.top() == m_panels.back().top()) paintBottomAxis(painter, panel, positions, QString(), style);
    }
    if (m_detail.height() < 12) return;
    const int kept = m_model.keptCount(f.step, f.layer, f.head);
    paintText(painter, QRectF(m_detail.left(), m_detail.top() - title, m_detail.width(), title), Qt::AlignLeft | Qt::AlignVCenter,
              tr("Layer %1, head %2 over the steps; holds %3 of %4 at step %5")
                  .arg(f.layer.value)
                  .arg(f.head.value)
                  .arg(kept)
                  .arg(m_model.seen(f.step))
                  .arg(f.step.value),
              style, style.ink);
    draw(m_detail, m_model.history(f.layer, f.head, pixels(m_detail)));
    paintLeftAxis(painter, m_detail, {-0.5, m_model.steps() - 0.5, false, true}, tr("step"), style, true);
    paintBottomAxis(painter, m_detail, positions, tr("position"), style);
}

void RetainedView::paintOverlay(QPainter& painter) {
    const Focus f = focus();
    const PlotStyle style = plotStyle();
    QColor column = style.accent;
    column.setAlpha(170);
    const double positions = std::max(1, m_model.positions());
    const auto tokenColumn = [&](const QRectF& panel) {
        if (f.position < 0 || f.position >= m_model.positions()) return;
        const double width = panel.width() / positions, x = panel.left() + f.position * width;
        painter.fillRect(QRectF(x + (width - std::max(1.5, width)) / 2, panel.top(), std::max(1.5, width), panel.height()), column);
    };
    painter.setBrush(Qt::NoBrush);
    for (std::size_t head = 0; head < m_panels.size(); ++head) {
        const QRectF& panel = m_panels[head];
        tokenColumn(panel);
        if (static_cast<int>(head) != f.head.value) continue;
        const double height = panel.height() / std::max(1, m_model.layers());
        painter.setPen(QPen(style.accent, 2));
        painter.drawRect(QRectF(panel.left(), panel.top() + f.layer.value * height, panel.width(), height).adjusted(-1, -1, 1, 1));
    }
    if (m_detail.height() < 12) return;
    tokenColumn(m_detail);
    const double row = m_detail.height() / std::max(1, m_model.steps()), y = m_detail.top() + (f.step.value + 0.5) * row;
    if (f.step.value < m_model.steps()) {
        painter.setPen(QPen(style.accent, 2));
        painter.drawLine(QPointF(m_detail.left() - 3, y), QPointF(m_detail.right() + 3, y));
    }
}

std::optional<RetainedView::Cell> RetainedView::hit(const QPointF& point) const {
    const auto index = [](double offset, double length, int count) {
        return std::clamp(static_cast<int>(offset / length * count), 0, count - 1);
    };
    for (std::size_t head = 0; head < m_panels.size(); ++head) {
        const QRectF& panel = m_panels[head];
        if (!panel.contains(point)) continue;
        return Cell{HeadIndex{static_cast<int>(head)}, LayerIndex{index(point.y() - panel.top(), panel.height(), m_model.layers())},
                    index(point.x() - panel.left(), panel.width(), m_model.positions()), std::nullopt};
    }
    if (m_detail.contains(point) && m_model.steps() > 0)
        return Cell{focus().head, focus().layer, index(point.x() - m_detail.left(), m_detail.width(), m_model.positions()),
                    Step{index(point.y() - m_detail.top(), m_detail.height(), m_model.steps())}};
    return std::nullopt;
}

std::optional<RetainedView::Cell> RetainedView::cellAt(const QPointF& point) {
    rebuildNow();
    return m_model.empty() ? std::nullopt : hit(point - plotArea().topLeft());
}

QPointF RetainedView::pointOf(HeadIndex head, LayerIndex layer, Position p) {
    rebuildNow();
    const QRectF& panel = m_panels.at(static_cast<std::size_t>(head.value));
    return plotArea().topLeft() + panel.topLeft() +
           QPointF((p + 0.5) * panel.width() / m_model.positions(), (layer.value + 0.5) * panel.height() / m_model.layers());
}

QString RetainedView::toolTipAt(const QPointF& point) const {
    const auto cell = hit(point);
    if (!cell) return {};
    const Focus f = focus();
    const Step step = cell->step.value_or(f.step);
    QStringList lines;
    lines << tr("Token %1 %2").arg(cell->position).arg(tokenText(*trace(), f.lane, cell->position)).trimmed();
    lines << tr("Layer %1, head %2, step %3").arg(cell->layer.value).arg(cell->head.value).arg(step.value);
    const int evicted = m_model.evictedAt(cell->layer, cell->head, cell->position);
    if (cell->position >= m_model.seen(step))
        lines << tr("Not seen yet");
    else if (evicted == NeverEvicted)
        lines << tr("Held to the end");
    else if (evicted > step.value)
        lines << tr("Held; evicted at step %1").arg(evicted);
    else
        lines << tr("Evicted since step %1").arg(evicted);
    QStringList counts;
    for (int head = 0; head < std::min(8, m_model.heads()); ++head)
        counts << QString::number(m_model.keptCount(step, cell->layer, HeadIndex{head}));
    if (m_model.heads() > 8) counts << QStringLiteral("…");
    lines << tr("Layer %1 keeps %2 of %3 tokens (by head)")
                 .arg(cell->layer.value)
                 .arg(counts.join(QStringLiteral(" / ")))
                 .arg(m_model.seen(step));
    return lines.join(QLatin1Char('\n'));
}

void RetainedView::go(const QPointF& point) {
    const auto cell = cellAt(point);
    if (!cell || !focusModel()) return;
    Focus f = focus();
    f.layer = cell->layer;
    f.head = cell->head;
    f.position = cell->position;
    f.step = cell->step.value_or(focusModel()->focus().step);
    focusModel()->set(f);
}

void RetainedView::mousePressEvent(QMouseEvent* event) {
    if (event->button() == Qt::LeftButton) go(event->position());
}

void RetainedView::mouseMoveEvent(QMouseEvent* event) {
    if (event->buttons() & Qt::LeftButton) go(event->position());
}

} // namespace keepsight
