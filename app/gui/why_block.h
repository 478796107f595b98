// Why the focused token was kept or dropped in the focused head: the block of the Inspector that asks the engine and tells it.
#pragma once

#include "app/gui/engine_worker.h"
#include "widgets/base/focus_model.h"

#include <QTimer>
#include <QWidget>
#include <optional>
#include <vector>

class QGridLayout;
class QLabel;

namespace keepsight {

// Which selection tells it: the one that evicted the token, else the last one at or before the focused step.
struct WhyQuestion {
    std::optional<ExplainRequest> ask; // nullopt: no selection has chosen about the token
    QString sentence;                  // then: why not
};
WhyQuestion whyQuestion(const Trace& trace, const Focus& focus); // focus clamped, with a token

struct WhyRow {
    QString name, value, help;
};
QString whyVerdict(const Explanation& explanation);
std::vector<WhyRow> whyRows(const Explanation& explanation, const Trace& trace, LaneIndex lane);

class WhyBlock : public QWidget {
    Q_OBJECT
public:
    // replay: nothing is held to ask about; running: the cores belong to a run, only step 1 is answered.
    enum class Source { replay, running, live };
    explicit WhyBlock(QWidget* parent = nullptr);
    void setSource(Source source);
    void setFocus(std::shared_ptr<const Trace> trace, const Focus& focus); // clamped; without a token the block is empty
    void answer(quint64 ticket, const ExplanationPtr& explanation, const QString& reason);
    QString text() const; // what it says, for tests and assistive tools

Q_SIGNALS:
    void asked(quint64 ticket, const keepsight::ExplainRequest& request);
    void dropped();   // the last question is of no interest any more
    void runWanted(); // the offer was taken

private:
    void refresh();
    void say(const QString& sentence, bool offer = false);
    void tell(const Explanation& explanation);

    std::shared_ptr<const Trace> m_trace;
    Focus m_at;
    Source m_source = Source::replay;
    quint64 m_ticket = 0;
    bool m_waiting = false;
    std::optional<ExplainRequest> m_asked; // what is shown or waited for
    QTimer m_patience;
    QLabel *m_title, *m_sentence, *m_note;
    QGridLayout* m_grid;
    std::vector<std::pair<QLabel*, QLabel*>> m_rows;
};

} // namespace keepsight
