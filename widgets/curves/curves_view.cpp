#include "widgets/curves/curves_view.h"

#include "widgets/base/table_dialog.h"
#include "widgets/curves/curve_figure.h"
#include "widgets/curves/qcustomplot_header.h"
#include "widgets/lanes/lane_color.h"

#include <QContextMenuEvent>
#include <QEvent>
#include <QHelpEvent>
#include <QKeyEvent>
#include <QLabel>
#include <QLocale>
#include <QMenu>
#include <QMouseEvent>
#include <QStackedLayout>
#include <QToolTip>
#include <algorithm>
#include <cmath>
#include <utility>

namespace keepsight {
namespace {

constexpr int LeastPixelsPerMarker = 40;
constexpr std::size_t PointsInSight = 512, PointsAtStart = 32;

QPen lanePen(LaneIndex lane, const QColor& color, double width) {
    QPen pen(color, width, Qt::SolidLine, Qt::FlatCap, Qt::RoundJoin);
    if (const QList<qreal> dash = laneDash(lane); !dash.isEmpty()) pen.setDashPattern(dash);
    return pen;
}

QCPScatterStyle markerStyle(LaneIndex lane, const QColor& color, const QColor& paper) {
    constexpr std::array Shapes{QCPScatterStyle::ssDisc, QCPScatterStyle::ssSquare, QCPScatterStyle::ssTriangle, QCPScatterStyle::ssDiamond};
    const auto shape = Shapes[static_cast<std::size_t>(laneMarker(lane))];
    if (laneMarkerHollow(lane)) return QCPScatterStyle(shape == QCPScatterStyle::ssDisc ? QCPScatterStyle::ssCircle : shape, QPen(color), QBrush(paper), 6);
    return QCPScatterStyle(shape, QPen(color), QBrush(color), 6);
}

// A line in pieces: stroked as one shape, a curve of some hundred points takes the rasteriser ten times as long.
class PiecewiseGraph : public QCPGraph {
public:
    using QCPGraph::QCPGraph;

protected:
    void drawLinePlot(QCPPainter* painter, const QVector<QPointF>& points) const override {
        constexpr int Piece = 16;
        QPen pen = painter->pen();
        if (points.size() <= Piece || pen.widthF() <= 1) return QCPGraph::drawLinePlot(painter, points);
        const bool dashed = pen.style() == Qt::CustomDashLine;
        if (!dashed) pen.setCapStyle(Qt::RoundCap); // between the pieces what the join is within them
        double length = pen.dashOffset() * pen.widthF();
        for (qsizetype begin = 0; begin + 1 < points.size(); begin += Piece - 1) {
            const QVector<QPointF> piece = points.mid(begin, Piece);
            if (dashed) pen.setDashOffset(length / pen.widthF()); // goes on where the last piece ended
            painter->setPen(pen);
            drawPolyline(painter, piece);
            for (qsizetype i = 1; dashed && i < piece.size(); ++i)
                length += std::hypot(piece[i].x() - piece[i - 1].x(), piece[i].y() - piece[i - 1].y());
        }
    }
};

QColor mix(const QColor& a, const QColor& b, double t) {
    const auto at = [t](float x, float y) { return static_cast<float>(x * (1 - t) + y * t); };
    return QColor::fromRgbF(at(a.redF(), b.redF()), at(a.greenF(), b.greenF()), at(a.blueF(), b.blueF()));
}

} // namespace

CurvesView::CurvesView(QWidget* parent) : TraceView(parent) {
    setAccessibleName(tr("Curves"));
    m_plot = new QCustomPlot;
    m_plot->setAccessibleName(tr("Perplexity, time per token and KV memory against token position"));
    m_plot->setFocusPolicy(Qt::StrongFocus);
    m_plot->setMouseTracking(true);
    m_plot->installEventFilter(this);
    setFocusProxy(m_plot);
    m_empty = new QLabel(tr("Curves appear while a Score or Generate run goes on."));
    m_empty->setAlignment(Qt::AlignCenter);
    m_empty->setWordWrap(true);
    m_empty->setForegroundRole(QPalette::PlaceholderText);
    auto* stack = new QStackedLayout(this);
    stack->addWidget(m_empty);
    stack->addWidget(m_plot);
    makePlots();
    applyPalette();
}

void CurvesView::makePlots() {
    m_plot->plotLayout()->clear();
    auto* margins = new QCPMarginGroup(m_plot);
    const std::array<QString, Plots> labels{tr("PPL so far (log)"), tr("TPOT, ms"), tr("KV, MB")};
    for (int i = 0; i < Plots; ++i) {
        auto* rect = new QCPAxisRect(m_plot);
        m_rects[static_cast<std::size_t>(i)] = rect;
        m_plot->plotLayout()->addElement(i + 1, 0, rect);
        rect->setMarginGroup(QCP::msLeft | QCP::msRight, margins);
        rect->setMinimumMargins(QMargins(0, i == 0 ? 4 : 2, 10, 2));
        rect->setRangeDrag(Qt::Horizontal);
        rect->setRangeZoom(Qt::Horizontal);
        rect->setRangeZoomFactor(0.8);
        rect->axis(QCPAxis::atLeft)->setLabel(labels[static_cast<std::size_t>(i)]);
        rect->axis(QCPAxis::atLeft)->ticker()->setTickCount(i == Perplexity ? 5 : 4);
        QCPAxis* bottom = rect->axis(QCPAxis::atBottom);
        bottom->setTickLabels(i == Memory);
        bottom->ticker()->setTickStepStrategy(QCPAxisTicker::tssReadability);
        auto* cursor = new QCPItemStraightLine(m_plot);
        cursor->setLayer(QStringLiteral("overlay")); // drawn apart: it moves more often than the curves change
        cursor->setClipAxisRect(rect);
        for (QCPItemPosition* point : {cursor->point1, cursor->point2}) {
            point->setAxisRect(rect);
            point->setAxes(bottom, rect->axis(QCPAxis::atLeft));
            point->setTypeX(QCPItemPosition::ptPlotCoords);
            point->setTypeY(QCPItemPosition::ptAxisRectRatio);
        }
        m_cursors[static_cast<std::size_t>(i)] = cursor;
        connect(bottom, qOverload<const QCPRange&>(&QCPAxis::rangeChanged), this, [this](const QCPRange& range) {
            if (m_linking) return;
            m_linking = true;
            for (QCPAxisRect* other : m_rects)
                other->axis(QCPAxis::atBottom)->setRange(range);
            m_linking = false;
            appendPoints();
            scaleValues();
        });
    }
    m_plot->addLayer(QStringLiteral("raw"), m_plot->layer(QStringLiteral("main")), QCustomPlot::limBelow); // under every smooth line
    m_rects[Memory]->axis(QCPAxis::atBottom)->setLabel(tr("token position"));
    QCPAxis* perplexity = m_rects[Perplexity]->axis(QCPAxis::atLeft);
    perplexity->setScaleType(QCPAxis::stLogarithmic);
    auto ticker = QSharedPointer<QCPAxisTickerLog>::create();
    ticker->setSubTickCount(8);
    perplexity->setTicker(ticker);
    perplexity->setNumberFormat(QStringLiteral("gb"));
    perplexity->setNumberPrecision(4);
    m_plot->plotLayout()->setRowStretchFactor(0, 0.001); // the legend takes what it needs
    m_plot->plotLayout()->setRowStretchFactor(Perplexity + 1, 1.7);
    m_plot->plotLayout()->setRowSpacing(2);
    m_plot->setInteraction(QCP::iRangeZoom, true);
    m_plot->setAutoAddPlottableToLegend(false);
    m_legend = new QCPLegend;
    m_plot->plotLayout()->addElement(0, 0, m_legend);
    m_legend->setLayer(QStringLiteral("legend"));
    m_legend->setFillOrder(QCPLayoutGrid::foColumnsFirst);
    m_legend->setMargins(QMargins(8, 3, 8, 1));
    m_legend->setColumnSpacing(14);
    m_legend->setRowSpacing(0);
    m_legend->setBorderPen(Qt::NoPen);
    m_legend->setBrush(Qt::NoBrush);
}

void CurvesView::follow(FocusModel& focus) {
    m_focus = &focus;
    connect(&focus, &FocusModel::changed, this, [this](const Focus& now, const Focus& before) {
        if (now.step != before.step) moveCursor();
    });
    moveCursor();
}

std::unique_ptr<Figure> CurvesView::figure() const {
    static const std::array<QString, Plots> kinds{QStringLiteral("ppl"), QStringLiteral("tpot"), QStringLiteral("memory")};
    if (!m_trace || m_model.isEmpty()) return {};
    PictureFocus focus;
    if (m_focus) focus.lane = m_focus->focus().lane;
    return curveFigure(kinds[static_cast<std::size_t>(m_active)], m_trace, focus);
}

void CurvesView::setTrace(std::shared_ptr<const Trace> trace) {
    m_trace = std::move(trace);
    const bool appended = m_model.update(m_trace.get());
    static_cast<QStackedLayout*>(layout())->setCurrentWidget(m_model.isEmpty() ? static_cast<QWidget*>(m_empty) : m_plot);
    if (!appended) {
        m_zoomed = false;
        makeGraphs();
    }
    if (m_model.isEmpty()) return;
    appendPoints();
    if (!m_zoomed) resetZoom();
    else scaleValues();
    moveCursor();
}

void CurvesView::makeGraphs() {
    m_plot->clearGraphs();
    m_legend->clearItems();
    m_graphs.assign(m_model.lanes().size(), {});
    for (std::size_t i = 0; i < m_graphs.size(); ++i) {
        Graphs& graphs = m_graphs[i];
        const auto add = [this](int plot) {
            QCPAxisRect* rect = m_rects[static_cast<std::size_t>(plot)];
            return new PiecewiseGraph(rect->axis(QCPAxis::atBottom), rect->axis(QCPAxis::atLeft)); // the plot's from now on
        };
        graphs.raw = add(Tpot);
        graphs.raw->setLayer(QStringLiteral("raw"));
        for (int plot = 0; plot < Plots; ++plot)
            graphs.line[static_cast<std::size_t>(plot)] = add(plot);
        graphs.line[Perplexity]->setName(m_model.lanes()[i].title);
        graphs.line[Perplexity]->addToLegend(m_legend);
    }
    applyPalette();
}

// Dashed lines cost by the point: the smooth ones show every 2nd, 4th … point where more than about five hundred are in sight.
void CurvesView::appendPoints() {
    const int width = std::max(200, m_rects[Perplexity]->width());
    const QCPRange sight = m_rects[Memory]->axis(QCPAxis::atBottom)->range();
    for (std::size_t i = 0; i < m_graphs.size(); ++i) {
        Graphs& graphs = m_graphs[i];
        const LaneCurve& lane = m_model.lanes()[i];
        const auto seen = static_cast<std::size_t>(std::max<std::ptrdiff_t>(0, std::ranges::upper_bound(lane.x, sight.upper) - std::ranges::lower_bound(lane.x, sight.lower)));
        std::size_t stride = 1;
        while (m_zoomed ? seen / stride > PointsInSight : lane.x.size() / stride > PointsInSight)
            stride *= 2;
        if (graphs.window != lane.window || graphs.stride != stride) { // all of the lines change
            graphs.window = lane.window;
            graphs.stride = stride;
            graphs.shown = 0;
            graphs.raw->data()->clear();
            for (QCPGraph* graph : graphs.line)
                graph->data()->clear();
        }
        for (; graphs.shown < lane.x.size(); ++graphs.shown) {
            const std::size_t at = graphs.shown;
            if (!std::isnan(lane.tpot[at])) graphs.raw->addData(lane.x[at], lane.tpot[at]);
            if (at % stride != 0 && at >= PointsAtStart) continue; // a perplexity begins steep
            if (!std::isnan(lane.perplexity[at])) graphs.line[Perplexity]->addData(lane.x[at], lane.perplexity[at]);
            if (!std::isnan(lane.tpotSmooth[at])) graphs.line[Tpot]->addData(lane.x[at], lane.tpotSmooth[at]);
            graphs.line[Memory]->addData(lane.x[at], lane.memory[at]);
        }
        const int points = static_cast<int>((m_zoomed ? seen : lane.x.size()) / stride);
        for (QCPGraph* graph : graphs.line)
            graph->setScatterSkip(std::max(0, points * LeastPixelsPerMarker * 2 / width - 1));
    }
}

void CurvesView::resetZoom() {
    m_zoomed = false;
    const double span = std::max(1.0, m_model.lastX() - m_model.firstX());
    m_rects[Memory]->axis(QCPAxis::atBottom)->setRange(m_model.firstX() - span * 0.01, m_model.lastX() + span * 0.015);
    scaleValues();
}

// Values follow what is visible. One slow step in a hundred does not flatten the rest; the readout still tells it.
void CurvesView::scaleValues() {
    const QCPRange x = m_rects[Memory]->axis(QCPAxis::atBottom)->range();
    std::array<std::vector<double>, Plots> seen;
    for (const LaneCurve& lane : m_model.lanes()) {
        const auto from = std::ranges::lower_bound(lane.x, x.lower) - lane.x.begin();
        const auto to = std::ranges::upper_bound(lane.x, x.upper) - lane.x.begin();
        for (auto i = static_cast<std::size_t>(from); i < static_cast<std::size_t>(to); ++i) {
            if (std::isfinite(lane.perplexity[i])) seen[Perplexity].push_back(lane.perplexity[i]);
            if (std::isfinite(lane.tpot[i])) seen[Tpot].push_back(lane.tpot[i]);
            seen[Memory].push_back(lane.memory[i]);
        }
    }
    for (int plot = 0; plot < Plots; ++plot) {
        auto& values = seen[static_cast<std::size_t>(plot)];
        if (values.empty()) continue;
        std::ranges::sort(values);
        double low = values.front(), high = values.back();
        if (plot == Tpot && values.size() >= 50) high = values[values.size() * 99 / 100];
        QCPAxis* axis = m_rects[static_cast<std::size_t>(plot)]->axis(QCPAxis::atLeft);
        if (plot == Perplexity) {
            const double room = std::max(1.05, std::pow(high / low, 0.08));
            axis->setRange(low / room, high * room);
            // Within one decade a logarithmic ticker would label nothing.
            const bool decades = high / low > 12;
            if (decades != (axis->ticker().dynamicCast<QCPAxisTickerLog>() != nullptr)) {
                if (decades) {
                    auto ticker = QSharedPointer<QCPAxisTickerLog>::create();
                    ticker->setSubTickCount(8);
                    axis->setTicker(ticker);
                } else {
                    axis->setTicker(QSharedPointer<QCPAxisTicker>::create());
                }
                axis->ticker()->setTickCount(5);
            }
        } else {
            const double room = std::max((high - low) * 0.08, std::max(high * 0.02, 1e-6));
            axis->setRange(std::max(0.0, low - room), high + room);
        }
    }
    replot();
}

void CurvesView::applyPalette() {
    const QColor base = palette().color(QPalette::Base), ink = palette().color(QPalette::Text);
    const QColor faint = mix(base, ink, 0.72), grid = mix(base, ink, 0.12);
    m_plot->setBackground(base);
    for (QCPAxisRect* rect : m_rects) {
        rect->setupFullAxesBox();
        for (QCPAxis* axis : rect->axes()) {
            axis->setBasePen(QPen(faint, 1));
            axis->setTickPen(QPen(faint, 1));
            axis->setSubTickPen(QPen(faint, 1));
            axis->setTickLabelColor(faint);
            axis->setLabelColor(faint);
            axis->setTickLabelFont(font());
            axis->setLabelFont(font());
            axis->setTickLengthIn(0);
            axis->setSubTickLengthIn(0);
            axis->grid()->setPen(QPen(grid, 1));
            axis->grid()->setZeroLinePen(QPen(grid, 1));
        }
        for (const auto side : {QCPAxis::atLeft, QCPAxis::atBottom}) {
            rect->axis(side)->setTickLengthOut(4);
            rect->axis(side)->setSubTickLengthOut(2);
        }
        for (const auto side : {QCPAxis::atRight, QCPAxis::atTop})
            rect->axis(side)->setTicks(false);
        rect->axis(QCPAxis::atLeft)->setLabelPadding(4);
    }
    for (QCPItemStraightLine* cursor : m_cursors)
        cursor->setPen(QPen(mix(base, ink, 0.6), 1, Qt::SolidLine));
    m_legend->setFont(font());
    m_legend->setTextColor(ink);
    m_legend->setIconSize(34, fontMetrics().height() + 4); // a line of text with its descenders
    for (int i = 0; i < m_legend->itemCount(); ++i) {
        QCPAbstractLegendItem* item = m_legend->item(i); // nullptr: a cell that wrapping left empty
        if (!item) continue;
        item->setFont(font());
        item->setTextColor(ink);
    }
    wrapLegend();
    for (std::size_t i = 0; i < m_graphs.size(); ++i) {
        const LaneIndex lane{static_cast<std::int32_t>(i)};
        const QColor color = laneColor(lane, palette());
        m_graphs[i].raw->setPen(QPen(mix(base, color, 0.42), 0)); // one pixel, without smoothing: many points, drawn often
        m_graphs[i].raw->setAntialiased(false);
        for (QCPGraph* graph : m_graphs[i].line) {
            graph->setPen(lanePen(lane, color, 1.7));
            graph->setScatterStyle(markerStyle(lane, color, palette().color(QPalette::Base)));
        }
    }
    replot();
}

// As many entries side by side as fit.
void CurvesView::wrapLegend() {
    int widest = 1;
    for (const LaneCurve& lane : m_model.lanes())
        widest = std::max(widest, fontMetrics().horizontalAdvance(lane.title) + 34 + 7 + m_legend->columnSpacing());
    const int entries = static_cast<int>(m_model.lanes().size());
    int columns = std::clamp((width() - 16) / widest, 1, std::max(1, entries));
    if (entries > 0) columns = (entries + (entries + columns - 1) / columns - 1) / ((entries + columns - 1) / columns); // even rows
    m_legend->setWrap(columns);
    m_legend->setFillOrder(QCPLayoutGrid::foColumnsFirst, true);
}

void CurvesView::resizeEvent(QResizeEvent* event) {
    TraceView::resizeEvent(event);
    wrapLegend();
}

void CurvesView::showTable() {
    try {
        if (const auto shown = figure()) showPictureTable(shown->data(), this)->show();
    } catch (const std::exception& error) {
        QToolTip::showText(mapToGlobal(rect().center()), QString::fromUtf8(error.what()), this);
    }
}

void CurvesView::contextMenuEvent(QContextMenuEvent* event) {
    QMenu menu(this);
    const bool any = !m_model.isEmpty();
    menu.addAction(tr("Show as &table"), this, &CurvesView::showTable)->setEnabled(any);
    menu.addAction(tr("Show &everything"), this, &CurvesView::resetZoom)->setEnabled(any && m_zoomed);
    menu.exec(event->globalPos());
}

void CurvesView::replot() {
    if (m_plot->isVisible())
        m_plot->replot(QCustomPlot::rpQueuedReplot);
    else
        m_behind = true;
}

void CurvesView::moveCursor() {
    const bool visible = m_focus && !m_model.isEmpty();
    const int step = m_focus ? m_focus->focus().step.value : 0;
    const double x = m_model.xOf(step);
    if (visible) m_plot->setAccessibleDescription(readout(step));
    QCPItemStraightLine* first = m_cursors.front();
    if (first->visible() == visible && first->point1->coords().x() == x) return;
    for (QCPItemStraightLine* cursor : m_cursors) {
        cursor->setVisible(visible);
        cursor->point1->setCoords(x, 0);
        cursor->point2->setCoords(x, 1);
    }
    if (m_plot->isVisible())
        m_plot->layer(QStringLiteral("overlay"))->replot();
    else
        m_behind = true;
}

int CurvesView::plotAt(const QPointF& at) const {
    for (int i = 0; i < Plots; ++i)
        if (m_rects[static_cast<std::size_t>(i)]->outerRect().contains(at.toPoint())) return i;
    return -1;
}

void CurvesView::seek(double pixelX) {
    if (!m_focus) return;
    const int step = m_model.stepNear(m_rects[Memory]->axis(QCPAxis::atBottom)->pixelToCoord(pixelX));
    if (step >= 0) m_focus->setStep(Step{step});
}

QString CurvesView::readout(int step) const {
    const QLocale locale;
    QStringList lines{tr("step %1 · position %2").arg(locale.toString(step), locale.toString(m_model.xOf(step), 'f', 0))};
    const auto number = [&](double value, int decimals) { return std::isnan(value) ? QStringLiteral("–") : locale.toString(value, 'f', decimals); };
    for (const LaneCurve& lane : m_model.lanes()) {
        const int at = CurvesModel::pointAt(lane, step);
        if (at < 0 || lane.steps[static_cast<std::size_t>(at)] != step) continue;
        const auto i = static_cast<std::size_t>(at);
        lines << tr("%1: PPL %2 · %3 ms · %4 MB").arg(lane.title, number(lane.perplexity[i], 2), number(lane.tpot[i], 2), number(lane.memory[i], 3));
    }
    return lines.join(QLatin1Char('\n'));
}

bool CurvesView::eventFilter(QObject* object, QEvent* event) {
    if (object != m_plot) return TraceView::eventFilter(object, event);
    switch (event->type()) {
    case QEvent::Paint:
        if (std::exchange(m_behind, false)) m_plot->replot(QCustomPlot::rpQueuedRefresh);
        break;
    case QEvent::MouseButtonPress: {
        const auto* mouse = static_cast<QMouseEvent*>(event);
        if (const int plot = plotAt(mouse->position()); plot >= 0) m_active = plot;
        const bool pan = mouse->button() == Qt::LeftButton && (mouse->modifiers() & Qt::ShiftModifier);
        m_plot->setInteraction(QCP::iRangeDrag, pan);
        m_zoomed = m_zoomed || pan;
        m_seeking = mouse->button() == Qt::LeftButton && !pan && plotAt(mouse->position()) >= 0;
        if (m_seeking) seek(mouse->position().x());
        break;
    }
    case QEvent::MouseMove:
        if (m_seeking) seek(static_cast<QMouseEvent*>(event)->position().x());
        break;
    case QEvent::MouseButtonRelease: m_seeking = false; break;
    case QEvent::MouseButtonDblClick: resetZoom(); return true;
    case QEvent::Wheel: m_zoomed = true; break;
    case QEvent::ToolTip: {
        const auto* help = static_cast<QHelpEvent*>(event);
        const int step = plotAt(help->pos()) < 0 ? -1 : m_model.stepNear(m_rects[Memory]->axis(QCPAxis::atBottom)->pixelToCoord(help->pos().x()));
        if (step >= 0) QToolTip::showText(help->globalPos(), readout(step) + QLatin1Char('\n') + tr("Click or drag: go to the step. Wheel: zoom. Shift and drag: move. Double click: everything."), m_plot);
        return true;
    }
    default: break;
    }
    return false;
}

void CurvesView::keyPressEvent(QKeyEvent* event) {
    if (!m_focus || m_model.isEmpty()) return TraceView::keyPressEvent(event);
    const int first = 0, last = m_trace->lastStep();
    const auto go = [&](int step) { m_focus->setStep(Step{std::clamp(step, first, last)}); };
    const int now = std::clamp(m_focus->focus().step.value, first, last);
    QCPAxis* bottom = m_rects[Memory]->axis(QCPAxis::atBottom);
    switch (event->key()) {
    case Qt::Key_Left: go(now - 1); break;
    case Qt::Key_Right: go(now + 1); break;
    case Qt::Key_PageUp: go(now - 16); break;
    case Qt::Key_PageDown: go(now + 16); break;
    case Qt::Key_Home: go(first); break;
    case Qt::Key_End: go(last); break;
    case Qt::Key_Plus:
    case Qt::Key_Equal: m_zoomed = true; bottom->scaleRange(0.8, m_model.xOf(now)); break;
    case Qt::Key_Minus: m_zoomed = true; bottom->scaleRange(1.25, m_model.xOf(now)); break;
    case Qt::Key_0: resetZoom(); break;
    default: TraceView::keyPressEvent(event);
    }
}

void CurvesView::changeEvent(QEvent* event) {
    if ((event->type() == QEvent::PaletteChange || event->type() == QEvent::FontChange) && m_plot) applyPalette();
    TraceView::changeEvent(event);
}

} // namespace keepsight
