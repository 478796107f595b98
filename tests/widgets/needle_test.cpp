#include "widgets/needle/needle_view.h"

#include "engine/data/job.h"
#include "tests/support/trace_builder.h"
#include "widgets/needle/needle_figure.h"

#include <QtTest>
#include <cmath>

using namespace keepsight;
using keepsight::test::buildTrace;

class NeedleTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cellsAreTheMeansOverKeys() {
        auto trace = std::make_shared<Trace>(*buildTrace());
        Measurement second = trace->measurements.front(); // another key in the first cell
        second.set("key_index", std::int64_t{1});
        second.set("score", 0.0);
        trace->measurements.push_back(second);
        const NeedleModel model(trace);
        QCOMPARE(model.lengths(), (std::vector<double>{500, 1000, 2000}));
        QCOMPARE(model.depths(), (std::vector<double>{0, 50, 100}));
        QCOMPARE(model.grids().size(), std::size_t{2});
        const NeedleCell& first = model.cell(model.grids()[0], 0, 0);
        QCOMPARE(first.runs, 2);
        QCOMPARE(first.score, 0.5);
        QCOMPARE(first.rows[1]->number("key_index"), 1.0);
        QCOMPARE(model.cell(model.grids()[1], 1, 0).score, 0.0);
        QCOMPARE(model.cell(model.grids()[1], 2, 2).score, 0.5);
        QVERIFY(std::isnan(model.cell(model.grids()[1], 1, 2).score)); // not run
        QCOMPARE(model.cell(model.grids()[1], 1, 2).runs, 0);
    }

    void cellsAgreeWithThePicture() {
        const auto trace = buildTrace();
        const NeedleModel model(trace);
        for (const NeedleGrid& grid : model.grids()) {
            const PictureData data = picture(*trace, "needle", {grid.lane});
            QCOMPARE(data.values.size(), grid.cells.size());
            for (std::size_t i = 0; i < data.values.size(); ++i) {
                QCOMPARE(std::isnan(data.values[i]), grid.cells[i].runs == 0);
                if (grid.cells[i].runs > 0) QCOMPARE(data.values[i], grid.cells[i].score);
            }
        }
    }

    void plannedCellsShowBeforeTheyRan() {
        auto trace = std::make_shared<Trace>(*buildTrace());
        Job job;
        job.kind = RunKind::needle;
        job.needle.lengths = {500, 4000};
        job.needle.depths = {25};
        trace->run.kind = "needle";
        trace->run.jobJson = jobToJson(job);
        trace->measurements.clear();
        const NeedleModel model(trace);
        QCOMPARE(model.lengths(), (std::vector<double>{500, 4000}));
        QCOMPARE(model.depths(), std::vector<double>{25});
        QCOMPARE(model.grids().size(), std::size_t{2});
        QCOMPARE(model.cell(model.grids()[1], 0, 1).runs, 0);
        trace->run.jobJson = "{broken";
        QVERIFY(NeedleModel(trace).empty());
    }

    void clicksAndKeysChooseCells() {
        NeedleView view;
        FocusModel focus;
        view.resize(700, 400);
        view.follow(focus);
        view.setTrace(buildTrace());
        view.show();
        QTest::mouseClick(&view, Qt::LeftButton, {}, view.pointOf({1, 2, 0}).toPoint());
        QCOMPARE(*view.selected(), (NeedleView::Cell{1, 2, 0}));
        QCOMPARE(focus.focus().lane, LaneIndex{1});
        QTest::keyClick(&view, Qt::Key_Up);
        QTest::keyClick(&view, Qt::Key_Right);
        QTest::keyClick(&view, Qt::Key_Right);
        QTest::keyClick(&view, Qt::Key_Right); // stops at the edge
        QCOMPARE(*view.selected(), (NeedleView::Cell{1, 1, 2}));
        QTest::keyClick(&view, Qt::Key_PageUp);
        QCOMPARE(*view.selected(), (NeedleView::Cell{0, 1, 2}));
        QCOMPARE(focus.focus().lane, LaneIndex{0});
        view.setTrace(nullptr);
        QVERIFY(!view.selected());
        QTest::keyClick(&view, Qt::Key_Up);
        QVERIFY(!view.figure());
    }

    void aLaneOutsideTheTraceIsLeftOut() {
        auto trace = std::make_shared<Trace>(*buildTrace());
        for (Measurement& row : trace->measurements)
            row.lane = LaneIndex{9};
        QVERIFY(NeedleModel(trace).empty());
    }
};

QTEST_MAIN(NeedleTest)
#include "needle_test.moc"
