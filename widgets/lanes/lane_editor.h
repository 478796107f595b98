// One lane of the set-up as a card: policy, budget, and what the run measured for it.
#pragma once

#include "engine/data/job.h"
#include "engine/data/trace.h"
#include "widgets/policy/policy_form.h"
#include "widgets/policy/quant_form.h"

#include <QFrame>
#include <functional>
#include <memory>
#include <vector>

class QComboBox;
class QDoubleSpinBox;
class QHBoxLayout;
class QLabel;
class QSlider;
class QToolButton;

namespace keepsight {

// What the lines of a card say; computed from a trace without a widget.
struct LaneResults {
    bool measured = false;         // the lane has steps
    double keptPerHead = NotMeasured; // tokens, mean over layers and heads, after the last step
    double kvBytes = NotMeasured;  // stored, after the last step
    double bitsPerValue = NotMeasured; // of these bytes, where a quantizer packs them
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
    // How the lane's cache may be stored, and the sentence that refuses a combination (empty: it works). Without quantizers there is no row.
    using Conflict = std::function<QString(const PolicySpec&)>;
    void setQuantizers(const std::vector<QuantInfo>& quantizers, Conflict conflict);

Q_SIGNALS:
    void specChanged(keepsight::LaneIndex lane, const keepsight::PolicySpec& spec);   // a decided change
    void budgetDragged(keepsight::LaneIndex lane, const keepsight::PolicySpec& spec); // while the slider is down
    void removeRequested(keepsight::LaneIndex lane);
    void activated(keepsight::LaneIndex lane);     // clicked, or entered with the keyboard

protected:
    void paintEvent(QPaintEvent* event) override;
    void mousePressEvent(QMouseEvent* event) override;
    void resizeEvent(QResizeEvent* event) override;
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
    void showQuantizer();
    QuantSpec quantFor(const std::string& policy) const;
    QString refusal(const PolicySpec& spec) const;
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
    QWidget* m_quantRow = nullptr;
    QHBoxLayout* m_quantLayout = nullptr;
    QuantForm* m_quant = nullptr; // nullptr: no quantizers are known
    QToolButton* m_quantOpen = nullptr;
    int m_quantAt = 0;            // of the row in the card
    Conflict m_conflict;
    QString m_refused;            // why this lane cannot run
    QLabel* m_kept = nullptr;
    QLabel* m_quality = nullptr;
    QLabel* m_speed = nullptr;
    QLabel* m_notice = nullptr;
};

} // namespace keepsight
