#include "widgets/tokens/tokens_view.h"

#include "widgets/base/axis.h"
#include "widgets/base/plot_view.h"
#include "widgets/base/table_dialog.h"
#include "widgets/curves/curves_model.h"
#include "widgets/tokens/tokens_area.h"
#include "widgets/tokens/tokens_figure.h"

#include <QCheckBox>
#include <QComboBox>
#include <QContextMenuEvent>
#include <QHBoxLayout>
#include <QLabel>
#include <QLocale>
#include <QMenu>
#include <QPainter>
#include <QStackedWidget>
#include <QToolTip>
#include <QVBoxLayout>
#include <algorithm>

namespace keepsight {

// Ends in an ellipsis where it is too long, and says all of it in the tooltip.
class TokensTitle : public QLabel {
public:
    TokensTitle() { setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred); }

protected:
    void paintEvent(QPaintEvent*) override {
        QPainter painter(this);
        painter.setPen(palette().color(QPalette::WindowText));
        painter.drawText(rect(), Qt::AlignLeft | Qt::AlignVCenter, fontMetrics().elidedText(text(), Qt::ElideRight, width() - 6));
    }
};

// Colour scale and the two looks that are not on it.
class TokensLegend : public QWidget {
public:
    explicit TokensLegend(TokensArea* area) : m_area(area) {
        setSizePolicy(QSizePolicy::Expanding, QSizePolicy::Fixed);
        setAccessibleName(TokensView::tr("Colours: from held nowhere to held everywhere; evicted tokens are struck through; plain ones are not reached yet"));
    }
    void setScope(HoldingScope scope) {
        m_label = scope == HoldingScope::everything ? TokensView::tr("share of layers × heads that hold the token")
                  : scope == HoldingScope::layer    ? TokensView::tr("share of the layer's heads that hold the token")
                                                    : TokensView::tr("held by the head");
        update();
    }
    QSize sizeHint() const override { return {300, fontMetrics().height() + 8}; }
    QSize minimumSizeHint() const override { return {160, sizeHint().height()}; }

protected:
    void paintEvent(QPaintEvent*) override {
        QPainter painter(this);
        const TokensStyle style = m_area->style();
        const QFontMetricsF metrics(font());
        const double height = metrics.height(), y = (QWidget::height() - height) / 2.0;
        double x = 8;
        const auto text = [&](const QString& of, const QColor& color) {
            const double width = metrics.horizontalAdvance(of);
            painter.setPen(color);
            painter.drawText(QRectF(x, y, width + 1, height), Qt::AlignVCenter | Qt::AlignLeft, of);
            x += width;
        };
        const QColor ink = palette().color(QPalette::WindowText);
        text(TokensView::tr("0 %"), ink);
        x += 6;
        const double bar = std::clamp(width() * 0.18, 48.0, 140.0);
        for (int i = 0; i < static_cast<int>(bar); ++i)
            painter.fillRect(QRectF(x + i, y + 1, 1.0, height - 2), QColor::fromRgb(style.scale.color((i + 0.5) / bar)));
        x += bar + 6;
        text(TokensView::tr("100 %"), ink);
        x += 14;
        for (const TokenState state : {TokenState::evicted, TokenState::ahead}) {
            const QString name = state == TokenState::evicted ? TokensView::tr("evicted") : TokensView::tr("not reached yet");
            const QRectF box(x, y, metrics.horizontalAdvance(name) + 8, height);
            if (box.right() > width()) return;
            painter.fillRect(box, state == TokenState::evicted ? style.background(state, 0) : style.base);
            x += 4;
            text(name, style.text(state, 0));
            if (state == TokenState::evicted) {
                painter.setPen(QPen(style.text(state, 0), 1));
                painter.drawLine(QPointF(box.left(), box.center().y() + 1), QPointF(box.right(), box.center().y() + 1));
            }
            x += 12;
        }
        if (x + metrics.horizontalAdvance(m_label) < width()) text(m_label, ink);
    }

private:
    TokensArea* m_area;
    QString m_label;
};

