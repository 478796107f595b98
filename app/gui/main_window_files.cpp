#include "app/gui/main_window.h"
#include "app/gui/message_bar.h"
#include "app/gui/setup_panel.h"

#include <QCloseEvent>
#include <QCoreApplication>
#include <QDir>
#include <QFile>
#include <QFileDialog>
#include <QFileInfo>
#include <QMessageBox>
#include <QMimeData>
#include <QSettings>
#include <QTimer>
#include <QUrl>

namespace keepsight {

namespace {

void removeRecording(const QString& path) {
    for (const char* suffix : {"", "-wal", "-shm", "-journal"})
        QFile::remove(path + suffix);
}

QString samplePath() {
    const QDir besides(QCoreApplication::applicationDirPath());
    for (const char* place : {"../share/keepsight/sample.keep", "../../resources/sample.keep", "../resources/sample.keep"})
        if (QFileInfo::exists(besides.filePath(place))) return besides.filePath(place);
    return {};
}

} // namespace

void MainWindow::firstLaunch(bool somethingGiven) {
    if (const QString model = defaultModelPath(); !model.isEmpty() && !m_model && m_openingModel.isEmpty()) openModel(model);
    if (const QString sample = samplePath(); !sample.isEmpty() && !somethingGiven) m_session->open(sample);
    offerRecovery();
}

void MainWindow::openAnything(const QString& path) {
    const QFileInfo file(path);
    const QString suffix = file.suffix().toLower();
    if (suffix == "keep")
        openSession(path);
    else if (suffix == "txt" || suffix == "md")
        m_setup->prompt()->loadFile(path);
    else if (file.isDir() || suffix == "gguf" || !file.exists())
        openModel(path); // the engine says what is missing, naming the path
    else if (suffix == "safetensors" || file.fileName() == "config.json")
        openModel(file.absolutePath());
    else
        m_messages->tell(MessageBar::Kind::error,
                         tr("%1 cannot be opened: expected a .keep session, a .gguf model, a model directory or a .txt text.").arg(QDir::toNativeSeparators(path)));
}

void MainWindow::openSessionDialog() {
    const QString path = QFileDialog::getOpenFileName(this, tr("Open a session"), m_settings.lastFolder(), tr("Sessions (*.keep);;All files (*)"));
    if (!path.isEmpty()) openSession(path);
}

void MainWindow::openSession(const QString& path, bool asNew) {
    if (!mayDiscard()) return;
    m_session->open(path, asNew);
}

void MainWindow::onSessionOpened(const QString& path) {
    if (m_run) m_worker->cancel(std::exchange(m_run, 0)); // its late results would replace what was just opened
    m_held.reset();
    m_heldShown = false;
    showWhy();
    m_hinted = false;
    m_undo.clear();
    if (!m_session->path().isEmpty() && QFileInfo(path) != QFileInfo(samplePath())) {
        m_settings.addRecentSession(QFileInfo(path).absoluteFilePath());
        m_settings.setLastFolder(QFileInfo(path).absolutePath());
    }
    const auto trace = m_session->recorded();
    if (!trace || trace->run.jobJson.empty()) return;
    try {
        const Job job = jobFromJson(trace->run.jobJson);
        m_applying = true;
        m_kind = job.kind;
        m_setup->setJob(job);
        m_lanes = m_setup->lanes()->lanes();
        m_applying = false;
    } catch (const std::exception& e) {
        m_applying = false;
        m_messages->tell(MessageBar::Kind::notice, tr("The run can be replayed but not repeated: %1").arg(QString::fromUtf8(e.what())));
    }
    m_setup->lanes()->setPromptTokens(trace->prefillLength);
    m_setup->lanes()->setResults(m_session->shown());
    countPrompt();
    m_setup->showRecorded(QString::fromStdString(trace->run.commandLine));
}

bool MainWindow::saveSession(bool as, bool withoutText) {
    if (!m_session->recorded()) return false;
    QString path = m_session->path();
    if (as || path.isEmpty()) {
        const QString name = m_session->path().isEmpty() ? QDir(m_settings.lastFolder()).filePath("run.keep") : m_session->path();
        path = QFileDialog::getSaveFileName(this, withoutText ? tr("Save without prompt") : tr("Save session"), name, tr("Sessions (*.keep)"));
        if (path.isEmpty()) return false;
        if (QFileInfo(path).suffix().isEmpty()) path += ".keep";
    }
    m_settings.setLastFolder(QFileInfo(path).absolutePath());
    m_settings.addRecentSession(QFileInfo(path).absoluteFilePath());
    m_session->save(path, {.withoutText = withoutText});
    return true;
}

bool MainWindow::mayDiscard() {
    if (!m_options.askBeforeClosing || !m_session->isUnsaved() || !m_session->recorded()) return true;
    const auto answer = QMessageBox::question(this, tr("Keepsight"), tr("Save the run first?"),
                                              QMessageBox::Save | QMessageBox::Discard | QMessageBox::Cancel, QMessageBox::Save);
    return answer == QMessageBox::Discard || (answer == QMessageBox::Save && saveSession(false));
}

void MainWindow::closeEvent(QCloseEvent* event) {
    if (!mayDiscard()) {
        event->ignore();
        return;
    }
    if (m_options.restoreLayout)
        m_settings.setLayout({saveGeometry(), saveState(Settings::LayoutVersion), m_centre->saveState(Settings::LayoutVersion)});
    m_worker->cancelAll();
    event->accept();
}

void MainWindow::dragEnterEvent(QDragEnterEvent* event) {
    if (event->mimeData()->hasUrls() && event->mimeData()->urls().size() == 1 && event->mimeData()->urls().front().isLocalFile())
        event->acceptProposedAction();
}

void MainWindow::dropEvent(QDropEvent* event) {
    const auto urls = event->mimeData()->urls();
    if (urls.size() != 1 || !urls.front().isLocalFile()) return;
    event->acceptProposedAction();
    openAnything(urls.front().toLocalFile());
}

void MainWindow::offerRecovery() {
    const QStringList left = leftRecoveryFiles();
    if (left.isEmpty()) return;
    for (const QString& older : left.mid(1))
        removeRecording(older);
    const QString path = left.front();
    m_messages->offer(
        tr("The program ended without saving its last run, of %1.").arg(locale().toString(QFileInfo(path).lastModified(), QLocale::ShortFormat)),
        tr("Open it"),
        [this, path] {
            m_adopted << path;
            openSession(path, true);
        },
        [path] { removeRecording(path); });
}

void MainWindow::forgetRecovery() {
    removeRecording(ownRecoveryFile());
    for (const QString& path : m_adopted)
        removeRecording(path);
}

} // namespace keepsight
