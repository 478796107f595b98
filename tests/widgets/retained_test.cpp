#include "widgets/retained/retained_view.h"

#include "engine/data/picture.h"
#include "tests/support/trace_builder.h"
#include "widgets/base/table_dialog.h"
#include "widgets/retained/retained_figure.h"

#include <QElapsedTimer>
#include <QtTest>

using namespace keepsight;
using keepsight::test::buildTrace;
using keepsight::test::TraceShape;

class RetainedTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cellsAreTheRetainedSets() {
        const auto trace = buildTrace();
        for (const int lane : {0, 1}) {
            const RetainedModel model(trace, LaneIndex{lane});
            const Retention& retention = trace->lanes[static_cast<std::size_t>(lane)].retention;
            for (const int step : {0, 1, 2, 10, 21}) {
                for (int head = 0; head < model.heads(); ++head) {
                    const CellGrid grid = model.overview(Step{step}, HeadIndex{head});
                    QCOMPARE(grid.rows, 4);
                    QCOMPARE(grid.cols, 80);
                    for (int layer = 0; layer < grid.rows; ++layer)
                        for (Position p = 0; p < grid.cols; ++p) {
                            const bool seen = p < retention.positionsAt(Step{step});
                            QCOMPARE(grid.kindAt(layer, p), seen ? CellKind::value : CellKind::blank);
                            QCOMPARE(grid.at(layer, p) > 0.5f, retention.holds(Step{step}, LayerIndex{layer}, HeadIndex{head}, p));
                        }
                }
            }
        }
    }

    void historyRowsAreTheOverviewsOfTheirSteps() {
        const RetainedModel model(buildTrace(), LaneIndex{1});
        const CellGrid history = model.history(LayerIndex{2}, HeadIndex{1});
        QCOMPARE(history.rows, 22);
        for (int step = 0; step < history.rows; ++step) {
            const CellGrid overview = model.overview(Step{step}, HeadIndex{1});
            for (int p = 0; p < history.cols; ++p) {
                QCOMPARE(history.at(step, p), overview.at(2, p));
                QCOMPARE(history.kindAt(step, p), overview.kindAt(2, p));
            }
        }
    }

    void theTableHoldsTheNumbersOfThePicture() {
        const auto trace = buildTrace();
        const PictureData data = picture(*trace, "retained", {LaneIndex{1}, Step{5}, LayerIndex{-1}, HeadIndex{-1}, false});
        const PictureTableModel table(data);
        QCOMPARE(table.rowCount(), 4 * 3);
        QCOMPARE(table.columnCount(), static_cast<int>(data.shape[2]));
        const RetainedModel model(trace, LaneIndex{1});
        for (int layer = 0; layer < 4; ++layer)
            for (int head = 0; head < 3; ++head) {
                const CellGrid grid = model.overview(Step{5}, HeadIndex{head});
                for (int p = 0; p < table.columnCount(); ++p)
                    if (grid.kindAt(layer, p) == CellKind::value)
                        QCOMPARE(table.data(table.index(layer * 3 + head, p)).toString(),
                                 QString::number(static_cast<double>(grid.at(layer, p))));
            }
    }

    void reducedGridsDrawTheSamePicture_data() {
        QTest::addColumn<QSize>("pixels");
        QTest::newRow("fewer pixels than cells") << QSize(31, 7);
        QTest::newRow("odd") << QSize(53, 3);
        QTest::newRow("fewer across") << QSize(17, 200);
        QTest::newRow("fewer down") << QSize(300, 5);
        QTest::newRow("one for each") << QSize(80, 22);
        QTest::newRow("more") << QSize(333, 111);
        QTest::newRow("one") << QSize(1, 1);
    }
    void reducedGridsDrawTheSamePicture() {
        QFETCH(QSize, pixels);
        const RetainedModel model(buildTrace(), LaneIndex{1});
        const CellStyle style;
        const ColorScale scale(ColorMap::viridis, 0, 1);
        const auto draw = [&](const CellGrid& grid) { return renderCells(grid, pixels, 1, scale, style); };
        for (const int step : {0, 1, 2, 9, 21})
            for (int head = 0; head < 3; ++head) {
                const CellGrid reduced = model.overview(Step{step}, HeadIndex{head}, pixels);
                QVERIFY(reduced.rows <= pixels.height() && reduced.cols <= pixels.width());
                QCOMPARE(draw(reduced), draw(model.overview(Step{step}, HeadIndex{head})));
            }
        for (int layer = 0; layer < 4; ++layer)
            for (int head = 0; head < 3; ++head) {
                const CellGrid reduced = model.history(LayerIndex{layer}, HeadIndex{head}, pixels);
                QVERIFY(reduced.rows <= pixels.height() && reduced.cols <= pixels.width());
                QCOMPARE(draw(reduced), draw(model.history(LayerIndex{layer}, HeadIndex{head})));
            }
        QCOMPARE(model.overview(Step{5}, HeadIndex{9}, pixels).rows, std::min(4, pixels.height())); // of a head that is not there: blank
    }

    void aClickMovesTheFocus() {
        RetainedView view;
        FocusModel focus;
        view.resize(700, 500);
        view.follow(focus);
        view.setTrace(buildTrace());
        focus.set({LaneIndex{1}, Step{3}, LayerIndex{0}, HeadIndex{0}, -1});
        view.show();
        QTest::mouseClick(&view, Qt::LeftButton, {}, view.pointOf(HeadIndex{2}, LayerIndex{3}, 41).toPoint());
        QCOMPARE(focus.focus().layer, LayerIndex{3});
        QCOMPARE(focus.focus().head, HeadIndex{2});
        QVERIFY(std::abs(focus.focus().position - 41) <= 1); // a token may be narrower than a pixel
        QCOMPARE(focus.focus().step, Step{3});
    }

    void keysMoveTheFocusAndStopAtTheEdges() {
        RetainedView view;
        FocusModel focus;
        view.follow(focus);
        view.setTrace(buildTrace());
        focus.setLane(LaneIndex{1});
        QTest::keyClick(&view, Qt::Key_Down);
        QTest::keyClick(&view, Qt::Key_Down);
        QTest::keyClick(&view, Qt::Key_PageDown);
        QTest::keyClick(&view, Qt::Key_Right);
        QTest::keyClick(&view, Qt::Key_Right);
        QCOMPARE(focus.focus(), (Focus{LaneIndex{1}, Step{0}, LayerIndex{2}, HeadIndex{1}, 1}));
        for (int i = 0; i < 10; ++i)
            QTest::keyClick(&view, Qt::Key_Down);
        for (int i = 0; i < 10; ++i)
            QTest::keyClick(&view, Qt::Key_PageUp);
        QTest::keyClick(&view, Qt::Key_End);
        QTest::keyClick(&view, Qt::Key_Right);
        QCOMPARE(focus.focus(), (Focus{LaneIndex{1}, Step{0}, LayerIndex{3}, HeadIndex{0}, 79}));
    }

    void theViewFollowsTheFocus() {
        RetainedView view;
        FocusModel focus;
        view.resize(700, 500);
        view.follow(focus);
        view.setTrace(buildTrace());
        focus.setLane(LaneIndex{1});
        const QImage before = view.grab().toImage();
        focus.setStep(Step{12});
        const QImage after = view.grab().toImage();
        QVERIFY(before != after);
        focus.setStep(Step{0});
        QCOMPARE(view.grab().toImage(), before);
    }

    void nothingRecordedIsSaid() {
        RetainedView view;
        FocusModel focus;
        view.follow(focus);
        view.resize(400, 300);
        view.setTrace(nullptr);
        QVERIFY(!view.grab().isNull());
        QVERIFY(!view.figure());
        view.setTrace(std::make_shared<Trace>());
        QVERIFY(!view.grab().isNull());
        QVERIFY(!view.figure());
        focus.set({LaneIndex{7}, Step{99}, LayerIndex{99}, HeadIndex{99}, 9999}); // a focus kept from a larger run
        view.setTrace(buildTrace());
        QVERIFY(!view.grab().isNull());
        QVERIFY(view.figure());
    }

    void speedIsPrinted() {
        TraceShape shape;
        shape.layers = 30;
        shape.prompt = 4000;
        shape.decode = 0;
        shape.mapBins = 0;
        shape.measurements = false;
        RetainedView view;
        FocusModel focus;
        view.resize(900, 640);
        view.follow(focus);
        view.setTrace(buildTrace(shape));
        focus.setLane(LaneIndex{1});
        view.grab();
        QElapsedTimer timer;
        timer.start();
        focus.setStep(Step{1});
        const QPixmap image = view.grab();
        qInfo("retained view, 30 layers x 3 heads x 4000 positions: %.1f ms", static_cast<double>(timer.nsecsElapsed()) / 1e6);
        QCOMPARE(image.size(), view.size());
    }
};

QTEST_MAIN(RetainedTest)
#include "retained_test.moc"
