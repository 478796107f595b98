#include "widgets/lanes/lane_editor.h"

#include "widgets/lanes/lane_color.h"
#include "widgets/policy/trimmed_spin_box.h"

#include <QComboBox>
#include <QEvent>
#include <QHBoxLayout>
#include <QLabel>
#include <QLocale>
#include <QMouseEvent>
#include <QPainter>
#include <QResizeEvent>
#include <QSlider>
#include <QStyle>
#include <QToolButton>
#include <QVBoxLayout>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

constexpr int SlidesPerPercent = 10;                // the slider moves in tenths of a percent
constexpr int RatioSlides = 100 * SlidesPerPercent - 1; // 99.9 %: something must be kept

class LaneBadge : public QWidget {
public:
    explicit LaneBadge(QWidget* parent) : QWidget(parent) { setFixedSize(24, 24); }
    LaneIndex lane;

protected:
    void paintEvent(QPaintEvent*) override {
        QPainter painter(this);
        const QColor color = laneColor(lane, palette());
        painter.fillRect(rect(), color);
        QFont bold = font();
        bold.setBold(true);
        painter.setFont(bold);
        painter.setPen(laneTextColor(color));
        painter.drawText(rect(), Qt::AlignCenter, laneLetter(lane));
    }
};

QString megabytes(double bytes) { return LaneEditor::tr("%1 MB").arg(QLocale().toString(bytes / 1e6, 'f', bytes < 1e7 ? 2 : 1)); }

QLabel* valueLabel(const QString& name) {
    auto* label = new QLabel;
    label->setAccessibleName(name);
    label->setTextInteractionFlags(Qt::TextSelectableByMouse);
    return label;
}

QColor dimText(const QPalette& palette) {
    QColor color = palette.color(QPalette::WindowText);
    color.setAlphaF(0.68F);
    return color;
}

QLabel* dimLabel(const QString& text) {
    auto* label = new QLabel(text);
    label->setForegroundRole(QPalette::PlaceholderText);
    return label;
}

} // namespace

