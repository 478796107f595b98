// The window: it wires set-up, worker, session and views together; each of them works without it.
#pragma once

#include "app/gui/engine_worker.h"
#include "app/gui/session_model.h"
#include "app/gui/settings.h"
#include "app/gui/stall_meter.h"
#include "engine/data/job.h"
#include "widgets/base/focus_model.h"

#include <QHash>
#include <QMainWindow>
#include <QPointer>
#include <QTimer>
#include <QUndoStack>

#include <functional>
#include <optional>

class QLabel;
class QProgressBar;

namespace keepsight {

class ElidingLabel;
class InspectorPanel;
class MessageBar;
class SetupPanel;
class TraceView;
class TransportBar;
class ViewDock;

class MainWindow : public QMainWindow {
    Q_OBJECT
public:
    struct Options {
        bool restoreLayout = true; // false: the default arrangement, and nothing is written to the settings
        bool askBeforeClosing = true;
        QSize size = {};           // of the default arrangement; empty: as the screen allows
    };
    explicit MainWindow(const Options& options, QWidget* parent = nullptr);
    ~MainWindow() override;

    void openModel(const QString& path);
    void openAnything(const QString& path); // .keep, .gguf, model directory, text; says what it cannot open
    void firstLaunch(bool somethingGiven = false); // default model, else the sample session; the offer of a run left behind

    EngineWorker* worker() const { return m_worker; }
    SessionModel* session() const { return m_session; }
    SetupPanel* setup() const { return m_setup; }
    FocusModel* focusModel() { return &m_focus; }
    MessageBar* messages() const { return m_messages; }
    StallMeter* stallMeter() { return &m_stalls; }
    TraceView* view(const QString& id) const; // nullptr: no such view
    QAction* action(const QString& id) const; // "run.score", "run.cancel", …
    QUndoStack* undoStack() { return &m_undo; }
    bool hasModel() const { return m_model.has_value(); }
    double lastPreviewMs() const { return m_lastPreviewMs; }

Q_SIGNALS:
    void modelReady();
    void runEnded(keepsight::Outcome outcome); // of the run that is shown; failures are told by the message bar
    void previewShown();

protected:
    void closeEvent(QCloseEvent* event) override;
    void dragEnterEvent(QDragEnterEvent* event) override;
    void dropEvent(QDropEvent* event) override;

private:
    // main_window.cpp: what there is and where it stands
    void makeDocks();
    void arrangeDocks();
    void makeToolBar();
    void showTitle();
    void showDetails(); // dock headers follow focus and trace
    void showModel();
    void showTabs();
    void showTrace(const TracePtr& trace);
    void showNextView();
    void setTheme(Theme theme);
    ViewDock* currentDock() const;

    // main_window_actions.cpp
    void makeActions();
    QAction* addAction(const QString& id, QMenu* menu, const QString& text, const QKeySequence& keys, std::function<void()> call, const QString& icon = {});
    void showRecentSessions(QMenu* menu);
    void openPalette();
    void about();
    void exportFigureOf(ViewDock* dock);
    void copyPicture();

    // main_window_run.cpp
    void start(RunKind kind, bool background = false);
    void cancelRun();
    void repeatSession();
    void onStarted(JobId id, const QString& tag);
    void onProgress(JobId id, const Progress& progress);
    void onUpdate(JobId id, const TracePtr& trace);
    void onFinished(JobId id, Outcome outcome, const TracePtr& trace);
    void onFailed(JobId id, const QString& reason);
    void onModel(const ModelInfo& model);
    void onBudgetDragged(LaneIndex lane, const PolicySpec& spec);
    void onLanesEdited(std::optional<LaneIndex> lane);
    void applyLanes(const std::vector<LaneSpec>& lanes); // undo and redo
    void follow(const std::vector<LaneSpec>& before);    // previews and reruns after a change of lanes
    void askFullAttention(LayerIndex layer, HeadIndex queryHead);
    void setModel(std::optional<ModelInfo> model); // and what depends on having one
    void showBusy(bool busy);
    void countPrompt();
    bool canPreview() const;
    void showHeld(const Trace& trace);
    void showWhy(); // what the Inspector's explanations can be asked of

    // main_window_files.cpp
    void openSessionDialog();
    void openSession(const QString& path, bool asNew = false);
    bool saveSession(bool as, bool withoutText = false);
    bool mayDiscard(); // asks if the run is unsaved; Save saves it
    void onSessionOpened(const QString& path);
    void offerRecovery();
    void forgetRecovery();

    Options m_options;
    Settings m_settings;
    EngineWorker* m_worker;
    SessionModel* m_session;
    FocusModel m_focus;
    StallMeter m_stalls;
    QUndoStack m_undo;

    SetupPanel* m_setup;
    QMainWindow* m_centre; // holds the docks of the views
    QList<ViewDock*> m_docks;
    QDockWidget *m_setupDock = nullptr, *m_inspectorDock = nullptr;
    InspectorPanel* m_inspector = nullptr;
    TransportBar* m_transport = nullptr;
    MessageBar* m_messages;
    ElidingLabel* m_modelLabel = nullptr;
    QLabel* m_progressLabel = nullptr;
    QProgressBar* m_progress = nullptr;
    QList<QAction*> m_progressActions; // of the tool bar: shown while something runs
    QHash<QString, QAction*> m_actions;
    QPointer<ViewDock> m_lastDock; // the one with the keyboard last

    std::optional<ModelInfo> m_model;
    QString m_openingModel;                // path of the model being opened
    JobId m_opening = 0, m_run = 0, m_map = 0;
    bool m_runShown = true;                // false: a background rerun that has nothing better than the preview yet
    RunKind m_kind = RunKind::score;       // of the last run
    bool m_heldShown = false;              // the run that is shown is the one whose prefill is held
    std::optional<Job> m_held;             // the job whose prefill the engine holds: what previews and reruns repeat
    std::vector<LaneSpec> m_lanes;         // before the edit that comes next
    QTimer m_showTimer;                    // hands the shown trace to the views, one a turn
    int m_viewsToShow = 0, m_nextView = -1;
    bool m_hinted = false;                 // that a replay does not follow its lanes
    bool m_everShown = false;              // some run was
    bool m_applying = false;               // lanes change by undo, or by a session
    double m_lastPreviewMs = -1;
    QStringList m_adopted;                 // recovery files opened in this window, removed when it closes
};

} // namespace keepsight
