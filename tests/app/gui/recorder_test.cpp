// Snapshots of a running recording: none changes when the run goes on, they share what did not change, and they are as rare as they are dear.
#include "app/gui/run_recorder.h"
#include "tests/support/trace_builder.h"
#include "tests/support/trace_compare.h"

#include <QtTest>

#include <thread>

using namespace keepsight;
using namespace std::chrono_literals;

class RecorderTest : public QObject {
    Q_OBJECT

    // A deep copy of what a snapshot says about its retained sets.
    static std::vector<std::vector<std::int32_t>> said(const Retention& of) {
        std::vector<std::vector<std::int32_t>> out{{of.bornAt().begin(), of.bornAt().end()}};
        for (int layer = 0; layer < of.layers(); ++layer)
            for (int head = 0; head < of.heads(); ++head) {
                const auto row = of.evictedAt(LayerIndex{layer}, HeadIndex{head});
                out.emplace_back(row.begin(), row.end());
            }
        return out;
    }

    // Forwards a run and takes a snapshot before every step.
    class Snapshots : public TraceSink {
    public:
        MemoryTrace memory;
        std::vector<std::pair<std::shared_ptr<const Trace>, std::vector<std::vector<std::vector<std::int32_t>>>>> taken;
        void begin(const Trace& header) override { memory.begin(header); }
        void add(LaneIndex lane, const TokenRecord& token) override { memory.add(lane, token); }
        void add(LaneIndex lane, const StepRecord& step) override {
            auto snapshot = memory.snapshot();
            std::vector<std::vector<std::vector<std::int32_t>>> now;
            for (const Lane& each : snapshot->lanes)
                now.push_back(said(each.retention));
            taken.emplace_back(std::move(snapshot), std::move(now));
            memory.add(lane, step);
        }
        void add(const KeepRecord& evictions) override { memory.add(evictions); }
        void add(std::shared_ptr<const AttentionMap> map) override { memory.add(map); }
        void add(const Measurement& measurement) override { memory.add(measurement); }
        void notice(LaneIndex lane, const std::string& text) override { memory.notice(lane, text); }
        void end(Outcome outcome, const std::string& failure) override { memory.end(outcome, failure); }
    };

private Q_SLOTS:
    void aRunThatGoesOnChangesNoEarlierSnapshot() {
        Snapshots sink;
        test::record(sink);
        QVERIFY(sink.taken.size() > 40);
        for (const auto& [snapshot, then] : sink.taken)
            for (std::size_t lane = 0; lane < snapshot->lanes.size(); ++lane)
                QCOMPARE(said(snapshot->lanes[lane].retention), then[lane]);
        // And the run itself is what it would be without them.
        MemoryTrace alone;
        test::record(alone);
        QCOMPARE(test::difference(*sink.memory.snapshot(), *alone.snapshot()), std::string());
    }
    void copiesShareRowsUntilOneOfThemEvicts() {
        Retention a(2, 2);
        a.append(Step{0}, 100);
        a.evict({LaneIndex{0}, Step{1}, LayerIndex{0}, HeadIndex{1}, {3}});
        const Retention b = a;
        const auto rowOf = [](const Retention& of, int layer, int head) { return of.evictedAt(LayerIndex{layer}, HeadIndex{head}).data(); };
        for (int layer = 0; layer < 2; ++layer)
            for (int head = 0; head < 2; ++head)
                QCOMPARE(rowOf(a, layer, head), rowOf(b, layer, head));
        a.append(Step{2}, 1); // appending leaves them shared
        QCOMPARE(rowOf(a, 0, 1), rowOf(b, 0, 1));
        QCOMPARE(a.positions(), 101);
        QCOMPARE(b.positions(), 100);
        QCOMPARE(b.evictedAt(LayerIndex{0}, HeadIndex{1}).size(), std::size_t(100));
        a.evict({LaneIndex{0}, Step{2}, LayerIndex{0}, HeadIndex{1}, {4, 100}});
        QVERIFY(rowOf(a, 0, 1) != rowOf(b, 0, 1));
        QCOMPARE(rowOf(a, 1, 0), rowOf(b, 1, 0));
        QCOMPARE(b.evictedAt(LayerIndex{0}, HeadIndex{1})[4], NeverEvicted);
        QCOMPARE(a.evictedAt(LayerIndex{0}, HeadIndex{1})[4], 2);
        const auto mine = rowOf(a, 0, 1); // no longer shared: changed in place
        a.evict({LaneIndex{0}, Step{2}, LayerIndex{0}, HeadIndex{1}, {5}});
        QCOMPARE(rowOf(a, 0, 1), mine);
    }
    void readersInAnotherThreadSeeTheirSnapshotOnly() {
        Retention live(1, 4);
        live.append(Step{0}, 4000);
        for (int step = 1; step < 200; ++step) {
            auto snapshot = std::make_unique<const Retention>(live);
            std::thread reader([step, own = std::move(snapshot)]() mutable {
                for (int head = 0; head < 4; ++head)
                    if (own->countAt(Step{1000}, LayerIndex{0}, HeadIndex{head}) != 4000 - (step - 1)) qFatal("a snapshot changed");
                own.reset();
            });
            for (int head = 0; head < 4; ++head)
                live.evict({LaneIndex{0}, Step{step}, LayerIndex{0}, HeadIndex{head}, {step}});
            reader.join();
        }
        QCOMPARE(live.countAt(Step{1000}, LayerIndex{0}, HeadIndex{3}), 4000 - 199);
    }
    void snapshotsBackOffAsShowingThemGetsDearer_data() {
        QTest::addColumn<int>("showingMs");
        QTest::addColumn<int>("most");
        QTest::newRow("free") << 0 << 100;
        QTest::newRow("10 ms") << 10 << 6; // of 1 s, every 20 times as long
        QTest::newRow("not shown at all") << -1 << 1;
    }
    void snapshotsBackOffAsShowingThemGetsDearer() {
        QFETCH(int, showingMs);
        QFETCH(int, most);
        int published = 0;
        RunRecorder recorder([&](const auto&) { ++published; },
                             [&]() -> std::optional<RunRecorder::Clock::duration> {
                                 return showingMs < 0 ? std::nullopt : std::optional<RunRecorder::Clock::duration>(std::chrono::milliseconds(showingMs));
                             },
                             nullptr);
        const auto began = RunRecorder::Clock::now();
        recorder.begin(Trace{});
        while (RunRecorder::Clock::now() < began + 1s) {
            recorder.tick();
            std::this_thread::sleep_for(1ms);
        }
        QVERIFY2(published <= most && published >= 1, qPrintable(QString::number(published)));
        if (showingMs == 0) QVERIFY2(published >= 5, qPrintable(QString::number(published)));
    }
};

QTEST_GUILESS_MAIN(RecorderTest)
#include "recorder_test.moc"