LaneEditor::LaneEditor(LaneIndex lane, std::vector<PolicyInfo> policies, QWidget* parent) : QFrame(parent), m_lane(lane) {
    setSizePolicy(QSizePolicy::Expanding, QSizePolicy::Preferred);
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(8, 8, 8, 8);
    column->setSpacing(4);

    auto* top = new QHBoxLayout;
    top->setSpacing(6);
    auto* badge = new LaneBadge(this);
    m_badge = badge;
    top->addWidget(badge);
    m_policy = new QToolButton;
    m_policy->setObjectName(QStringLiteral("policyButton"));
    m_policy->setAutoRaise(true);
    m_policy->setCheckable(true);
    m_policy->setToolButtonStyle(Qt::ToolButtonTextOnly);
    m_policy->setToolTip(tr("Choose the policy and its parameters"));
    QFont bold = m_policy->font();
    bold.setBold(true);
    m_policy->setFont(bold);
    m_policy->setMinimumWidth(60); // the name is elided where the card is narrower
    top->addWidget(m_policy);
    top->addStretch(1);
    m_remove = new QToolButton;
    m_remove->setObjectName(QStringLiteral("remove"));
    m_remove->setAutoRaise(true);
    m_remove->setText(QStringLiteral("✕"));
    top->addWidget(m_remove);
    column->addLayout(top);

    m_summary = dimLabel({});
    m_summary->setObjectName(QStringLiteral("summary"));
    m_summary->setWordWrap(true);
    column->addWidget(m_summary);

    m_form = new PolicyForm(std::move(policies));
    m_form->setLazy();
    m_form->setVisible(false);
    column->addWidget(m_form);

    makeBudgetRow();
    column->addWidget(m_budgetRow);

    m_quantRow = new QWidget;
    m_quantRow->setVisible(false);
    m_quantLayout = new QHBoxLayout(m_quantRow);
    m_quantLayout->setContentsMargins(0, 0, 0, 0);
    m_quantLayout->setSpacing(6);
    m_quantAt = column->count();
    column->addWidget(m_quantRow);

    m_kept = valueLabel(tr("Kept"));
    m_kept->setObjectName(QStringLiteral("kept"));
    m_kept->setWordWrap(true);
    column->addWidget(m_kept);
    auto* line = new QHBoxLayout;
    line->setSpacing(6);
    m_quality = valueLabel(tr("Perplexity"));
    m_quality->setObjectName(QStringLiteral("quality"));
    m_speed = valueLabel(tr("Milliseconds per token"));
    m_speed->setObjectName(QStringLiteral("speed"));
    line->addWidget(m_quality);
    line->addStretch(1);
    line->addWidget(m_speed);
    column->addLayout(line);
    m_notice = new QLabel;
    m_notice->setObjectName(QStringLiteral("notice"));
    m_notice->setWordWrap(true);
    m_notice->setAccessibleName(tr("Notice"));
    column->addWidget(m_notice);

    connect(m_policy, &QToolButton::toggled, this, [this](bool open) {
        m_form->setVisible(open);
        showName();
        showSummary();
        if (open) m_form->setFocus();
    });
    m_form->setFocusProxy(m_form->findChild<QComboBox*>(QStringLiteral("policy")));
    connect(m_remove, &QToolButton::clicked, this, [this] { Q_EMIT removeRequested(m_lane); });
    connect(m_form, &PolicyForm::specChanged, this, [this](const PolicySpec& spec) {
        const bool other = m_spec.id != spec.id;
        m_spec.id = spec.id;
        m_spec.params = spec.params;
        if (other) m_spec.quant = quantFor(spec.id);
        if (m_quant) {
            m_quant->setSpec(m_spec.quant);
            m_spec.quant = m_quant->spec();
        }
        showSpec();
        Q_EMIT specChanged(m_lane, m_spec);
    });
    for (QWidget* child : findChildren<QWidget*>())
        child->installEventFilter(this);
    dimSummary();
    setLane(lane);
    m_spec = m_form->spec();
    showSpec();
}

void LaneEditor::makeBudgetRow() {
    m_budgetRow = new QWidget;
    auto* row = new QHBoxLayout(m_budgetRow);
    row->setContentsMargins(0, 0, 0, 0);
    row->setSpacing(6);
    m_budgetName = new QLabel;
    m_slider = new QSlider(Qt::Horizontal);
    m_slider->setObjectName(QStringLiteral("budget"));
    m_slider->setMinimumWidth(48);
    m_amount = new TrimmedSpinBox;
    m_amount->setObjectName(QStringLiteral("amount"));
    m_amount->setKeyboardTracking(false);
    m_amount->setAccelerated(true);
    m_amount->setButtonSymbols(QAbstractSpinBox::NoButtons); // the slider beside it does that; the card stays narrow
    m_amount->setAlignment(Qt::AlignRight);
    m_unit = new QComboBox;
    m_unit->setObjectName(QStringLiteral("unit"));
    m_unit->addItem(tr("%"));
    m_unit->addItem(tr("tok"));
    m_unit->setAccessibleName(tr("Unit of the budget"));
    m_unit->setToolTip(tr("Budget as the share of tokens removed, or as tokens kept per layer and head"));
    m_budgetName->setBuddy(m_amount);
    row->addWidget(m_budgetName);
    row->addWidget(m_slider, 1);
    row->addWidget(m_amount);
    row->addWidget(m_unit);

    connect(m_slider, &QSlider::valueChanged, this, &LaneEditor::sliderMoved);
    connect(m_slider, &QSlider::sliderReleased, this, [this] { Q_EMIT specChanged(m_lane, m_spec); });
    connect(m_amount, &QDoubleSpinBox::valueChanged, this, [this](double value) {
        if (m_showing) return;
        setBudget(m_spec.budget.kind == Budget::Kind::ratio ? Budget::removed(value / 100.0) : Budget::kept(static_cast<int>(value)));
        Q_EMIT specChanged(m_lane, m_spec);
    });
    connect(m_unit, &QComboBox::currentIndexChanged, this, [this](int index) {
        if (m_showing) return;
        // The same amount in the other unit, as near as it can be said.
        const int known = m_promptTokens > 0 ? m_promptTokens : 1000;
        const Budget now = m_spec.budget;
        if (index == 1) setBudget(Budget::kept(now.resolve(known)));
        else setBudget(Budget::removed(std::clamp(std::round(1000.0 * (1.0 - static_cast<double>(now.tokens) / known)) / 1000.0, 0.0, 0.999)));
        Q_EMIT specChanged(m_lane, m_spec);
    });
}

