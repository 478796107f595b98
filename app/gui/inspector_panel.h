// What the run says about one token in one head: held or not, since when, what attention it received, and how the lanes differ there.
#pragma once

#include "engine/data/trace.h"
#include "widgets/base/focus_model.h"

#include <QTimer>
#include <QWidget>

class QGridLayout;
class QLabel;

namespace keepsight {

// The numbers behind the panel, without a widget.
struct TokenFacts {
    QString token;                      // quoted, white space made visible
    int position = -1;
    bool appended = false;              // the step has reached it
    bool held = false;
    int evictedAt = NeverEvicted;       // step, of the focused layer and head; whatever the focused step is
    int holders = 0, holdersOf = 0;     // layers × heads
    int kept = 0, seen = 0;             // of the focused head at the step
    double attentionPrefill = NotMeasured; // mean weight per visible query, of the bin that covers the token
    int bin = 1;
    double attentionSince = NotMeasured;   // the same over the lane's own steps
    std::vector<double> nll;            // per lane, of this token
};
struct LaneComparison {
    double jaccardHead = NotMeasured, jaccardAll = NotMeasured; // of the held sets
    double perplexity = NotMeasured, reference = NotMeasured;   // up to the step
    double bytesShare = NotMeasured;                            // stored, of the reference's
};
TokenFacts tokenFacts(const Trace& trace, const Focus& focus);
LaneComparison compareLanes(const Trace& trace, LaneIndex reference, LaneIndex lane, const Focus& focus);

class HoldersMap;
class WhyBlock;

class InspectorPanel : public QWidget {
    Q_OBJECT
public:
    explicit InspectorPanel(QWidget* parent = nullptr);
    void setTrace(std::shared_ptr<const Trace> trace);
    void follow(FocusModel& focus);
    WhyBlock* why() const { return m_why; }

protected:
    void showEvent(QShowEvent* event) override;

private:
    void refresh();
    void later();
    QLabel* row(const QString& name);
    std::shared_ptr<const Trace> m_trace;
    FocusModel* m_focus = nullptr;
    QTimer m_timer;
    QGridLayout* m_grid;
    QLabel *m_title, *m_place, *m_empty, *m_compareTitle;
    QWidget* m_body;
    QList<QWidget*> m_tokenRows; // hidden while no token is focused
    QLabel *m_state, *m_since, *m_holders, *m_kept, *m_before, *m_after, *m_nll;
    QLabel *m_jaccardHead, *m_jaccardAll, *m_ppl, *m_bytes;
    HoldersMap* m_map;
    WhyBlock* m_why;
};

} // namespace keepsight
