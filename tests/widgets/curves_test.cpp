#include "engine/data/error.h"
#include "tests/support/trace_builder.h"
#include "widgets/curves/curve_figure.h"
#include "widgets/curves/curves_model.h"
#include "widgets/curves/curves_view.h"

#include <QSignalSpy>
#include <QtTest>

using namespace keepsight;

namespace {

std::shared_ptr<Trace> cut(const Trace& trace, std::size_t steps) {
    auto out = std::make_shared<Trace>(trace);
    out->run.finished = false;
    for (Lane& lane : out->lanes)
        lane.steps.resize(std::min(steps, lane.steps.size()));
    return out;
}

} // namespace

class CurvesTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void curvesAreThoseOfThePicture() {
        const auto trace = test::buildTrace({.mapBins = 0});
        CurvesModel model;
        model.update(trace.get());
        const PictureData ppl = picture(*trace, "ppl"), tpot = picture(*trace, "tpot"), memory = picture(*trace, "memory");
        for (std::size_t lane = 0; lane < 2; ++lane) {
            const LaneCurve& curve = model.lanes()[lane];
            int compared = 0;
            for (std::size_t i = 0; i < curve.steps.size(); ++i) {
                const auto at = [&](const PictureData& data) {
                    for (std::size_t p = 0; p < data.x.size(); ++p)
                        if (data.x[p] == curve.steps[i]) return data.values[p * 2 + lane];
                    return NotMeasured;
                };
                if (curve.steps[i] < 2) continue;
                QCOMPARE(curve.perplexity[i], at(ppl));
                QCOMPARE(curve.tpot[i], at(tpot));
                QCOMPARE(curve.memory[i], at(memory) / 1e6);
                ++compared;
            }
            QCOMPARE(compared, 20);
        }
    }

    void pointsLieAtTokenPositions() {
        const auto trace = test::buildTrace({.mapBins = 0});
        CurvesModel model;
        model.update(trace.get());
        QCOMPARE(model.firstX(), 59.0);
        QCOMPARE(model.lastX(), 79.0);
        QCOMPARE(model.xOf(0), 59.0);
        QCOMPARE(model.xOf(1), 59.0);
        QCOMPARE(model.xOf(2), 60.0);
        QCOMPARE(model.xOf(21), 79.0);
        for (int step = 2; step <= 21; ++step)
            QCOMPARE(model.stepNear(model.xOf(step)), step);
        QCOMPARE(model.stepNear(-100), 1);
        QCOMPARE(model.stepNear(1e9), 21);
    }

    void aRunThatGoesOnIsAppendedTo() {
        const auto trace = test::buildTrace({.mapBins = 0});
        CurvesModel grown, whole;
        QVERIFY(!grown.update(cut(*trace, 3).get()));
        for (std::size_t steps = 4; steps <= 22; ++steps)
            QVERIFY(grown.update(cut(*trace, steps).get()));
        whole.update(trace.get());
        for (std::size_t lane = 0; lane < 2; ++lane) {
            QCOMPARE(grown.lanes()[lane].x, whole.lanes()[lane].x);
            for (std::size_t i = 1; i < whole.lanes()[lane].x.size(); ++i) {
                QCOMPARE(grown.lanes()[lane].perplexity[i], whole.lanes()[lane].perplexity[i]);
                QCOMPARE(grown.lanes()[lane].tpotSmooth[i], whole.lanes()[lane].tpotSmooth[i]);
            }
        }
    }

    void whatIsNotALongerVersionIsDrawnAnew() {
        const auto trace = test::buildTrace({.mapBins = 0});
        CurvesModel model;
        model.update(trace.get());
        QVERIFY(model.update(trace.get()));
        QVERIFY(!model.update(cut(*trace, 2).get())); // a preview
        QCOMPARE(model.lanes()[0].x.size(), std::size_t{1});
        QVERIFY(!model.update(nullptr));
        QVERIFY(model.isEmpty());
    }

    void smoothingIsAMedianAndWidensWithTheRun() {
        const double nan = NotMeasured;
        QCOMPARE(runningMedian({1, 100, 3}, 3, 9), 3.0);
        QCOMPARE(runningMedian({1, 2, 3, 4}, 4, 2), 3.5);
        QCOMPARE(runningMedian({nan, 5}, 2, 9), 5.0);
        QVERIFY(std::isnan(runningMedian({nan}, 1, 9)));
        QCOMPARE(smoothingWindow(100), std::size_t{9});
        QCOMPARE(smoothingWindow(1000), std::size_t{33});
        // However the points arrived, the line is the same.
        auto trace = std::make_shared<Trace>(*test::buildTrace({.layers = 1, .kvHeads = 1, .decode = 600, .mapBins = 0, .measurements = false}));
        CurvesModel grown, whole;
        for (std::size_t steps = 100; steps <= 602; steps += 50)
            grown.update(cut(*trace, steps).get());
        grown.update(trace.get());
        whole.update(trace.get());
        QCOMPARE(grown.lanes()[1].window, std::size_t{17});
        for (std::size_t i = 1; i < whole.lanes()[1].x.size(); ++i)
            QCOMPARE(grown.lanes()[1].tpotSmooth[i], whole.lanes()[1].tpotSmooth[i]);
    }

    void titlesNameThePolicyAndTheBudget() {
        auto trace = std::make_shared<Trace>(*test::buildTrace({.mapBins = 0}));
        QCOMPARE(laneTitle(*trace, LaneIndex{0}), QString("A full"));
        QCOMPARE(laneTitle(*trace, LaneIndex{1}), QString("B snapkv −50 %"));
        trace->lanes[1].policy.budget = Budget::kept(64);
        QCOMPARE(laneTitle(*trace, LaneIndex{1}), QString("B snapkv @64"));
    }

    void clickingAndKeysMoveTheStep() {
        CurvesView view;
        FocusModel focus;
        view.follow(focus);
        view.setTrace(test::buildTrace({.mapBins = 0}));
        view.resize(600, 400);
        view.show();
        QVERIFY(QTest::qWaitForWindowExposed(&view));
        QWidget* plot = view.focusProxy();
        QTest::mouseClick(plot, Qt::LeftButton, {}, QPoint(580, 200));
        QVERIFY2(focus.focus().step.value >= 20, qPrintable(QString::number(focus.focus().step.value)));
        QTest::keyClick(plot, Qt::Key_Home);
        QCOMPARE(focus.focus().step, Step{0});
        QTest::keyClick(plot, Qt::Key_Right);
        QCOMPARE(focus.focus().step, Step{1});
        QTest::keyClick(plot, Qt::Key_End);
        QCOMPARE(focus.focus().step, Step{21});
    }

    void aLegendWithAnEmptyCellIsDrawn() {
        auto trace = std::make_shared<Trace>(*test::buildTrace({.mapBins = 0}));
        trace->lanes.push_back(trace->lanes.back()); // three entries in rows of two
        CurvesView view;
        view.resize(360, 400);
        view.setTrace(trace);
        view.show();
        QVERIFY(QTest::qWaitForWindowExposed(&view));
        view.setTrace(std::make_shared<Trace>(*trace)); // looks at the cells of the wrapped legend
        auto other = std::make_shared<Trace>(*trace);
        other->lanes.resize(2);
        view.setTrace(other);
        view.setTrace(trace);
    }

    void anEmptyViewSaysSoAndExportsNothing() {
        CurvesView view;
        FocusModel focus;
        view.follow(focus);
        view.setTrace(nullptr);
        QVERIFY(!view.figure());
        view.setTrace(std::make_shared<Trace>());
        QVERIFY(!view.figure());
        QVERIFY(!view.grab().isNull());
    }

    void figuresHoldTheNumbersOfTheirPictures_data() {
        QTest::addColumn<QString>("kind");
        for (const char* kind : {"ppl", "tpot", "memory"})
            QTest::newRow(kind) << QString(kind);
    }
    void figuresHoldTheNumbersOfTheirPictures() {
        QFETCH(QString, kind);
        const auto trace = test::buildTrace({.mapBins = 0});
        const auto figure = curveFigure(kind, trace, {});
        QCOMPARE(toJson(figure->data()), toJson(picture(*trace, kind.toStdString())));
        // Both lanes are drawn, in their colours.
        const QSizeF size = figure->sizeForWidth(234);
        QImage image(size.toSize() * 3, QImage::Format_RGB32);
        image.fill(Qt::white);
        QPainter painter(&image);
        painter.setRenderHint(QPainter::Antialiasing);
        painter.scale(3, 3);
        figure->paint(painter, size);
        painter.end();
        int blue = 0, dark = 0;
        for (int y = 60; y < image.height() - 90; ++y) // without legend and axis
            for (int x = 120; x < image.width(); ++x) {
                blue += image.pixel(x, y) == qRgb(0x1f, 0x6b, 0xb0);
                dark += image.pixel(x, y) == qRgb(0x3f, 0x44, 0x4e);
            }
        QVERIFY2(blue > 50 && dark > 50, qPrintable(QString("%1 %2").arg(blue).arg(dark)));
    }

    void figuresRefuseWhatIsNotThere() {
        QVERIFY_THROWS_EXCEPTION(UsageError, curveFigure("speed", test::buildTrace({.mapBins = 0}), {}));
        QVERIFY_THROWS_EXCEPTION(UsageError, curveFigure("ppl", nullptr, {}));
        QVERIFY_THROWS_EXCEPTION(UsageError, curveFigure("ppl", std::make_shared<Trace>(), {}));
    }
};

QTEST_MAIN(CurvesTest)
#include "curves_test.moc"
