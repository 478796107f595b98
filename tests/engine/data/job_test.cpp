// Jobs as JSON and as command lines.
#include "engine/data/error.h"
#include "engine/data/job.h"

#include <QProcess>
#include <QtTest>

using namespace keepsight;

namespace {

LaneSpec lane(const char* label, const char* id, Budget budget, std::map<std::string, std::string> params = {}) {
    LaneSpec spec;
    spec.label = label;
    spec.policy.id = id;
    spec.policy.budget = budget;
    spec.policy.params = std::move(params);
    return spec;
}

Job fullJob() { // nothing at its default
    Job job;
    job.kind = RunKind::needle;
    job.prompt.text = "caf\xc3\xa9 'quoted' \"text\"\n";
    job.prompt.ids = std::vector<TokenId>{1, 0, 49151};
    job.prompt.chat = job.prompt.special = true;
    job.lanes = {lane("A", "full", {}), lane("B", "snapkv", Budget::removed(0.1), {{"window", "16"}, {"pool", "max"}}),
                 lane("C", "h2o", Budget::kept(128))};
    job.sampler = {0.7, 0.9};
    job.score.prefixRatio = 0.3;
    job.generate = {9, true};
    job.ppl = {512, 0.25, 3, false};
    job.needle = {{500, 900}, {12.5}, 4, 32, true, "hay"};
    job.bench = {1, 2, 3, 4};
    job.trace = {16, false};
    job.seed = 18446744073709551615ull;
    job.commandLine = "keepsight-cli needle";
    return job;
}

} // namespace

class JobTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void jsonKeepsEveryField() {
        const Job job = fullJob();
        QVERIFY(jobFromJson(jobToJson(job)) == job);
        QVERIFY(jobFromJson(jobToJson(Job())) == Job());
        QVERIFY(!(fullJob() == Job()));
        QVERIFY(jobFromJson(R"({"kind":"score"})") == Job()); // absent keys are defaults
    }

    void jsonKeepsBytesThatAreNotUtf8() {
        Job job;
        job.prompt.text = "\xff\x00z";
        job.prompt.text.push_back('\0');
        QVERIFY(jobFromJson(jobToJson(job)) == job);
    }

    void foreignJsonIsRefusedByName_data() {
        QTest::addColumn<QByteArray>("json");
        QTest::addColumn<QString>("says");
        QTest::newRow("unknown key") << QByteArray(R"({"kind":"score","colour":1})") << "unknown key 'colour'";
        QTest::newRow("unknown inner key") << QByteArray(R"({"kind":"score","ppl":{"max_len":1}})") << "job.ppl: unknown key 'max_len'";
        QTest::newRow("unknown policy key") << QByteArray(R"({"kind":"score","lanes":[{"label":"A","policy":{"id":"full","ratio":1}}]})")
                                            << "job.lanes[0].policy: unknown key 'ratio'";
        QTest::newRow("kind") << QByteArray(R"({"kind":"sweep"})") << "score, generate, needle, ppl, bench, suite";
        QTest::newRow("no kind") << QByteArray("{}") << "'kind' is missing";
        QTest::newRow("type") << QByteArray(R"({"kind":"score","generate":{"max_new":"9"}})")
                              << "job.generate.max_new: expected a whole number";
        QTest::newRow("narrowing") << QByteArray(R"({"kind":"score","generate":{"max_new":4294967296}})") << "fits 32 bits";
        QTest::newRow("fraction") << QByteArray(R"({"kind":"score","generate":{"max_new":1.5}})") << "expected a whole number";
        QTest::newRow("negative seed") << QByteArray(R"({"kind":"score","seed":-1})") << "job.seed";
        QTest::newRow("bool") << QByteArray(R"({"kind":"score","prompt":{"chat":1}})") << "expected true or false";
        QTest::newRow("array") << QByteArray(R"({"kind":"score","lanes":{}})") << "expected an array";
        QTest::newRow("duplicate") << QByteArray(R"({"kind":"score","seed":1,"seed":2})") << "'seed' appears twice";
        QTest::newRow("syntax") << QByteArray(R"({"kind":)") << "not valid JSON";
        QTest::newRow("huge number") << QByteArray(R"({"kind":"score","score":{"prefix_ratio":1e999}})") << "not valid JSON";
        QTest::newRow("empty") << QByteArray() << "not valid JSON";
        QTest::newRow("deep") << QByteArray(R"({"kind":)" + QByteArray(40, '[') + QByteArray(40, ']') + "}") << "nested deeper";
        QTest::newRow("not an object") << QByteArray("[1]") << "expected an object";
    }
    void foreignJsonIsRefusedByName() {
        QFETCH(QByteArray, json);
        QFETCH(QString, says);
        try {
            jobFromJson(json.toStdString());
            QFAIL("not refused");
        } catch (const EngineError& error) {
            QVERIFY2(QString::fromUtf8(error.what()).contains(says), error.what());
        }
    }

    void lanesAreWrittenAsTheCommandLineTakesThem() {
        QCOMPARE(laneText(lane("A", "full", {})), std::string("full"));
        QCOMPARE(laneText(lane("B", "snapkv", Budget::removed(0.1), {{"window", "16"}, {"pool", "max"}})),
                 std::string("snapkv:pool=max,window=16@0.1"));
        QCOMPARE(laneText(lane("C", "h2o", Budget::kept(128))), std::string("h2o@b128"));
        QCOMPARE(laneText(lane("D", "knorm", Budget())), std::string("knorm@0"));
    }

    void commandLinesRepeatTheJob_data() {
        QTest::addColumn<Job>("job");
        QTest::addColumn<QString>("file");
        QTest::addColumn<QString>("line");
        Job job;
        job.prompt.text = "two\nlines";
        job.lanes = {lane("A", "full", Budget::removed(0.5)), lane("B", "snapkv", Budget::removed(0.5))};
        QTest::newRow("score, one budget") << job << "t.txt"
                                           << "keepsight-cli score --model m.gguf --text-file t.txt --prefix-ratio 0.75 --policy full "
                                              "--policy snapkv --compression-ratio 0.5";
        job.lanes = {lane("A", "full", {}), lane("B", "snapkv", Budget::removed(0.5), {{"window", "16"}}),
                     lane("C", "h2o", Budget::kept(128))};
        job.prompt.chat = true;
        job.seed = 3;
        QTest::newRow("score, own budgets") << job << ""
                                            << "keepsight-cli --seed 3 score --model m.gguf --text-file prompt.txt --chat --prefix-ratio "
                                               "0.75 --lane full --lane snapkv:window=16@0.5 --lane h2o@b128";
        Job generate;
        generate.kind = RunKind::generate;
        generate.prompt.text = "It's \"$HOME\" here";
        generate.lanes = {lane("A", "full", {})};
        generate.sampler.temperature = 0.7;
        QTest::newRow("generate, short text") << generate << ""
                                              << "keepsight-cli generate --model m.gguf --prompt-file <(printf %s 'It'\\''s \"$HOME\" "
                                                 "here') --max-new 64 --temperature 0.7 --policy full";
        generate.prompt.ids = std::vector<TokenId>{1};
        QTest::newRow("generate, ids")
            << generate << "my ids.json"
            << "keepsight-cli generate --model m.gguf --ids-file 'my ids.json' --max-new 64 --temperature 0.7 --policy full";
        Job ppl;
        ppl.kind = RunKind::ppl;
        ppl.prompt.text = "two\nlines";
        for (const char* id : {"snapkv", "knorm"})
            for (const double ratio : {0.3, 0.5})
                ppl.lanes.push_back(lane("", id, Budget::removed(ratio)));
        QTest::newRow("ppl, product") << ppl << "t.txt"
                                      << "keepsight-cli ppl --model m.gguf --text-file t.txt --max-length 1024 --prefix-ratio 0.5 "
                                         "--windows 20 --policy snapkv --policy knorm --compression-ratio 0.3 --compression-ratio 0.5";
        Job needle;
        needle.kind = RunKind::needle;
        needle.needle.lengths = {500, 1000, 1500};
        needle.lanes = {lane("A", "h2o", Budget::kept(64))};
        QTest::newRow("needle")
            << needle << ""
            << "keepsight-cli needle --model m.gguf --lengths 500:1500:500 --depths 3 --keys 1 --policy h2o --budget 64";
        needle.needle.lengths = {500, 600, 1500};
        needle.needle.depths = {50};
        needle.needle.queryAware = true;
        needle.needle.haystack = "hay";
        QTest::newRow("needle, lists") << needle << ""
                                       << "keepsight-cli needle --model m.gguf --lengths 500,600,1500 --depths 50:50:1 --keys 1 "
                                          "--query-aware --haystack-file haystack.txt --policy h2o --budget 64";
        Job bench;
        bench.kind = RunKind::bench;
        bench.lanes = {lane("A", "full", {})};
        QTest::newRow("bench") << bench << ""
                               << "keepsight-cli bench --model m.gguf --ctx 512 --new 32 --warmup 1 --repeats 3 --policy full";
    }
    void commandLinesRepeatTheJob() {
        QFETCH(Job, job);
        QFETCH(QString, file);
        QFETCH(QString, line);
        QCOMPARE(QString::fromStdString(commandLineOf(job, "m.gguf", file.toStdString())), line);
    }

    void quotingSurvivesTheShell() {
        Job job;
        job.kind = RunKind::ppl;
        const std::string model = "a b'c\"$(touch x)`;&\\n*.gguf", file = "-strange \xc3\xa9.txt";
        job.lanes = {lane("A", "full", {})};
        const QString line = QString::fromStdString(commandLineOf(job, model, file));
        QProcess shell;
        shell.start("sh", {"-c", "keepsight_cli() { printf '%s\\n' \"$@\"; }; " + QString(line).replace("keepsight-cli", "keepsight_cli")});
        QVERIFY(shell.waitForFinished());
        const QStringList words = QString::fromUtf8(shell.readAllStandardOutput()).split('\n');
        QCOMPARE(words.value(2), QString::fromStdString(model));
        QCOMPARE(words.value(4), QString::fromStdString("./" + file));
    }
};

QTEST_GUILESS_MAIN(JobTest)
#include "job_test.moc"
