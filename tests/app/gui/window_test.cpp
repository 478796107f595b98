// The real window with the real default model, driven as a user would.
#include "app/gui/command_palette.h"
#include "app/gui/export_dialog.h"
#include "app/gui/inspector_panel.h"
#include "app/gui/main_window.h"
#include "app/gui/message_bar.h"
#include "app/gui/setup_panel.h"
#include "app/gui/theme.h"
#include "app/gui/why_block.h"
#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "widgets/base/trace_view.h"

#include <QAction>
#include <QCheckBox>
#include <QComboBox>
#include <QDoubleSpinBox>
#include <QDir>
#include <QDropEvent>
#include <QLabel>
#include <QLineEdit>
#include <QMimeData>
#include <QPlainTextEdit>
#include <QPushButton>
#include <QSignalSpy>
#include <QScrollArea>
#include <QSlider>
#include <QStandardPaths>
#include <QTabBar>
#include <QTableView>
#include <QTemporaryDir>
#include <QToolButton>
#include <QtTest>

using namespace keepsight;

class WindowTest : public QObject {
    Q_OBJECT

    static constexpr int Long = 180000;
    QTemporaryDir m_dir;
    QString m_model;
    std::unique_ptr<MainWindow> m_window;

    template <class T>
    T* child(const char* name) const {
        return m_window->findChild<T*>(name);
    }
    TracePtr shown() const { return m_window->session()->shown(); }
    TracePtr recorded() const { return m_window->session()->recorded(); }
    void run(const char* action) const {
        QSignalSpy ended(m_window.get(), &MainWindow::runEnded);
        m_window->action(action)->trigger();
        QVERIFY2(ended.wait(Long), qPrintable(m_window->messages()->text()));
        QCOMPARE(ended.size(), 1);
    }
    WhyBlock* why() const { return child<InspectorPanel>("")->why(); }
    // The explanation of a token after one of its selections; empty if none came.
    ExplanationPtr explained(LaneIndex lane, Step step, LayerIndex layer, HeadIndex head, Position position) const {
        QSignalSpy answers(m_window->worker(), &EngineWorker::explained);
        m_window->focusModel()->set({lane, step, layer, head, position});
        const auto last = [&] { return answers.isEmpty() ? nullptr : answers.back().at(1).value<ExplanationPtr>(); };
        const auto asked = [&] { return last() && last()->position == position && last()->step.value <= step.value; }; // not the question of before
        return QTest::qWaitFor(asked, 60000) ? last() : nullptr;
    }
    static int keptByB(const Trace& trace) { return trace.lanes.at(1).retention.countAt(Step(1), LayerIndex(2), HeadIndex(1)); }
    static void compare(const Trace& a, const Trace& b, const char* name) {
        PictureFocus focus;
        focus.lane = LaneIndex(1);
        if (QByteArray(name) == "attention") {
            focus.layer = LayerIndex(3);
            focus.head = HeadIndex(1);
        }
        QCOMPARE(toJson(picture(a, name, focus)), toJson(picture(b, name, focus)));
    }

private Q_SLOTS:
    void initTestCase() {
        QStandardPaths::setTestModeEnabled(true);
        QCoreApplication::setOrganizationName("keepsight-test");
        QCoreApplication::setApplicationName(QString("window-test-%1").arg(QCoreApplication::applicationPid()));
        QSettings::setDefaultFormat(QSettings::IniFormat);
        QSettings::setPath(QSettings::IniFormat, QSettings::UserScope, m_dir.path());
        initResources();
        rememberSystemPalette();
        applyTheme(Theme::light);
        const auto models = QDir(KEEPSIGHT_BUILD "/models").entryInfoList({"*.gguf"});
        if (models.isEmpty()) QSKIP("The default model is not installed: run tests/run.sh");
        m_model = models.front().filePath();
        m_window = std::make_unique<MainWindow>(MainWindow::Options{.restoreLayout = false, .askBeforeClosing = false, .size = {1280, 800}});
        m_window->show();
        QVERIFY(QTest::qWaitForWindowExposed(m_window.get()));
    }
    void cleanupTestCase() { m_window.reset(); }

