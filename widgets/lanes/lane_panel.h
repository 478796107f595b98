// Up to four lanes: A starts as `full`, B as snapkv with half of the tokens removed.
#pragma once

#include "widgets/lanes/lane_editor.h"

#include <QWidget>
#include <memory>
#include <vector>

class QPushButton;
class QVBoxLayout;

namespace keepsight {

class FocusModel;

class LanePanel : public QWidget {
    Q_OBJECT
public:
    explicit LanePanel(std::vector<PolicyInfo> policies, QWidget* parent = nullptr);

    void setQuantizers(std::vector<QuantInfo> quantizers, LaneEditor::Conflict conflict); // none: lanes offer no choice
    std::vector<LaneSpec> lanes() const;
    void setLanes(const std::vector<LaneSpec>& lanes); // at most four are shown; none: the default pair. Emits lanesChanged on a difference
    void setPromptTokens(int tokens);                  // length of the prefill before a run said so; 0: unknown
    void setResults(std::shared_ptr<const Trace> trace); // nullptr: nothing measured
    void follow(FocusModel& focus);                    // the focused lane's card is outlined, clicking a card focuses it
    LaneEditor* editor(LaneIndex lane) const;          // nullptr: no such lane

public Q_SLOTS:
    void addLane();                                    // a copy of the last lane; does nothing at four
    void removeLane(keepsight::LaneIndex lane);        // lanes after it move up; the last one stays

Q_SIGNALS:
    void specChanged(keepsight::LaneIndex lane, const keepsight::PolicySpec& spec);
    void budgetDragged(keepsight::LaneIndex lane, const keepsight::PolicySpec& spec);
    void lanesChanged();                               // added or removed, or replaced by setLanes

private:
    void append(const PolicySpec& spec);
    void renumber();
    void showResults();
    std::vector<LaneSpec> defaults() const;

    std::vector<PolicyInfo> m_policies;
    std::vector<QuantInfo> m_quantizers;
    LaneEditor::Conflict m_conflict;
    std::vector<LaneEditor*> m_editors;
    std::shared_ptr<const Trace> m_trace;
    FocusModel* m_focus = nullptr;
    int m_promptTokens = 0;
    QVBoxLayout* m_column = nullptr;
    QPushButton* m_add = nullptr;
};

} // namespace keepsight