int LaneEditor::tokensHigh() const { return std::max({m_promptTokens > 0 ? m_promptTokens : 1024, m_spec.budget.tokens, 1}); }

void LaneEditor::sliderMoved() {
    if (m_showing) return;
    setBudget(m_spec.budget.kind == Budget::Kind::ratio ? Budget::removed(m_slider->value() / (100.0 * SlidesPerPercent))
                                                        : Budget::kept(std::max(1, m_slider->value())));
    if (m_slider->isSliderDown()) Q_EMIT budgetDragged(m_lane, m_spec);
    else Q_EMIT specChanged(m_lane, m_spec); // keys and wheel
}

void LaneEditor::setBudget(const Budget& budget) {
    m_spec.budget = budget;
    m_form->setSpec(m_spec);
    showBudget();
    showLines();
}

void LaneEditor::setSpec(const PolicySpec& spec) {
    m_form->setSpec(spec);
    m_spec = m_form->spec(); // aliases resolved, defaults dropped
    if (m_quant) {
        m_quant->setSpec(spec.quant);
        m_spec.quant = m_quant->spec();
    }
    showSpec();
}

bool LaneEditor::means(const PolicySpec& spec) const {
    const PolicyInfo* policy = info();
    if (!policy) return spec == m_spec;
    if (spec.id != m_spec.id || (policy->usesBudget && spec.budget != m_spec.budget) || spec.quant.id != m_spec.quant.id) return false;
    const Choice* quantizer = m_quant ? m_quant->choice() : nullptr;
    if (quantizer ? !ChoiceForm::same(quantizer->params, spec.quant.params, m_spec.quant.params) : spec.quant != m_spec.quant) return false;
    return ChoiceForm::same(policy->params, spec.params, m_spec.params);
}

void LaneEditor::setLane(LaneIndex lane) {
    m_lane = lane;
    static_cast<LaneBadge*>(m_badge)->lane = lane;
    const QString letter = laneLetter(lane);
    setAccessibleName(tr("Lane %1").arg(letter));
    m_policy->setAccessibleName(tr("Policy of lane %1").arg(letter));
    m_slider->setAccessibleName(tr("Budget of lane %1").arg(letter));
    m_amount->setAccessibleName(tr("Budget of lane %1, as a number").arg(letter));
    if (m_quant) {
        m_quant->chooser()->setAccessibleName(tr("Quantizer of lane %1").arg(letter));
        m_quantOpen->setAccessibleName(tr("Parameters of the quantizer of lane %1").arg(letter));
    }
    m_remove->setAccessibleName(tr("Remove lane %1").arg(letter));
    m_remove->setToolTip(tr("Remove lane %1").arg(letter));
    update();
    m_badge->update();
}

void LaneEditor::setPromptTokens(int tokens) {
    if (m_promptTokens == tokens) return;
    m_promptTokens = tokens;
    showBudget();
    showLines();
}

void LaneEditor::setResults(const LaneResults& results) {
    m_results = results;
    showLines();
}

void LaneEditor::setFocused(bool focused) {
    if (m_focused == focused) return;
    m_focused = focused;
    setAccessibleDescription(focused ? tr("The focused lane") : QString());
    update();
}

