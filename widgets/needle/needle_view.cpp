#include "widgets/needle/needle_view.h"

#include "widgets/needle/needle_figure.h"

#include <QKeyEvent>
#include <QMouseEvent>
#include <QToolTip>
#include <algorithm>
#include <cmath>

namespace keepsight {

NeedleView::NeedleView(QWidget* parent) : PlotView(parent) {
    setAccessibleName(tr("Needle"));
    setAccessibleDescription(
        tr("Pass-key scores by length and depth, one grid for each lane. Arrow keys move between cells, Page Up and Page Down "
           "between lanes; the context menu shows the numbers as a table."));
}

void NeedleView::traceChanged() {
    m_model = NeedleModel(trace());
    if (m_selected && (m_model.empty() || m_selected->grid >= static_cast<int>(m_model.grids().size()) ||
                       m_selected->depth >= static_cast<int>(m_model.depths().size()) ||
                       m_selected->length >= static_cast<int>(m_model.lengths().size())))
        m_selected.reset();
}

void NeedleView::focusChanged(const Focus& now, const Focus& before) {
    if (now.lane != before.lane) invalidate();
}

QString NeedleView::emptyText() const {
    return m_model.empty() ? tr("Run Needle to see at which lengths and depths each lane still finds the pass key.") : QString();
}

std::unique_ptr<Figure> NeedleView::figure() const {
    if (!trace() || m_model.empty()) return {};
    const int focused = m_model.gridOf(focus().lane);
    return needleFigure(trace(), {m_model.grids()[static_cast<std::size_t>(std::max(0, focused))].lane});
}

void NeedleView::rebuild(QPainter& painter, const QSizeF& size) {
    const PlotStyle style = plotStyle();
    const CellStyle cells = cellStyle();
    const int count = static_cast<int>(m_model.grids().size());
    const double left = needleLeftWidth(m_model, style), title = textHeight(style) * 1.5, gap = 10;
    const double below = bottomAxisHeight(style) + 6 + colorBarHeight(style, false) + 4;
    // As many side by side as keep their numbers readable, the rest underneath.
    const double wanted = std::max(110.0, static_cast<double>(m_model.lengths().size()) * (textWidth(QStringLiteral("0.00"), style) + 6));
    const int columns = std::clamp(static_cast<int>((size.width() - left) / (wanted + gap)), 1, count),
              rows = (count + columns - 1) / columns;
    const double width = (size.width() - left - 10 - gap * (columns - 1)) / columns;
    const double axis = bottomAxisHeight(style), height = (size.height() - below - rows * title - (rows - 1) * (axis + 2)) / rows;
    m_plots.clear();
    for (int i = 0; i < count; ++i) {
        const NeedleGrid& grid = m_model.grids()[static_cast<std::size_t>(i)];
        const QRectF plot =
            QRectF(left + i % columns * (width + gap), title + i / columns * (height + title + axis + 2), width, height).toAlignedRect();
        m_plots.push_back(plot);
        if (plot.width() < 12 || plot.height() < 12) continue;
        const bool focused = grid.lane == focus().lane;
        paintText(painter, QRectF(plot.left(), plot.top() - title, plot.width(), title), Qt::AlignLeft | Qt::AlignVCenter, grid.title,
                  style, focused ? style.ink : style.faint, focused);
        paintNeedleGrid(painter, plot, m_model, grid, style, cells, i % columns == 0);
    }
    if (m_plots.empty()) return;
    const QRectF bar(left, size.height() - below + bottomAxisHeight(style) + 6, size.width() - left - 10, style.textSize * 0.8);
    paintColorBar(painter, bar, needleScale(), QString(), style);
}

QRectF NeedleView::rectOf(const Cell& cell) const {
    if (cell.grid >= static_cast<int>(m_plots.size())) return {};
    const QRectF& plot = m_plots[static_cast<std::size_t>(cell.grid)];
    const double width = plot.width() / static_cast<double>(m_model.lengths().size()),
                 height = plot.height() / static_cast<double>(m_model.depths().size());
    return {plot.left() + cell.length * width, plot.top() + cell.depth * height, width, height};
}

void NeedleView::paintOverlay(QPainter& painter) {
    if (!m_selected) return;
    painter.setPen(QPen(plotStyle().accent, 2));
    painter.setBrush(Qt::NoBrush);
    painter.drawRect(rectOf(*m_selected).adjusted(1, 1, -1, -1));
}

std::optional<NeedleView::Cell> NeedleView::hit(const QPointF& point) const {
    for (std::size_t i = 0; i < m_plots.size(); ++i) {
        const QRectF& plot = m_plots[i];
        if (!plot.contains(point)) continue;
        const int lengths = static_cast<int>(m_model.lengths().size()), depths = static_cast<int>(m_model.depths().size());
        return Cell{static_cast<int>(i), std::clamp(static_cast<int>((point.y() - plot.top()) / plot.height() * depths), 0, depths - 1),
                    std::clamp(static_cast<int>((point.x() - plot.left()) / plot.width() * lengths), 0, lengths - 1)};
    }
    return std::nullopt;
}

QPointF NeedleView::pointOf(const Cell& cell) {
    rebuildNow();
    return plotArea().topLeft() + rectOf(cell).center();
}

QString NeedleView::describe(const Cell& at) const {
    const NeedleGrid& grid = m_model.grids()[static_cast<std::size_t>(at.grid)];
    const NeedleCell& cell = m_model.cell(grid, at.depth, at.length);
    QStringList lines{grid.title, tr("Length %1 tokens, depth %2 %")
                                      .arg(shortNumber(m_model.lengths()[static_cast<std::size_t>(at.length)]),
                                           shortNumber(m_model.depths()[static_cast<std::size_t>(at.depth)]))};
    if (cell.runs == 0) {
        lines << tr("Not run");
        return lines.join(QLatin1Char('\n'));
    }
    lines << tr("Score %1, mean of %Ln key(s)", nullptr, cell.runs).arg(QString::number(cell.score, 'g', 4));
    if (!std::isnan(cell.keptShare)) lines << tr("Needle still stored: %1 %").arg(QString::number(cell.keptShare * 100, 'f', 0));
    for (std::size_t i = 0; i < std::min<std::size_t>(cell.rows.size(), 6); ++i) {
        const Measurement& row = *cell.rows[i];
        lines << tr("Expected %1, answered “%2”")
                     .arg(QString::fromStdString(row.text("expected")),
                          QString::fromUtf8(row.text("answer").c_str()).simplified().left(60));
    }
    if (cell.rows.size() > 6) lines << tr("… and %Ln more", nullptr, static_cast<int>(cell.rows.size()) - 6);
    return lines.join(QLatin1Char('\n'));
}

QString NeedleView::toolTipAt(const QPointF& point) const {
    const auto cell = hit(point);
    return cell ? describe(*cell) : QString();
}

void NeedleView::select(const Cell& cell) {
    m_selected = cell;
    if (focusModel()) focusModel()->setLane(m_model.grids()[static_cast<std::size_t>(cell.grid)].lane);
    update();
}

void NeedleView::mousePressEvent(QMouseEvent* event) {
    if (event->button() != Qt::LeftButton || m_model.empty()) return;
    rebuildNow();
    if (const auto cell = hit(event->position() - plotArea().topLeft())) select(*cell);
}

void NeedleView::keyPressEvent(QKeyEvent* event) {
    if (m_model.empty()) return QWidget::keyPressEvent(event);
    Cell cell = m_selected.value_or(Cell{std::max(0, m_model.gridOf(focus().lane)), 0, 0});
    const bool first = !m_selected;
    switch (event->key()) {
    case Qt::Key_Up:
        cell.depth -= !first;
        break;
    case Qt::Key_Down:
        cell.depth += !first;
        break;
    case Qt::Key_Left:
        cell.length -= !first;
        break;
    case Qt::Key_Right:
        cell.length += !first;
        break;
    case Qt::Key_PageUp:
        --cell.grid;
        break;
    case Qt::Key_PageDown:
        ++cell.grid;
        break;
    default:
        return QWidget::keyPressEvent(event);
    }
    cell.grid = std::clamp(cell.grid, 0, static_cast<int>(m_model.grids().size()) - 1);
    cell.depth = std::clamp(cell.depth, 0, static_cast<int>(m_model.depths().size()) - 1);
    cell.length = std::clamp(cell.length, 0, static_cast<int>(m_model.lengths().size()) - 1);
    select(cell);
    rebuildNow();
    if (isVisible()) QToolTip::showText(mapToGlobal((plotArea().topLeft() + rectOf(cell).bottomLeft()).toPoint()), describe(cell), this);
    event->accept();
}

} // namespace keepsight
