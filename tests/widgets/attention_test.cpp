#include "widgets/attention/attention_view.h"

#include "tests/support/trace_builder.h"

#include <QComboBox>
#include <QPushButton>
#include <QtTest>
#include <cmath>

using namespace keepsight;
using keepsight::test::buildTrace;
using keepsight::test::TraceShape;

namespace {

std::shared_ptr<const Trace> withQueryHead(const Trace& trace, LayerIndex layer, HeadIndex queryHead) {
    auto copy = std::make_shared<Trace>(trace);
    auto map = std::make_shared<AttentionMap>();
    map->layer = layer;
    map->head = queryHead;
    map->perQueryHead = true;
    map->rowEnd = map->rows = map->cols = trace.prefillLength;
    for (int r = 0; r < map->rows; ++r)
        for (int c = 0; c < map->cols; ++c)
            map->values.push_back(c <= r ? 1.0f / static_cast<float>(r + 1) : std::nanf(""));
    copy->maps.push_back(map);
    return copy;
}

} // namespace

class AttentionTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void valuesAreThoseOfTheMaps() {
        const auto trace = buildTrace();
        for (const int lane : {0, 1}) {
            const AttentionModel model(trace, LaneIndex{lane}, LayerIndex{2}, HeadIndex{1});
            QCOMPARE(model.parts().size(), std::size_t{2});
            for (const auto& part : model.parts()) {
                for (int row = 0; row < part.map->rows; ++row)
                    for (int col = 0; col < part.map->cols; ++col) {
                        const float value = part.map->values[static_cast<std::size_t>(row * part.map->cols + col)];
                        const auto hit = model.at(part.map->rowBegin + row * part.map->rowBin, col * part.map->colBin);
                        QVERIFY(hit);
                        if (std::isnan(value))
                            QCOMPARE(hit->kind, CellKind::blank);
                        else
                            QCOMPARE(static_cast<float>(hit->value), value);
                    }
            }
        }
    }

    void columnsAreHatchedOnceAllTheirKeysAreGone() {
        const auto trace = buildTrace();
        const Retention& retention = trace->lanes[1].retention;
        const LayerIndex layer{1};
        const HeadIndex head{2};
        const AttentionModel model(trace, LaneIndex{1}, layer, head);
        int hatched = 0;
        for (Position query = trace->prefillLength; query < retention.positions(); ++query)
            for (Position key = 0; key <= query; ++key) {
                const auto hit = model.at(query, key);
                QVERIFY(hit);
                if (hit->kind == CellKind::blank) continue;
                bool gone = true; // before the step that appended the query began
                for (Position k = hit->keyBegin; k < std::min(hit->keyEnd, retention.positions()); ++k)
                    gone = gone && retention.evictedAt(layer, head)[static_cast<std::size_t>(k)] <
                                       retention.bornAt()[static_cast<std::size_t>(query)];
                QCOMPARE(hit->kind == CellKind::evicted, gone);
                hatched += gone;
            }
        QVERIFY(hatched > 20);
        for (Position query = 0; query < trace->prefillLength; ++query)
            QCOMPARE(model.at(query, 0)->kind, CellKind::value); // nothing is evicted in the prefill
        const AttentionModel full(trace, LaneIndex{0}, layer, head);
        for (const auto& part : full.parts())
            for (const CellKind kind : part.grid.kinds)
                QVERIFY(kind != CellKind::evicted);
    }

    void rowsStopAtTheStep() {
        const auto trace = buildTrace();
        for (const int step : {0, 1, 2, 9, 21}) {
            const AttentionModel model(trace, LaneIndex{1}, LayerIndex{0}, HeadIndex{0}, false, Step{step});
            const Position known = trace->lanes[1].retention.positionsAt(Step{step});
            for (Position query = trace->prefillLength; query < 80; ++query)
                QCOMPARE(model.at(query, 0).has_value(), query < known);
            QCOMPARE(model.queries(), 80); // room for the steps to come
            const AttentionModel cropped(trace, LaneIndex{1}, LayerIndex{0}, HeadIndex{0}, false, Step{step}, true);
            QCOMPARE(cropped.queries(), known);
            QCOMPARE(cropped.scale(true), AttentionModel(trace, LaneIndex{1}, LayerIndex{0}, HeadIndex{0}).scale(true));
        }
    }

    void cellsAgreeWithThePicture() {
        const auto trace = buildTrace();
        for (const int step : {1, 9, 21}) {
            const PictureData data = picture(*trace, "attention", {LaneIndex{1}, Step{step}, LayerIndex{2}, HeadIndex{1}, false});
            const AttentionModel model(trace, LaneIndex{1}, LayerIndex{2}, HeadIndex{1}, false, Step{step});
            std::size_t row = 0;
            for (const auto& part : model.parts())
                for (int r = 0; r < part.grid.rows; ++r, ++row)
                    for (std::size_t col = 0; col < data.shape[1]; ++col) {
                        const double value = data.values[row * data.shape[1] + col];
                        const auto hit = model.at(part.map->rowBegin + r * part.map->rowBin,
                                                  static_cast<Position>(static_cast<double>(col) * data.axes[1].step));
                        const bool shown = hit && hit->kind == CellKind::value;
                        QCOMPARE(std::isnan(value), !shown);
                        if (shown) QCOMPARE(hit->value, value);
                    }
            QCOMPARE(row, data.shape[0]);
        }
    }

    void aClickFocusesTheKey() {
        AttentionView view;
        FocusModel focus;
        view.resize(600, 600);
        view.follow(focus);
        view.setTrace(buildTrace());
        focus.setStep(Step{21});
        view.show();
        const QPointF point = view.pointOf(70, 33);
        QTest::mouseClick(&view, Qt::LeftButton, {}, point.toPoint());
        QVERIFY(std::abs(focus.focus().position - 33) <= 1);
        const auto hit = view.cellAt(point);
        QVERIFY(hit && hit->queryBegin == 70 && hit->keyBegin <= 33 && hit->keyEnd > 33);
    }

    void aLockedRangeStays() {
        AttentionView view;
        FocusModel focus;
        view.follow(focus);
        view.setTrace(buildTrace());
        QVERIFY(view.scale().logarithmic());
        view.setRangeLocked(true);
        const ColorScale locked = view.scale();
        for (int layer = 1; layer < 4; ++layer) {
            focus.setHead(LayerIndex{layer}, HeadIndex{layer % 3});
            QCOMPARE(view.scale(), locked);
        }
        view.setLogarithmic(false);
        QVERIFY(!view.scale().logarithmic());
        QCOMPARE(view.scale().max(), locked.max());
    }

    void fullResolutionIsAskedForAndThenShown() {
        AttentionView view;
        FocusModel focus;
        view.follow(focus);
        const auto trace = buildTrace();
        view.setTrace(trace);
        focus.setHead(LayerIndex{2}, HeadIndex{1});
        LayerIndex layer;
        HeadIndex head;
        int asked = 0;
        connect(&view, &AttentionView::fullResolutionRequested, &view, [&](LayerIndex l, HeadIndex h) {
            layer = l;
            head = h;
            ++asked;
        });
        auto* button = view.findChild<QPushButton*>();
        button->click();
        QCOMPARE(asked, 1);
        QCOMPARE(layer, LayerIndex{2});
        QCOMPARE(head, HeadIndex{3}); // first query head of KV head 1
        QVERIFY(!view.figure());      // not there yet
        view.setTrace(withQueryHead(*trace, layer, head));
        view.resize(600, 600);
        view.show();
        const auto hit = view.cellAt(view.pointOf(50, 20));
        QVERIFY(hit);
        QCOMPARE(hit->keyEnd - hit->keyBegin, 1);
        QCOMPARE(static_cast<float>(hit->value), 1.0f / static_cast<float>(hit->queryBegin + 1));
        QVERIFY(!button->isEnabled()); // already computed
        view.findChild<QComboBox*>()->setCurrentIndex(0);
        QVERIFY(button->isEnabled());
        view.setFullResolutionAvailable(false);
        QVERIFY(!button->isEnabled());
    }

    void runsWithoutMapsAreSaid() {
        TraceShape shape;
        shape.mapBins = 0;
        AttentionView view;
        FocusModel focus;
        view.follow(focus);
        view.resize(300, 300);
        for (const auto& trace :
             {std::shared_ptr<const Trace>(), std::shared_ptr<const Trace>(std::make_shared<Trace>()), buildTrace(shape)}) {
            view.setTrace(trace);
            QVERIFY(!view.grab().isNull());
            QVERIFY(!view.figure());
        }
    }

    void damagedMapsAreLeftOut() {
        auto trace = std::make_shared<Trace>(*buildTrace());
        auto map = std::make_shared<AttentionMap>(*trace->maps.front());
        map->values.pop_back();
        trace->maps = {map};
        trace->lanes.clear();
        QVERIFY(AttentionModel(trace, LaneIndex{0}, map->layer, map->head).empty());
    }
};

QTEST_MAIN(AttentionTest)
#include "attention_test.moc"
