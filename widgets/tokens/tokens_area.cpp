#include "widgets/tokens/tokens_area.h"

#include <QFontMetricsF>
#include <QHelpEvent>
#include <QKeyEvent>
#include <QPainter>
#include <QScrollBar>
#include <QToolTip>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

constexpr int Margin = 8;

} // namespace

TokensArea::TokensArea(QWidget* parent) : QAbstractScrollArea(parent) {
    setFrameShape(QFrame::NoFrame);
    setFocusPolicy(Qt::StrongFocus);
    setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    // Always there: whether a bar is needed depends on the wrapping, and that on the bar.
    setVerticalScrollBarPolicy(Qt::ScrollBarAlwaysOn);
    viewport()->setMouseTracking(true);
    viewport()->setBackgroundRole(QPalette::Base);
    viewport()->setCursor(Qt::IBeamCursor);
    setAccessibleName(tr("Tokens of the focused lane"));
}

void TokensArea::setText(std::shared_ptr<const Trace> trace, LaneIndex lane, bool symbols) {
    m_trace = std::move(trace);
    setLines(m_model.setText(m_trace.get(), lane, symbols));
}

void TokensArea::setHolding(const Focus& focus, HoldingScope scope) {
    m_focus = focus;
    m_model.setHolding(m_trace.get(), focus, scope);
    viewport()->update();
}

void TokensArea::setLines(std::size_t kept) {
    const QFontMetricsF metrics(font(), this);
    if (m_widthsOf != font()) {
        m_widths.clear();
        m_widthsOf = font();
    }
    m_layout.update(m_model.clusters(), kept, std::max(40, viewport()->width() - 2 * Margin), std::ceil(metrics.height() * 1.3), [&](const QString& text) {
        auto known = m_widths.constFind(text);
        if (known == m_widths.constEnd()) known = m_widths.insert(text, metrics.horizontalAdvance(text));
        return *known;
    });
    updateBar();
    viewport()->update();
}

void TokensArea::updateBar() {
    const int height = static_cast<int>(std::ceil(m_layout.height())) + 2 * Margin;
    verticalScrollBar()->setRange(0, std::max(0, height - viewport()->height()));
    verticalScrollBar()->setPageStep(std::max(1, viewport()->height()));
    verticalScrollBar()->setSingleStep(static_cast<int>(m_layout.lineHeight()));
    verticalScrollBar()->setEnabled(verticalScrollBar()->maximum() > 0);
}

TokensStyle TokensArea::style() const {
    TokensStyle out;
    out.base = palette().color(QPalette::Base);
    out.ink = palette().color(QPalette::Text);
    return out;
}

QRectF TokensArea::rectOf(Position position) const {
    if (position < 0 || position >= m_model.positions()) return {};
    const std::size_t cluster = m_model.clusterOf(position);
    const TokenCluster& of = m_model.clusters()[cluster];
    return m_layout.tokenRect(of, cluster, position - of.first);
}

void TokensArea::setPosition(Position position) {
    if (position == m_position) return;
    m_position = position;
    const QRectF rect = rectOf(position);
    if (!rect.isEmpty()) {
        const int top = static_cast<int>(rect.top()) + Margin, bottom = static_cast<int>(rect.bottom()) + Margin;
        QScrollBar* bar = verticalScrollBar();
        if (top - Margin < bar->value()) bar->setValue(top - Margin);
        else if (bottom + Margin > bar->value() + viewport()->height()) bar->setValue(bottom + Margin - viewport()->height());
        if (m_trace) setAccessibleDescription(m_model.toolTip(*m_trace, m_focus, position));
    }
    viewport()->update();
}

Position TokensArea::positionAt(const QPoint& point) const {
    return m_layout.positionAt(m_model.clusters(), point.x() - Margin, point.y() - Margin + verticalScrollBar()->value());
}

