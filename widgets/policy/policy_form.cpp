#include "widgets/policy/policy_form.h"

#include "widgets/policy/trimmed_spin_box.h"

#include <QComboBox>
#include <QEvent>
#include <QFormLayout>
#include <QLabel>
#include <QLocale>
#include <QPushButton>
#include <QRegularExpression>
#include <QSpinBox>
#include <QVBoxLayout>
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

namespace keepsight {
namespace {

// In a scrolling panel the wheel scrolls; it changes a value only where the keyboard focus is.
class WheelGuard : public QObject {
public:
    using QObject::QObject;
    bool eventFilter(QObject* object, QEvent* event) override {
        const auto* widget = qobject_cast<QWidget*>(object);
        if (event->type() != QEvent::Wheel || !widget || widget->hasFocus()) return false;
        event->ignore();
        return true;
    }
};

QString kindText(PolicyKind kind) {
    switch (kind) {
    case PolicyKind::evict: return PolicyForm::tr("Frees stored tokens.");
    case PolicyKind::admit: return PolicyForm::tr("Never stores some tokens.");
    case PolicyKind::attend: return PolicyForm::tr("Stores every token, attends to some.");
    }
    return {};
}

// "SnapKV, arXiv:2404.14469" with the identifier as a link.
QString paperHtml(const std::string& paper) {
    QString html = QString::fromStdString(paper).toHtmlEscaped();
    static const QRegularExpression arxiv(QStringLiteral("arXiv:([0-9]{4}\\.[0-9]{4,5})"));
    html.replace(arxiv, QStringLiteral("<a href=\"https://arxiv.org/abs/\\1\">arXiv:\\1</a>"));
    return html;
}

int decimalsOf(double value) {
    for (int decimals = 0; decimals < 9; ++decimals) {
        const double scaled = value * std::pow(10.0, decimals);
        if (std::abs(scaled - std::round(scaled)) < 1e-6 * std::max(1.0, std::abs(scaled))) return decimals;
    }
    return 9;
}

std::string realText(double value) { return QString::number(value, 'g', QLocale::FloatingPointShortest).toStdString(); }

QString unitSuffix(const ParamInfo& param) {
    return param.unit.empty() ? QString() : QLatin1Char(' ') + QString::fromStdString(param.unit);
}

QString helpText(const ParamInfo& param) {
    QString text = QString::fromStdString(param.help);
    if (!text.isEmpty()) text += QLatin1Char('\n');
    text += PolicyForm::tr("Default: %1").arg(QString::fromStdString(param.initial)) + unitSuffix(param);
    if (param.type != ParamInfo::Type::choice && param.low < param.high)
        text += QLatin1Char('\n') + PolicyForm::tr("Range: %1 to %2").arg(QLocale().toString(param.low, 'g', 9), QLocale().toString(param.high, 'g', 9));
    return text;
}

} // namespace

PolicyForm::PolicyForm(std::vector<PolicyInfo> policies, QWidget* parent) : QWidget(parent), m_policies(std::move(policies)) {
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(0, 0, 0, 0);

    auto* top = new QFormLayout;
    top->setFieldGrowthPolicy(QFormLayout::AllNonFixedFieldsGrow);
    m_policy = new QComboBox;
    m_policy->setObjectName(QStringLiteral("policy"));
    m_policy->setAccessibleName(tr("Policy"));
    m_policy->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
    m_policy->setMinimumContentsLength(12);
    m_policy->setFocusPolicy(Qt::StrongFocus);
    m_policy->installEventFilter(new WheelGuard(m_policy));
    for (const PolicyInfo& policy : m_policies) {
        m_policy->addItem(QString::fromStdString(policy.id), QString::fromStdString(policy.id));
        QString tip = QString::fromStdString(policy.summary);
        if (!policy.paper.empty()) tip += QLatin1Char('\n') + QString::fromStdString(policy.paper);
        m_policy->setItemData(m_policy->count() - 1, tip, Qt::ToolTipRole);
    }
    auto* policyLabel = new QLabel(tr("&Policy"));
    policyLabel->setBuddy(m_policy);
    top->addRow(policyLabel, m_policy);
    column->addLayout(top);

    m_summary = new QLabel;
    m_summary->setObjectName(QStringLiteral("summary"));
    m_summary->setWordWrap(true);
    m_summary->setTextFormat(Qt::RichText);
    m_summary->setOpenExternalLinks(true);
    m_summary->setTextInteractionFlags(Qt::TextBrowserInteraction);
    m_summary->setAccessibleName(tr("About this policy"));
    column->addWidget(m_summary);

    m_params = new QWidget;
    column->addWidget(m_params);

    m_reset = new QPushButton(tr("&Reset to defaults"));
    m_reset->setObjectName(QStringLiteral("reset"));
    m_reset->setToolTip(tr("Sets every parameter of this policy to its default"));
    column->addWidget(m_reset, 0, Qt::AlignLeft);
    column->addStretch(1);
    connect(m_reset, &QPushButton::clicked, this, &PolicyForm::resetToDefaults);

    connect(m_policy, &QComboBox::currentIndexChanged, this, [this] {
        if (m_building) return;
        m_spec.id = m_policy->currentData().toString().toStdString();
        build({});
        edited();
    });
    if (!m_policies.empty()) m_spec.id = m_policies.front().id;
    setSpec(m_spec);
}

const PolicyInfo* PolicyForm::info() const {
    const auto found = std::ranges::find(m_policies, m_spec.id, &PolicyInfo::id);
    return found == m_policies.end() ? nullptr : &*found;
}

void PolicyForm::setSpec(const PolicySpec& spec) {
    m_spec = spec;
    for (const PolicyInfo& policy : m_policies)
        if (std::ranges::find(policy.aliases, spec.id) != policy.aliases.end()) m_spec.id = policy.id;
    m_building = true;
    const QString id = QString::fromStdString(m_spec.id);
    int index = m_policy->findData(id);
    if (index < 0) {
        m_policy->addItem(tr("%1 (unknown)").arg(id), id);
        index = m_policy->count() - 1;
    }
    m_policy->setCurrentIndex(index);
    m_building = false;
    build(m_spec.params);
}

PolicySpec PolicyForm::spec() const {
    PolicySpec out = m_spec;
    if (!info()) return out;
    out.params.clear();
    for (const Editor& editor : m_editors)
        if (!isDefault(editor)) out.params[editor.param.name] = editor.value();
    return out;
}

void PolicyForm::resetToDefaults() {
    if (std::ranges::all_of(m_editors, isDefault)) return;
    m_building = true;
    for (Editor& editor : m_editors)
        editor.show(editor.param.initial);
    m_building = false;
    edited();
}

void PolicyForm::build(const std::map<std::string, std::string>& params) {
    m_building = true;
    m_editors.clear();
    // Replaced, not emptied: a form layout keeps gaps where rows were removed.
    auto* old = m_params;
    m_params = new QWidget;
    m_form = new QFormLayout(m_params);
    m_form->setContentsMargins(0, 0, 0, 0);
    m_form->setFieldGrowthPolicy(QFormLayout::AllNonFixedFieldsGrow);
    delete layout()->replaceWidget(old, m_params);
    old->hide();
    old->deleteLater();

    const PolicyInfo* policy = info();
    if (policy) {
        QString html = QString::fromStdString(policy->summary).toHtmlEscaped() + QLatin1Char(' ') + kindText(policy->kind);
        if (!policy->paper.empty()) html += QStringLiteral("<br>") + paperHtml(policy->paper);
        m_summary->setText(html);
        m_policy->setToolTip(QString::fromStdString(policy->summary));
        for (const ParamInfo& param : policy->params) {
            Editor editor = makeEditor(param);
            const auto given = params.find(param.name);
            editor.show(given == params.end() ? param.initial : given->second);
            m_form->addRow(editor.label, editor.widget);
            m_editors.push_back(std::move(editor));
        }
    } else {
        m_summary->setText(tr("This program has no policy of that name; choose another one."));
    }
    if (m_editors.empty() && policy) m_form->addRow(new QLabel(tr("This policy has no parameters.")));
    QWidget* before = m_policy;
    for (const Editor& editor : m_editors) {
        setTabOrder(before, editor.widget);
        before = editor.widget;
    }
    setTabOrder(before, m_reset);
    m_building = false;
    markChanged();
}

PolicyForm::Editor PolicyForm::makeEditor(const ParamInfo& param) {
    Editor editor;
    editor.param = param;
    const QString initial = QString::fromStdString(param.initial);
    const bool ranged = param.low < param.high;
    switch (param.type) {
    case ParamInfo::Type::integer: {
        auto* box = new QSpinBox;
        constexpr double Lowest = std::numeric_limits<int>::lowest(), Highest = std::numeric_limits<int>::max();
        box->setRange(ranged ? static_cast<int>(std::max(param.low, Lowest)) : static_cast<int>(Lowest),
                      ranged ? static_cast<int>(std::min(param.high, Highest)) : static_cast<int>(Highest));
        box->setSuffix(unitSuffix(param));
        box->setKeyboardTracking(false); // one change per number, not per digit
        box->setStepType(ranged && param.high - param.low > 1000 ? QAbstractSpinBox::AdaptiveDecimalStepType : QAbstractSpinBox::DefaultStepType);
        editor.value = [box] { return std::to_string(box->value()); };
        editor.show = [box, initial](const std::string& text) {
            bool ok = false;
            const int value = QString::fromStdString(text).toInt(&ok);
            box->setValue(ok ? value : initial.toInt());
        };
        connect(box, &QSpinBox::valueChanged, this, &PolicyForm::edited);
        editor.widget = box;
        break;
    }
    case ParamInfo::Type::real: {
        auto* box = new TrimmedSpinBox;
        const double start = initial.toDouble();
        const int decimals = std::clamp(std::max(decimalsOf(start) + 1, decimalsOf(param.low)), 2, 9);
        box->setDecimals(decimals);
        box->setRange(ranged ? param.low : -1e9, ranged ? param.high : 1e9);
        box->setSingleStep(start == 0.0 ? (ranged ? (param.high - param.low) / 20 : 0.1) : std::pow(10.0, std::floor(std::log10(std::abs(start)))) / 2);
        box->setSuffix(unitSuffix(param));
        box->setKeyboardTracking(false);
        // The box rounds: a value nobody touched must come back as the text it was given.
        auto given = std::make_shared<std::pair<std::string, double>>();
        editor.value = [box, given, param, start] {
            if (box->value() == given->second) return given->first;
            return box->value() == start ? param.initial : realText(box->value());
        };
        editor.show = [box, given, param, start](const std::string& text) {
            bool ok = false;
            const double value = QString::fromStdString(text).toDouble(&ok);
            const bool usable = ok && std::isfinite(value) && value >= box->minimum() && value <= box->maximum();
            if (usable) box->setDecimals(std::max(box->decimals(), decimalsOf(value)));
            box->setValue(usable ? value : start);
            *given = {usable && value != start ? text : param.initial, box->value()};
        };
        connect(box, &QDoubleSpinBox::valueChanged, this, &PolicyForm::edited);
        editor.widget = box;
        break;
    }
    case ParamInfo::Type::choice: {
        auto* box = new QComboBox;
        for (const std::string& choice : param.choices)
            box->addItem(QString::fromStdString(choice));
        box->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
        box->setMinimumContentsLength(8);
        editor.value = [box] { return box->currentText().toStdString(); };
        editor.show = [box, initial](const std::string& text) {
            const int index = box->findText(QString::fromStdString(text));
            box->setCurrentIndex(index >= 0 ? index : std::max(0, box->findText(initial)));
        };
        connect(box, &QComboBox::currentIndexChanged, this, &PolicyForm::edited);
        editor.widget = box;
        break;
    }
    }
    const QString name = QString::fromStdString(param.name);
    editor.widget->setObjectName(name);
    editor.widget->setAccessibleName(name);
    editor.widget->setAccessibleDescription(QString::fromStdString(param.help));
    editor.widget->setToolTip(helpText(param));
    editor.widget->setFocusPolicy(Qt::StrongFocus);
    editor.widget->installEventFilter(new WheelGuard(editor.widget));
    editor.label = new QLabel(name);
    editor.label->setBuddy(editor.widget);
    editor.label->setToolTip(helpText(param));
    return editor;
}

void PolicyForm::edited() {
    if (m_building) return;
    markChanged();
    m_spec = spec();
    Q_EMIT specChanged(m_spec);
}

// Names of changed parameters are bold; the button is live only when there is something to reset.
void PolicyForm::markChanged() {
    bool any = false;
    for (const Editor& editor : m_editors) {
        const bool changed = !isDefault(editor);
        QFont font = editor.label->font();
        font.setBold(changed);
        editor.label->setFont(font);
        any = any || changed;
    }
    m_reset->setEnabled(any);
    m_reset->setVisible(!m_editors.empty());
}

} // namespace keepsight
