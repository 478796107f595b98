#include "app/gui/main_window.h"
#include "app/gui/message_bar.h"
#include "app/gui/inspector_panel.h"
#include "app/gui/setup_panel.h"
#include "app/gui/view_dock.h"
#include "app/gui/why_block.h"
#include "engine/data/error.h"
#include "widgets/attention/attention_view.h"
#include "widgets/transport/transport_bar.h"

#include <QAction>
#include <QLabel>
#include <QProgressBar>
#include <QUndoCommand>

#include <algorithm>

namespace keepsight {

namespace {

// Lanes before and after one edit. The edit has happened already when the command is pushed.
class LanesCommand : public QUndoCommand {
public:
    using Apply = std::function<void(const std::vector<LaneSpec>&)>;
    LanesCommand(const QString& text, std::vector<LaneSpec> before, std::vector<LaneSpec> after, Apply apply)
        : QUndoCommand(text), m_before(std::move(before)), m_after(std::move(after)), m_apply(std::move(apply)) {}
    void undo() override { m_apply(m_before); }
    void redo() override {
        if (!std::exchange(m_first, false)) m_apply(m_after);
    }

private:
    std::vector<LaneSpec> m_before, m_after;
    Apply m_apply;
    bool m_first = true;
};

QString duration(double seconds) {
    if (seconds < 60) return QObject::tr("%1 s left").arg(std::max(1, int(seconds + 0.5)));
    return QObject::tr("%1 min left").arg(int(seconds / 60 + 0.5));
}

} // namespace

void MainWindow::start(RunKind kind, bool background) {
    Job job;
    try {
        if (!m_model && m_openingModel.isEmpty())
            throw UsageError(tr("No model is open: choose a .gguf file or a model directory on the left, or drop one on the window.").toStdString());
        job = m_setup->runnableJob(kind);
        if ((kind == RunKind::score || kind == RunKind::generate) && job.prompt.text.empty() && !job.prompt.ids)
            throw UsageError(tr("There is no text to run: type one on the left, choose a sample or open a file.").toStdString());
    } catch (const std::exception& e) {
        m_messages->tell(MessageBar::Kind::error, QString::fromUtf8(e.what()));
        return;
    }
    if (!background) m_messages->clear();
    m_kind = kind;
    m_setup->showCommandLine(kind);
    m_runShown = !background;
    if (!background) m_heldShown = false;
    if (kind == RunKind::suite)
        for (auto* dock : m_docks)
            if (dock->id() == "results") dock->raise(); // where its rows come in
    // All runs of the window share one tag: a new one replaces what waits and stops what goes on.
    m_held = (kind == RunKind::score || kind == RunKind::generate) ? std::optional(job) : std::nullopt;
    m_run = m_worker->submit(std::move(job), "run");
    showBusy(true);
}

void MainWindow::cancelRun() {
    // A job that was still waiting ends without a signal: its end is told here.
    if (m_map && m_worker->cancel(m_map)) m_map = 0;
    if (m_opening && m_worker->cancel(m_opening)) onFinished(m_opening, Outcome::cancelled, nullptr);
    if (m_run && m_worker->cancel(m_run)) {
        m_session->dropPreview();
        onFinished(m_run, Outcome::cancelled, nullptr);
    }
    if (m_run || m_opening || m_map)
        m_progressLabel->setText(tr("cancelling"));
    else
        showBusy(false);
}

void MainWindow::repeatSession() {
    const auto trace = m_session->recorded();
    if (!trace) return;
    try {
        const Job job = jobFromJson(trace->run.jobJson);
        if (job.kind != RunKind::needle && job.prompt.text.empty() && !job.prompt.ids)
            throw EngineError(tr("This session was saved without its text: it can be replayed, not repeated.").toStdString());
        m_applying = true;
        m_setup->setJob(job);
        m_applying = false;
        m_lanes = m_setup->lanes()->lanes();
        start(job.kind);
    } catch (const std::exception& e) {
        m_applying = false;
        m_messages->tell(MessageBar::Kind::error, QString::fromUtf8(e.what()));
    }
}

void MainWindow::onStarted(JobId id, const QString&) {
    if (id == m_run || id == m_opening || id == m_map) showBusy(true);
}

void MainWindow::onProgress(JobId id, const Progress& progress) {
    if (id != m_run && id != m_opening && id != m_map) return;
    m_progress->setRange(0, progress.total > 0 ? 1000 : 0);
    if (progress.total > 0) m_progress->setValue(int(1000.0 * double(progress.done) / double(progress.total)));
    QString text = QString::fromStdString(progress.stage);
    const bool counted = std::any_of(progress.stage.begin(), progress.stage.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!counted && progress.total > 0 && progress.total < (1 << 24)) text += tr(" %1 of %2").arg(progress.done).arg(progress.total);
    if (progress.etaSeconds >= 0) text += QString(" %1 ").arg(QChar(0x00B7)) + duration(progress.etaSeconds);
    m_progressLabel->setText(text);
}

void MainWindow::onUpdate(JobId id, const TracePtr& trace) {
    if (id != m_run || !trace) return;
    if (!m_runShown) {
        // The preview stays until the rerun has evicted too: a view that empties on every touch of the slider cannot be compared.
        const bool caughtUp = !trace->lanes.empty() && std::all_of(trace->lanes.begin(), trace->lanes.end(), [](const Lane& l) { return l.steps.size() >= 2; });
        if (!caughtUp) return;
        m_runShown = true;
    }
    m_session->setLive(trace);
    showHeld(*trace);
}

void MainWindow::onFinished(JobId id, Outcome outcome, const TracePtr& trace) {
    if (id == m_map) {
        m_map = 0;
        if (outcome == Outcome::complete && trace) m_session->extend(trace);
    } else if (id == m_opening) {
        m_opening = 0;
        if (outcome == Outcome::cancelled) m_openingModel.clear();
        showModel();
    } else if (id == m_run) {
        m_run = 0;
        m_runShown = true;
        if (trace) {
            m_session->setLive(trace);
            showHeld(*trace);
            if (m_transport->followsEnd()) m_transport->goTo(trace->lastStep());
        }
        if (outcome == Outcome::cancelled && m_held && (!trace || trace->lanes.empty() || trace->lanes.front().steps.empty())) m_held.reset();
        Q_EMIT runEnded(outcome);
    }
    showBusy(m_run || m_opening || m_map);
}

void MainWindow::onFailed(JobId id, const QString& reason) {
    if (id == m_map) {
        m_map = 0;
    } else if (id == m_opening) {
        m_opening = 0;
        m_openingModel.clear();
        setModel(std::nullopt);
        showModel();
        m_setup->setModels(m_settings.recentModels(), {});
    } else if (id == m_run) {
        m_run = 0;
        m_runShown = true;
        m_held.reset();
        m_session->dropPreview();
    } else {
        return; // of a run that was replaced
    }
    m_messages->tell(MessageBar::Kind::error, reason);
    showBusy(m_run || m_opening || m_map);
}

void MainWindow::setModel(std::optional<ModelInfo> model) {
    m_model = std::move(model);
    m_held.reset();
    if (auto* attention = qobject_cast<AttentionView*>(view("attention"))) attention->setFullResolutionAvailable(m_model.has_value());
}

void MainWindow::onModel(const ModelInfo& model) {
    const QString path = std::exchange(m_openingModel, {});
    setModel(model);
    m_settings.addRecentModel(path);
    m_setup->setModels(m_settings.recentModels(), path);
    showModel();
    m_setup->showCommandLine(m_kind);
    countPrompt();
    Q_EMIT modelReady();
}

void MainWindow::openModel(const QString& path) {
    if (path.isEmpty()) return;
    OpenOptions options;
    options.model = path.toStdString();
    options.device = qEnvironmentVariable("KEEPSIGHT_DEVICE", "auto").toStdString();
    m_openingModel = path;
    setModel(std::nullopt);
    m_run = 0; // opening stops everything else
    showModel();
    m_opening = m_worker->open(options);
    showBusy(true);
}

// From the selection after its prefill on, the run that is shown is the one that is held.
void MainWindow::showHeld(const Trace& trace) {
    if (m_heldShown || !m_held) return;
    m_heldShown = std::any_of(trace.lanes.begin(), trace.lanes.end(), [](const Lane& lane) { return lane.steps.size() >= 2; });
    showWhy();
}

void MainWindow::showWhy() {
    const bool held = canPreview() && m_heldShown;
    m_inspector->why()->setSource(!held ? WhyBlock::Source::replay : m_run || m_map ? WhyBlock::Source::running : WhyBlock::Source::live);
}

bool MainWindow::canPreview() const { return m_model && m_held && m_session->recorded() && !m_session->recorded()->lanes.empty(); }

void MainWindow::onBudgetDragged(LaneIndex lane, const PolicySpec& spec) {
    if (!canPreview() || lane.value >= int(m_session->recorded()->lanes.size())) return;
    m_focus.setLane(lane);
    if (m_run && !m_runShown) m_worker->cancel(m_run); // its lanes are out of date: do not share the cores with it
    m_worker->preview(m_session->recorded(), lane, spec);
}

void MainWindow::onLanesEdited(std::optional<LaneIndex> lane) {
    auto now = m_setup->lanes()->lanes();
    m_setup->showCommandLine(m_kind);
    if (m_applying || now == m_lanes) return;
    auto before = std::exchange(m_lanes, std::move(now));
    const QString text = lane ? tr("change of lane %1").arg(QString::fromStdString(m_lanes[std::size_t(lane->value)].label))
                         : before.size() < m_lanes.size() ? tr("added lane")
                                                          : tr("removed lane");
    m_undo.push(new LanesCommand(text, before, m_lanes, [this](const std::vector<LaneSpec>& lanes) { applyLanes(lanes); }));
    follow(before);
    if (m_session->recorded() && !m_held && !m_run && m_model && !std::exchange(m_hinted, true))
        m_messages->tell(MessageBar::Kind::notice, tr("This is a replay: Score runs the text live, and from then on the views follow every change at once."));
}

void MainWindow::applyLanes(const std::vector<LaneSpec>& lanes) {
    const auto before = m_lanes;
    m_applying = true;
    m_setup->lanes()->setLanes(lanes);
    m_applying = false;
    m_lanes = m_setup->lanes()->lanes();
    m_setup->showCommandLine(m_kind);
    follow(before);
}

void MainWindow::follow(const std::vector<LaneSpec>& before) {
    if (!canPreview() || (m_kind != RunKind::score && m_kind != RunKind::generate)) return;
    if (before.size() == m_lanes.size())
        for (std::size_t i = 0; i < m_lanes.size(); ++i)
            if (!(m_lanes[i].policy == before[i].policy) && i < m_session->recorded()->lanes.size())
                m_worker->preview(m_session->recorded(), LaneIndex(int(i)), m_lanes[i].policy);
    start(m_kind, true);
}

void MainWindow::askFullAttention(LayerIndex layer, HeadIndex queryHead) {
    const auto trace = m_session->recorded();
    if (!trace) return;
    if (!m_model) {
        m_messages->tell(MessageBar::Kind::notice, tr("Full resolution is computed from the model: open one on the left first."));
        return;
    }
    try {
        PromptSpec prompt = jobFromJson(trace->run.jobJson).prompt;
        m_map = m_worker->attention(trace, prompt, layer, queryHead);
        showBusy(true);
    } catch (const std::exception& e) {
        m_messages->tell(MessageBar::Kind::error, QString::fromUtf8(e.what()));
    }
}

void MainWindow::showBusy(bool busy) {
    showWhy();
    action("run.cancel")->setEnabled(busy);
    if (busy) {
        if (m_progressLabel->text().isEmpty()) m_progress->setRange(0, 0);
    } else {
        m_progress->setRange(0, 1000);
        m_progress->setValue(0);
        m_progressLabel->clear();
    }
    for (QAction* act : m_progressActions)
        act->setVisible(busy);
}

void MainWindow::countPrompt() {
    if (m_model) m_worker->countTokens(m_setup->prompt()->prompt());
}

} // namespace keepsight
