// Time: play, pause, step and scrub through the steps of a run. Seeking shows exactly what playing shows.
#pragma once

#include "engine/data/trace.h"
#include "widgets/base/focus_model.h"

#include <QTimer>
#include <QWidget>
#include <memory>

class QAction;
class QComboBox;
class QLabel;
class QToolButton;

namespace keepsight {

class TimelineSlider;

class TransportBar : public QWidget {
    Q_OBJECT
public:
    explicit TransportBar(QWidget* parent = nullptr);

    // While a run goes on the focus follows its newest step, until the user scrubs away from it (and again from when he returns to it).
    // A trace of another run starts at its last step.
    void setTrace(std::shared_ptr<const Trace> trace);
    void follow(FocusModel& focus);

    bool isPlaying() const { return m_timer.isActive(); }
    bool followsEnd() const { return m_followEnd; }
    // Actions with shortcuts (Home of the run, ",", Space, ".", end), ready for a menu; do not give others the same keys.
    QAction* toStartAction() const { return m_toStart; }
    QAction* backAction() const { return m_back; }
    QAction* playAction() const { return m_play; }
    QAction* forwardAction() const { return m_forward; }
    QAction* toEndAction() const { return m_toEnd; }

public Q_SLOTS:
    void play();   // from the start if at the end
    void pause();
    void toggle();
    void goTo(int step); // clamped; as if the user had scrubbed there

Q_SIGNALS:
    void playingChanged(bool playing);

protected:
    void changeEvent(QEvent* event) override;

private:
    QAction* makeAction(const QString& text, const QKeySequence& keys, const char* name);
    QToolButton* makeButton(QAction* action);
    void playPressed();
    void tick();
    void refresh();
    void paintIcons();
    int step() const; // focused, clamped to the trace
    int lastStep() const { return m_trace ? m_trace->lastStep() : -1; }
    int expectedLast() const;
    const StepRecord* record(int step) const;
    int intervalMs(int step) const; // until the step after it
    bool running() const;

    std::shared_ptr<const Trace> m_trace;
    FocusModel* m_focus = nullptr;
    std::string m_run; // identity of the run shown
    bool m_followEnd = true, m_moving = false;
    QTimer m_timer;
    QAction *m_toStart, *m_back, *m_play, *m_forward, *m_toEnd;
    QLabel* m_label = nullptr;
    TimelineSlider* m_slider = nullptr;
    QComboBox* m_speed = nullptr;
};

} // namespace keepsight
