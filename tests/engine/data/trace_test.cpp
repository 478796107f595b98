// Retention, measurements, attention codes, traces in memory and the preview of a budget.
#include "engine/data/error.h"
#include "tests/support/trace_builder.h"

#include <QtTest>

using namespace keepsight;

class TraceTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void attentionCodesRoundWithinTwoPercent() {
        QCOMPARE(attentionCode(0.0f), std::uint8_t(0));
        QCOMPARE(attentionCode(-1.0f), std::uint8_t(0));
        QCOMPARE(attentionCode(1.0f), std::uint8_t(254));
        QCOMPARE(attentionCode(7.0f), std::uint8_t(254));
        QCOMPARE(attentionCode(std::numeric_limits<float>::infinity()), std::uint8_t(254));
        QCOMPARE(attentionCode(std::numeric_limits<float>::quiet_NaN()), std::uint8_t(255));
        QVERIFY(std::isnan(attentionWeight(255)));
        QCOMPARE(attentionWeight(0), 0.0f);
        QCOMPARE(attentionWeight(254), 1.0f);
        QCOMPARE(attentionWeight(238), 0.5f);
        for (int code = 0; code <= 255; ++code)
            QCOMPARE(static_cast<int>(attentionCode(attentionWeight(static_cast<std::uint8_t>(code)))), code);
        double worst = 0.0;
        for (double w = std::exp2(-15.8); w <= 1.0; w *= 1.0007)
            worst = std::max(worst, std::abs(storedAttention(static_cast<float>(w)) - w) / w);
        QVERIFY2(worst <= 0.022, qPrintable(QString::number(worst)));
        QVERIFY(worst > 0.02);
        QCOMPARE(storedAttention(static_cast<float>(std::exp2(-15.9))), 0.0f);
    }

    void measurementsKeepFieldOrderAndConvert() {
        Measurement m;
        m.set("a", std::int64_t{3});
        m.set("b", true);
        m.set("c", std::string("text"));
        m.set("d", 2.5);
        m.set("a", 4.0);
        QCOMPARE(m.fields.size(), std::size_t(4));
        QCOMPARE(m.fields[0].first, std::string("a"));
        QCOMPARE(m.number("a"), 4.0);
        QCOMPARE(m.number("b"), 1.0);
        QVERIFY(std::isnan(m.number("c")));
        QCOMPARE(m.number("absent", -1.0), -1.0);
        QCOMPARE(m.text("c"), std::string("text"));
        QCOMPARE(m.text("d"), std::string());
        QVERIFY(m.find("absent") == nullptr);
    }

    void retentionReadsEveryStepBothWays() {
        Retention r(2, 2);
        r.append(Step{0}, 4);
        r.evict({LaneIndex{0}, Step{1}, LayerIndex{1}, HeadIndex{0}, {1, 2}});
        r.append(Step{2}, 1);
        r.evict({LaneIndex{0}, Step{2}, LayerIndex{1}, HeadIndex{0}, {0}});
        r.append(Step{3}, 1);
        const LayerIndex layer{1};
        const HeadIndex head{0};
        QCOMPARE(r.positions(), 6);
        QCOMPARE(r.positionsAt(Step{-1}), 0);
        QCOMPARE(r.positionsAt(Step{1}), 4);
        QCOMPARE(r.positionsAt(Step{2}), 5);
        QCOMPARE(r.keptAt(Step{0}, layer, head), (std::vector<Position>{0, 1, 2, 3}));
        QCOMPARE(r.keptAt(Step{1}, layer, head), (std::vector<Position>{0, 3}));
        QCOMPARE(r.keptAt(Step{2}, layer, head), (std::vector<Position>{3, 4}));
        QCOMPARE(r.keptAt(Step{3}, layer, head), (std::vector<Position>{3, 4, 5}));
        QCOMPARE(r.keptAt(Step{3}, LayerIndex{0}, head).size(), std::size_t(6));
        for (int step = 0; step <= 3; ++step) {
            const auto all = r.holdersAt(Step{step});
            QCOMPARE(static_cast<Position>(all.size()), r.positionsAt(Step{step}));
            for (Position p = 0; p < 6; ++p) {
                int holders = 0;
                for (int l = 0; l < 2; ++l)
                    for (int h = 0; h < 2; ++h)
                        holders += r.holds(Step{step}, LayerIndex{l}, HeadIndex{h}, p);
                QCOMPARE(r.holdersAt(Step{step}, p), holders);
                if (static_cast<std::size_t>(p) < all.size()) QCOMPARE(all[static_cast<std::size_t>(p)], holders);
            }
            QCOMPARE(r.countAt(Step{step}, layer, head), static_cast<int>(r.keptAt(Step{step}, layer, head).size()));
        }
        QVERIFY(!r.holds(Step{3}, layer, head, 6));
        QVERIFY(!r.holds(Step{1}, layer, head, 4)); // not yet appended
    }

    void retentionRefusesImpossibleEvictions_data() {
        QTest::addColumn<int>("layer");
        QTest::addColumn<int>("step");
        QTest::addColumn<QList<int>>("positions");
        QTest::addColumn<QString>("says");
        QTest::newRow("never appended") << 0 << 3 << QList<int>{0, 5} << "position 5";
        QTest::newRow("negative") << 0 << 3 << QList<int>{-1} << "position -1";
        QTest::newRow("evicted before") << 0 << 3 << QList<int>{1, 2} << "position 2";
        QTest::newRow("descending") << 0 << 3 << QList<int>{1, 0} << "position 0 after 1";
        QTest::newRow("born later") << 0 << 1 << QList<int>{4} << "appended later";
        QTest::newRow("layer") << 2 << 3 << QList<int>{0} << "2 layers";
    }
    void retentionRefusesImpossibleEvictions() {
        QFETCH(int, layer);
        QFETCH(int, step);
        QFETCH(QList<int>, positions);
        QFETCH(QString, says);
        Retention r(2, 1);
        r.append(Step{0}, 4);
        r.evict({LaneIndex{0}, Step{1}, LayerIndex{0}, HeadIndex{0}, {2}});
        r.append(Step{2}, 1);
        const auto before = r.keptAt(Step{9}, LayerIndex{0}, HeadIndex{0});
        try {
            r.evict({LaneIndex{0}, Step{step}, LayerIndex{layer}, HeadIndex{0}, {positions.begin(), positions.end()}});
            QFAIL("not refused");
        } catch (const EngineError& error) {
            QVERIFY2(QString::fromUtf8(error.what()).contains(says), error.what());
        }
        QCOMPARE(r.keptAt(Step{9}, LayerIndex{0}, HeadIndex{0}), before);
        QVERIFY_EXCEPTION_THROWN(r.append(Step{1}, 1), EngineError);
        QVERIFY_EXCEPTION_THROWN(r.append(Step{3}, -1), EngineError);
        QVERIFY_EXCEPTION_THROWN(r.keptAt(Step{0}, LayerIndex{5}, HeadIndex{0}), EngineError);
    }

    void memoryTraceRebuildsTheRun() {
        const auto trace = test::buildTrace();
        QCOMPARE(trace->lanes.size(), std::size_t(2));
        QCOMPARE(trace->tokens.size(), std::size_t(80));
        QCOMPARE(trace->lastStep(), 21);
        QVERIFY(trace->run.finished && !trace->run.cancelled);
        const Lane& b = trace->lanes[1];
        QCOMPARE(b.retention.countAt(Step{0}, LayerIndex{0}, HeadIndex{0}), 60);
        for (int step = 1; step <= 21; ++step)
            QCOMPARE(b.retention.countAt(Step{step}, LayerIndex{3}, HeadIndex{2}), 30);
        QCOMPARE(trace->lanes[0].retention.countAt(Step{21}, LayerIndex{3}, HeadIndex{2}), 80);
        QVERIFY(trace->map(SharedLane, LayerIndex{2}, HeadIndex{1}) != nullptr);
        QVERIFY(trace->map(LaneIndex{1}, LayerIndex{2}, HeadIndex{1})->rowBegin == 60);
        QVERIFY(trace->map(SharedLane, LayerIndex{2}, HeadIndex{1}, true) == nullptr);
        QVERIFY(trace->map(LaneIndex{7}, LayerIndex{2}, HeadIndex{1}) == nullptr);
        QVERIFY(std::isnan(trace->perplexityAt(LaneIndex{0}, Step{1})));
        const double first = trace->lanes[0].steps[2].nll, second = trace->lanes[0].steps[3].nll;
        QCOMPARE(trace->perplexityAt(LaneIndex{0}, Step{2}), std::exp(first));
        QCOMPARE(trace->perplexityAt(LaneIndex{0}, Step{3}), std::exp((first + second) / 2));
        QVERIFY(b.notice.find("window shrunk") == 0);
    }

    void tokensAreFoundByLaneAndPosition() {
        test::TraceShape shape;
        shape.generated = true;
        const auto trace = test::buildTrace(shape);
        QCOMPARE(trace->tokens.size(), std::size_t(60));
        QCOMPARE(trace->tokenAt(LaneIndex{1}, 59)->position, 59);
        QCOMPARE(trace->tokenAt(LaneIndex{1}, 60)->position, 60);
        QCOMPARE(trace->tokenAt(LaneIndex{1}, 79)->role, TokenRecord::Role::generated);
        QVERIFY(trace->tokenAt(LaneIndex{1}, 80) == nullptr);
        QVERIFY(trace->tokenAt(SharedLane, 60) == nullptr);
        QVERIFY(trace->tokenAt(LaneIndex{1}, -1) == nullptr);
    }

    void snapshotsAreSharedUntilSomethingChanges() {
        MemoryTrace sink;
        test::record(sink);
        const auto first = sink.snapshot();
        QCOMPARE(sink.snapshot().get(), first.get());
        sink.notice(LaneIndex{0}, "changed");
        const auto second = sink.snapshot();
        QVERIFY(second.get() != first.get());
        QCOMPARE(first->lanes[0].notice, std::string());
        QCOMPARE(second->lanes[0].notice, std::string("changed"));
        QVERIFY(!second->run.finished);
        sink.end(Outcome::cancelled, "stopped");
        QVERIFY(sink.snapshot()->run.cancelled);
        QCOMPARE(sink.snapshot()->run.failure, std::string("stopped"));
        auto again = std::make_shared<AttentionMap>(*second->maps.front());
        again->values.assign(again->values.size(), 0.5f);
        sink.add(std::shared_ptr<const AttentionMap>(again));
        QCOMPARE(sink.snapshot()->maps.size(), second->maps.size()); // replaced
        QCOMPARE(sink.snapshot()->map(SharedLane, again->layer, again->head)->values, again->values);
    }

    void memoryTraceRefusesForeignLanesAndSkippedSteps() {
        MemoryTrace sink;
        test::record(sink);
        StepRecord step;
        step.step = Step{40};
        QVERIFY_EXCEPTION_THROWN(sink.add(LaneIndex{0}, step), EngineError);
        QVERIFY_EXCEPTION_THROWN(sink.add(LaneIndex{2}, step), EngineError);
        QVERIFY_EXCEPTION_THROWN(sink.notice(SharedLane, "x"), EngineError);
    }

    void previewReplacesOneLaneAfterThePrefill() {
        const auto trace = test::buildTrace();
        KeptSets sets;
        sets.kept.assign(4, std::vector<std::vector<Position>>(3, {0, 1, 30, 59}));
        sets.notice = "small";
        PolicySpec policy;
        policy.id = "knorm";
        const auto preview = withPreview(*trace, LaneIndex{1}, policy, sets);
        const Lane& lane = preview->lanes[1];
        QCOMPARE(lane.policy, policy);
        QCOMPARE(lane.notice, std::string("small"));
        QCOMPARE(lane.steps.size(), std::size_t(2));
        QCOMPARE(lane.steps[1].kind, StepRecord::Kind::evict);
        QCOMPARE(lane.steps[1].kvBytes, trace->model.kvBytesPerToken * 4);
        QCOMPARE(lane.retention.keptAt(Step{0}, LayerIndex{3}, HeadIndex{2}).size(), std::size_t(60));
        QCOMPARE(lane.retention.keptAt(Step{1}, LayerIndex{3}, HeadIndex{2}), (std::vector<Position>{0, 1, 30, 59}));
        QVERIFY(lane.maps.empty());
        QCOMPARE(preview->lanes[0].steps.size(), trace->lanes[0].steps.size());
        QCOMPARE(preview->maps.size(), trace->maps.size());
        for (const Measurement& m : preview->measurements)
            QCOMPARE(m.lane, LaneIndex{0});
        sets.kept[2][1] = {0, 60};
        QVERIFY_EXCEPTION_THROWN(withPreview(*trace, LaneIndex{1}, policy, sets), EngineError);
        sets.kept[2][1] = {3, 3};
        QVERIFY_EXCEPTION_THROWN(withPreview(*trace, LaneIndex{1}, policy, sets), EngineError);
        sets.kept.pop_back();
        QVERIFY_EXCEPTION_THROWN(withPreview(*trace, LaneIndex{1}, policy, sets), EngineError);
        QVERIFY_EXCEPTION_THROWN(withPreview(*trace, LaneIndex{2}, policy, sets), EngineError);
    }

    void largeTracesStayQuick() { // prints, never judges by time
        test::TraceShape shape;
        shape.layers = 30;
        shape.prompt = 4000;
        shape.decode = 30;
        shape.mapBins = 0;
        MemoryTrace sink;
        test::record(sink, shape);
        const auto trace = sink.snapshot();
        KeptSets sets;
        std::vector<Position> every;
        for (Position p = 0; p < 4000; p += 2)
            every.push_back(p);
        sets.kept.assign(30, std::vector<std::vector<Position>>(3, every));
        QElapsedTimer timer;
        timer.start();
        const auto preview = withPreview(*trace, LaneIndex{1}, {}, sets);
        const double previewMs = timer.nsecsElapsed() / 1e6;
        sink.notice(LaneIndex{0}, "x");
        timer.restart();
        const auto copy = sink.snapshot();
        const double snapshotMs = timer.nsecsElapsed() / 1e6;
        timer.restart();
        std::size_t kept = 0;
        for (int layer = 0; layer < 30; ++layer)
            for (int head = 0; head < 3; ++head)
                kept += copy->lanes[1].retention.keptAt(Step{5}, LayerIndex{layer}, HeadIndex{head}).size();
        const double keptMs = timer.nsecsElapsed() / 1e6;
        timer.restart();
        long holders = 0;
        for (Position p = 0; p < 4000; ++p)
            holders += copy->lanes[1].retention.holdersAt(Step{5}, p);
        const double holdersMs = timer.nsecsElapsed() / 1e6;
        QCOMPARE(kept, std::size_t(90 * 2000));
        QCOMPARE(preview->lanes[1].retention.countAt(Step{1}, LayerIndex{29}, HeadIndex{2}), 2000);
        QVERIFY(holders > 0);
        qInfo("30 x 3 x 4000: preview %.2f ms, snapshot %.2f ms, keptAt of all heads %.2f ms, holdersAt of all positions %.2f ms",
              previewMs, snapshotMs, keptMs, holdersMs);
    }
};

QTEST_APPLESS_MAIN(TraceTest)
#include "trace_test.moc"