void LaneEditor::setQuantizers(const std::vector<QuantInfo>& quantizers, Conflict conflict) {
    m_conflict = std::move(conflict);
    if (m_quant || quantizers.empty()) return;
    m_quant = new QuantForm(quantizers);
    m_quant->setLazy();
    m_quant->setObjectName(QStringLiteral("quantForm"));
    m_quant->setVisible(false);
    static_cast<QVBoxLayout*>(layout())->insertWidget(m_quantAt + 1, m_quant);
    auto* chooser = m_quant->takeChooser();
    auto* name = new QLabel(tr("Stored as"));
    name->setBuddy(chooser);
    m_quantOpen = new QToolButton;
    m_quantOpen->setObjectName(QStringLiteral("quantButton"));
    m_quantOpen->setAutoRaise(true);
    m_quantOpen->setCheckable(true);
    m_quantOpen->setToolTip(tr("The quantizer's parameters"));
    m_quantLayout->addWidget(name);
    m_quantLayout->addWidget(chooser, 1);
    m_quantLayout->addWidget(m_quantOpen);
    m_quantRow->setVisible(true);
    connect(m_quantOpen, &QToolButton::toggled, this, [this] { showQuantizer(); });
    connect(m_quant, &ChoiceForm::changed, this, [this] {
        m_spec.quant = m_quant->spec();
        m_form->setSpec(m_spec);
        showSpec();
        Q_EMIT specChanged(m_lane, m_spec);
    });
    // Each list greys out what does not go with the choice of the other one.
    m_form->setRefusals([this](const std::string& id) {
        PolicySpec with = m_spec;
        if (with.id != id) {
            with.id = id;
            with.params.clear();
            with.quant = quantFor(id);
        }
        return refusal(with);
    });
    m_quant->setRefusals([this](const std::string& id) {
        PolicySpec with = m_spec;
        if (with.quant.id != id) with.quant = {id, {}};
        return refusal(with);
    });
    for (QWidget* child : m_quantRow->findChildren<QWidget*>() + m_quant->findChildren<QWidget*>())
        child->installEventFilter(this);
    setLane(m_lane); // accessible names
    setSpec(m_spec);
}

QString LaneEditor::refusal(const PolicySpec& spec) const {
    QString why = m_conflict ? m_conflict(spec) : QString();
    if (!why.isEmpty()) why[0] = why[0].toUpper();
    return why;
}

// A policy that is made for one quantizer brings it along where none was chosen.
QuantSpec LaneEditor::quantFor(const std::string& policy) const {
    const PolicyInfo* wanted = m_form->info(policy);
    return m_quant && wanted && !wanted->quant.empty() && m_spec.quant == QuantSpec() ? m_quant->parse(wanted->quant) : m_spec.quant;
}

void LaneEditor::showQuantizer() {
    if (!m_quant) return;
    const Choice* quantizer = m_quant->choice();
    const bool any = quantizer && !quantizer->params.empty(), open = any && m_quantOpen->isChecked();
    m_quantOpen->setEnabled(any);
    m_quantOpen->setText(open ? QStringLiteral("▴") : QStringLiteral("▾"));
    m_quant->setVisible(open);
}

void LaneEditor::setRemovable(bool removable) { m_remove->setVisible(removable); }

void LaneEditor::showSpec() {
    showName();
    const PolicyInfo* policy = info();
    m_policy->setToolTip(policy ? QString::fromStdString(policy->summary) + QLatin1Char('\n') + tr("Click for policy and parameters")
                                : tr("Choose the policy and its parameters"));
    m_budgetRow->setVisible(!policy || policy->usesBudget);
    showSummary();
    showQuantizer();
    m_form->showRefusals();
    if (m_quant) m_quant->showRefusals();
    m_refused = refusal(m_spec);
    showBudget();
    showLines();
}

void LaneEditor::showName() {
    const QString id = QString::fromStdString(m_spec.id), arrow = m_policy->isChecked() ? QStringLiteral("  ▴") : QStringLiteral("  ▾");
    // As much of a long name as the card has room for; where it ends tells a family's members apart.
    const QMargins margins = layout()->contentsMargins();
    const int padding = 16 + 3 * 6, room = width() - margins.left() - margins.right() - m_badge->width() - m_remove->sizeHint().width() - padding;
    m_policy->setText(m_policy->fontMetrics().elidedText(id, Qt::ElideMiddle, std::max(60, room - m_policy->fontMetrics().horizontalAdvance(arrow))) + arrow);
}

