// The worker with the real default model: every started job ends once, replaced and cancelled ones as promised.
#include "app/gui/engine_worker.h"

#include <QDir>
#include <QSignalSpy>
#include <QTemporaryDir>
#include <QtTest>

#include "engine/data/trace_file.h"

using namespace keepsight;

class WorkerTest : public QObject {
    Q_OBJECT

    static constexpr int Long = 120000;
    std::unique_ptr<EngineWorker> m_worker;
    std::unique_ptr<QSignalSpy> m_started, m_finished, m_failed, m_updated;

    static Job job(RunKind kind, int tokens = 60) {
        Job job;
        job.kind = kind;
        for (int i = 0; i < tokens / 6; ++i)
            job.prompt.text += "The keeper counted " + std::to_string(i) + " ships. ";
        LaneSpec full, snapkv;
        full.label = "A";
        snapkv.label = "B";
        snapkv.policy.id = "snapkv";
        snapkv.policy.params["window"] = "8";
        snapkv.policy.budget = Budget::removed(0.5);
        job.lanes = {full, snapkv};
        job.score.prefixRatio = 0.8;
        job.generate.maxNew = 8;
        return job;
    }
    int ends(JobId id) const {
        int count = 0;
        for (const auto* spy : {m_finished.get(), m_failed.get()})
            for (const auto& call : *spy)
                count += call.at(0).value<JobId>() == id;
        return count;
    }
    bool ended(JobId id, int ms = Long) const { return QTest::qWaitFor([&] { return ends(id) > 0; }, ms); }
    int startsOf(JobId id) const {
        return int(std::count_if(m_started->begin(), m_started->end(), [&](const auto& call) { return call.at(0).template value<JobId>() == id; }));
    }
    TracePtr resultOf(JobId id) const {
        for (const auto& call : *m_finished)
            if (call.at(0).value<JobId>() == id) return call.at(2).value<TracePtr>();
        return nullptr;
    }
    Outcome outcomeOf(JobId id) const {
        for (const auto& call : *m_finished)
            if (call.at(0).value<JobId>() == id) return call.at(1).value<Outcome>();
        return Outcome::complete;
    }

private Q_SLOTS:
    void initTestCase() {
        const auto models = QDir(KEEPSIGHT_BUILD "/models").entryInfoList({"*.gguf"});
        if (models.isEmpty()) QSKIP("The default model is not installed: run tests/run.sh");
        m_worker = std::make_unique<EngineWorker>();
        m_started = std::make_unique<QSignalSpy>(m_worker.get(), &EngineWorker::started);
        m_finished = std::make_unique<QSignalSpy>(m_worker.get(), &EngineWorker::finished);
        m_failed = std::make_unique<QSignalSpy>(m_worker.get(), &EngineWorker::failed);
        m_updated = std::make_unique<QSignalSpy>(m_worker.get(), &EngineWorker::traceUpdated);
        QSignalSpy opened(m_worker.get(), &EngineWorker::modelOpened);
        OpenOptions options;
        options.model = models.front().filePath().toStdString();
        const JobId id = m_worker->open(options);
        QVERIFY(ended(id));
        QCOMPARE(opened.size(), 1);
        QVERIFY(opened.front().front().value<ModelInfo>().config.layers > 1);
    }
    void cleanupTestCase() { m_worker.reset(); }

