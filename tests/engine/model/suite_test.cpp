// A suite that was stopped goes on where it was, and comes to the same numbers.
#include "engine/engine.h"

#include <QtTest>

using namespace keepsight;

namespace {

const std::string ModelPath = KEEPSIGHT_BUILD "/models/SmolLM2-135M-Instruct.Q4_1.gguf";

// Asks to stop once that many windows are recorded.
class StopAfter final : public TraceSink {
public:
    StopAfter(MemoryTrace& to, std::stop_source& stop, int windows) : m_to(to), m_stop(stop), m_left(windows) {}
    void begin(const Trace& header) override { m_to.begin(header); }
    void add(LaneIndex lane, const TokenRecord& token) override { m_to.add(lane, token); }
    void add(LaneIndex lane, const StepRecord& step) override { m_to.add(lane, step); }
    void add(const KeepRecord& record) override { m_to.add(record); }
    void add(std::shared_ptr<const AttentionMap> map) override { m_to.add(std::move(map)); }
    void add(const Measurement& measurement) override {
        m_to.add(measurement);
        if (measurement.kind == "suite_window" && --m_left == 0) m_stop.request_stop();
    }
    void notice(LaneIndex lane, const std::string& text) override { m_to.notice(lane, text); }
    void end(Outcome outcome, const std::string& failure) override { m_to.end(outcome, failure); }

private:
    MemoryTrace& m_to;
    std::stop_source& m_stop;
    int m_left;
};

std::vector<double> losses(const Trace& trace) {
    std::vector<double> out;
    for (const Measurement& m : trace.measurements)
        if (m.kind == "suite") out.push_back(m.number("nll"));
    return out;
}

int windows(const Trace& trace) {
    return static_cast<int>(std::ranges::count(trace.measurements, std::string("suite_window"), &Measurement::kind));
}

} // namespace

class SuiteTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void goesOnWhereItWasStopped() {
        Engine engine;
        engine.open({.model = ModelPath, .device = "cpu"});
        Job job;
        job.kind = RunKind::suite;
        std::vector<TokenId> ids;
        for (int i = 0; i < 160; ++i) ids.push_back(300 + (i * 37) % 400);
        job.prompt.ids = ids;
        job.ppl.maxLength = 40;
        job.suite.bench = false;
        for (const char* text : {"full", "knorm", "snapkv:window=4"}) {
            LaneSpec lane{std::string(1, static_cast<char>('A' + job.lanes.size())), Engine::parsePolicy(text)};
            lane.policy.budget = Budget::removed(0.5);
            job.lanes.push_back(lane);
        }
        job.lanes.push_back({"D", job.lanes[1].policy});
        job.lanes.back().policy.quant = Engine::parseQuant("hqq_rtn");

        MemoryTrace whole, cut, rest;
        QCOMPARE(engine.run(job, whole), Outcome::complete);
        QCOMPARE(losses(*whole.snapshot()).size(), std::size_t(4));
        QCOMPARE(windows(*whole.snapshot()), 16);

        std::stop_source stop;
        StopAfter stopper(cut, stop, 8); // two windows of four lanes
        QCOMPARE(engine.run(job, stopper, stop.get_token()), Outcome::cancelled);
        const auto before = cut.snapshot();
        QCOMPARE(windows(*before), 8);
        QCOMPARE(losses(*before).size(), std::size_t(4)); // what was done makes rows

        int passes = 0;
        const OnProgress count = [&](const Progress& p) { passes += p.stage.starts_with("window 1 ") || p.stage.starts_with("window 2 "); };
        QCOMPARE(engine.run(job, rest, {}, count, before.get()), Outcome::complete);
        QCOMPARE(passes, 0); // the first two windows were not scored again
        QCOMPARE(windows(*rest.snapshot()), 16);
        QCOMPARE(losses(*rest.snapshot()), losses(*whole.snapshot()));
    }
};

QTEST_GUILESS_MAIN(SuiteTest)
#include "suite_test.moc"