TokensView::TokensView(QWidget* parent) : TraceView(parent) {
    setAccessibleName(tr("Tokens"));
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(0);
    auto* top = new QHBoxLayout;
    top->setContentsMargins(8, 4, 8, 2);
    m_title = new TokensTitle;
    m_title->setObjectName(QStringLiteral("title"));
    top->addWidget(m_title, 1);
    m_symbols = new QCheckBox(tr("&White space"));
    m_symbols->setObjectName(QStringLiteral("symbols"));
    m_symbols->setChecked(true);
    m_symbols->setToolTip(tr("Shows line ends and tokens of nothing but white space as symbols"));
    top->addWidget(m_symbols);
    m_scope = new QComboBox;
    m_scope->setObjectName(QStringLiteral("scope"));
    m_scope->addItem(tr("All layers and heads"));
    m_scope->addItem(tr("Focused layer"));
    m_scope->addItem(tr("Focused head"));
    m_scope->setAccessibleName(tr("What holds a token"));
    m_scope->setToolTip(tr("Which part of the cache the colours count"));
    top->addWidget(m_scope);
    column->addLayout(top);

    m_area = new TokensArea;
    m_empty = new QLabel(tr("Nothing to read yet: start a Score or Generate run, or open a session."));
    m_empty->setAlignment(Qt::AlignCenter);
    m_empty->setWordWrap(true);
    m_empty->setForegroundRole(QPalette::PlaceholderText);
    m_pages = new QStackedWidget;
    m_pages->addWidget(m_empty);
    m_pages->addWidget(m_area);
    column->addWidget(m_pages, 1);
    m_legend = new TokensLegend(m_area);
    column->addWidget(m_legend);
    setFocusProxy(m_area);

    connect(m_scope, &QComboBox::currentIndexChanged, this, &TokensView::refreshHolding);
    connect(m_symbols, &QCheckBox::toggled, this, &TokensView::refreshText);
    connect(m_area, &TokensArea::positionChosen, this, [this](Position position) {
        if (m_focus) m_focus->setPosition(position);
        else m_area->setPosition(position);
    });
    refreshText();
}

Focus TokensView::focus() const {
    Focus out = m_focus ? m_focus->focus() : Focus{};
    if (m_trace && !m_trace->lanes.empty()) out.lane = LaneIndex{std::clamp(out.lane.value, 0, static_cast<int>(m_trace->lanes.size()) - 1)};
    return out;
}

HoldingScope TokensView::scope() const { return static_cast<HoldingScope>(m_scope->currentIndex()); }
void TokensView::setScope(HoldingScope scope) { m_scope->setCurrentIndex(static_cast<int>(scope)); }

void TokensView::setTrace(std::shared_ptr<const Trace> trace) {
    m_trace = std::move(trace);
    refreshText();
}

void TokensView::follow(FocusModel& focusModel) {
    m_focus = &focusModel;
    connect(&focusModel, &FocusModel::changed, this, [this](const Focus& to, const Focus& from) {
        Focus now = clampFocus(to, m_trace.get()), before = clampFocus(from, m_trace.get()); // steps to come change nothing yet
        now.position = to.position;
        if (now.lane != before.lane) refreshText();
        else if (now.step != before.step || (scope() != HoldingScope::everything && (now.layer != before.layer || now.head != before.head))) refreshHolding();
        m_area->setPosition(now.position);
    });
    refreshText();
    m_area->setPosition(focusModel.focus().position);
}

void TokensView::refreshText() {
    m_area->setText(m_trace, focus().lane, m_symbols->isChecked());
    const bool any = m_area->model().positions() > 0;
    m_pages->setCurrentWidget(any ? static_cast<QWidget*>(m_area) : m_empty);
    m_legend->setVisible(any);
    m_scope->setEnabled(any);
    m_symbols->setEnabled(any);
    refreshHolding();
}

void TokensView::refreshHolding() {
    const Focus now = focus();
    m_area->setHolding(now, scope());
    m_legend->setScope(scope());
    QString title;
    if (m_trace && !m_trace->lanes.empty() && m_area->model().positions() > 0) {
        const QLocale locale;
        title = tr("Lane %1").arg(laneTitle(*m_trace, now.lane));
        if (scope() != HoldingScope::everything) title += tr(" · layer %1").arg(now.layer.value);
        if (scope() == HoldingScope::head) title += tr(" · head %1").arg(now.head.value);
        title += tr(" · %1 tokens").arg(locale.toString(m_area->model().positions()));
    }
    m_title->setText(title);
    m_title->setToolTip(title);
}

std::unique_ptr<Figure> TokensView::figure() const {
    if (!m_trace || m_trace->lanes.empty() || m_area->model().positions() == 0) return {};
    const Focus now = focus();
    PictureFocus at;
    at.lane = now.lane;
    at.step = Step{std::clamp(now.step.value, 0, std::max(0, m_trace->lastStep()))};
    if (scope() != HoldingScope::everything) at.layer = now.layer;
    if (scope() == HoldingScope::head) at.head = now.head;
    return tokensFigure(m_trace, at);
}

void TokensView::showTable() {
    try {
        if (const auto shown = figure()) showPictureTable(shown->data(), this)->show();
    } catch (const std::exception& error) {
        QToolTip::showText(mapToGlobal(rect().center()), QString::fromUtf8(error.what()), this);
    }
}

void TokensView::contextMenuEvent(QContextMenuEvent* event) {
    QMenu menu(this);
    QAction* table = menu.addAction(tr("Show as &table"), this, &TokensView::showTable);
    table->setEnabled(m_area->model().positions() > 0);
    menu.exec(event->globalPos());
}

} // namespace keepsight
