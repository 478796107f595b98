#include "app/gui/command_palette.h"
#include "app/gui/export_dialog.h"
#include "app/gui/main_window.h"
#include "app/gui/message_bar.h"
#include "app/gui/setup_panel.h"
#include "app/gui/theme.h"
#include "app/gui/view_dock.h"
#include "widgets/transport/transport_bar.h"

#include <QActionGroup>
#include <QApplication>
#include <QClipboard>
#include <QFileDialog>
#include <QFileInfo>
#include <QMenu>
#include <QMenuBar>
#include <QMessageBox>
#include <QSettings>

namespace keepsight {

QAction* MainWindow::addAction(const QString& id, QMenu* menu, const QString& text, const QKeySequence& keys, std::function<void()> call,
                               const QString& icon) {
    auto* act = new QAction(text, this);
    act->setObjectName(id);
    act->setShortcut(keys);
    if (!icon.isEmpty()) {
        act->setIcon(themedIcon(icon));
        act->setProperty("icon", icon);
    }
    if (call) connect(act, &QAction::triggered, this, std::move(call));
    const QString plain = QString(text).remove('&').remove(QChar(0x2026));
    act->setToolTip(keys.isEmpty() ? plain : QString("%1 (%2)").arg(plain, keys.toString(QKeySequence::NativeText)));
    menu->addAction(act);
    m_actions.insert(id, act);
    return act;
}

void MainWindow::makeActions() {
    auto* file = menuBar()->addMenu(tr("&File"));
    addAction("file.open", file, tr("&Open session…"), QKeySequence::Open, [this] { openSessionDialog(); }, "open");
    auto* recent = file->addMenu(tr("Recent sessions"));
    connect(recent, &QMenu::aboutToShow, this, [this, recent] { showRecentSessions(recent); });
    addAction("file.openModel", file, tr("Open &model…"), QKeySequence("Ctrl+M"), [this] {
        const QString path = QFileDialog::getOpenFileName(this, tr("Open a model"), m_settings.lastFolder(), tr("Models (*.gguf config.json);;All files (*)"));
        if (!path.isEmpty()) openModel(QFileInfo(path).fileName() == "config.json" ? QFileInfo(path).absolutePath() : path);
    });
    addAction("file.openText", file, tr("Open &text…"), QKeySequence("Ctrl+T"), [this] {
        const QString path = QFileDialog::getOpenFileName(this, tr("Open a text"), m_settings.lastFolder(), tr("Text (*.txt *.md);;All files (*)"));
        if (!path.isEmpty()) m_setup->prompt()->loadFile(path);
    });
    file->addSeparator();
    addAction("file.save", file, tr("&Save session"), QKeySequence::Save, [this] { saveSession(false); }, "save");
    addAction("file.saveAs", file, tr("Save session &as…"), QKeySequence("Ctrl+Shift+S"), [this] { saveSession(true); });
    addAction("file.saveWithoutText", file, tr("Save without prompt…"), {}, [this] { saveSession(true, true); });
    file->addSeparator();
    addAction("file.quit", file, tr("&Quit"), QKeySequence::Quit, [this] { close(); });

    auto* edit = menuBar()->addMenu(tr("&Edit"));
    auto* undo = m_undo.createUndoAction(this, tr("Undo"));
    undo->setShortcut(QKeySequence::Undo);
    undo->setObjectName("edit.undo");
    auto* redo = m_undo.createRedoAction(this, tr("Redo"));
    redo->setShortcuts({QKeySequence("Ctrl+Shift+Z"), QKeySequence("Ctrl+Y")});
    redo->setObjectName("edit.redo");
    m_actions.insert("edit.undo", undo);
    m_actions.insert("edit.redo", redo);
    edit->addActions({undo, redo});
    edit->addSeparator();
    addAction("edit.addLane", edit, tr("Add lane"), QKeySequence("Ctrl+L"), [this] { m_setup->lanes()->addLane(); });
    addAction("edit.editPrompt", edit, tr("Edit the text"), QKeySequence("Ctrl+P"), [this] {
        m_setupDock->show();
        if (auto* editor = m_setup->findChild<QWidget*>("promptEdit")) editor->setFocus();
    });
    edit->addSeparator();
    addAction("edit.palette", edit, tr("Command palette…"), QKeySequence("Ctrl+K"), [this] { openPalette(); }, "search");

    auto* run = menuBar()->addMenu(tr("&Run"));
    addAction("run.score", run, tr("Score"), QKeySequence("F5"), [this] { start(RunKind::score); }, "score-primary")
        ->setToolTip(tr("Prefill the first part of the text, evict, and feed the rest token by token (F5)"));
    addAction("run.generate", run, tr("Generate"), QKeySequence("F6"), [this] { start(RunKind::generate); }, "generate")
        ->setToolTip(tr("Let each lane continue the text (F6)"));
    addAction("run.needle", run, tr("Needle"), QKeySequence("F7"), [this] { start(RunKind::needle); }, "needle")
        ->setToolTip(tr("Hide pass keys in filler text and ask each lane for them (F7)"));
    addAction("run.suite", run, tr("Suite"), QKeySequence("F8"), [this] { start(RunKind::suite); }, "suite")
        ->setToolTip(tr("Perplexity, bytes and decode times of every lane at several budgets (F8)"));
    run->addSeparator();
    addAction("run.repeat", run, tr("Repeat this session live"), QKeySequence("Shift+F5"), [this] { repeatSession(); });
    addAction("run.cancel", run, tr("Cancel"), QKeySequence("Esc"), [this] { cancelRun(); }, "cancel")->setToolTip(tr("Stop, and keep what is done (Esc)"));

    auto* view = menuBar()->addMenu(tr("&View"));
    int key = 1;
    for (auto* dock : m_docks) {
        auto* act = addAction("view." + dock->id(), view, dock->windowTitle(), QKeySequence(QString("Ctrl+%1").arg(key++)), [dock] {
            dock->show();
            dock->raise();
            dock->view()->setFocus();
        });
        act->setToolTip(tr("Show %1 and give it the keyboard").arg(dock->windowTitle()));
    }
    auto* shown = view->addMenu(tr("Panels"));
    for (auto* dock : m_docks)
        shown->addAction(dock->toggleViewAction());
    for (auto* dock : {m_setupDock, m_inspectorDock})
        shown->addAction(dock->toggleViewAction());
    addAction("view.resetLayout", view, tr("Reset the arrangement"), {}, [this] {
        arrangeDocks();
        showTabs();
    });
    view->addSeparator();
    const auto move = [this](const char* id, QMenu* menu, const QString& text, const char* keys, int layer, int head, int lane) {
        addAction(id, menu, text, QKeySequence(keys), [this, layer, head, lane] {
            const auto trace = m_session->shown();
            if (!trace || trace->lanes.empty()) return;
            Focus f = m_focus.focus();
            const auto& c = trace->model.config;
            f.layer = LayerIndex(std::clamp(f.layer.value + layer, 0, std::max(0, c.layers - 1)));
            f.head = HeadIndex(std::clamp(f.head.value + head, 0, std::max(0, storedHeads(*trace, f.lane) - 1)));
            f.lane = LaneIndex(std::clamp(f.lane.value + lane, 0, int(trace->lanes.size()) - 1));
            m_focus.set(f);
        });
    };
    auto* focus = view->addMenu(tr("Focus"));
    move("focus.layerUp", focus, tr("Layer before"), "Alt+Up", -1, 0, 0);
    move("focus.layerDown", focus, tr("Layer after"), "Alt+Down", 1, 0, 0);
    move("focus.headBack", focus, tr("Head before"), "Alt+Left", 0, -1, 0);
    move("focus.headNext", focus, tr("Head after"), "Alt+Right", 0, 1, 0);
    move("focus.laneBack", focus, tr("Lane before"), "Alt+PgUp", 0, 0, -1);
    move("focus.laneNext", focus, tr("Lane after"), "Alt+PgDown", 0, 0, 1);
    addAction("view.fullAttention", view, tr("Attention at full resolution"), QKeySequence("Ctrl+Shift+A"), [this] {
        const auto& f = m_focus.focus();
        const auto trace = m_session->shown();
        const int group = trace ? std::max(1, trace->model.config.groupSize()) : 1;
        askFullAttention(f.layer, HeadIndex((trace ? kvHeadOf(*trace, f.lane, f.head) : f.head).value * group));
    });
    auto* time = view->addMenu(tr("Time"));
    for (QAction* act : {m_transport->toStartAction(), m_transport->backAction(), m_transport->playAction(), m_transport->forwardAction(), m_transport->toEndAction()})
        time->addAction(act);
    auto* theme = view->addMenu(tr("Theme"));
    auto* group = new QActionGroup(this);
    const std::pair<const char*, Theme> themes[] = {{"theme.system", Theme::system}, {"theme.light", Theme::light}, {"theme.dark", Theme::dark}};
    const QString names[] = {tr("As the system"), tr("Light"), tr("Dark")};
    for (int i = 0; i < 3; ++i) {
        auto* act = addAction(themes[i].first, theme, names[i], {}, [this, t = themes[i].second] { setTheme(t); });
        act->setCheckable(true);
        act->setChecked(m_settings.theme() == themes[i].second);
        group->addAction(act);
    }

    auto* exporting = menuBar()->addMenu(tr("E&xport"));
    addAction("export.figure", exporting, tr("Figure of this view…"), QKeySequence("Ctrl+E"), [this] { exportFigureOf(currentDock()); }, "export");
    addAction("export.copy", exporting, tr("Copy as image"), QKeySequence("Ctrl+Shift+C"), [this] { copyPicture(); }, "copy");
    addAction("export.command", exporting, tr("Copy the command line"), {}, [this] {
        try {
            QApplication::clipboard()->setText(QString::fromStdString(m_setup->runnableJob(m_kind).commandLine));
        } catch (const std::exception& e) {
            m_messages->tell(MessageBar::Kind::error, QString::fromUtf8(e.what()));
        }
    });

    auto* help = menuBar()->addMenu(tr("&Help"));
    addAction("help.about", help, tr("About Keepsight"), {}, [this] { about(); });
}

void MainWindow::showRecentSessions(QMenu* menu) {
    menu->clear();
    for (const QString& path : m_settings.recentSessions()) {
        auto* act = menu->addAction(QFileInfo(path).fileName(), this, [this, path] { openSession(path); });
        act->setToolTip(path);
        act->setEnabled(QFileInfo::exists(path));
    }
    if (menu->isEmpty()) menu->addAction(tr("None yet"))->setEnabled(false);
}

static void collect(const QList<QAction*>& actions, const QString& path, QList<QAction*>& out) {
    for (QAction* act : actions) {
        const QString text = QString(act->text()).remove('&').remove(QChar(0x2026));
        if (act->menu()) {
            collect(act->menu()->actions(), path + text + QString(" %1 ").arg(QChar(0x25B8)), out);
        } else if (!act->isSeparator() && !text.isEmpty()) {
            act->setProperty("path", path + text);
            out << act;
        }
    }
}

void MainWindow::openPalette() {
    QList<QAction*> all;
    collect(menuBar()->actions(), {}, all);
    auto* palette = new CommandPalette(all, this);
    palette->setAttribute(Qt::WA_DeleteOnClose);
    palette->move(mapToGlobal(QPoint((width() - palette->width()) / 2, 60)));
    connect(palette, &QDialog::accepted, this, [palette] {
        if (auto* act = palette->chosen()) QMetaObject::invokeMethod(act, &QAction::trigger, Qt::QueuedConnection); // after the popup is gone
    });
    palette->open();
}

void MainWindow::about() {
    auto* box = new QMessageBox(QMessageBox::NoIcon, tr("About Keepsight"),
                                tr("<b>Keepsight %1</b><br>What a KV-cache compression policy keeps, what it loses, and what that buys.<br><br>Qt %2")
                                    .arg(QString::fromStdString(Engine::version()), qVersion()),
                                QMessageBox::Ok, this);
    box->setIconPixmap(QIcon(":/icons/keepsight.svg").pixmap(64, 64));
    box->setAttribute(Qt::WA_DeleteOnClose);
    box->open();
}

void MainWindow::exportFigureOf(ViewDock* dock) {
    if (!dock) return;
    auto figure = dock->view()->figure();
    if (!figure) {
        m_messages->tell(MessageBar::Kind::notice, tr("%1 has nothing to export yet.").arg(dock->windowTitle()));
        return;
    }
    auto* dialog = new ExportDialog(std::move(figure), this);
    dialog->setAttribute(Qt::WA_DeleteOnClose);
    connect(dialog, &ExportDialog::exported, this, [this](const QStringList& files) {
        m_messages->tell(MessageBar::Kind::notice, tr("Wrote %1.").arg(files.join(", ")));
    });
    dialog->open();
}

void MainWindow::copyPicture() {
    auto* dock = currentDock();
    auto figure = dock ? dock->view()->figure() : nullptr;
    if (!figure) {
        m_messages->tell(MessageBar::Kind::notice, tr("There is nothing to copy yet."));
        return;
    }
    QApplication::clipboard()->setImage(figureImage(*figure, m_settings.figureWidth(), 300));
    m_messages->tell(MessageBar::Kind::notice, tr("%1 is in the clipboard as an image of 300 dpi.").arg(figure->name()));
}

} // namespace keepsight
