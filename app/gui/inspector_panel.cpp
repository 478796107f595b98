#include "app/gui/inspector_panel.h"

#include "app/gui/why_block.h"
#include "widgets/base/plot_view.h"
#include "widgets/lanes/lane_color.h"

#include <QGridLayout>
#include <QLabel>
#include <QMouseEvent>
#include <QPainter>
#include <QScrollArea>
#include <QToolTip>
#include <QVBoxLayout>

#include <algorithm>
#include <cmath>

namespace keepsight {

// Which layers and heads hold the focused token: heads downwards, layers to the right. A click focuses that head.
class HoldersMap : public QWidget {
public:
    explicit HoldersMap(QWidget* parent = nullptr) : QWidget(parent) {
        setMouseTracking(true);
        setAccessibleName(InspectorPanel::tr("Layers and heads that hold the token"));
    }
    FocusModel* focus = nullptr;
    void show(std::shared_ptr<const Trace> trace, const Focus& at) {
        m_trace = std::move(trace);
        m_at = at;
        const int heads = m_trace ? storedHeads(*m_trace, m_at.lane) : 1;
        setFixedHeight(std::clamp(heads * 26, 52, 150) + fontMetrics().height() + 4);
        update();
    }

protected:
    void paintEvent(QPaintEvent*) override {
        if (!m_trace || m_trace->lanes.empty() || m_at.position < 0) return;
        const Lane& lane = m_trace->lanes[std::size_t(m_at.lane.value)];
        const Retention& r = lane.retention;
        if (r.layers() == 0 || r.heads() == 0 || lane.steps.empty() || m_at.position >= r.positions()) return;
        QPainter p(this);
        const QRectF area = cells();
        const Step step(std::min(m_at.step.value, int(lane.steps.size()) - 1));
        const double w = area.width() / r.layers(), h = area.height() / r.heads();
        p.fillRect(area, palette().color(QPalette::Base));
        for (int head = 0; head < r.heads(); ++head)
            for (int layer = 0; layer < r.layers(); ++layer)
                if (r.holds(step, LayerIndex(layer), HeadIndex(head), m_at.position))
                    p.fillRect(QRectF(area.left() + layer * w, area.top() + head * h, w, h).toAlignedRect() & area.toRect(), palette().color(QPalette::Text));
        p.setPen(palette().color(QPalette::Mid));
        p.drawRect(area.adjusted(0, 0, -1, -1));
        for (int head = 1; head < r.heads(); ++head)
            p.drawLine(QPointF(area.left(), area.top() + head * h), QPointF(area.right() - 1, area.top() + head * h));
        p.setPen(QPen(isDark(palette()) ? QColor(0xf5, 0x8a, 0x4b) : QColor(0xc4, 0x53, 0x1b), 2)); // as the views mark the focus
        p.drawRect(QRectF(area.left() + m_at.layer.value * w, area.top() + m_at.head.value * h, w, h));
        p.setPen(palette().color(QPalette::PlaceholderText));
        const QRectF foot(area.left(), area.bottom() + 2, area.width(), fontMetrics().height());
        p.drawText(foot, Qt::AlignLeft, QStringLiteral("0"));
        p.drawText(foot, Qt::AlignRight, QString::number(r.layers() - 1));
        p.drawText(foot, Qt::AlignHCenter, InspectorPanel::tr("layer"));
    }
    void mousePressEvent(QMouseEvent* event) override {
        if (const auto at = cellAt(event->position()); at && focus) focus->setHead(at->first, at->second);
    }
    void mouseMoveEvent(QMouseEvent* event) override {
        if (const auto at = cellAt(event->position()))
            QToolTip::showText(event->globalPosition().toPoint(), InspectorPanel::tr("layer %1, head %2").arg(at->first.value).arg(at->second.value), this);
    }

private:
    QRectF cells() const { return QRectF(0.0, 0.0, width(), height() - fontMetrics().height() - 3); }
    std::optional<std::pair<LayerIndex, HeadIndex>> cellAt(const QPointF& at) const {
        if (!m_trace || !cells().contains(at)) return {};
        const int layers = m_trace->model.config.layers, heads = storedHeads(*m_trace, m_at.lane);
        if (layers <= 0 || heads <= 0) return {};
        return std::pair(LayerIndex(std::min(layers - 1, int(at.x() / cells().width() * layers))),
                         HeadIndex(std::min(heads - 1, int(at.y() / cells().height() * heads))));
    }
    std::shared_ptr<const Trace> m_trace;
    Focus m_at;
};

InspectorPanel::InspectorPanel(QWidget* parent)
    : QWidget(parent), m_grid(new QGridLayout), m_title(new QLabel), m_place(new QLabel), m_empty(new QLabel), m_compareTitle(new QLabel), m_body(new QWidget),
      m_map(new HoldersMap), m_why(new WhyBlock) {
    QFont large = m_title->font();
    large.setPointSizeF(large.pointSizeF() * 1.15);
    large.setBold(true);
    m_title->setFont(large);
    m_title->setTextFormat(Qt::PlainText);
    m_title->setWordWrap(true);
    m_title->setTextInteractionFlags(Qt::TextSelectableByMouse);
    m_place->setProperty("role", "heading");
    m_place->setWordWrap(true);
    m_compareTitle->setProperty("role", "heading");
    m_empty->setWordWrap(true);
    m_empty->setProperty("role", "quiet");
    m_grid->setColumnStretch(1, 1);
    m_grid->setHorizontalSpacing(8);
    m_grid->setVerticalSpacing(5);
    m_state = row(tr("State"));
    m_since = row(tr("Evicted at"));
    m_holders = row(tr("Held by"));
    m_kept = row(tr("Head keeps"));
    m_before = row(tr("Attn. before"));
    m_after = row(tr("Attn. since"));
    m_nll = row(tr("NLL"));
    m_after->setToolTip(tr("The same over this lane's own steps; 0 once it is evicted"));
    auto* heldBy = new QLabel(tr("Held by (head × layer)"));
    heldBy->setProperty("role", "quiet");
    m_tokenRows << heldBy << m_map;
    for (int i = 0; i < m_grid->count(); ++i)
        if (auto* w = m_grid->itemAt(i)->widget(); w != m_kept && w->property("of") != QVariant(m_kept->accessibleName())) m_tokenRows << w;
    auto* compare = new QGridLayout;
    std::swap(compare, m_grid);
    auto* first = compare; // the rows so far
    m_grid->setColumnStretch(1, 1);
    m_grid->setHorizontalSpacing(8);
    m_grid->setVerticalSpacing(5);
    m_jaccardHead = row(tr("Jaccard, head"));
    m_jaccardAll = row(tr("Jaccard, all"));
    m_ppl = row(tr("PPL"));
    m_bytes = row(tr("KV bytes"));
    m_jaccardHead->setToolTip(tr("Tokens both lanes hold, of those either holds, in this layer and head"));
    m_jaccardAll->setToolTip(tr("The same over all layers and heads"));

    auto* column = new QVBoxLayout(m_body);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(6);
    column->addWidget(m_title);
    column->addWidget(m_place);
    column->addLayout(first);
    column->addSpacing(4);
    column->addWidget(m_why);
    column->addSpacing(4);
    column->addWidget(heldBy);
    column->addWidget(m_map);
    column->addSpacing(6);
    column->addWidget(m_compareTitle);
    column->addLayout(m_grid);
    auto* inside = new QWidget;
    auto* all = new QVBoxLayout(inside);
    all->setContentsMargins(10, 8, 10, 8);
    all->addWidget(m_empty);
    all->addWidget(m_body);
    all->addStretch(1);
    auto* scroll = new QScrollArea;
    scroll->setFrameShape(QFrame::NoFrame);
    scroll->setWidgetResizable(true);
    scroll->setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    scroll->setWidget(inside);
    auto* outer = new QVBoxLayout(this);
    outer->setContentsMargins(0, 0, 0, 0);
    outer->addWidget(scroll);
    m_timer.setSingleShot(true);
    connect(&m_timer, &QTimer::timeout, this, &InspectorPanel::refresh);
    refresh();
}

QLabel* InspectorPanel::row(const QString& name) {
    const int at = m_grid->rowCount();
    auto* label = new QLabel(name);
    label->setProperty("role", "quiet");
    label->setProperty("of", name);
    auto* value = new QLabel;
    value->setWordWrap(true);
    value->setTextInteractionFlags(Qt::TextSelectableByMouse);
    value->setAccessibleName(name);
    m_grid->addWidget(label, at, 0, Qt::AlignTop);
    m_grid->addWidget(value, at, 1, Qt::AlignTop);
    return value;
}

void InspectorPanel::setTrace(std::shared_ptr<const Trace> trace) {
    m_trace = std::move(trace);
    later();
}

void InspectorPanel::follow(FocusModel& focus) {
    m_focus = &focus;
    m_map->focus = &focus;
    connect(&focus, &FocusModel::changed, this, [this](const Focus& now, const Focus& before) {
        if (clampFocus(now, m_trace.get()) != clampFocus(before, m_trace.get())) later();
    });
}

void InspectorPanel::showEvent(QShowEvent* event) {
    QWidget::showEvent(event);
    refresh();
}

void InspectorPanel::later() {
    if (isVisible() && !m_timer.isActive()) m_timer.start(0);
}

static QString percent(double share, int decimals = 1) {
    return std::isnan(share) ? QString(QChar(0x2013)) : InspectorPanel::tr("%1 %").arg(100 * share, 0, 'f', decimals);
}

void InspectorPanel::refresh() {
    const bool run = m_trace && m_focus && !m_trace->lanes.empty() && m_trace->lastStep() >= 0;
    const Focus f = run ? clampFocus(m_focus->focus(), m_trace.get()) : Focus{};
    const bool token = run && f.position >= 0;
    m_body->setVisible(run);
    m_empty->setVisible(!token);
    m_why->setFocus(token ? m_trace : nullptr, f);
    m_empty->setText(run ? tr("Click a token to see where it is held and what it received.") : tr("Score a text, or open a session: the token under the cursor is explained here."));
    if (!run) return;

    const auto& lanes = m_trace->lanes;
    const QString dash(QChar(0x2013));
    const TokenFacts facts = tokenFacts(*m_trace, f);
    m_title->setVisible(token);
    m_title->setText(tr("token %1  %2").arg(facts.position).arg(facts.token));
    m_place->setText((storedHeads(*m_trace, f.lane) == m_trace->model.config.kvHeads ? tr("Lane %1, layer %2, KV head %3") : tr("Lane %1, layer %2, query head %3")).arg(QString::fromStdString(lanes[std::size_t(f.lane.value)].label)).arg(f.layer.value).arg(f.head.value));
    for (QLabel* label : {m_state, m_since, m_holders, m_kept, m_before, m_after, m_nll})
        label->setText(dash);
    if (token) {
        m_state->setText(!facts.appended ? tr("not read yet") : facts.held ? tr("held") : tr("evicted"));
        m_since->setText(facts.evictedAt == NeverEvicted ? tr("never") : facts.evictedAt == 1 ? tr("step 1") : tr("step %1").arg(facts.evictedAt));
        if (facts.holdersOf) m_holders->setText(tr("%1 of %2").arg(facts.holders).arg(facts.holdersOf));
        if (facts.seen) m_kept->setText(tr("%1 of %2").arg(facts.kept).arg(facts.seen));
        m_before->setText(percent(facts.attentionPrefill, 2));
        m_before->setToolTip(tr("Mean weight from each later query of the prefill, over the %n token(s) of this one's bin", nullptr, facts.bin));
        m_after->setText(percent(facts.attentionSince, 2));
        QStringList nll;
        for (std::size_t i = 0; i < facts.nll.size(); ++i)
            if (!std::isnan(facts.nll[i])) nll << QString("%1 %2").arg(QString::fromStdString(lanes[i].label)).arg(facts.nll[i], 0, 'f', 2);
        m_nll->setText(nll.isEmpty() ? tr("not scored") : nll.join("  "));
    } else if (const auto& lane = lanes[std::size_t(f.lane.value)]; !lane.steps.empty() && lane.retention.layers() > 0) {
        const Step step(std::min(f.step.value, int(lane.steps.size()) - 1));
        m_kept->setText(tr("%1 of %2").arg(lane.retention.countAt(step, f.layer, f.head)).arg(lane.retention.positionsAt(step)));
    }
    for (QWidget* w : m_tokenRows)
        w->setVisible(token);
    m_map->show(m_trace, f);

    const LaneIndex other = f.lane.value > 0 ? f.lane : LaneIndex(std::min(1, int(lanes.size()) - 1));
    const bool two = lanes.size() > 1;
    m_compareTitle->setVisible(two);
    for (int i = 0; i < m_grid->count(); ++i)
        m_grid->itemAt(i)->widget()->setVisible(two);
    if (!two) return;
    const LaneComparison c = compareLanes(*m_trace, LaneIndex(0), other, f);
    m_compareTitle->setText(tr("%1 against %2 at this step").arg(QString::fromStdString(lanes[std::size_t(other.value)].label), QString::fromStdString(lanes[0].label)));
    const auto share = [&](double v) { return std::isnan(v) ? dash : QString::number(v, 'f', 2); };
    m_jaccardHead->setText(share(c.jaccardHead));
    m_jaccardAll->setText(share(c.jaccardAll));
    m_ppl->setText(std::isnan(c.perplexity) || std::isnan(c.reference)
                       ? dash
                       : QString("%1 (%2%3)").arg(c.perplexity, 0, 'f', 2).arg(c.perplexity >= c.reference ? "+" : QString(QChar(0x2212))).arg(std::abs(c.perplexity - c.reference), 0, 'f', 2));
    m_bytes->setText(percent(c.bytesShare, 0));
}

} // namespace keepsight