void LaneEditor::resizeEvent(QResizeEvent* event) {
    QFrame::resizeEvent(event);
    if (event->size().width() != event->oldSize().width()) showName();
}

// What was changed, and as many of the policy's own parameters as a line or two hold.
void LaneEditor::showSummary() {
    constexpr qsizetype Enough = 4;
    QStringList parts;
    // No-break spaces: a name and its value stay on one line.
    const auto text = [](const ParamInfo& param, const ParamTexts& values) {
        const auto given = values.find(param.name);
        return QString::fromStdString(param.name) + QChar(QChar::Nbsp) + QString::fromStdString(given == values.end() ? param.initial : given->second);
    };
    if (const PolicyInfo* policy = info())
        for (const ParamInfo& param : policy->params)
            if (m_spec.params.contains(param.name) || (parts.size() < Enough && !m_form->isShared(param) && !param.initial.empty())) parts << text(param, m_spec.params); // an empty default says nothing
    if (m_spec.quant != QuantSpec()) {
        QStringList stored{QString::fromStdString(m_spec.quant.id)};
        if (const Choice* quantizer = m_quant ? m_quant->choice() : nullptr)
            for (const ParamInfo& param : quantizer->params)
                if (m_spec.quant.params.contains(param.name) || &param == &quantizer->params.front()) stored << text(param, m_spec.quant.params);
        parts << stored.join(QChar(QChar::Nbsp));
    }
    m_summary->setText(parts.join(QStringLiteral(" · ")));
    m_summary->setVisible(!parts.isEmpty() && !m_policy->isChecked()); // the open form says it all
}

void LaneEditor::showBudget() {
    m_showing = true;
    const bool ratio = m_spec.budget.kind == Budget::Kind::ratio;
    m_unit->setCurrentIndex(ratio ? 0 : 1);
    m_budgetName->setText(ratio ? tr("Removed") : tr("Kept"));
    if (ratio) {
        m_slider->setRange(0, RatioSlides);
        m_slider->setSingleStep(SlidesPerPercent);
        m_slider->setPageStep(10 * SlidesPerPercent);
        m_slider->setToolTip(tr("Share of the prompt's tokens that the policy removes from each layer and head"));
        if (!m_slider->isSliderDown()) m_slider->setValue(static_cast<int>(std::lround(m_spec.budget.compressionRatio * 100 * SlidesPerPercent)));
        m_amount->setDecimals(1);
        m_amount->setRange(0, 99.9);
        m_amount->setSingleStep(1);
        m_amount->setValue(m_spec.budget.compressionRatio * 100);
    } else {
        m_slider->setRange(1, tokensHigh());
        m_slider->setSingleStep(std::max(1, tokensHigh() / 100));
        m_slider->setPageStep(std::max(1, tokensHigh() / 10));
        m_slider->setToolTip(tr("Tokens that the policy keeps in each layer and head"));
        if (!m_slider->isSliderDown()) m_slider->setValue(m_spec.budget.tokens);
        m_amount->setDecimals(0);
        m_amount->setRange(1, 1e7);
        m_amount->setSingleStep(std::max(1, tokensHigh() / 100));
        m_amount->setValue(m_spec.budget.tokens);
    }
    m_amount->setToolTip(m_slider->toolTip());
    m_showing = false;
}

