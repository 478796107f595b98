#include "app/gui/main_window.h"

#include "app/gui/eliding_label.h"
#include "app/gui/inspector_panel.h"
#include "app/gui/message_bar.h"
#include "app/gui/setup_panel.h"
#include "app/gui/theme.h"
#include "app/gui/view_dock.h"
#include "app/gui/why_block.h"
#include "widgets/attention/attention_view.h"
#include "widgets/transport/transport_bar.h"

#include <QApplication>
#include <QFileInfo>
#include <QFrame>
#include <QLabel>
#include <QProgressBar>
#include <QScreen>
#include <QShortcut>
#include <QTabBar>
#include <QTimer>
#include <QToolBar>
#include <QToolButton>
#include <QVBoxLayout>

#include <algorithm>

namespace keepsight {

MainWindow::MainWindow(const Options& options, QWidget* parent)
    : QMainWindow(parent), m_options(options), m_worker(new EngineWorker(this)), m_session(new SessionModel(this)), m_setup(new SetupPanel),
      m_centre(new QMainWindow), m_messages(new MessageBar) {
    setWindowIcon(QIcon(":/icons/keepsight.svg"));
    setAcceptDrops(true);
    m_lanes = m_setup->lanes()->lanes();
    m_worker->setRecoveryFile(ownRecoveryFile());

    makeDocks();
    makeActions();
    makeToolBar();
    resize(!options.size.isEmpty() ? options.size : QSize(1440, 900).boundedTo(screen() ? screen()->availableSize() : QSize(1440, 900)));
    arrangeDocks();
    if (const auto layout = m_settings.layout(); options.restoreLayout && !layout.outer.isEmpty()) {
        restoreGeometry(layout.geometry);
        restoreState(layout.outer, Settings::LayoutVersion);
        m_centre->restoreState(layout.inner, Settings::LayoutVersion);
    }
    QTimer::singleShot(0, this, &MainWindow::showTabs);

    connect(&m_showTimer, &QTimer::timeout, this, &MainWindow::showNextView);
    connect(m_session, &SessionModel::shownChanged, this, &MainWindow::showTrace);
    connect(m_session, &SessionModel::stateChanged, this, &MainWindow::showTitle);
    connect(m_session, &SessionModel::opened, this, &MainWindow::onSessionOpened);
    connect(m_session, &SessionModel::failed, this, [this](const QString& reason) { m_messages->tell(MessageBar::Kind::error, reason); });
    connect(&m_focus, &FocusModel::changed, this, &MainWindow::showDetails);

    connect(m_worker, &EngineWorker::started, this, &MainWindow::onStarted);
    connect(m_worker, &EngineWorker::progressed, this, &MainWindow::onProgress);
    connect(m_worker, &EngineWorker::traceUpdated, this, &MainWindow::onUpdate);
    connect(m_worker, &EngineWorker::finished, this, &MainWindow::onFinished);
    connect(m_worker, &EngineWorker::failed, this, &MainWindow::onFailed);
    connect(m_worker, &EngineWorker::modelOpened, this, &MainWindow::onModel);
    connect(m_worker, &EngineWorker::tokensCounted, m_setup, &SetupPanel::setTextTokens);
    connect(m_inspector->why(), &WhyBlock::asked, m_worker, &EngineWorker::explain);
    connect(m_inspector->why(), &WhyBlock::dropped, m_worker, &EngineWorker::stopExplaining);
    connect(m_inspector->why(), &WhyBlock::runWanted, this, &MainWindow::repeatSession);
    connect(m_worker, &EngineWorker::explained, m_inspector->why(), &WhyBlock::answer);
    connect(m_worker, &EngineWorker::warned, this, [this](const QString& text) {
        m_messages->tell(MessageBar::Kind::notice, tr("The run goes on, but is not kept against accidents: %1").arg(text));
    });
    connect(m_worker, &EngineWorker::previewed, this, [this](int, const TracePtr& trace, double milliseconds) {
        m_lastPreviewMs = milliseconds;
        if (m_run && m_runShown) return; // the run has caught up
        m_session->setPreview(trace);
        Q_EMIT previewShown();
    });
    connect(m_worker, &EngineWorker::previewRefused, this, [this](int, const QString& reason) {
        if (!reason.isEmpty()) m_messages->tell(MessageBar::Kind::notice, reason);
    });

    connect(m_setup, &SetupPanel::modelChosen, this, &MainWindow::openModel);
    connect(m_setup, &SetupPanel::failed, this, [this](const QString& text) { m_messages->tell(MessageBar::Kind::error, text); });
    connect(m_setup, &SetupPanel::edited, this, [this] {
        m_setup->showCommandLine(m_kind);
        countPrompt();
    });
    connect(m_setup->lanes(), &LanePanel::budgetDragged, this, &MainWindow::onBudgetDragged);
    connect(m_setup->lanes(), &LanePanel::specChanged, this, [this](LaneIndex lane, const PolicySpec&) { onLanesEdited(lane); });
    connect(m_setup->lanes(), &LanePanel::lanesChanged, this, [this] { onLanesEdited(std::nullopt); });
    connect(qApp, &QApplication::focusChanged, this, [this](QWidget*, QWidget* now) {
        for (QWidget* w = now; w; w = w->parentWidget())
            if (auto* dock = qobject_cast<ViewDock*>(w)) m_lastDock = dock;
    });

    m_setup->setModels(m_settings.recentModels(), {});
    m_setup->showCommandLine(m_kind);
    showTitle();
    showTrace(nullptr);
    showBusy(false);
}

MainWindow::~MainWindow() {
    disconnect(qApp, nullptr, this, nullptr);
    delete m_worker; // first: nothing it still says may reach a half-destroyed window
    m_worker = nullptr;
    forgetRecovery();
}

void MainWindow::makeDocks() {
    auto* middle = new QWidget;
    auto* column = new QVBoxLayout(middle);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(4);
    column->addWidget(m_messages);
    column->addWidget(m_centre, 1);
    setCentralWidget(middle);

    m_centre->setWindowFlags(Qt::Widget);
    m_centre->setDockNestingEnabled(true);
    m_centre->setTabPosition(Qt::AllDockWidgetAreas, QTabWidget::North);
    m_centre->setContextMenuPolicy(Qt::NoContextMenu);
    for (const ViewEntry& entry : views()) {
        auto* view = entry.make(nullptr);
        auto* dock = new ViewDock(entry.id, tr(entry.title), view, m_centre);
        view->follow(m_focus);
        connect(dock, &ViewDock::exportRequested, this, &MainWindow::exportFigureOf);
        connect(dock, &QDockWidget::dockLocationChanged, this, [this] { QTimer::singleShot(0, this, &MainWindow::showTabs); });
        connect(dock, &QDockWidget::topLevelChanged, this, [this] { QTimer::singleShot(0, this, &MainWindow::showTabs); });
        connect(dock, &QDockWidget::visibilityChanged, this, [this] { QTimer::singleShot(0, this, &MainWindow::showTabs); });
        if (auto* attention = qobject_cast<AttentionView*>(view)) {
            attention->setFullResolutionAvailable(false);
            connect(attention, &AttentionView::fullResolutionRequested, this, &MainWindow::askFullAttention);
        }
        m_docks << dock;
    }

    const auto side = [this](const QString& name, const QString& title, QWidget* widget, Qt::DockWidgetArea area) {
        auto* dock = new QDockWidget(title, this);
        dock->setObjectName(name);
        auto* frame = new QFrame;
        frame->setObjectName("viewFrame");
        auto* inner = new QVBoxLayout(frame);
        inner->setContentsMargins(1, 0, 1, 1);
        inner->addWidget(widget);
        auto* header = new DockHeader(dock);
        header->setTitle(title, {});
        dock->setTitleBarWidget(header);
        dock->setWidget(frame);
        addDockWidget(area, dock);
        return dock;
    };
    m_setupDock = side("dock-setup", tr("Setup"), m_setup, Qt::LeftDockWidgetArea);
    m_inspector = new InspectorPanel;
    m_inspector->follow(m_focus);
    m_inspectorDock = side("dock-inspector", tr("Inspector"), m_inspector, Qt::RightDockWidgetArea);

    m_transport = new TransportBar;
    m_transport->follow(m_focus);
    m_setup->lanes()->follow(m_focus);
    auto* bottom = new QToolBar(tr("Time"));
    bottom->setObjectName("bar-time");
    bottom->setMovable(false);
    bottom->addWidget(m_transport);
    bottom->setContextMenuPolicy(Qt::PreventContextMenu);
    addToolBar(Qt::BottomToolBarArea, bottom);
    setCorner(Qt::BottomLeftCorner, Qt::LeftDockWidgetArea);
    setCorner(Qt::BottomRightCorner, Qt::RightDockWidgetArea);
}

void MainWindow::arrangeDocks() {
    const auto dock = [this](const char* id) -> ViewDock* {
        for (auto* d : m_docks)
            if (d->id() == id) return d;
        return nullptr;
    };
    ViewDock *tokens = dock("tokens"), *retained = dock("retained"), *attention = dock("attention"), *curves = dock("curves");
    for (auto* d : m_docks) {
        d->setFloating(false);
        m_centre->removeDockWidget(d);
    }
    ViewDock* tabs = curves;
    if (tokens && retained && attention && curves) {
        m_centre->addDockWidget(Qt::TopDockWidgetArea, tokens);
        m_centre->splitDockWidget(tokens, attention, Qt::Vertical);
        m_centre->splitDockWidget(tokens, retained, Qt::Horizontal);
        m_centre->splitDockWidget(attention, curves, Qt::Horizontal);
    }
    for (auto* d : m_docks) {
        if (d != tokens && d != retained && d != attention && d != curves) {
            if (tabs)
                m_centre->tabifyDockWidget(tabs, d);
            else
                m_centre->addDockWidget(Qt::TopDockWidgetArea, d);
        }
        d->show();
    }
    if (curves) curves->raise();
    addDockWidget(Qt::LeftDockWidgetArea, m_setupDock);
    addDockWidget(Qt::RightDockWidgetArea, m_inspectorDock);
    for (auto* d : {m_setupDock, m_inspectorDock}) {
        d->setFloating(false);
        d->show();
    }
    const bool narrow = width() < 1400;
    resizeDocks({m_setupDock, m_inspectorDock}, {narrow ? 270 : 278, narrow ? 204 : 240}, Qt::Horizontal);
    if (tokens && retained && attention && curves) {
        const int w = std::max(600, width() - (narrow ? 474 : 518)), h = std::max(400, height() - 150);
        m_centre->resizeDocks({tokens, retained}, {w * 58 / 100, w * 42 / 100}, Qt::Horizontal);
        m_centre->resizeDocks({attention, curves}, narrow ? QList<int>{w * 50 / 100, w * 50 / 100} : QList<int>{w * 36 / 100, w * 64 / 100}, Qt::Horizontal);
        m_centre->resizeDocks({tokens, attention}, {h * 43 / 100, h * 57 / 100}, Qt::Vertical);
    }
}

void MainWindow::makeToolBar() {
    auto* bar = new QToolBar(tr("Run"));
    bar->setObjectName("bar-run");
    bar->setMovable(false);
    bar->setIconSize({14, 14});
    bar->setToolButtonStyle(Qt::ToolButtonTextBesideIcon);
    bar->setContextMenuPolicy(Qt::PreventContextMenu);
    for (const char* id : {"run.score", "run.generate", "run.needle", "run.suite", "run.cancel"})
        bar->addAction(action(id));
    bar->widgetForAction(action("run.score"))->setObjectName("primary");
    bar->widgetForAction(action("run.cancel"))->setObjectName("cancelButton");

    m_modelLabel = new ElidingLabel;
    auto* gap = new QWidget;
    gap->setFixedWidth(8);
    bar->addWidget(gap);
    bar->addWidget(m_modelLabel);
    m_progress = new QProgressBar;
    m_progress->setObjectName("progress");
    m_progress->setAccessibleName(tr("Progress"));
    m_progress->setTextVisible(false);
    m_progress->setFixedWidth(170);
    m_progressLabel = new QLabel;
    m_progressLabel->setObjectName("progressLabel");
    m_progressLabel->setProperty("role", "quiet");
    m_progressLabel->setContentsMargins(8, 0, 4, 0);
    m_progressActions = {bar->addWidget(m_progress), bar->addWidget(m_progressLabel)};
    addToolBar(Qt::TopToolBarArea, bar);
}

void MainWindow::showTitle() {
    setWindowTitle(m_session->recorded() ? tr("%1[*] - Keepsight").arg(m_session->title()) : tr("Keepsight[*]"));
    setWindowModified(m_session->isUnsaved());
    const bool some = m_session->recorded() != nullptr;
    for (const char* id : {"file.save", "file.saveAs", "file.saveWithoutText", "run.repeat", "export.figure", "export.copy"})
        if (auto* a = action(id)) a->setEnabled(some);
}

void MainWindow::showTrace(const TracePtr& trace) {
    if (trace && !m_everShown && !trace->lanes.empty()) {
        // The first run opens on something to see: a lane that evicts, a layer in the middle.
        m_everShown = true;
        Focus f = m_focus.focus();
        if (f == Focus{}) {
            for (std::size_t i = trace->lanes.size(); i-- > 0;)
                if (trace->lanes[i].policy.id != "full") f.lane = LaneIndex(int(i));
            f.layer = LayerIndex(trace->model.config.layers * 2 / 5);
            m_focus.set(f);
        }
    }
    m_transport->setTrace(trace);
    m_setup->lanes()->setResults(trace);
    showModel();
    showDetails();
    // One view for each turn of the event loop: together they would hold it up for longer than a frame. A newer trace goes on where
    // the last one stopped, so that under a fast run every view gets its turn.
    m_viewsToShow = int(m_docks.size()) + 1;
    if (!m_showTimer.isActive()) m_showTimer.start(0);
}

void MainWindow::showNextView() {
    if (m_viewsToShow-- <= 0) {
        m_showTimer.stop();
        return;
    }
    m_nextView = (m_nextView + 1) % (int(m_docks.size()) + 1);
    if (m_nextView == m_docks.size())
        m_inspector->setTrace(m_session->shown());
    else
        m_docks[m_nextView]->view()->setTrace(m_session->shown());
}

void MainWindow::showDetails() {
    const auto trace = m_session->shown();
    if (!trace || trace->lanes.empty()) {
        for (auto* dock : m_docks)
            dock->setDetail({});
        return;
    }
    const Focus& f = m_focus.focus();
    const int lane = std::clamp(f.lane.value, 0, int(trace->lanes.size()) - 1);
    const Lane& l = trace->lanes[std::size_t(lane)];
    const QString name = tr("lane %1, %2").arg(QString::fromStdString(l.label), QString::fromStdString(l.policy.id));
    const QString head = tr("layer %1, KV head %2").arg(f.layer.value).arg(kvHeadOf(*trace, f.lane, f.head).value);
    const QString heads = storedHeads(*trace, LaneIndex(lane)) == trace->model.config.kvHeads ? tr("KV head") : tr("query head");
    for (auto* dock : m_docks) {
        if (dock->id() == "tokens")
            dock->setDetail(tr("%1: share of layers × heads that still hold each token").arg(name));
        else if (dock->id() == "retained")
            dock->setDetail((isDarkTheme() ? tr("%1: layer × %2, light = kept") : tr("%1: layer × %2, dark = kept")).arg(name, heads));
        else if (dock->id() == "attention")
            dock->setDetail(head);
        else
            dock->setDetail({});
    }
}

void MainWindow::showModel() {
    const auto trace = m_session->shown();
    if (!m_model && !m_openingModel.isEmpty()) {
        m_modelLabel->setText(tr("opening %1").arg(QFileInfo(m_openingModel).fileName()));
        return;
    }
    const ModelInfo* info = m_model ? &*m_model : trace ? &trace->model : nullptr;
    if (!info) {
        m_modelLabel->setText(tr("no model"));
        m_modelLabel->setToolTip({});
        return;
    }
    const QFileInfo file(QString::fromStdString(info->path));
    const QString name = file.suffix() == "gguf" ? file.completeBaseName() : file.fileName();
    QStringList parts{name.isEmpty() ? QString::fromStdString(info->config.name) : name, tr("%1 layers × %2 KV heads").arg(info->config.layers).arg(info->config.kvHeads),
                      QString::fromStdString(info->dtype), QString::fromStdString(info->device)};
    if (!m_model) parts << tr("replay");
    m_modelLabel->setText(parts.join(QString(" %1 ").arg(QChar(0x00B7))));
    m_modelLabel->setToolTip(tr("%1\n%2 parameters, %3\n%4 bytes of keys and values per token")
                                 .arg(QString::fromStdString(info->path), locale().toString(qlonglong(info->parameters)), QString::fromStdString(info->weightTypes),
                                      locale().toString(qlonglong(info->kvBytesPerToken))));
}

void MainWindow::showTabs() {
    for (auto* dock : m_docks)
        dock->setTabbed(!dock->isFloating() && !m_centre->tabifiedDockWidgets(dock).isEmpty());
    for (auto* bar : m_centre->findChildren<QTabBar*>(QString(), Qt::FindDirectChildrenOnly)) {
        bar->setDrawBase(false);
        bar->setExpanding(false);
    }
}

void MainWindow::setTheme(Theme theme) {
    m_settings.setTheme(theme);
    applyTheme(theme);
    for (auto* a : std::as_const(m_actions))
        if (const QString icon = a->property("icon").toString(); !icon.isEmpty()) a->setIcon(themedIcon(icon));
}

ViewDock* MainWindow::currentDock() const {
    if (m_lastDock && m_lastDock->isVisible()) return m_lastDock;
    return m_docks.isEmpty() ? nullptr : m_docks.front();
}

TraceView* MainWindow::view(const QString& id) const {
    for (auto* dock : m_docks)
        if (dock->id() == id) return dock->view();
    return nullptr;
}

QAction* MainWindow::action(const QString& id) const { return m_actions.value(id); }

} // namespace keepsight
