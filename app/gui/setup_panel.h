// The left side: model, text, lanes, settings, and the command line that repeats the run. What it says becomes a Job.
#pragma once

#include "app/gui/prompt_panel.h"
#include "app/gui/run_settings.h"
#include "widgets/lanes/lane_panel.h"

#include <QWidget>

class QComboBox;
class QPlainTextEdit;
class QToolButton;

namespace keepsight {

class SetupPanel : public QWidget {
    Q_OBJECT
public:
    explicit SetupPanel(QWidget* parent = nullptr);

    Job job(RunKind kind) const; // throws UsageError when a field cannot be read
    Job runnableJob(RunKind kind) const; // the same, and the text file its command line names exists; throws EngineError
    void setJob(const Job& job); // of a session: shows what was run
    LanePanel* lanes() const { return m_lanes; }
    PromptPanel* prompt() const { return m_prompt; }
    void setTextTokens(int tokens); // of the text as the model counts them; −1: unknown
    void setModels(const QStringList& recent, const QString& current);
    QString modelPath() const { return m_model; }
    void showCommandLine(RunKind kind);
    void showRecorded(const QString& commandLine); // of a replayed session, as it was run; until something is edited

Q_SIGNALS:
    void modelChosen(const QString& path);
    void failed(const QString& sentence);
    void edited(); // text or settings; lanes speak for themselves

private:
    void chooseModelFile(bool directory);
    QComboBox* m_models;
    PromptPanel* m_prompt;
    LanePanel* m_lanes;
    RunSettings* m_settings;
    QPlainTextEdit* m_command;
    QToolButton* m_copy;
    QString promptFile() const;
    QString m_model;
    QString m_recorded; // as long as the panel says what this session's job said
    Job m_recordedJob;
    RunKind m_kind = RunKind::score; // of the command line shown
};

} // namespace keepsight