void LaneEditor::showLines() {
    const QLocale locale;
    const PolicyInfo* policy = info();
    const QString separator = QChar(QChar::Nbsp) + QStringLiteral("· "); // a line ends with it, never begins
    QString kept;
    if (m_results.measured) {
        if (!std::isnan(m_results.keptPerHead)) {
            const bool whole = m_results.keptPerHead == std::floor(m_results.keptPerHead);
            kept = tr("%1 tokens per head").arg(locale.toString(m_results.keptPerHead, 'f', whole ? 0 : 1)) + separator;
        }
        kept += megabytes(m_results.kvBytes);
        if (!std::isnan(m_results.bitsPerValue)) kept += separator + tr("%1 bits/value").arg(locale.toString(m_results.bitsPerValue, 'f', 2));
    } else if (m_promptTokens > 0) {
        kept = policy && !policy->usesBudget ? tr("all %1 tokens").arg(locale.toString(m_promptTokens))
                                             : tr("%1 of %2 tokens per head").arg(locale.toString(std::min(m_promptTokens, m_spec.budget.resolve(m_promptTokens))), locale.toString(m_promptTokens));
    }
    m_kept->setText(kept.isEmpty() ? tr("Not run yet") : tr("Kept  %1").arg(kept));
    m_kept->setToolTip(std::isnan(m_results.bitsPerValue) ? QString() : tr("Bytes really stored, scales and exact values included, for each number that is kept"));

    QString quality;
    if (!std::isnan(m_results.perplexity)) {
        quality = tr("PPL  <b>%1</b>").arg(locale.toString(m_results.perplexity, 'f', 2));
        if (!std::isnan(m_results.perplexityDelta)) {
            const QString sign = m_results.perplexityDelta < 0 ? QStringLiteral("−") : QStringLiteral("+");
            quality += QStringLiteral(" <b>(") + sign + locale.toString(std::abs(m_results.perplexityDelta), 'f', 2) + QStringLiteral(")</b>");
        }
    }
    m_quality->setText(quality);
    m_quality->setToolTip(quality.isEmpty() ? QString() : tr("Perplexity so far; in brackets the difference to lane A over the same tokens"));
    m_quality->setVisible(!quality.isEmpty());
    m_speed->setText(std::isnan(m_results.msPerToken) ? QString() : tr("%1 ms/tok").arg(locale.toString(m_results.msPerToken, 'f', 1)));
    m_speed->setToolTip(tr("Median time of a decode step, policy included"));
    m_speed->setVisible(!std::isnan(m_results.msPerToken));
    const QString& notice = m_refused.isEmpty() ? m_results.notice : m_refused; // what keeps it from running comes first
    m_notice->setText(notice.isEmpty() ? QString() : QStringLiteral("⚠ ") + notice.toHtmlEscaped());
    m_notice->setVisible(!notice.isEmpty());
}

void LaneEditor::paintEvent(QPaintEvent*) {
    QPainter painter(this);
    const int width = m_focused ? 2 : 1;
    painter.fillRect(rect(), palette().color(QPalette::Base));
    painter.setPen(QPen(laneColor(m_lane, palette()), width, Qt::SolidLine, Qt::SquareCap, Qt::MiterJoin));
    const qreal inset = width / 2.0;
    painter.drawRect(QRectF(rect()).adjusted(inset, inset, -inset, -inset));
}

void LaneEditor::mousePressEvent(QMouseEvent* event) {
    QFrame::mousePressEvent(event);
    Q_EMIT activated(m_lane);
}

bool LaneEditor::eventFilter(QObject* object, QEvent* event) {
    if (event->type() == QEvent::FocusIn) {
        const auto reason = static_cast<QFocusEvent*>(event)->reason();
        if (reason == Qt::MouseFocusReason || reason == Qt::TabFocusReason || reason == Qt::BacktabFocusReason) Q_EMIT activated(m_lane);
    }
    return QFrame::eventFilter(object, event);
}

// Platform placeholder colours are too faint for text that must be read.
void LaneEditor::dimSummary() {
    if (!m_summary) return;
    QPalette dim = palette();
    dim.setColor(QPalette::PlaceholderText, dimText(palette()));
    m_summary->setPalette(dim);
}

void LaneEditor::changeEvent(QEvent* event) {
    if (event->type() == QEvent::PaletteChange) dimSummary();
    QFrame::changeEvent(event);
}

} // namespace keepsight
