// One lane of the set-up as a card: policy, budget, and what the run measured for it.
#pragma once

#include "engine/data/job.h"
#include "engine/data/trace.h"
#include "widgets/policy/policy_form.h"

#include <QFrame>
#include <memory>
#include <vector>

class QComboBox;
class QDoubleSpinBox;
class QLabel;
class QSlider;
class QToolButton;

namespace keepsight {

// What the lines of a card say; computed from a trace without a widget.
struct LaneResults {
    bool measured = false;         // the lane has steps
    double keptPerHead = NotMeasured; // tokens, mean over layers and heads, after the last step
    double kvBytes = NotMeasured;  // stored, after the last step
    double perplexity = NotMeasured;
    double perplexityDelta = NotMeasured; // against lane A after the same step; only where both were fed the same text
    double msPerToken = NotMeasured; // median over the decode steps
    QString notice;
};
LaneResults laneResults(const Trace& trace, LaneIndex lane);

class LaneEditor : public QFrame {
    Q_OBJECT
public:
    LaneEditor(LaneIndex lane, std::vector<PolicyInfo> policies, QWidget* parent = nullptr);

    LaneIndex lane() const { return m_lane; }
    PolicySpec spec() const { return m_spec; }
    void setSpec(const PolicySpec& spec);          // does not emit
    bool means(const PolicySpec& spec) const;      // the same choice, however its defaults are written out
    void setLane(LaneIndex lane);                  // a lane before it was removed
    void setPromptTokens(int tokens);              // of the prefill, for "kept" and the tokens scale; 0: unknown
    void setResults(const LaneResults& results);
    void setFocused(bool focused);
    void setRemovable(bool removable);

Q_SIGNALS:
    void specChanged(keepsight::LaneIndex lane, const keepsight::PolicySpec& spec);   // a decided change
    void budgetDragged(keepsight::LaneIndex lane, const keepsight::PolicySpec& spec); // while the slider is down
    void removeRequested(keepsight::LaneIndex lane);
    void activated(keepsight::LaneIndex lane);     // clicked, or entered with the keyboard

protected:
    void paintEvent(QPaintEvent* event) override;
    void mousePressEvent(QMouseEvent* event) override;
    void changeEvent(QEvent* event) override;
    bool eventFilter(QObject* object, QEvent* event) override;

private:
    void makeBudgetRow();
    void showSpec();
    void showBudget();
    void showLines();
    void showName();
    void showSummary();
    void dimSummary();
    void setBudget(const Budget& budget);
    void sliderMoved();
    int tokensHigh() const;
    const PolicyInfo* info() const { return m_form->info(); }

    LaneIndex m_lane;
    PolicySpec m_spec;
    LaneResults m_results;
    int m_promptTokens = 0;
    bool m_showing = false, m_focused = false;

    QWidget* m_badge = nullptr;
    QToolButton* m_policy = nullptr;
    QToolButton* m_remove = nullptr;
    QLabel* m_summary = nullptr;
    PolicyForm* m_form = nullptr;
    QWidget* m_budgetRow = nullptr;
    QLabel* m_budgetName = nullptr;
    QSlider* m_slider = nullptr;
    QDoubleSpinBox* m_amount = nullptr;
    QComboBox* m_unit = nullptr;
    QLabel* m_kept = nullptr;
    QLabel* m_quality = nullptr;
    QLabel* m_speed = nullptr;
    QLabel* m_notice = nullptr;
};

} // namespace keepsight
