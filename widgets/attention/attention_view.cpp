#include "widgets/attention/attention_view.h"

#include "widgets/attention/attention_figure.h"

#include <QCheckBox>
#include <QComboBox>
#include <QHBoxLayout>
#include <QMouseEvent>
#include <QPushButton>
#include <QSignalBlocker>
#include <algorithm>
#include <cmath>

namespace keepsight {

AttentionView::AttentionView(QWidget* parent) : PlotView(parent) {
    m_bar = new QWidget(this);
    m_logarithmic = new QCheckBox(m_bar);
    m_locked = new QCheckBox(m_bar);
    m_heads = new QComboBox(m_bar);
    m_full = new QPushButton(m_bar);
    m_logarithmic->setChecked(true);
    m_heads->setSizeAdjustPolicy(QComboBox::AdjustToContents);
    auto* row = new QHBoxLayout(m_bar);
    row->setContentsMargins(6, 3, 6, 3);
    row->setSpacing(8);
    row->addWidget(m_logarithmic);
    row->addWidget(m_locked);
    row->addStretch(1);
    row->addWidget(m_heads);
    row->addWidget(m_full);
    m_bar->setAutoFillBackground(true);
    connect(m_logarithmic, &QCheckBox::toggled, this, &AttentionView::refresh);
    connect(m_locked, &QCheckBox::toggled, this, &AttentionView::refresh);
    connect(m_heads, &QComboBox::currentIndexChanged, this, &AttentionView::refresh);
    connect(m_full, &QPushButton::clicked, this, &AttentionView::requestFullResolution);
    retranslate();
    refresh();
}

void AttentionView::retranslate() {
    setAccessibleName(tr("Attention"));
    setAccessibleDescription(
        tr("Attention weights of the focused layer and head, queries downwards, keys to the right. Arrow keys move layer and token, "
           "Page Up and Page Down the head; the context menu shows the numbers as a table."));
    m_logarithmic->setText(tr("Log"));
    m_logarithmic->setToolTip(tr("Logarithmic colours"));
    m_locked->setText(tr("Lock"));
    m_locked->setAccessibleName(tr("Lock range"));
    m_locked->setToolTip(tr("Keep this colour range for every layer, head and lane"));
    m_heads->setAccessibleName(tr("Query head"));
    m_heads->setToolTip(tr("The mean over the query heads of this KV head, or one query head at full resolution"));
    m_full->setText(tr("Exact…")); // short: the view can be narrow
    m_full->setAccessibleName(tr("Full resolution"));
    m_full->setToolTip(tr("Compute the exact map of one query head, one cell for each pair of tokens"));
    m_firstQueryHead = -1;
}

void AttentionView::fillHeads() {
    const int group = trace() ? std::max(1, trace()->model.config.groupSize()) : 0, first = kvHead().value * group;
    if (first == m_firstQueryHead && m_heads->count() == group + 1) return;
    const QSignalBlocker quiet(m_heads);
    const int chosen = std::clamp(m_heads->currentIndex(), 0, group); // stays with the same member of the group
    m_firstQueryHead = first;
    m_heads->clear();
    m_heads->addItem(tr("KV head %1, mean").arg(kvHead().value));
    for (int i = 0; i < group; ++i)
        m_heads->addItem(tr("Query head %1").arg(first + i));
    m_heads->setCurrentIndex(chosen);
}

HeadIndex AttentionView::kvHead() const { return trace() ? kvHeadOf(*trace(), focus().lane, focus().head) : focus().head; }

std::optional<HeadIndex> AttentionView::queryHead() const {
    if (m_heads->currentIndex() <= 0) return std::nullopt;
    return HeadIndex{m_firstQueryHead + m_heads->currentIndex() - 1};
}

void AttentionView::refresh() {
    fillHeads();
    const Focus f = focus();
    const auto query = queryHead();
    m_model = AttentionModel(trace(), f.lane, f.layer, query.value_or(kvHead()), query.has_value(), f.step);
    const bool logarithmic = m_logarithmic->isChecked();
    if (!m_locked->isChecked()) {
        m_scale = m_model.scale(logarithmic);
    } else if (logarithmic != m_scale.logarithmic()) { // a locked range survives the switch as far as it can
        m_scale = logarithmic ? ColorScale(ColorMap::viridis, m_scale.max() * 1e-4, m_scale.max(), true)
                              : ColorScale(ColorMap::viridis, 0, m_scale.max());
    }
    m_heads->setEnabled(trace() != nullptr);
    m_full->setEnabled(m_available && trace() != nullptr && trace()->prefillLength > 0 && !(query && !m_model.empty()));
    invalidate();
}

void AttentionView::requestFullResolution() {
    if (!queryHead() && m_heads->count() > 1) m_heads->setCurrentIndex(1);
    if (const auto query = queryHead()) Q_EMIT fullResolutionRequested(focus().layer, *query);
}

void AttentionView::setLogarithmic(bool on) { m_logarithmic->setChecked(on); }
void AttentionView::setRangeLocked(bool on) { m_locked->setChecked(on); }

void AttentionView::setFullResolutionAvailable(bool on) {
    m_available = on;
    refresh();
}

void AttentionView::traceChanged() { refresh(); }

void AttentionView::focusChanged(const Focus& now, const Focus& before) {
    if (now.lane != before.lane || now.layer != before.layer || now.head != before.head || now.step != before.step)
        refresh();
    else
        update(); // the token is only an overlay
}

QString AttentionView::emptyText() const {
    if (!trace()) return tr("Run Score or Generate to see where every head looks.");
    if (!m_model.empty()) return {};
    if (const auto query = queryHead())
        return tr("The full-resolution map of layer %1, query head %2 was not computed yet; press Exact….")
            .arg(focus().layer.value)
            .arg(query->value);
    return tr("This run recorded no attention for this head; run it again with attention maps on.");
}

std::unique_ptr<Figure> AttentionView::figure() const {
    if (!trace() || m_model.empty()) return {};
    const auto query = queryHead();
    return attentionFigure(trace(), {focus().lane, focus().step, focus().layer, query.value_or(kvHead()), query.has_value()}, m_scale);
}

void AttentionView::rebuild(QPainter& painter, const QSizeF& size) {
    const PlotStyle style = plotStyle();
    const AxisRange queries{0, static_cast<double>(m_model.queries()), false, true},
        keys{0, static_cast<double>(m_model.keys()), false, true};
    const double left = leftAxisWidth(queries, style), title = textHeight(style) * 1.3;
    const double below = bottomAxisHeight(style) + 6 + colorBarHeight(style, false) + 4;
    m_plot = QRectF(left, title, size.width() - left - 12, size.height() - title - below).toAlignedRect();
    if (m_plot.width() < 16 || m_plot.height() < 16) return;
    const Focus f = focus();
    const auto query = queryHead();
    const QString head = query ? tr("Layer %1, query head %2").arg(f.layer.value).arg(query->value)
                               : tr("Layer %1, KV head %2").arg(f.layer.value).arg(kvHead().value);
    QString lane;
    if (!trace()->lanes.empty()) lane = laneTitle(trace()->lanes[static_cast<std::size_t>(f.lane.value)]);
    paintText(painter, QRectF(m_plot.left(), 0, m_plot.width(), title), Qt::AlignLeft | Qt::AlignVCenter,
              lane.isEmpty() ? head : QStringLiteral("%1 · %2").arg(head, lane), style, style.ink);
    const qreal ratio = devicePixelRatioF();
    for (const AttentionModel::Part& part : m_model.parts()) {
        const QRectF rect = m_model.rectOf(part, m_plot);
        const QRect pixels = QRectF(rect.topLeft() * ratio, rect.size() * ratio).toRect(); // neighbours share the rounded edge
        QImage image = renderCells(part.grid, pixels.size(), ratio, m_scale, cellStyle());
        image.setDevicePixelRatio(ratio);
        painter.drawImage(QPointF(pixels.topLeft()) / ratio, image);
    }
    if (m_model.prefillEnd() > 0 && m_model.prefillEnd() < m_model.queries()) {
        const double y = m_plot.top() + m_plot.height() * m_model.prefillEnd() / m_model.queries();
        painter.setPen(QPen(style.accent, 1.5));
        painter.drawLine(QPointF(m_plot.left(), y), QPointF(m_plot.right(), y));
        paintText(painter, QRectF(m_plot.left(), y - textHeight(style) - 2, m_plot.width() - 4, textHeight(style)),
                  Qt::AlignRight | Qt::AlignVCenter, tr("end of prefill"), style, style.accent);
    }
    painter.setPen(QPen(style.grid.darker(130), 1));
    painter.setBrush(Qt::NoBrush);
    painter.drawRect(m_plot.adjusted(-0.5, -0.5, 0.5, 0.5));
    paintLeftAxis(painter, m_plot, queries, tr("query position"), style, true);
    paintBottomAxis(painter, m_plot, keys, tr("key position"), style);
    paintColorBar(painter, QRectF(m_plot.left(), m_plot.bottom() + bottomAxisHeight(style) + 6, m_plot.width(), style.textSize * 0.8),
                  m_scale, QString(), style);
}

void AttentionView::paintOverlay(QPainter& painter) {
    const Focus f = focus();
    const PlotStyle style = plotStyle();
    QColor line = style.accent;
    line.setAlpha(190);
    painter.setPen(QPen(line, 1, Qt::DashLine));
    if (f.position >= 0 && f.position < m_model.keys()) {
        const double x = m_plot.left() + (f.position + 0.5) * m_plot.width() / m_model.keys();
        painter.drawLine(QPointF(x, m_plot.top()), QPointF(x, m_plot.bottom()));
    }
    if (f.step.value >= 2 && !trace()->lanes.empty()) { // the token the focused step appended
        const Lane& lane = trace()->lanes[static_cast<std::size_t>(f.lane.value)];
        const Position query = lane.retention.positionsAt(f.step) - 1;
        if (query >= 0 && query < m_model.queries()) {
            const double y = m_plot.top() + (query + 0.5) * m_plot.height() / m_model.queries();
            painter.drawLine(QPointF(m_plot.left(), y), QPointF(m_plot.right(), y));
        }
    }
}

std::optional<QPointF> AttentionView::positionAt(const QPointF& point) const {
    if (!m_plot.contains(point) || m_model.empty()) return std::nullopt;
    return QPointF(std::floor((point.x() - m_plot.left()) / m_plot.width() * m_model.keys()),
                   std::floor((point.y() - m_plot.top()) / m_plot.height() * m_model.queries()));
}

std::optional<AttentionModel::Hit> AttentionView::cellAt(const QPointF& point) {
    rebuildNow();
    const auto position = positionAt(point - plotArea().topLeft());
    return position ? m_model.at(static_cast<Position>(position->y()), static_cast<Position>(position->x())) : std::nullopt;
}

QPointF AttentionView::pointOf(Position query, Position key) {
    rebuildNow();
    return plotArea().topLeft() + m_plot.topLeft() +
           QPointF((key + 0.5) * m_plot.width() / std::max(1, m_model.keys()),
                   (query + 0.5) * m_plot.height() / std::max(1, m_model.queries()));
}

QString AttentionView::toolTipAt(const QPointF& point) const {
    const auto position = positionAt(point);
    if (!position) return {};
    const auto hit = m_model.at(static_cast<Position>(position->y()), static_cast<Position>(position->x()));
    if (!hit) return {};
    const auto range = [&](Position begin, Position end) {
        const QString numbers = end - begin > 1 ? QStringLiteral("%1–%2").arg(begin).arg(end - 1) : QString::number(begin);
        QStringList texts;
        for (Position p = begin; p < std::min(end, begin + 6); ++p)
            texts << tokenText(*trace(), focus().lane, p);
        if (end - begin > 6) texts << QStringLiteral("…");
        return QStringLiteral("%1  %2").arg(numbers, texts.join(QLatin1Char(' ')));
    };
    QStringList lines{tr("Query %1").arg(range(hit->queryBegin, hit->queryEnd)), tr("Key %1").arg(range(hit->keyBegin, hit->keyEnd))};
    switch (hit->kind) {
    case CellKind::value:
        lines << tr("Weight %1").arg(QString::number(hit->value, 'g', 6));
        break;
    case CellKind::evicted:
        lines << tr("Evicted at step %1").arg(hit->evictedAt);
        break;
    case CellKind::blank:
    case CellKind::missing:
        lines << tr("Not visible: the key comes after the query");
        break;
    }
    return lines.join(QLatin1Char('\n'));
}

void AttentionView::mousePressEvent(QMouseEvent* event) {
    if (event->button() != Qt::LeftButton || !focusModel()) return;
    rebuildNow();
    const auto position = positionAt(event->position() - plotArea().topLeft());
    if (position && trace() && trace()->tokenAt(focus().lane, static_cast<Position>(position->x())))
        focusModel()->setPosition(static_cast<Position>(position->x()));
}

void AttentionView::resizeEvent(QResizeEvent* event) {
    const int height = m_bar->sizeHint().height();
    m_bar->setGeometry(0, 0, width(), height);
    setPlotMargins(QMargins(1, height, 1, 1));
    PlotView::resizeEvent(event);
}

void AttentionView::changeEvent(QEvent* event) {
    if (event->type() == QEvent::LanguageChange) {
        retranslate();
        refresh();
    }
    PlotView::changeEvent(event);
}

} // namespace keepsight