void TokensArea::paintEvent(QPaintEvent* event) {
    QPainter painter(viewport());
    painter.fillRect(event->rect(), palette().color(QPalette::Base));
    if (m_model.clusters().empty()) return;
    painter.setRenderHint(QPainter::Antialiasing);
    const int scrolled = verticalScrollBar()->value() - Margin;
    painter.translate(Margin, -scrolled);
    const int first = static_cast<int>(std::floor((event->rect().top() + scrolled) / m_layout.lineHeight()));
    const int last = static_cast<int>(std::floor((event->rect().bottom() + scrolled) / m_layout.lineHeight()));
    const auto [begin, end] = m_layout.clustersOnLines(first, last);
    painter.setFont(font());
    const QFontMetricsF metrics(font(), this);
    const double ascent = (m_layout.lineHeight() - metrics.height()) / 2 + metrics.ascent();
    paintTokens(painter, m_model, m_layout, begin, end, ascent, style(), [](QPainter& p, const QPointF& baseline, const QString& text, const QColor& color) {
        p.setPen(color);
        p.drawText(baseline, text);
    });
    if (const QRectF rect = rectOf(m_position); !rect.isEmpty()) {
        // Two rings, so that the outline shows on every colour.
        painter.setBrush(Qt::NoBrush);
        painter.setPen(QPen(palette().color(QPalette::Base), 3));
        painter.drawRect(rect.adjusted(-0.5, 0.5, 0, -0.5));
        painter.setPen(QPen(palette().color(hasFocus() ? QPalette::Highlight : QPalette::Text), 2));
        painter.drawRect(rect.adjusted(-0.5, 0.5, 0, -0.5));
    }
}

void TokensArea::resizeEvent(QResizeEvent* event) {
    // Keeps the text that was at the top there.
    const Position top = positionAt(QPoint(Margin, Margin));
    setLines(m_model.clusters().size());
    if (event->oldSize().width() != event->size().width() && verticalScrollBar()->value() > 0 && top >= 0)
        verticalScrollBar()->setValue(static_cast<int>(rectOf(top).top()));
    QAbstractScrollArea::resizeEvent(event);
}

void TokensArea::changeEvent(QEvent* event) {
    QAbstractScrollArea::changeEvent(event);
    if (event->type() == QEvent::FontChange) setLines(0);
    if (event->type() == QEvent::PaletteChange) viewport()->update();
}

void TokensArea::mousePressEvent(QMouseEvent* event) {
    if (event->button() != Qt::LeftButton) return event->ignore();
    if (const Position at = positionAt(event->position().toPoint()); at >= 0) Q_EMIT positionChosen(at);
}

void TokensArea::mouseMoveEvent(QMouseEvent* event) {
    if (event->buttons() & Qt::LeftButton)
        if (const Position at = positionAt(event->position().toPoint()); at >= 0) Q_EMIT positionChosen(at);
}

Position TokensArea::besides(int lines) const {
    const QRectF now = rectOf(m_position);
    const double y = std::clamp(now.center().y() + lines * m_layout.lineHeight(), 0.0, std::max(0.0, m_layout.height() - 1));
    const int line = static_cast<int>(y / m_layout.lineHeight());
    auto [begin, end] = m_layout.clustersOnLines(line, line);
    if (begin == end) { // an empty line
        begin = lines < 0 && begin > 0 ? begin - 1 : std::min(begin, m_model.clusters().size() - 1);
        return m_model.clusters()[begin].first;
    }
    const Position at = m_layout.positionAt(m_model.clusters(), now.center().x(), y);
    const TokenCluster& last = m_model.clusters()[end - 1];
    return at >= 0 ? at : last.first + last.count - 1;
}

void TokensArea::keyPressEvent(QKeyEvent* event) {
    const Position last = m_model.positions() - 1;
    if (last < 0) return QAbstractScrollArea::keyPressEvent(event);
    const int page = std::max(1, static_cast<int>(viewport()->height() / m_layout.lineHeight()) - 1);
    const bool none = m_position < 0;
    Position to = -1;
    switch (event->key()) {
    case Qt::Key_Left: to = none ? 0 : std::clamp(m_position - 1, 0, last); break;
    case Qt::Key_Right: to = none ? 0 : std::clamp(m_position + 1, 0, last); break;
    case Qt::Key_Up: to = none ? 0 : besides(-1); break;
    case Qt::Key_Down: to = none ? 0 : besides(1); break;
    case Qt::Key_PageUp: to = none ? 0 : besides(-page); break;
    case Qt::Key_PageDown: to = none ? 0 : besides(page); break;
    case Qt::Key_Home: to = 0; break;
    case Qt::Key_End: to = last; break;
    default: return QAbstractScrollArea::keyPressEvent(event);
    }
    Q_EMIT positionChosen(to);
}

bool TokensArea::viewportEvent(QEvent* event) {
    if (event->type() == QEvent::ToolTip) {
        const auto* help = static_cast<QHelpEvent*>(event);
        const Position at = positionAt(help->pos());
        if (at >= 0 && m_trace) QToolTip::showText(help->globalPos(), m_model.toolTip(*m_trace, m_focus, at), viewport());
        else QToolTip::hideText();
        return true;
    }
    return QAbstractScrollArea::viewportEvent(event);
}

} // namespace keepsight