    void aRunEndsOnceWithItsTrace() {
        const JobId id = m_worker->submit(job(RunKind::score), "run");
        QVERIFY(ended(id));
        QTest::qWait(50);
        QCOMPARE(ends(id), 1);
        QCOMPARE(startsOf(id), 1);
        const auto trace = resultOf(id);
        QVERIFY(trace && trace->run.finished);
        QCOMPARE(trace->lanes.size(), std::size_t(2));
        QVERIFY(trace->perplexityAt(LaneIndex(1), Step(trace->lastStep())) > 1);
        QVERIFY(m_updated->size() > 0);
        for (const auto& call : *m_updated) {
            const auto snapshot = call.at(1).value<TracePtr>();
            QVERIFY(snapshot->lastStep() <= trace->lastStep());
        }
    }
    void aWaitingJobOfTheSameTagIsReplaced() {
        const JobId running = m_worker->submit(job(RunKind::generate), "a");
        const JobId waiting = m_worker->submit(job(RunKind::score), "b");
        const JobId newer = m_worker->submit(job(RunKind::score), "b");
        QVERIFY(ended(newer));
        QVERIFY(ended(running));
        QCOMPARE(startsOf(waiting), 0);
        QCOMPARE(ends(waiting), 0);
        QCOMPARE(ends(newer), 1);
        QCOMPARE(outcomeOf(running), Outcome::complete);
    }
    void aNewerJobStopsTheRunningOneOfItsTag() {
        Job longer = job(RunKind::generate);
        longer.generate.maxNew = 2000;
        longer.generate.ignoreEos = true;
        const JobId first = m_worker->submit(longer, "run");
        QVERIFY(QTest::qWaitFor([&] { return startsOf(first) > 0; }, Long));
        const JobId second = m_worker->submit(job(RunKind::score), "run");
        QVERIFY(ended(second));
        QCOMPARE(ends(first), 1);
        QCOMPARE(outcomeOf(first), Outcome::cancelled);
    }
    void cancellingKeepsWhatIsDoneAndDropsLateSnapshots() {
        Job longer = job(RunKind::generate);
        longer.generate.maxNew = 2000;
        longer.generate.ignoreEos = true;
        const JobId id = m_worker->submit(longer, "run");
        QVERIFY(QTest::qWaitFor([&] { return !m_updated->isEmpty() && m_updated->back().at(0).value<JobId>() == id && m_updated->back().at(1).value<TracePtr>()->lastStep() >= 5; }, Long));
        QElapsedTimer since;
        since.start();
        m_worker->cancel(id);
        m_updated->clear();
        QVERIFY(ended(id, 5000));
        const qint64 took = since.elapsed();
        QVERIFY2(took < 200, qPrintable(QString("%1 ms").arg(took)));
        QCOMPARE(m_updated->size(), 0);
        QCOMPARE(outcomeOf(id), Outcome::cancelled);
        QVERIFY(resultOf(id)->run.cancelled);
        QVERIFY(resultOf(id)->lastStep() >= 5);
    }
    void aFailingJobSaysWhyAndTheWorkerGoesOn() {
        Job wrong = job(RunKind::score);
        wrong.lanes[1].policy.id = "no_such_policy";
        const JobId id = m_worker->submit(wrong, "run");
        QVERIFY(ended(id));
        QCOMPARE(ends(id), 1);
        QVERIFY(m_failed->back().at(1).toString().contains("no_such_policy"));
        const JobId next = m_worker->submit(job(RunKind::score), "run");
        QVERIFY(ended(next));
        QVERIFY(resultOf(next));
    }
    void previewsAnswerWhileARunGoesOnNewestWins() {
        const JobId first = m_worker->submit(job(RunKind::score, 200), "run");
        QVERIFY(ended(first));
        const auto base = resultOf(first);
        Job longer = job(RunKind::needle);
        longer.needle.lengths = {600};
        const JobId busy = m_worker->submit(longer, "needle");
        QVERIFY(QTest::qWaitFor([&] { return startsOf(busy) > 0; }, Long));
        QSignalSpy previews(m_worker.get(), &EngineWorker::previewed);
        PolicySpec policy = base->lanes[1].policy;
        for (const double removed : {0.2, 0.4, 0.6, 0.75}) {
            policy.budget = Budget::removed(removed);
            m_worker->preview(base, LaneIndex(1), policy);
        }
        const int kept = policy.budget.resolve(base->prefillLength);
        const auto shows = [&] {
            return !previews.isEmpty() && previews.back().at(1).value<TracePtr>()->lanes[1].retention.countAt(Step(1), LayerIndex(0), HeadIndex(0)) == kept;
        };
        QVERIFY(QTest::qWaitFor(shows, 5000));
        QVERIFY(previews.size() <= 4);
        m_worker->cancel(busy);
        QVERIFY(ended(busy));
    }
    void explanationsAreAnsweredNewestWinsAndSayWhatIsWrong() {
        Job each = job(RunKind::score, 200);
        each.lanes[1].policy = PolicySpec{.id = "tova", .params = {}, .budget = Budget::removed(0.5)};
        const JobId id = m_worker->submit(each, "run");
        QVERIFY(ended(id));
        const auto trace = resultOf(id);
        QSignalSpy answers(m_worker.get(), &EngineWorker::explained);
        ExplainRequest ask;
        ask.policy = each.lanes[1].policy;
        ask.layer = LayerIndex(4);
        for (Position p = trace->prefillLength; p < Position(trace->tokens.size()); ++p)
            ask.fed.push_back(trace->tokens[std::size_t(p)].id);
        ask.step = Step(trace->lastStep());
        for (ask.position = 1; ask.position < 6; ++ask.position)
            m_worker->explain(quint64(ask.position), ask);
        QVERIFY(QTest::qWaitFor([&] { return !answers.isEmpty() && answers.back().at(0).toULongLong() == 5; }, Long));
        QTest::qWait(50);
        QVERIFY(answers.size() <= 2); // each newer one stopped the one before
        QVERIFY(answers.back().at(1).value<ExplanationPtr>());
        QCOMPARE(answers.back().at(1).value<ExplanationPtr>()->position, 5);

        // A preview goes first; the explanation is begun again after it.
        QSignalSpy previews(m_worker.get(), &EngineWorker::previewed);
        answers.clear();
        m_worker->explain(9, ask);
        QTest::qWait(20);
        m_worker->preview(trace, LaneIndex(1), ask.policy);
        QVERIFY(QTest::qWaitFor([&] { return !previews.isEmpty() && !answers.isEmpty(); }, Long));
        QCOMPARE(answers.back().at(0).toULongLong(), quint64(9));

        answers.clear();
        ask.step = Step(1);
        ask.policy.id = "no_such_policy";
        m_worker->explain(10, ask);
        QVERIFY(answers.wait(Long));
        QVERIFY(!answers.back().at(1).value<ExplanationPtr>());
        QVERIFY2(answers.back().at(2).toString().contains("no_such_policy"), qPrintable(answers.back().at(2).toString()));

        answers.clear();
        ask.policy = each.lanes[1].policy;
        ask.step = Step(trace->lastStep());
        m_worker->explain(11, ask);
        m_worker->stopExplaining();
        QTest::qWait(300);
        QVERIFY(answers.isEmpty());
    }
    void aRunIsRecordedAgainstAccidents() {
        QTemporaryDir dir;
        const QString path = dir.filePath("run.keep");
        m_worker->setRecoveryFile(path);
        const JobId id = m_worker->submit(job(RunKind::score), "run");
        QVERIFY(ended(id));
        m_worker->setRecoveryFile({});
        const auto kept = loadTrace(path.toStdString());
        QCOMPARE(kept->lastStep(), resultOf(id)->lastStep());
        QCOMPARE(kept->tokens.size(), resultOf(id)->tokens.size());
    }
    void anUnwritableRecordingDoesNotStopTheRun() {
        QSignalSpy warnings(m_worker.get(), &EngineWorker::warned);
        m_worker->setRecoveryFile("/proc/no/such/place.keep");
        const JobId id = m_worker->submit(job(RunKind::score), "run");
        QVERIFY(ended(id));
        m_worker->setRecoveryFile({});
        QCOMPARE(warnings.size(), 1);
        QVERIFY(resultOf(id)->run.finished);
    }
    void destroyingTheWorkerStopsItsRun() {
        auto other = std::make_unique<EngineWorker>();
        other->submit(job(RunKind::score), "run"); // no model: fails, or never starts
        QElapsedTimer since;
        since.start();
        other.reset();
        QVERIFY(since.elapsed() < 5000);
    }
};

QTEST_GUILESS_MAIN(WorkerTest)
#include "worker_test.moc"