    void runningWithoutAModelSaysWhatToDo() {
        m_window->action("run.score")->trigger();
        QVERIFY(m_window->messages()->isVisible());
        QVERIFY(m_window->messages()->text().contains("No model is open"));
        QVERIFY(!m_window->worker()->isBusy());
    }
    void aBadModelPathShowsTheSentenceAndTheWindowLives() {
        const QString wrong = m_dir.filePath("no such model.gguf");
        QSignalSpy failed(m_window->worker(), &EngineWorker::failed);
        m_window->openModel(wrong);
        QVERIFY(failed.wait(Long));
        QVERIFY(m_window->messages()->isVisible());
        QCOMPARE(m_window->messages()->kind(), MessageBar::Kind::error);
        QVERIFY2(m_window->messages()->text().contains("no such model.gguf"), qPrintable(m_window->messages()->text()));
        QVERIFY(m_window->isVisible());
        QVERIFY(!m_window->hasModel());
    }
    void opensTheModel() {
        QSignalSpy ready(m_window.get(), &MainWindow::modelReady);
        m_window->openModel(m_model);
        QVERIFY(ready.wait(Long));
        QVERIFY(m_window->hasModel());
        QCOMPARE(m_window->setup()->modelPath(), m_model);
    }
    void scoresAText() {
        auto* edit = child<QPlainTextEdit>("promptEdit");
        QVERIFY(edit);
        QString text;
        for (int i = 0; i < 12; ++i)
            text += QString("On night %1 the keeper wrote the height of the swell and the names of the ships. ").arg(i);
        edit->setPlainText(text);
        m_window->setup()->prompt()->setPrefixRatio(0.9);
        QSignalSpy updates(m_window->worker(), &EngineWorker::traceUpdated);
        run("run.score");
        QVERIFY(updates.size() > 1);
        const auto trace = recorded();
        QVERIFY(trace && trace->run.finished);
        QCOMPARE(trace->lanes.size(), std::size_t(2));
        QVERIFY(trace->perplexityAt(LaneIndex(0), Step(trace->lastStep())) > 1);
        QVERIFY(m_window->session()->isUnsaved());
        QVERIFY(m_window->isWindowModified());
        QCOMPARE(keptByB(*trace), trace->lanes[1].policy.budget.resolve(trace->prefillLength));
    }
    void draggingTheBudgetPreviewsAndReleasingReruns() {
        auto* editor = m_window->setup()->lanes()->editor(LaneIndex(1));
        auto* slider = editor->findChild<QSlider*>();
        QVERIFY(slider);
        const int before = keptByB(*shown());
        const auto base = recorded();
        QSignalSpy previews(m_window.get(), &MainWindow::previewShown);
        slider->setSliderDown(true);
        slider->setSliderPosition(slider->minimum() + (slider->maximum() - slider->minimum()) * 8 / 10);
        QVERIFY(previews.wait(10000));
        QVERIFY(m_window->session()->isPreview());
        const int dragged = keptByB(*shown());
        QVERIFY2(dragged < before, qPrintable(QString("%1 then %2").arg(before).arg(dragged)));
        QCOMPARE(dragged, editor->spec().budget.resolve(base->prefillLength));
        QVERIFY2(m_window->lastPreviewMs() < 500, qPrintable(QString::number(m_window->lastPreviewMs())));
        qInfo("preview of %d tokens: %.1f ms", int(base->prefillLength), m_window->lastPreviewMs());

        QSignalSpy ended(m_window.get(), &MainWindow::runEnded);
        slider->setSliderDown(false);
        QVERIFY(ended.wait(Long));
        QTRY_VERIFY(!m_window->session()->isPreview());
        QCOMPARE(keptByB(*recorded()), dragged);
        QVERIFY(recorded()->run.finished);
    }
    void undoAndRedoOfTheBudget() {
        QVERIFY(m_window->undoStack()->canUndo());
        const int now = keptByB(*recorded());
        QSignalSpy ended(m_window.get(), &MainWindow::runEnded);
        m_window->action("edit.undo")->trigger();
        QVERIFY(ended.wait(Long));
        const int undone = keptByB(*recorded());
        QVERIFY(undone > now);
        ended.clear();
        m_window->action("edit.redo")->trigger();
        QVERIFY(ended.wait(Long));
        QCOMPARE(keptByB(*recorded()), now);
    }
    void theInspectorTellsWhyATokenWasDropped() {
        LaneEditor* lane = m_window->setup()->lanes()->editor(LaneIndex(1));
        auto* policy = lane->findChild<QComboBox*>("policy");
        QSignalSpy ended(m_window.get(), &MainWindow::runEnded);
        policy->setCurrentIndex(policy->findData("knorm"));
        QVERIFY(ended.wait(Long));
        QTRY_VERIFY(!m_window->session()->isPreview());
        const auto trace = recorded();
        const LayerIndex layer(12);
        const HeadIndex head(1);
        Position dropped = -1;
        const auto evicted = trace->lanes[1].retention.evictedAt(layer, head);
        for (Position p = 0; p < trace->prefillLength; ++p)
            if (evicted[std::size_t(p)] == 1) dropped = p;
        QVERIFY(dropped >= 0);
        const auto e = explained(LaneIndex(1), Step(trace->lastStep()), layer, head, dropped);
        QVERIFY2(e, qPrintable(why()->text()));
        QVERIFY(e->found && !e->kept);
        QVERIFY2(e->rank > e->slots && e->slots > 0 && e->candidates >= e->rank, qPrintable(why()->text()));
        QVERIFY(e->lastKept >= 0 && trace->lanes[1].retention.holds(Step(1), layer, head, e->lastKept));
        const QString text = why()->text();
        qInfo("%s", qPrintable(text));
        QVERIFY(text.contains(QString("Rank: %1 of %2").arg(e->rank).arg(e->candidates)));
        QVERIFY(text.contains(QString("Lost to: %1 ").arg(e->lastKept)));
        QVERIFY(e->budgetNeeded > e->budget && text.contains("% removed"));

        // With the budget it names the token stays; with one token less it does not.
        const double before = 100 * lane->spec().budget.compressionRatio;
        const QString removed = text.section("Needs: ", 1).section('\n', 1).section(' ', 0, 0);
        auto* amount = lane->findChild<QDoubleSpinBox*>("amount");
        amount->setValue(removed.toDouble());
        QVERIFY(ended.wait(Long));
        QVERIFY2(recorded()->lanes[1].retention.holds(Step(1), layer, head, dropped), qPrintable(removed));
        amount->setValue(removed.toDouble() + 0.6); // of 207 tokens: one less
        QVERIFY(ended.wait(Long));
        QVERIFY(!recorded()->lanes[1].retention.holds(Step(1), layer, head, dropped));
        amount->setValue(before);
        QVERIFY(ended.wait(Long));
        policy->setCurrentIndex(policy->findData("snapkv"));
        QVERIFY(ended.wait(Long));
        QTRY_VERIFY(!m_window->session()->isPreview());

        const Position kept = trace->prefillLength - 1; // of the window
        const auto k = explained(LaneIndex(1), Step(1), layer, HeadIndex(0), kept); // a head not asked about before
        QVERIFY2(k && k->kept, qPrintable(why()->text()));
        QCOMPARE(k->protectedBy, std::string("recent")); // the window of snapkv
        QVERIFY(why()->text().contains("newest"));
    }
    void aDecodeStepIsExplainedByRepeatingTheLane() {
        auto* policy = m_window->setup()->lanes()->editor(LaneIndex(1))->findChild<QComboBox*>("policy");
        QSignalSpy ended(m_window.get(), &MainWindow::runEnded);
        policy->setCurrentIndex(policy->findData("tova"));
        QVERIFY(ended.wait(Long));
        QTRY_VERIFY(!m_window->session()->isPreview());
        const auto trace = recorded();
        const auto evicted = trace->lanes[1].retention.evictedAt(LayerIndex(3), HeadIndex(0));
        Position late = -1;
        for (Position p = 0; p < Position(evicted.size()); ++p)
            if (evicted[std::size_t(p)] > 4 && evicted[std::size_t(p)] != NeverEvicted) late = p;
        QVERIFY(late >= 0);
        const int at = evicted[std::size_t(late)];
        const auto e = explained(LaneIndex(1), Step(trace->lastStep()), LayerIndex(3), HeadIndex(0), late);
        QVERIFY2(e, qPrintable(why()->text()));
        QCOMPARE(e->step, Step(at));
        QVERIFY(e->found && !e->kept);
        QVERIFY(why()->text().contains(QString("step %1").arg(at)));
        // Moving on stops it: only the last question is answered.
        QSignalSpy answers(m_window->worker(), &EngineWorker::explained);
        for (const Position p : {late, 3, late, 5, late}) {
            m_window->focusModel()->setPosition(p);
            QCoreApplication::processEvents();
        }
        QTRY_VERIFY_WITH_TIMEOUT(!answers.isEmpty() && answers.back().at(1).value<ExplanationPtr>()->position == late, 60000);
        m_window->action("edit.undo")->trigger();
        QVERIFY(ended.wait(Long));
    }
    void aQuantizerIsUndoneRedoneAndReplayed() {
        LaneEditor* lane = m_window->setup()->lanes()->editor(LaneIndex(1));
        auto* quantizer = lane->findChild<QComboBox*>("quantizer");
        QSignalSpy ended(m_window.get(), &MainWindow::runEnded);
        quantizer->setCurrentIndex(quantizer->findData("hqq_rtn"));
        QVERIFY(ended.wait(Long));
        QTRY_VERIFY(!m_window->session()->isPreview());
        QCOMPARE(recorded()->lanes[1].policy.quant.id, std::string("hqq_rtn"));
        const qint64 packed = recorded()->lanes[1].steps.back().kvBytes;
        QVERIFY(lane->findChild<QLabel*>("kept")->text().contains("bits/value"));
        m_window->action("edit.undo")->trigger();
        QVERIFY(ended.wait(Long));
        QCOMPARE(lane->spec().quant, QuantSpec());
        QVERIFY(recorded()->lanes[1].steps.back().kvBytes > packed);
        m_window->action("edit.redo")->trigger();
        QVERIFY(ended.wait(Long));
        QCOMPARE(lane->spec().quant.id, std::string("hqq_rtn"));
        QCOMPARE(recorded()->lanes[1].steps.back().kvBytes, packed);
        QVERIFY(m_window->setup()->job(RunKind::score).commandLine.find("hqq_rtn") != std::string::npos);

        const QString path = m_dir.filePath("packed.keep");
        const auto wanted = m_window->setup()->lanes()->lanes();
        QSignalSpy saved(m_window->session(), &SessionModel::saved), opened(m_window->session(), &SessionModel::opened);
        m_window->session()->save(path);
        QVERIFY(saved.wait(Long));
        m_window->action("edit.undo")->trigger();
        QVERIFY(ended.wait(Long));
        m_window->openAnything(path);
        QVERIFY(opened.wait(Long));
        QCOMPARE(m_window->setup()->lanes()->lanes(), wanted);
        QCOMPARE(recorded()->lanes[1].policy.quant.id, std::string("hqq_rtn"));
        QVERIFY(lane->findChild<QLabel*>("kept")->text().contains("bits/value"));
    }
    void aReplayOffersTheLiveRunThatExplains() {
        m_window->focusModel()->set({LaneIndex(1), Step(recorded()->lastStep()), LayerIndex(12), HeadIndex(1), 20});
        QTRY_VERIFY2(why()->text().contains("live run"), qPrintable(why()->text()));
        QSignalSpy ended(m_window.get(), &MainWindow::runEnded), answers(m_window->worker(), &EngineWorker::explained);
        Q_EMIT why()->findChild<QLabel*>("whySentence")->linkActivated("run");
        QVERIFY(ended.wait(Long));
        QTRY_VERIFY_WITH_TIMEOUT(!answers.isEmpty(), 60000);
        QVERIFY(answers.back().at(1).value<ExplanationPtr>());
        auto* quantizer = m_window->setup()->lanes()->editor(LaneIndex(1))->findChild<QComboBox*>("quantizer");
        quantizer->setCurrentIndex(quantizer->findData("none"));
        QVERIFY(ended.wait(Long));
    }
    void aSuiteFillsTheResults() {
        m_window->setup()->findChild<QLineEdit*>("suiteRatios")->setText("25, 75");
        auto* bench = m_window->setup()->findChild<QCheckBox*>("suiteBench");
        bench->setChecked(false);
        QVERIFY(m_window->setup()->job(RunKind::suite).commandLine.find(" suite ") != std::string::npos);
        QVERIFY(m_window->setup()->job(RunKind::suite).commandLine.find("--no-bench") != std::string::npos);
        QCOMPARE(m_window->setup()->job(RunKind::suite).lanes.size(), std::size_t(3)); // full once
        run("run.suite");
        const auto trace = recorded();
        QCOMPARE(trace->run.kind, std::string("suite"));
        const auto rows = std::count_if(trace->measurements.begin(), trace->measurements.end(), [](const Measurement& m) { return m.kind == "suite"; });
        QCOMPARE(rows, 3);
        QTRY_COMPARE(m_window->view("results")->findChild<QTabBar*>("kinds")->count(), 1); // no windows
        QTRY_COMPARE(m_window->view("results")->findChild<QTableView*>("table")->model()->rowCount(), 3);
        QVERIFY(trace->measurements.back().number("ppl") > 1);
        const Job job = jobFromJson(trace->run.jobJson);
        const auto lanes = m_window->setup()->lanes()->lanes();
        m_window->setup()->setJob(job);
        QCOMPARE(m_window->setup()->job(RunKind::suite).lanes, job.lanes);
        QCOMPARE(m_window->setup()->lanes()->lanes().size(), lanes.size());
        bench->setChecked(true);
        run("run.score");
    }
    void scrubbingMovesEveryView() {
        auto* slider = child<QSlider>("timeline");
        QVERIFY(slider);
        slider->setValue(1);
        QCOMPARE(m_window->focusModel()->focus().step, Step(1));
        const auto early = m_window->view("retained")->grab().toImage();
        slider->setValue(slider->maximum());
        QCOMPARE(m_window->focusModel()->focus().step.value, shown()->lastStep());
        QTest::qWait(50);
        QVERIFY(m_window->view("retained")->grab().toImage() != early);
    }
    void cancelEndsARunWithin200Ms() {
        auto* settings = m_window->setup()->findChild<RunSettings*>();
        Job longer;
        longer.kind = RunKind::generate;
        longer.generate.maxNew = 2000;
        longer.generate.ignoreEos = true;
        settings->show(longer);
        QSignalSpy ended(m_window.get(), &MainWindow::runEnded);
        m_window->action("run.generate")->trigger();
        QVERIFY(QTest::qWaitFor([&] { return shown() && shown()->run.kind == "generate" && shown()->lastStep() >= 6; }, Long));
        auto* button = child<QToolButton>("cancelButton");
        QVERIFY(button && button->isEnabled());
        QElapsedTimer since;
        since.start();
        QTest::mouseClick(button, Qt::LeftButton);
        QVERIFY(ended.wait(5000));
        QVERIFY2(since.elapsed() < 200, qPrintable(QString("%1 ms").arg(since.elapsed())));
        QCOMPARE(ended.front().front().value<Outcome>(), Outcome::cancelled);
        QVERIFY(recorded()->run.cancelled);
        QVERIFY(recorded()->lanes[0].generated.size() >= 5);
        QVERIFY(!button->isEnabled());
    }
    void exportsTheRetainedFigure() {
        auto figure = m_window->view("retained")->figure();
        QVERIFY(figure);
        ExportDialog dialog(std::move(figure));
        QSignalSpy exported(&dialog, &ExportDialog::exported);
        const QString path = m_dir.filePath("retained.pdf");
        dialog.exportTo(path);
        QCOMPARE(exported.size(), 1);
        QFile file(path);
        QVERIFY(file.open(QIODevice::ReadOnly));
        const QByteArray bytes = file.readAll();
        QVERIFY(bytes.startsWith("%PDF-"));
        QVERIFY(bytes.size() > 2000);
        dialog.exportTo("/proc/no/such/place.pdf");
        QCOMPARE(exported.size(), 1);
    }
    void aSavedSessionShowsTheSame() {
        run("run.score");
        const auto before = recorded();
        const QString path = m_dir.filePath("a run.keep");
        QSignalSpy saved(m_window->session(), &SessionModel::saved);
        m_window->session()->save(path);
        QVERIFY(saved.wait(Long));
        QVERIFY(!m_window->session()->isUnsaved());
        m_window->session()->clear();
        QVERIFY(!shown());

        QMimeData data; // dropped on the window
        data.setUrls({QUrl::fromLocalFile(path)});
        QDragEnterEvent enter(QPoint(50, 50), Qt::CopyAction, &data, Qt::LeftButton, Qt::NoModifier);
        QApplication::sendEvent(m_window.get(), &enter);
        QVERIFY(enter.isAccepted());
        QSignalSpy opened(m_window->session(), &SessionModel::opened);
        QDropEvent drop(QPointF(50, 50), Qt::CopyAction, &data, Qt::LeftButton, Qt::NoModifier);
        QApplication::sendEvent(m_window.get(), &drop);
        QVERIFY(opened.wait(Long));
        QVERIFY(recorded() != before);
        for (const char* name : {"retained", "attention", "tokens", "ppl", "tpot", "memory"})
            compare(*before, *recorded(), name);
        QVERIFY(m_window->windowTitle().contains("a run.keep"));
        QVERIFY(!m_window->session()->isUnsaved());
    }
    void aRunLeftBehindByAKilledProgramIsOffered() {
        const QString folder = QFileInfo(ownRecoveryFile()).path();
        const QString left = folder + "/run-2147483646.keep"; // no such process
        QVERIFY(QFile::copy(m_dir.filePath("a run.keep"), left));
        QCOMPARE(leftRecoveryFiles(), QStringList{left});
        m_window->firstLaunch(true);
        QVERIFY(m_window->messages()->isVisible());
        auto* open = m_window->messages()->findChild<QPushButton*>();
        QVERIFY(open && open->isVisible());
        QSignalSpy opened(m_window->session(), &SessionModel::opened);
        QTest::mouseClick(open, Qt::LeftButton);
        QVERIFY(opened.wait(Long));
        QVERIFY(m_window->session()->isUnsaved());
        QVERIFY(m_window->session()->path().isEmpty());
    }
    void aFileOfAnotherKindIsRefusedInOneSentence() {
        const QString path = m_dir.filePath("picture.png");
        QFile file(path);
        QVERIFY(file.open(QIODevice::WriteOnly));
        file.write("not a picture");
        file.close();
        m_window->openAnything(path);
        QVERIFY(m_window->messages()->text().contains("picture.png"));
        const QString broken = m_dir.filePath("broken.keep");
        QVERIFY(QFile::copy(path, broken));
        QSignalSpy failed(m_window->session(), &SessionModel::failed);
        m_window->openAnything(broken);
        QVERIFY(failed.wait(Long));
        QVERIFY(m_window->messages()->text().contains("broken.keep"));
        QVERIFY(recorded()); // what was open stays
    }
    void aSmallNeedleGrid() {
        auto* settings = m_window->setup()->findChild<RunSettings*>();
        Job job;
        job.kind = RunKind::needle;
        job.needle.lengths = {120};
        job.needle.depths = {50};
        settings->show(job);
        run("run.needle");
        QCOMPARE(std::count_if(recorded()->measurements.begin(), recorded()->measurements.end(), [](const Measurement& m) { return m.kind == "needle"; }), 2);
    }
    void thePaletteFindsEveryAction() {
        QVERIFY(CommandPalette::fit("score", "Run ▸ Score") > CommandPalette::fit("score", "View ▸ Reset the arrangement"));
        QVERIFY(CommandPalette::fit("xyz", "Run ▸ Score") < 0);
        m_window->action("edit.palette")->trigger();
        auto* palette = m_window->findChild<CommandPalette*>();
        QVERIFY(palette);
        QSignalSpy triggered(m_window->action("view.needle"), &QAction::triggered);
        QTest::keyClicks(palette->focusWidget(), "view needle");
        QTest::keyClick(palette->focusWidget(), Qt::Key_Return);
        QVERIFY(triggered.wait(2000));
    }
    void settingsAreReadAsTyped() {
        QCOMPARE(parseLengths("200:600:200"), (std::vector<int>{200, 400, 600}));
        QCOMPARE(parsePercents("0, 50,100"), (std::vector<double>{0, 50, 100}));
        QVERIFY_EXCEPTION_THROWN(parseLengths("many"), UsageError);
        QVERIFY_EXCEPTION_THROWN(parsePercents("120"), UsageError);
    }
    void nothingIsClippedAt1280x800() {
        m_window->resize(1280, 800);
        QTest::qWait(100);
        QCOMPARE(m_window->size(), QSize(1280, 800)); // the contents do not force it wider
        for (const char* id : {"tokens", "retained", "attention", "curves"}) {
            const auto* view = m_window->view(id);
            QVERIFY2(view->width() >= 200 && view->height() >= 150, id);
        }
    }
    void fourOpenLanesScrollInsideThePanel() {
        LanePanel* lanes = m_window->setup()->lanes();
        std::vector<LaneSpec> four;
        for (const char* id : {"streaming_llm", "kvcVK_no_cross+maxpool", "expected_attention", "pyramidkv"}) {
            LaneSpec lane;
            lane.policy.id = id;
            lane.policy.budget = Budget::removed(0.5);
            four.push_back(lane);
        }
        four.back().policy.quant.id = "outlier_rtn";
        lanes->setLanes(four);
        for (int i = 0; i < 4; ++i)
            for (auto* button : lanes->editor(LaneIndex(i))->findChildren<QToolButton*>(QRegularExpression("policyButton|quantButton|more")))
                button->setChecked(true);
        m_window->resize(1280, 800);
        QTest::qWait(200);
        QCOMPARE(m_window->size(), QSize(1280, 800));
        auto* scroll = m_window->setup()->findChild<QScrollArea*>();
        QVERIFY(scroll);
        QVERIFY2(scroll->widget()->minimumSizeHint().width() <= scroll->viewport()->width(),
                 qPrintable(QString("%1 in %2").arg(scroll->widget()->minimumSizeHint().width()).arg(scroll->viewport()->width())));
    }
};

QTEST_MAIN(WindowTest)
#include "window_test.moc"
