#include "tests/support/trace_builder.h"
#include "widgets/transport/timeline_slider.h"
#include "widgets/transport/transport_bar.h"

#include <QAction>
#include <QComboBox>
#include <QLabel>
#include <QPushButton>
#include <QSignalSpy>
#include <QtTest>

using namespace keepsight;

namespace {

std::shared_ptr<Trace> run(int steps, bool finished, const std::string& created = "now") {
    auto trace = std::make_shared<Trace>(*test::buildTrace({.mapBins = 0}));
    trace->run.createdUtc = created;
    trace->run.finished = finished;
    for (Lane& lane : trace->lanes)
        lane.steps.resize(static_cast<std::size_t>(steps));
    return trace;
}

} // namespace

class TransportTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void anEmptyBarHasNothingToPress() {
        TransportBar bar;
        FocusModel focus;
        bar.follow(focus);
        for (QAction* action : {bar.toStartAction(), bar.backAction(), bar.playAction(), bar.forwardAction(), bar.toEndAction()})
            QVERIFY(!action->isEnabled());
        bar.goTo(3);
        QCOMPARE(focus.focus().step, Step{0});
        bar.play();
        QVERIFY(!bar.isPlaying());
    }

    void aRunThatGoesOnIsFollowedUntilTheUserScrubsAway() {
        TransportBar bar;
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(5, false));
        QCOMPARE(focus.focus().step, Step{4});
        bar.setTrace(run(9, false));
        QCOMPARE(focus.focus().step, Step{8});

        focus.setStep(Step{3}); // by any view
        QVERIFY(!bar.followsEnd());
        bar.setTrace(run(12, false));
        QCOMPARE(focus.focus().step, Step{3});

        bar.toEndAction()->trigger();
        QCOMPARE(focus.focus().step, Step{11});
        bar.setTrace(run(14, false));
        QCOMPARE(focus.focus().step, Step{13});

        focus.setStep(Step{2});
        bar.setTrace(run(6, false, "later")); // another run
        QCOMPARE(focus.focus().step, Step{5});
    }

    void aFinishedRunStaysWhereItIs() {
        TransportBar bar;
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(22, true));
        QCOMPARE(focus.focus().step, Step{21});
        focus.setStep(Step{7});
        bar.setTrace(run(22, true));
        QCOMPARE(focus.focus().step, Step{7});
    }

    void aShortPreviewDoesNotMoveTheFocus() {
        TransportBar bar;
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(22, true));
        focus.setStep(Step{15});
        bar.setTrace(run(2, true));
        QCOMPARE(focus.focus().step, Step{15});
        bar.setTrace(run(22, true));
        QCOMPARE(bar.findChild<TimelineSlider*>()->value(), 15);
    }

    void buttonsStepAndStopAtTheEnds() {
        TransportBar bar;
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(22, true));
        bar.backAction()->trigger();
        QCOMPARE(focus.focus().step, Step{20});
        bar.forwardAction()->trigger();
        QCOMPARE(focus.focus().step, Step{21});
        QVERIFY(!bar.forwardAction()->isEnabled());
        bar.toStartAction()->trigger();
        QCOMPARE(focus.focus().step, Step{0});
        QVERIFY(!bar.backAction()->isEnabled());
        QVERIFY(bar.toEndAction()->isEnabled());
    }

    void theLabelNamesStepAndPosition_data() {
        QTest::addColumn<int>("step");
        QTest::addColumn<QString>("text");
        QTest::newRow("prefill") << 0 << "step 0 of 21 · position 59";
        QTest::newRow("eviction") << 1 << "step 1 of 21 · position 59";
        QTest::newRow("first decoded token") << 2 << "step 2 of 21 · position 60";
        QTest::newRow("last") << 21 << "step 21 of 21 · position 79";
    }
    void theLabelNamesStepAndPosition() {
        QFETCH(int, step);
        QFETCH(QString, text);
        QLocale::setDefault(QLocale::c());
        TransportBar bar;
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(22, true));
        focus.setStep(Step{step});
        QCOMPARE(bar.findChild<QLabel*>("position")->text(), text);
    }

    void sliderAndFocusMoveEachOther() {
        TransportBar bar;
        bar.resize(900, 60);
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(22, true));
        auto* slider = bar.findChild<TimelineSlider*>();
        slider->setValue(9);
        QCOMPARE(focus.focus().step, Step{9});
        focus.setStep(Step{4});
        QCOMPARE(slider->value(), 4);
    }

    void everyPlaceOnTheTimelineIsItsStep() {
        TimelineSlider slider;
        slider.resize(800, 40);
        slider.setSteps(21, 30);
        for (int step = 0; step <= 21; ++step)
            QCOMPARE(slider.stepAt(slider.xOf(step)), step);
        QCOMPARE(slider.stepAt(-50), 0);
        QCOMPARE(slider.stepAt(5000), 21); // what is still to come cannot be reached
    }

    void clickingTheTimelineSeeks() {
        TransportBar bar;
        bar.resize(900, 60);
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(22, true));
        bar.show();
        QVERIFY(QTest::qWaitForWindowExposed(&bar));
        auto* slider = bar.findChild<TimelineSlider*>();
        QTest::mouseClick(slider, Qt::LeftButton, {}, QPoint(static_cast<int>(slider->xOf(12)), 9));
        QCOMPARE(focus.focus().step, Step{12});
    }

    void playingEndsAtTheLastStepAndShowsEachOnTheWay() {
        TransportBar bar;
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(6, true));
        bar.findChild<QComboBox*>("speed")->setCurrentIndex(2);
        QSignalSpy steps(&focus, &FocusModel::changed), playing(&bar, &TransportBar::playingChanged);
        bar.play(); // at the end: from the start
        QVERIFY(bar.isPlaying());
        QTRY_VERIFY(!bar.isPlaying());
        QCOMPARE(focus.focus().step, Step{5});
        QCOMPARE(steps.count(), 6); // to 0, then 1 … 5
        QCOMPARE(playing.count(), 2);
        QCOMPARE(bar.playAction()->text(), QString("Play"));
    }

    void spaceStillPressesTheFocusedButton() {
        QWidget window;
        TransportBar bar(&window);
        QPushButton button(&window);
        FocusModel focus;
        bar.follow(focus);
        bar.setTrace(run(6, true));
        window.show();
        window.activateWindow();
        QVERIFY(QTest::qWaitForWindowActive(&window));
        button.setFocus();
        QSignalSpy clicked(&button, &QPushButton::clicked);
        QTest::keyClick(&button, Qt::Key_Space);
        QCOMPARE(clicked.count(), 1);
        QVERIFY(!bar.isPlaying());
    }
};

QTEST_MAIN(TransportTest)
#include "transport_test.moc"
