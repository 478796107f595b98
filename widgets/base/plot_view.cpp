#include "widgets/base/plot_view.h"

#include "widgets/base/table_dialog.h"

#include <QContextMenuEvent>
#include <QHelpEvent>
#include <QKeyEvent>
#include <QMenu>
#include <QPaintEvent>
#include <QToolTip>
#include <algorithm>

namespace keepsight {

PlotView::PlotView(QWidget* parent) : TraceView(parent) {
    setFocusPolicy(Qt::StrongFocus);
    setMouseTracking(true);
    setAttribute(Qt::WA_OpaquePaintEvent);
    setMinimumSize(160, 120);
    m_timer.setSingleShot(true);
    m_timer.setInterval(0);
    connect(&m_timer, &QTimer::timeout, this, &PlotView::rebuildNow);
}

void PlotView::setTrace(std::shared_ptr<const Trace> trace) {
    if (trace == m_trace) return;
    m_trace = std::move(trace);
    traceChanged();
    invalidate();
}

void PlotView::follow(FocusModel& focus) {
    m_focusModel = &focus;
    // A run moves the focus on to steps that this view's trace does not have yet: then nothing changes until the trace comes.
    connect(&focus, &FocusModel::changed, this, [this](const Focus& to, const Focus& from) {
        const Focus now = clampFocus(to, m_trace.get()), before = clampFocus(from, m_trace.get());
        if (now != before) focusChanged(now, before);
    });
    invalidate();
}

PictureData PlotView::table() const {
    const auto shown = figure();
    return shown ? shown->data() : PictureData{};
}

void PlotView::showTable() {
    try {
        PictureData numbers = table();
        if (!numbers.shape.empty()) showPictureTable(std::move(numbers), this)->show();
    } catch (const std::exception& error) {
        QToolTip::showText(mapToGlobal(rect().center()), QString::fromUtf8(error.what()), this);
    }
}

Focus PlotView::focus() const { return clampFocus(m_focusModel ? m_focusModel->focus() : Focus{}, m_trace.get()); }
PlotStyle PlotView::plotStyle() const { return PlotStyle::screen(palette(), font()); }
CellStyle PlotView::cellStyle() const { return CellStyle::of(palette()); }

void PlotView::invalidate() {
    m_stale = true;
    if (isVisible() && !m_timer.isActive()) m_timer.start();
}

void PlotView::rebuildNow() {
    m_timer.stop();
    if (!m_stale) return;
    m_stale = false;
    m_area = QRectF(rect().marginsRemoved(m_margins));
    if (m_area.isEmpty()) return;
    const qreal ratio = devicePixelRatioF();
    m_picture = QPixmap((m_area.size() * ratio).toSize());
    m_picture.setDevicePixelRatio(ratio);
    const PlotStyle style = plotStyle();
    m_picture.fill(style.background);
    QPainter painter(&m_picture);
    painter.setRenderHints(QPainter::Antialiasing | QPainter::TextAntialiasing);
    const QString nothing = emptyText();
    if (nothing.isEmpty()) {
        rebuild(painter, m_area.size());
    } else {
        painter.setPen(style.faint);
        painter.setFont(font());
        const double margin = std::min(40.0, m_area.width() * 0.08);
        painter.drawText(QRectF(QPointF(0, 0), m_area.size()).adjusted(margin, 0, -margin, 0), Qt::AlignCenter | Qt::TextWordWrap, nothing);
    }
    update();
}

void PlotView::focusChanged(const Focus&, const Focus&) { invalidate(); }

bool PlotView::event(QEvent* event) {
    if (event->type() == QEvent::ToolTip) {
        const auto* help = static_cast<QHelpEvent*>(event);
        const QString text = m_trace && emptyText().isEmpty() ? toolTipAt(QPointF(help->pos()) - m_area.topLeft()) : QString();
        if (text.isEmpty())
            QToolTip::hideText();
        else
            QToolTip::showText(help->globalPos(), text, this);
        return true;
    }
    return TraceView::event(event);
}

void PlotView::paintEvent(QPaintEvent*) {
    if (m_stale) rebuildNow(); // first paint, or a grab of a hidden widget
    QPainter painter(this);
    painter.fillRect(rect(), palette().color(QPalette::Base));
    painter.drawPixmap(m_area.topLeft(), m_picture);
    if (emptyText().isEmpty()) {
        painter.save();
        painter.translate(m_area.topLeft());
        painter.setRenderHint(QPainter::Antialiasing);
        paintOverlay(painter);
        painter.restore();
    }
    if (hasFocus()) {
        QColor ring = palette().color(QPalette::Highlight);
        painter.setPen(ring);
        painter.drawRect(QRectF(rect()).adjusted(0.5, 0.5, -0.5, -0.5));
    }
}

void PlotView::resizeEvent(QResizeEvent*) { invalidate(); }

void PlotView::showEvent(QShowEvent*) {
    if (m_stale) m_timer.start();
}

void PlotView::changeEvent(QEvent* event) {
    switch (event->type()) {
    case QEvent::PaletteChange:
    case QEvent::StyleChange:
    case QEvent::FontChange:
    case QEvent::LanguageChange:
        invalidate();
        break;
    default:
        break;
    }
    TraceView::changeEvent(event);
}

void PlotView::contextMenuEvent(QContextMenuEvent* event) {
    QMenu menu(this);
    QAction* show = menu.addAction(tr("Show as Table…"), this, &PlotView::showTable);
    show->setEnabled(m_trace && emptyText().isEmpty());
    menu.exec(event->globalPos());
}

void PlotView::keyPressEvent(QKeyEvent* event) {
    if (!m_focusModel || !m_trace || event->modifiers() & (Qt::ControlModifier | Qt::AltModifier)) return TraceView::keyPressEvent(event);
    Focus f = focus();
    const Focus before = f;
    Position last = static_cast<Position>(m_trace->tokens.size()) - 1;
    if (!m_trace->lanes.empty()) last = std::max(last, m_trace->lanes[static_cast<std::size_t>(f.lane.value)].retention.positions() - 1);
    switch (event->key()) {
    case Qt::Key_Up:
        --f.layer.value;
        break;
    case Qt::Key_Down:
        ++f.layer.value;
        break;
    case Qt::Key_PageUp:
        --f.head.value;
        break;
    case Qt::Key_PageDown:
        ++f.head.value;
        break;
    case Qt::Key_Left:
        f.position = std::max(0, f.position - 1);
        break;
    case Qt::Key_Right:
        f.position = std::min(last, f.position + 1);
        break;
    case Qt::Key_Home:
        f.position = 0;
        break;
    case Qt::Key_End:
        f.position = last;
        break;
    default:
        return TraceView::keyPressEvent(event);
    }
    f = clampFocus(f, m_trace.get());
    if (f != before) {
        f.step = m_focusModel->focus().step; // other lanes may go on longer
        m_focusModel->set(f);
    }
    event->accept();
}

void PlotView::focusInEvent(QFocusEvent*) { update(); }
void PlotView::focusOutEvent(QFocusEvent*) { update(); }

void PlotView::setPlotMargins(const QMargins& margins) {
    if (margins == m_margins) return;
    m_margins = margins;
    invalidate();
}

QString laneTitle(const Lane& lane) {
    QStringList parts{QString::fromStdString(lane.label), QString::fromStdString(lane.policy.text())};
    if (lane.policy.budget.kind == Budget::Kind::tokens)
        parts << PlotView::tr("%Ln token(s) kept", nullptr, lane.policy.budget.tokens);
    else if (lane.policy.budget.compressionRatio > 0)
        parts << PlotView::tr("%1 % removed").arg(QString::number(lane.policy.budget.compressionRatio * 100, 'g', 4));
    if (lane.policy.quant != QuantSpec()) parts << QString::fromStdString(lane.policy.quant.text());
    return parts.join(QStringLiteral(" · "));
}

Focus clampFocus(Focus focus, const Trace* trace) {
    if (!trace) return focus;
    const auto clamp = [](int value, std::size_t count) { return std::clamp(value, 0, std::max(0, static_cast<int>(count) - 1)); };
    focus.lane = LaneIndex{clamp(focus.lane.value, trace->lanes.size())};
    // A lane that ended earlier than the others shows its last step.
    const int lastStep =
        trace->lanes.empty() ? 0 : static_cast<int>(trace->lanes[static_cast<std::size_t>(focus.lane.value)].steps.size()) - 1;
    focus.step = Step{std::clamp(focus.step.value, 0, std::max(0, lastStep))};
    focus.layer = LayerIndex{clamp(focus.layer.value, static_cast<std::size_t>(std::max(0, trace->model.config.layers)))};
    focus.head = HeadIndex{clamp(focus.head.value, static_cast<std::size_t>(std::max(0, storedHeads(*trace, focus.lane))))};
    if (focus.position < 0 || (!trace->lanes.empty() && !trace->tokenAt(focus.lane, focus.position))) focus.position = -1;
    return focus;
}

QString tokenText(const Trace& trace, LaneIndex lane, Position position) {
    const TokenRecord* token = trace.tokenAt(lane, position);
    if (!token || token->bytes.empty()) return {};
    QString text = QString::fromUtf8(token->bytes.data(), static_cast<qsizetype>(token->bytes.size()));
    text.replace(QLatin1Char('\n'), QStringLiteral("⏎")).replace(QLatin1Char('\t'), QStringLiteral("⇥"));
    return QStringLiteral("“%1”").arg(text);
}

} // namespace keepsight
