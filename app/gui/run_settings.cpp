#include "app/gui/run_settings.h"

#include "engine/data/error.h"

#include <QCheckBox>
#include <QDoubleSpinBox>
#include <QFormLayout>
#include <QLineEdit>
#include <QSpinBox>
#include <QStringList>
#include <QToolButton>
#include <QVBoxLayout>

#include <algorithm>
#include <cmath>

namespace keepsight {

namespace {

constexpr int MostCells = 64; // per axis: beyond that a grid belongs on the command line

double number(const QString& text, double low, double high, const char* what) {
    bool ok = false;
    const double value = text.trimmed().toDouble(&ok);
    if (!ok || !(value >= low && value <= high))
        throw UsageError(QObject::tr("%1: expected a number from %2 to %3, found \"%4\".").arg(what).arg(low).arg(high).arg(text.trimmed()).toStdString());
    return value;
}

std::vector<double> list(const QString& text, double low, double high, const char* what) {
    std::vector<double> values;
    for (const QString& piece : text.split(',', Qt::SkipEmptyParts)) {
        const QStringList range = piece.split(':');
        if (range.size() == 1) {
            values.push_back(number(piece, low, high, what));
        } else if (range.size() == 3) {
            const double from = number(range[0], low, high, what), to = number(range[1], low, high, what), step = number(range[2], 1e-6, high, what);
            for (double v = from; v <= to + 1e-9 && int(values.size()) <= MostCells; v += step)
                values.push_back(v);
        } else {
            throw UsageError(QObject::tr("%1: expected values like 200,400 or from:to:step, found \"%2\".").arg(what, piece.trimmed()).toStdString());
        }
        if (int(values.size()) > MostCells) throw UsageError(QObject::tr("%1: at most %2 values fit a grid in the window.").arg(what).arg(MostCells).toStdString());
    }
    if (values.empty()) throw UsageError(QObject::tr("%1: expected at least one value, found none.").arg(what).toStdString());
    return values;
}

template <class T>
QString joined(const std::vector<T>& values) {
    QStringList out;
    for (const T v : values)
        out << QString::number(v);
    return out.join(", ");
}

} // namespace

std::vector<int> parseLengths(const std::string& text) {
    std::vector<int> out;
    for (const double v : list(QString::fromStdString(text), 32, 1 << 20, "Needle lengths"))
        out.push_back(int(std::lround(v)));
    return out;
}

std::vector<double> parsePercents(const std::string& text) { return list(QString::fromStdString(text), 0, 100, "Needle depths"); }

// A heading that folds its rows away.
static QWidget* section(const QString& title, QFormLayout*& form, QVBoxLayout* column, bool open) {
    auto* head = new QToolButton;
    head->setText(title);
    head->setToolButtonStyle(Qt::ToolButtonTextBesideIcon);
    head->setAutoRaise(true);
    head->setCheckable(true);
    head->setChecked(open);
    head->setArrowType(open ? Qt::DownArrow : Qt::RightArrow);
    head->setStyleSheet("QToolButton { border: none; font-weight: 600; padding: 2px 0; }");
    auto* body = new QWidget;
    form = new QFormLayout(body);
    form->setContentsMargins(4, 0, 0, 4);
    form->setVerticalSpacing(4);
    form->setFieldGrowthPolicy(QFormLayout::AllNonFixedFieldsGrow);
    body->setVisible(open);
    QObject::connect(head, &QToolButton::toggled, body, [head, body](bool on) {
        head->setArrowType(on ? Qt::DownArrow : Qt::RightArrow);
        body->setVisible(on);
    });
    column->addWidget(head);
    column->addWidget(body);
    return body;
}

static QSpinBox* spin(int low, int high, int value, const QString& name, const QString& help) {
    auto* box = new QSpinBox;
    box->setRange(low, high);
    box->setValue(value);
    box->setAccessibleName(name);
    box->setToolTip(help);
    return box;
}

RunSettings::RunSettings(QWidget* parent) : QWidget(parent) {
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(2);
    QFormLayout* form = nullptr;

    m_generate = section(tr("Generate"), form, column, false);
    m_maxNew = spin(1, 4096, 64, tr("New tokens"), tr("Stops earlier at the end-of-text token"));
    m_temperature = new QDoubleSpinBox;
    m_temperature->setRange(0, 2);
    m_temperature->setSingleStep(0.1);
    m_temperature->setAccessibleName(tr("Temperature"));
    m_temperature->setToolTip(tr("0: always the likeliest token"));
    m_seed = spin(0, 999999999, 0, tr("Seed"), tr("Repeats the same random choices"));
    m_ignoreEos = new QCheckBox(tr("Go on after end of text"));
    form->addRow(tr("New tokens"), m_maxNew);
    form->addRow(tr("Temperature"), m_temperature);
    form->addRow(tr("Seed"), m_seed);
    form->addRow(m_ignoreEos);

    m_needle = section(tr("Needle"), form, column, false);
    m_lengths = new QLineEdit("200, 400");
    m_lengths->setAccessibleName(tr("Needle lengths"));
    m_lengths->setToolTip(tr("Tokens of the whole prompt: 200, 400 or 200:1000:200"));
    m_depths = new QLineEdit("0, 50, 100");
    m_depths->setAccessibleName(tr("Needle depths"));
    m_depths->setToolTip(tr("Where the pass key stands, in percent of the filler"));
    m_keys = spin(1, 20, 1, tr("Keys per cell"), tr("Pass keys tried in each cell; the cell shows their mean"));
    m_digits = spin(1, 12, 5, tr("Digits"), tr("Digits of the pass key"));
    m_aware = new QCheckBox(tr("Policy sees the question"));
    m_aware->setToolTip(tr("The question is part of the prefill: easier for every policy"));
    form->addRow(tr("Lengths"), m_lengths);
    form->addRow(tr("Depths, %"), m_depths);
    form->addRow(tr("Keys"), m_keys);
    form->addRow(tr("Digits"), m_digits);
    form->addRow(m_aware);

    m_suite = section(tr("Suite"), form, column, false);
    m_ratios = new QLineEdit("25, 50, 75");
    m_ratios->setObjectName("suiteRatios");
    m_ratios->setAccessibleName(tr("Removed shares of the suite"));
    m_ratios->setToolTip(tr("Each lane's policy is scored at each share of removed tokens"));
    m_window = spin(0, 1 << 20, 0, tr("Window of the suite"), tr("Tokens of text scored at a time, half of them compressed; 0: 1024, or as many as the text has"));
    m_window->setSpecialValueText(tr("as the text allows"));
    m_window->setKeyboardTracking(false);
    m_bench = new QCheckBox(tr("Time decoding too"));
    m_bench->setObjectName("suiteBench");
    m_bench->setChecked(true);
    m_bench->setToolTip(tr("Measures milliseconds per token of every row; without it the suite is faster"));
    form->addRow(tr("Removed, %"), m_ratios);
    form->addRow(tr("Window"), m_window);
    form->addRow(m_bench);

    for (auto* box : {m_maxNew, m_seed, m_keys, m_digits, m_window})
        connect(box, &QSpinBox::valueChanged, this, &RunSettings::changed);
    connect(m_temperature, &QDoubleSpinBox::valueChanged, this, &RunSettings::changed);
    for (auto* edit : {m_lengths, m_depths, m_ratios})
        connect(edit, &QLineEdit::editingFinished, this, &RunSettings::changed);
    for (auto* check : {m_aware, m_ignoreEos, m_bench})
        connect(check, &QCheckBox::toggled, this, &RunSettings::changed);
}

void RunSettings::apply(Job& job) const {
    job.generate.maxNew = m_maxNew->value();
    job.generate.ignoreEos = m_ignoreEos->isChecked();
    job.sampler.temperature = m_temperature->value();
    job.seed = static_cast<std::uint64_t>(m_seed->value());
    if (job.kind == RunKind::suite) {
        job.suite.bench = m_bench->isChecked();
        job.ppl.maxLength = windowTokens();
    }
    if (job.kind != RunKind::needle) return;
    job.needle.lengths = parseLengths(m_lengths->text().toStdString());
    job.needle.depths = parsePercents(m_depths->text().toStdString());
    job.needle.keys = m_keys->value();
    job.needle.digits = m_digits->value();
    job.needle.queryAware = m_aware->isChecked();
}

void RunSettings::show(const Job& job) {
    m_maxNew->setValue(job.generate.maxNew);
    m_ignoreEos->setChecked(job.generate.ignoreEos);
    m_temperature->setValue(job.sampler.temperature);
    m_seed->setValue(static_cast<int>(job.seed));
    if (job.kind == RunKind::suite) {
        m_bench->setChecked(job.suite.bench);
        if (job.ppl.maxLength != windowTokens()) m_window->setValue(job.ppl.maxLength);
    }
    if (job.kind != RunKind::needle) return;
    m_lengths->setText(joined(job.needle.lengths));
    m_depths->setText(joined(job.needle.depths));
    m_keys->setValue(job.needle.keys);
    m_digits->setValue(job.needle.digits);
    m_aware->setChecked(job.needle.queryAware);
}

int RunSettings::windowTokens() const {
    const int most = PplSpec().maxLength;
    return m_window->value() > 0 ? m_window->value() : m_textTokens > 0 ? std::min(m_textTokens, most) : most;
}

void RunSettings::setSuiteRatios(const std::vector<double>& ratios) {
    QStringList out;
    for (const double r : ratios)
        out << QString::number(100 * r, 'g', 6);
    m_ratios->setText(out.join(", "));
}

std::vector<double> RunSettings::suiteRatios() const {
    std::vector<double> ratios = list(m_ratios->text(), 0, 99, "Removed shares");
    for (double& r : ratios)
        r /= 100;
    return ratios;
}

} // namespace keepsight
