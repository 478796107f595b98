// What Generate, Needle and Suite need beyond the text and the lanes.
#pragma once

#include "engine/data/job.h"

#include <QWidget>

class QCheckBox;
class QDoubleSpinBox;
class QLabel;
class QLineEdit;
class QSpinBox;
class QToolButton;

namespace keepsight {

// "200, 400" or "200:1000:200" (from, to, step); throws UsageError naming the piece that is not a number or out of range.
std::vector<int> parseLengths(const std::string& text);
std::vector<double> parsePercents(const std::string& text); // 0 … 100; "5" alone is one depth of 5 %

class RunSettings : public QWidget {
    Q_OBJECT
public:
    explicit RunSettings(QWidget* parent = nullptr);
    void apply(Job& job) const; // fills generate, sampler, needle, suite, seed; throws UsageError
    void show(const Job& job);
    std::vector<double> suiteRatios() const; // throws UsageError
    void setSuiteRatios(const std::vector<double>& ratios);
    void setTextTokens(int tokens) { m_textTokens = tokens; } // −1: unknown
    QWidget* needleSection() const { return m_needle; }

Q_SIGNALS:
    void changed();

private:
    int windowTokens() const; // of the suite
    int m_textTokens = -1;
    QWidget *m_generate, *m_needle, *m_suite;
    QSpinBox *m_maxNew, *m_seed, *m_keys, *m_digits, *m_window;
    QDoubleSpinBox* m_temperature;
    QLineEdit *m_lengths, *m_depths, *m_ratios;
    QCheckBox *m_aware, *m_ignoreEos, *m_bench;
};

} // namespace keepsight
