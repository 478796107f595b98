// Pass-key retrieval on the default model: what full can find, what is lost with the entries that held it, and the order of the rows.
#include "engine/engine.h"

#include <QtTest>

using namespace keepsight;

namespace {

const char* ModelPath = KEEPSIGHT_BUILD "/models/SmolLM2-135M-Instruct.Q4_1.gguf";

LaneSpec lane(const char* policy, Budget budget) {
    LaneSpec out{policy, Engine::parsePolicy(policy)};
    out.policy.budget = budget;
    return out;
}

} // namespace

class NeedleRunTest : public QObject {
    Q_OBJECT

    Engine m_engine;

    std::vector<Measurement> rows(const Job& job) {
        MemoryTrace trace;
        if (m_engine.run(job, trace) != Outcome::complete) return {};
        return trace.snapshot()->measurements;
    }

private Q_SLOTS:
    void initTestCase() { m_engine.open({.model = ModelPath, .device = "cpu", .dtype = "fp32"}); }

    void fullFindsWhatStreamingDropped() {
        Job job;
        job.kind = RunKind::needle;
        job.needle = {.lengths = {1000}, .depths = {10, 50, 90}};
        job.lanes = {lane("full", Budget()), lane("streaming_llm", Budget::removed(0.7))};
        const auto cells = rows(job);
        QCOMPARE(cells.size(), 6u);
        for (std::size_t i = 0; i < cells.size(); ++i) {
            const Measurement& cell = cells[i];
            const QString where = QString("%1 at %2 %: '%3', expected %4")
                                      .arg(QString::fromStdString(cell.text("policy"))).arg(cell.number("depth")).arg(QString::fromStdString(cell.text("answer")))
                                      .arg(QString::fromStdString(cell.text("expected")));
            QVERIFY(cell.number("prompt_tokens") <= 1000 && cell.number("prompt_tokens") > 950);
            if (cell.text("policy") == "full") {
                QVERIFY2(cell.number("score") == 1.0, qPrintable(where));
                QCOMPARE(cell.number("kept_needle_share"), 1.0);
            } else if (cell.number("depth") <= 50) { // the newest 30 % do not reach back to it
                QVERIFY2(cell.number("score") == 0.0, qPrintable(where));
                QCOMPARE(cell.number("kept_needle_share"), 0.0);
            } else {
                QCOMPARE(cell.number("kept_needle_share"), 1.0);
            }
        }
    }

    void rowsComeInAFixedOrder() {
        Job job;
        job.kind = RunKind::needle;
        job.needle = {.lengths = {220, 160}, .depths = {100, 0}, .keys = 2, .digits = 3};
        job.lanes = {lane("window", Budget::removed(0.5)), lane("full", Budget())};
        const auto cells = rows(job);
        QCOMPARE(cells.size(), 16u);
        std::size_t i = 0;
        for (const double length : {220.0, 160.0})
            for (const double depth : {100.0, 0.0})
                for (const double key : {0.0, 1.0})
                    for (const char* policy : {"window", "full"}) {
                        const Measurement& cell = cells[i++];
                        QCOMPARE(cell.number("length"), length);
                        QCOMPARE(cell.number("depth"), depth);
                        QCOMPARE(cell.number("key_index"), key);
                        QCOMPARE(cell.text("policy"), std::string(policy));
                        QCOMPARE(cell.text("expected").size(), 3u);
                    }
        // A key belongs to its index: the same at every length and depth, and another one for the other index.
        QCOMPARE(cells[0].text("expected"), cells[12].text("expected"));
        QVERIFY(cells[0].text("expected") != cells[2].text("expected"));
    }

    void aKnownQuestionGuidesTheVotes() {
        Job job;
        job.kind = RunKind::needle;
        job.needle = {.lengths = {600}, .depths = {40}};
        job.lanes = {lane("full", Budget()), lane("snapkv:window=16", Budget::removed(0.9))};
        const auto unaware = rows(job);
        job.needle.queryAware = true;
        const auto aware = rows(job);
        QCOMPARE(unaware.size(), 2u);
        QCOMPARE(aware.size(), 2u);
        QCOMPARE(unaware[0].number("score"), 1.0);
        QCOMPARE(aware[0].number("score"), 1.0);
        QCOMPARE(aware[0].text("expected"), unaware[0].text("expected"));
        QCOMPARE(aware[0].text("answer"), unaware[0].text("answer")); // without eviction both protocols feed the same tokens
        qInfo("snapkv keeps %.2f of the key's entries unaware of the question, %.2f aware", unaware[1].number("kept_needle_share"), aware[1].number("kept_needle_share"));
        QVERIFY(aware[1].number("kept_needle_share") > unaware[1].number("kept_needle_share"));
    }
};

QTEST_GUILESS_MAIN(NeedleRunTest)
#include "needle_run_test.moc"
