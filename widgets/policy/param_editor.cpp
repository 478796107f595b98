#include "widgets/policy/param_editor.h"

#include "widgets/policy/odd_spin_box.h"
#include "widgets/policy/trimmed_spin_box.h"

#include <QComboBox>
#include <QCoreApplication>
#include <QEvent>
#include <QFileDialog>
#include <QFileInfo>
#include <QHBoxLayout>
#include <QLineEdit>
#include <QLocale>
#include <QRegularExpression>
#include <QToolButton>
#include <QToolTip>
#include <QValidator>
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

namespace keepsight {
namespace {

struct Tr {
    Q_DECLARE_TR_FUNCTIONS(ParamEditor)
};

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

// Text that is typed through unfinished states; what is left unfinished falls back to the last whole one.
class WholeText : public QValidator {
public:
    using Test = std::function<bool(const QString&)>;
    WholeText(const QString& characters, Test whole, QObject* parent)
        : QValidator(parent), m_typing(QRegularExpression::anchoredPattern(characters)), m_whole(std::move(whole)) {}
    State validate(QString& text, int&) const override {
        return m_whole(text) ? Acceptable : m_typing.match(text).hasMatch() ? Intermediate : Invalid;
    }
    void fixup(QString& text) const override { text = m_last; }
    bool accepts(const QString& text) const { return m_whole(text); }
    void remember(const QString& text) { m_last = text; }
    const QString& last() const { return m_last; }

private:
    QRegularExpression m_typing;
    Test m_whole;
    QString m_last;
};

int decimalsOf(double value) {
    for (int decimals = 0; decimals < 9; ++decimals) {
        const double scaled = value * std::pow(10.0, decimals);
        if (std::abs(scaled - std::round(scaled)) < 1e-6 * std::max(1.0, std::abs(scaled))) return decimals;
    }
    return 9;
}

std::string realText(double value) { return QString::number(value, 'g', QLocale::FloatingPointShortest).toStdString(); }

QString unitSuffix(const ParamInfo& param) { return param.unit.empty() ? QString() : QLatin1Char(' ') + QString::fromStdString(param.unit); }

bool ranged(const ParamInfo& param) { return param.low < param.high; }

bool isList(const ParamInfo& param, const QString& text) {
    if (text.isEmpty()) return true;
    const QStringList pieces = text.split(QLatin1Char('/'));
    return std::all_of(pieces.begin(), pieces.end(), [&](const QString& piece) {
        bool ok = false;
        const double value = piece.toDouble(&ok);
        return ok && (!ranged(param) || (value >= param.low && value <= param.high));
    });
}

// Schedules take intervals beside the words they list.
bool takesIntervals(const ParamInfo& param) { return param.name == "timing"; }

bool isChoice(const ParamInfo& param, const QString& text) {
    static const QRegularExpression interval(QStringLiteral("^(every|decode):[1-9][0-9]{0,6}$"));
    return std::ranges::find(param.choices, text.toStdString()) != param.choices.end() || (takesIntervals(param) && interval.match(text).hasMatch());
}

void makeInteger(ParamEditor& editor, QObject* context, const std::function<void()>& edited) {
    const ParamInfo& param = editor.param;
    auto* box = param.odd ? new OddSpinBox : new QSpinBox;
    constexpr double Lowest = std::numeric_limits<int>::lowest(), Highest = std::numeric_limits<int>::max();
    box->setRange(ranged(param) ? static_cast<int>(std::max(param.low, Lowest)) : static_cast<int>(Lowest),
                  ranged(param) ? static_cast<int>(std::min(param.high, Highest)) : static_cast<int>(Highest));
    box->setSuffix(unitSuffix(param));
    box->setKeyboardTracking(false); // one change per number, not per digit
    if (!param.odd && ranged(param) && param.high - param.low > 1000) box->setStepType(QAbstractSpinBox::AdaptiveDecimalStepType);
    editor.value = [box] { return std::to_string(box->value()); };
    editor.show = [box, initial = QString::fromStdString(param.initial).toInt(), odd = param.odd](const std::string& text) {
        bool ok = false;
        const int value = QString::fromStdString(text).toInt(&ok);
        box->setValue(ok && !(odd && value % 2 == 0) ? value : initial);
    };
    QObject::connect(box, &QSpinBox::valueChanged, context, edited);
    editor.row = editor.field = box;
}

void makeReal(ParamEditor& editor, QObject* context, const std::function<void()>& edited) {
    const ParamInfo& param = editor.param;
    auto* box = new TrimmedSpinBox;
    const double start = QString::fromStdString(param.initial).toDouble();
    box->setDecimals(std::clamp(std::max(decimalsOf(start) + 1, decimalsOf(param.low)), 2, 9));
    box->setRange(ranged(param) ? param.low : -1e9, ranged(param) ? param.high : 1e9);
    box->setSingleStep(start == 0.0 ? (ranged(param) ? (param.high - param.low) / 20 : 0.1) : std::pow(10.0, std::floor(std::log10(std::abs(start)))) / 2);
    box->setSuffix(unitSuffix(param));
    box->setKeyboardTracking(false);
    // The box rounds: a value nobody touched must come back as the text it was given.
    auto given = std::make_shared<std::pair<std::string, double>>();
    editor.value = [box, given, initial = param.initial, start] {
        if (box->value() == given->second) return given->first;
        return box->value() == start ? initial : realText(box->value());
    };
    editor.show = [box, given, initial = param.initial, start](const std::string& text) {
        bool ok = false;
        const double value = QString::fromStdString(text).toDouble(&ok);
        const bool usable = ok && std::isfinite(value) && value >= box->minimum() && value <= box->maximum();
        if (usable) box->setDecimals(std::max(box->decimals(), decimalsOf(value)));
        box->setValue(usable ? value : start);
        *given = {usable && value != start ? text : initial, box->value()};
    };
    QObject::connect(box, &QDoubleSpinBox::valueChanged, context, edited);
    editor.row = editor.field = box;
}

void makeReals(ParamEditor& editor, QObject* context, const std::function<void()>& edited) {
    const ParamInfo& param = editor.param;
    auto* line = new QLineEdit;
    const auto whole = [param](const QString& text) { return isList(param, text); };
    auto* validator = new WholeText(QStringLiteral("[-+0-9.eE/]*"), whole, line);
    line->setValidator(validator);
    const auto example = [&](double share) { return QString::number(ranged(param) ? param.low + share * (param.high - param.low) : share, 'g', 1); };
    line->setPlaceholderText(Tr::tr("e.g. %1/%2").arg(example(0.3), example(0.7)) + unitSuffix(param));
    editor.value = [line, validator] {
        if (line->hasAcceptableInput()) validator->remember(line->text());
        return validator->last().toStdString();
    };
    editor.show = [line, validator, initial = param.initial](const std::string& text) {
        const QString given = QString::fromStdString(text);
        line->setText(validator->accepts(given) ? given : QString::fromStdString(initial));
        validator->remember(line->text());
    };
    QObject::connect(line, &QLineEdit::editingFinished, context, edited); // one change per list, not per key
    editor.row = editor.field = line;
}

void makeSettings(ParamEditor& editor, QObject* context, const std::function<void()>& edited) {
    auto* line = new QLineEdit;
    line->setPlaceholderText(Tr::tr("name=value;…"));
    line->setClearButtonEnabled(true);
    line->setValidator(new QRegularExpressionValidator(QRegularExpression(QStringLiteral("[^,\\s]*")), line)); // a comma would end it on the command line
    editor.value = [line] { return line->text().toStdString(); };
    editor.show = [line](const std::string& text) { line->setText(QString::fromStdString(text)); };
    QObject::connect(line, &QLineEdit::editingFinished, context, edited);
    QObject::connect(line, &QLineEdit::textChanged, context, [line, edited](const QString& text) { // the clear button
        if (text.isEmpty() && line->hasFocus()) edited();
    });
    editor.row = editor.field = line;
}

void makeFile(ParamEditor& editor, QObject* context, const std::function<void()>& edited) {
    const QString name = QString::fromStdString(editor.param.name);
    auto* line = new QLineEdit;
    line->setPlaceholderText(Tr::tr("no file"));
    line->setClearButtonEnabled(true);
    auto* browse = new QToolButton;
    browse->setText(QStringLiteral("…"));
    browse->setObjectName(name + QStringLiteral("Browse"));
    browse->setAccessibleName(Tr::tr("Choose a file for %1").arg(name));
    browse->setToolTip(browse->accessibleName());
    auto* row = new QWidget;
    auto* inner = new QHBoxLayout(row);
    inner->setContentsMargins(0, 0, 0, 0);
    inner->setSpacing(4);
    inner->addWidget(line, 1);
    inner->addWidget(browse);
    row->setFocusProxy(line);
    editor.value = [line] { return line->text().toStdString(); };
    editor.show = [line](const std::string& text) { line->setText(QString::fromStdString(text)); };
    QObject::connect(line, &QLineEdit::editingFinished, context, edited);
    QObject::connect(line, &QLineEdit::textChanged, context, [line, edited](const QString& text) { // the clear button
        if (text.isEmpty() && line->hasFocus()) edited();
    });
    QObject::connect(browse, &QToolButton::clicked, context, [line, browse, edited] {
        const QString path = QFileDialog::getOpenFileName(browse, Tr::tr("Choose a file"), QFileInfo(line->text()).path());
        if (path.isEmpty()) return;
        if (path.contains(QLatin1Char(','))) {
            QToolTip::showText(browse->mapToGlobal(QPoint()), Tr::tr("A path with a comma cannot be written on the command line: rename the file or its folder."), browse);
            return;
        }
        line->setText(path);
        edited();
    });
    editor.row = row;
    editor.field = line;
}

void makeChoice(ParamEditor& editor, QObject* context, const std::function<void()>& edited) {
    const ParamInfo& param = editor.param;
    auto* box = new QComboBox;
    QStringList choices;
    for (const std::string& choice : param.choices)
        choices << QString::fromStdString(choice);
    box->addItems(choices);
    box->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
    box->setMinimumContentsLength(6);
    const QString initial = QString::fromStdString(param.initial);
    QObject::connect(box, &QComboBox::currentIndexChanged, context, edited);
    editor.row = editor.field = box;
    if (!takesIntervals(param)) {
        editor.value = [box] { return box->currentText().toStdString(); };
        editor.show = [box, initial](const std::string& text) {
            const int index = box->findText(QString::fromStdString(text));
            box->setCurrentIndex(index >= 0 ? index : std::max(0, box->findText(initial)));
        };
        return;
    }
    // Intervals are typed: the list shows how.
    box->setEditable(true);
    box->setInsertPolicy(QComboBox::NoInsert);
    box->setCompleter(nullptr);
    box->lineEdit()->setAccessibleName(QString::fromStdString(param.name));
    const auto whole = [param](const QString& text) { return isChoice(param, text); };
    auto* validator = new WholeText(QStringLiteral("[a-z_:0-9]*"), whole, box);
    for (const QString& example : {QStringLiteral("every:16"), QStringLiteral("decode:16")})
        box->addItem(example);
    box->setValidator(validator);
    editor.value = [box, validator] {
        if (box->lineEdit()->hasAcceptableInput()) validator->remember(box->currentText());
        return validator->last().toStdString();
    };
    editor.show = [box, validator, initial](const std::string& text) {
        const QString given = QString::fromStdString(text), shown = validator->accepts(given) ? given : initial;
        box->setCurrentIndex(std::max(0, box->findText(shown)));
        box->setEditText(shown);
        validator->remember(shown);
    };
    QObject::connect(box, &QComboBox::activated, context, edited);
    QObject::connect(box->lineEdit(), &QLineEdit::editingFinished, context, edited);
}

} // namespace

void guardWheel(QWidget* widget) {
    widget->setFocusPolicy(Qt::StrongFocus);
    widget->installEventFilter(new WheelGuard(widget));
}

std::string usableText(const ParamInfo& param, const std::string& text) {
    const QString given = QString::fromStdString(text);
    bool ok = false;
    switch (param.type) {
    case ParamInfo::Type::integer: {
        const int value = given.toInt(&ok);
        if (!ok || (param.odd && value % 2 == 0)) return param.initial;
        return std::to_string(ranged(param) ? static_cast<int>(std::clamp<double>(value, param.low, param.high)) : value);
    }
    case ParamInfo::Type::real: {
        const double value = given.toDouble(&ok);
        const bool usable = ok && std::isfinite(value) && (!ranged(param) || (value >= param.low && value <= param.high));
        return usable && value != QString::fromStdString(param.initial).toDouble() ? text : param.initial;
    }
    case ParamInfo::Type::choice: return isChoice(param, given) ? text : param.initial;
    case ParamInfo::Type::reals: return isList(param, given) ? text : param.initial;
    case ParamInfo::Type::file:
    case ParamInfo::Type::settings: return text;
    }
    return text;
}

QString paramHelp(const ParamInfo& param) {
    QString text = QString::fromStdString(param.help);
    if (!text.isEmpty()) text += QLatin1Char('\n');
    text += param.initial.empty() ? Tr::tr("Default: none") : Tr::tr("Default: %1").arg(QString::fromStdString(param.initial)) + unitSuffix(param);
    const bool number = param.type == ParamInfo::Type::integer || param.type == ParamInfo::Type::real || param.type == ParamInfo::Type::reals;
    if (number && ranged(param))
        text += QLatin1Char('\n') + Tr::tr("Range: %1 to %2").arg(QLocale().toString(param.low, 'g', 9), QLocale().toString(param.high, 'g', 9));
    return text;
}

ParamEditor makeParamEditor(const ParamInfo& param, QObject* context, std::function<void()> edited) {
    ParamEditor editor;
    editor.param = param;
    switch (param.type) {
    case ParamInfo::Type::integer: makeInteger(editor, context, edited); break;
    case ParamInfo::Type::real: makeReal(editor, context, edited); break;
    case ParamInfo::Type::reals: makeReals(editor, context, edited); break;
    case ParamInfo::Type::file: makeFile(editor, context, edited); break;
    case ParamInfo::Type::settings: makeSettings(editor, context, edited); break;
    case ParamInfo::Type::choice: makeChoice(editor, context, edited); break;
    }
    const QString name = QString::fromStdString(param.name);
    editor.field->setObjectName(name);
    editor.field->setAccessibleName(name);
    editor.field->setAccessibleDescription(QString::fromStdString(param.help));
    editor.field->setToolTip(paramHelp(param));
    guardWheel(editor.field);
    editor.row->setMinimumWidth(72); // the widest possible number would not let the panel be narrow
    return editor;
}

} // namespace keepsight
