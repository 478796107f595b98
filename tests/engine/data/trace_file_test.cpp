// .keep sessions: every field there and back, and what they survive.
#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "engine/data/trace_file.h"
#include "tests/support/trace_builder.h"
#include "tests/support/trace_compare.h"

#include <QtTest>
#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace keepsight;
namespace fs = std::filesystem;

namespace {

std::string bytesOf(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void put(const fs::path& path, const std::string& bytes) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << bytes;
}

std::string refusalOf(const fs::path& path) { // "": it loaded
    try {
        loadTrace(path);
    } catch (const EngineError& error) {
        return error.what();
    }
    return {};
}

// Everything unusual that a trace may hold.
Trace oddTrace() {
    Trace trace = *test::buildTrace();
    trace.run.commandLine = "bytes \xff\xfe";
    trace.run.cancelled = true;
    trace.run.failure = "it's \"failed\"\n";
    trace.run.seed = 18446744073709551615ull;
    trace.model.path = "/models/\xff.gguf";
    trace.model.sha256 = "ab";
    trace.model.parameters = 1LL << 40;
    trace.model.weightBytes = 7;
    trace.model.chatTemplate = "chatml";
    ModelConfig& config = trace.model.config;
    config.ropeScaling = {RopeScaling::Kind::llama3, 8.0, 1.5, 4.5, 4096};
    config.ropeFactors = {1.0f, 0.1f, 3.4e38f};
    config.normEps = 1e-6;
    config.ropeTheta = 1e6;
    config.tiedEmbeddings = config.attentionBias = config.mlpBias = true;
    config.slidingWindow = {0, 128, 0, 128};
    trace.tokens[3].bytes = std::string("\0\xff", 2);
    trace.tokens[3].id = -5;
    trace.lanes[0].label = "\xc3\xa9";
    trace.lanes[0].policy.budget = Budget::kept(77);
    trace.lanes[0].steps[3].milliseconds = -0.0;
    trace.lanes[0].steps[4].nll = std::numeric_limits<double>::infinity();
    trace.lanes[0].steps[5].nll = 1e-310;
    auto full = std::make_shared<AttentionMap>();
    full->layer = LayerIndex{2};
    full->head = HeadIndex{7};
    full->perQueryHead = true;
    full->rowEnd = 3;
    full->rows = full->cols = 3;
    full->values = {1.0f, std::numeric_limits<float>::quiet_NaN(), 1e-30f, 0.3f, 0.7f, -0.0f, 0.1f, 0.2f, 0.7f};
    trace.maps.push_back(full);
    Measurement odd;
    odd.kind = "bench";
    odd.lane = LaneIndex{1};
    odd.set("none", Measurement::Value());
    odd.set("nan", NotMeasured);
    odd.set("inf", -std::numeric_limits<double>::infinity());
    odd.set("whole", 3.0); // a real, not an integer
    odd.set("int", std::numeric_limits<std::int64_t>::min());
    odd.set("yes", true);
    odd.set("list", std::vector<double>{0.1, NotMeasured, 1e300});
    odd.set("bytes", std::string("\xe2\x80"));
    trace.measurements.push_back(odd);
    return trace;
}

} // namespace

class TraceFileTest : public QObject {
    Q_OBJECT
    QTemporaryDir m_folder;
    fs::path path(const char* name) const { return fs::path(m_folder.path().toStdString()) / name; }
    bool onlyFile(const fs::path& file) const {
        return !fs::exists(file.string() + "-wal") && !fs::exists(file.string() + "-shm") && !fs::exists(file.string() + ".part");
    }

private Q_SLOTS:
    void savedTracesComeBackEqual_data() {
        QTest::addColumn<int>("which");
        QTest::newRow("score") << 0;
        QTest::newRow("generate") << 1;
        QTest::newRow("odd values") << 2;
        QTest::newRow("empty") << 3;
        QTest::newRow("200 steps") << 4;
    }
    void savedTracesComeBackEqual() {
        QFETCH(int, which);
        test::TraceShape shape;
        shape.generated = which == 1;
        if (which == 4) shape.decode = 200;
        const Trace trace = which == 2 ? oddTrace() : which == 3 ? Trace() : *test::buildTrace(shape);
        saveTrace(trace, path("a.keep"));
        const auto loaded = loadTrace(path("a.keep"));
        QCOMPARE(test::difference(trace, *loaded), std::string());
        QVERIFY(onlyFile(path("a.keep")));
        const std::string before = bytesOf(path("a.keep"));
        loadTrace(path("a.keep"));
        QVERIFY(bytesOf(path("a.keep")) == before); // reading never changes the file
        saveTrace(*loaded, path("b.keep"));
        QVERIFY(bytesOf(path("b.keep")) == before); // and saving is repeatable
    }

    void theComparisonSeesOneChangedField() { // or the tests above would prove nothing
        const Trace trace = oddTrace();
        Trace other = trace;
        other.lanes[1].steps[4].nll += 1e-9;
        QCOMPARE(test::difference(trace, other), std::string("lanes[1].steps[4].nll"));
        other = trace;
        other.measurements.back().fields[4].second = 3.0;
        QVERIFY(!test::difference(trace, other).empty());
    }

    void recordedTracesEqualTheMemory_data() {
        QTest::addColumn<int>("decode");
        QTest::newRow("20 steps") << 20;
        QTest::newRow("63 steps, a keyframe at the last") << 63;
        QTest::newRow("150 steps") << 150;
    }
    void recordedTracesEqualTheMemory() {
        QFETCH(int, decode);
        test::TraceShape shape;
        shape.decode = decode;
        MemoryTrace memory;
        {
            TraceFileWriter file(path("r.keep"));
            TeeSink both({&memory, &file});
            test::record(both, shape);
            auto again = std::make_shared<AttentionMap>(*memory.snapshot()->maps[1]);
            again->values.assign(again->values.size(), 0.5f);
            both.add(std::shared_ptr<const AttentionMap>(again)); // replaces
            both.end(Outcome::cancelled, "why");
            QVERIFY(onlyFile(path("r.keep")));
        }
        const auto loaded = loadTrace(path("r.keep"));
        QCOMPARE(test::difference(*memory.snapshot(), *loaded), std::string());
        QVERIFY(loaded->run.finished && loaded->run.cancelled);
    }

    void recordingsWithoutAnEndSayThatTheyWereCutOff() {
        {
            TraceFileWriter file(path("cut.keep"));
            test::record(file);
        }
        QVERIFY(onlyFile(path("cut.keep")));
        const auto loaded = loadTrace(path("cut.keep"));
        QVERIFY(!loaded->run.finished);
        QCOMPARE(loaded->lanes[1].steps.size(), std::size_t(22));
    }

    void recordingsAreReadableWhileTheyGrow() {
        TraceFileWriter file(path("live.keep"));
        Trace header = *test::buildTrace();
        for (Lane& lane : header.lanes)
            lane = Lane{lane.label, lane.policy, {}, {}, {}, {}, {}};
        header.tokens.clear();
        header.maps.clear();
        header.measurements.clear();
        file.begin(header);
        QCOMPARE(loadTrace(path("live.keep"))->tokens.size(), std::size_t(0));
        file.add(SharedLane, TokenRecord{5, 0, TokenRecord::Role::prompt, "five"});
        // No further record: the batch must be committed all the same.
        for (int i = 0; i < 40 && loadTrace(path("live.keep"))->tokens.empty(); ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        QCOMPARE(loadTrace(path("live.keep"))->tokens.size(), std::size_t(1));
        QVERIFY_EXCEPTION_THROWN(file.add(LaneIndex{9}, TokenRecord()), EngineError);
        file.add(SharedLane, TokenRecord{6, 1, TokenRecord::Role::prompt, "six"}); // a refused record does not end the recording
        file.end(Outcome::complete, {});
        QCOMPARE(loadTrace(path("live.keep"))->tokens.size(), std::size_t(2));
    }

    void killedRecordingsOpenWithEverythingCommitted() {
        const fs::path file = path("killed.keep");
        int ready[2];
        QCOMPARE(::pipe(ready), 0);
        const pid_t child = ::fork();
        QVERIFY(child >= 0);
        if (child == 0) {
            TraceFileWriter writer(file);
            test::record(writer);
            std::this_thread::sleep_for(std::chrono::milliseconds(900)); // the batch is committed by its timer
            writer.add(SharedLane, TokenRecord{1, 80, TokenRecord::Role::forced, "lost"});
            const ssize_t told = ::write(ready[1], "x", 1);
            for (;;)
                ::pause();
            ::_exit(static_cast<int>(told));
        }
        char byte = 0;
        QCOMPARE(::read(ready[0], &byte, 1), ssize_t(1));
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        ::close(ready[0]);
        ::close(ready[1]);
        QVERIFY(fs::exists(file.string() + "-wal"));
        const std::string before = bytesOf(file);
        const auto loaded = loadTrace(file);
        QVERIFY(bytesOf(file) == before);
        Trace expected = *test::buildTrace();
        expected.run.finished = false;
        QCOMPARE(test::difference(expected, *loaded), std::string());

        // The next recording over it leaves no stale log behind, whether it comes to its end or not.
        saveTrace(*test::buildTrace(), file);
        QVERIFY(onlyFile(file));
        QCOMPARE(test::difference(*test::buildTrace(), *loadTrace(file)), std::string());
    }

    void recordingsKilledAtAnyMomentOpen() {
        for (int delay = 0; delay < 12; ++delay) {
            const fs::path file = path("moment.keep");
            saveTrace(*test::buildTrace(), file); // the earlier session
            const pid_t child = ::fork();
            QVERIFY(child >= 0);
            if (child == 0) {
                for (;;) {
                    TraceFileWriter writer(file);
                    test::record(writer);
                    writer.end(Outcome::complete, {});
                }
            }
            std::this_thread::sleep_for(std::chrono::microseconds(700 + 2300 * delay));
            ::kill(child, SIGKILL);
            ::waitpid(child, nullptr, 0);
            const auto loaded = loadTrace(file);
            QCOMPARE(loaded->lanes.size(), std::size_t(2));
            if (loaded->run.finished) QCOMPARE(test::difference(*test::buildTrace(), *loaded), std::string());
        }
    }

    void truncatedFilesAreRefused() {
        saveTrace(*test::buildTrace(), path("whole.keep"));
        const std::string bytes = bytesOf(path("whole.keep"));
        for (int i = 0; i < 20; ++i) {
            const std::size_t size = i == 0 ? 0 : i == 1 ? 15 : i == 2 ? bytes.size() - 1 : bytes.size() * static_cast<std::size_t>(i) / 20;
            put(path("short.keep"), bytes.substr(0, size));
            const std::string refusal = refusalOf(path("short.keep"));
            QVERIFY2(refusal.find("short.keep") != std::string::npos,
                     qPrintable(QString("%1 of %2 bytes: %3").arg(size).arg(bytes.size()).arg(refusal.c_str())));
            QVERIFY(refusal.find('\n') == std::string::npos);
        }
    }

    void bitFlipsAreFoundOrHarmless() {
        const auto trace = test::buildTrace();
        saveTrace(*trace, path("whole.keep"));
        const std::string bytes = bytesOf(path("whole.keep"));
        std::mt19937 random(20260102);
        int refused = 0;
        for (int i = 0; i < 200; ++i) {
            std::string flipped = bytes;
            // A quarter in the header and schema, where flips change how everything else is read.
            const std::size_t at = random() % (i % 4 == 0 ? 4096 : bytes.size());
            flipped[at] = static_cast<char>(flipped[at] ^ (1 << (random() % 8)));
            put(path("flipped.keep"), flipped);
            try {
                const auto loaded = loadTrace(path("flipped.keep"));
                QVERIFY2(test::difference(*trace, *loaded).empty(),
                         qPrintable(QString("byte %1: %2").arg(at).arg(test::difference(*trace, *loaded).c_str())));
            } catch (const EngineError& error) {
                ++refused;
                QVERIFY(std::string(error.what()).find("flipped.keep") != std::string::npos);
            }
        }
        qInfo("%d of 200 bit flips refused, the others harmless", refused);
        QVERIFY(refused > 20);
    }

    void foreignFilesAreRefused() {
        QVERIFY(refusalOf(path("absent.keep")).find("No such file") != std::string::npos);
        put(path("text.keep"), "a text that is long enough to be looked at");
        QVERIFY(refusalOf(path("text.keep")).find("not a Keepsight session") != std::string::npos);
        sqlite3* db = nullptr;
        const auto make = [&](const char* name, const char* sql) {
            sqlite3_open(path(name).c_str(), &db);
            sqlite3_exec(db, sql, nullptr, nullptr, nullptr);
            sqlite3_close(db);
            return refusalOf(path(name));
        };
        QVERIFY(make("other.keep", "CREATE TABLE t(x)").find("application id is 0") != std::string::npos);
        saveTrace(*test::buildTrace(), path("newer.keep"));
        const std::string newer = make("newer.keep", "PRAGMA user_version=2");
        QVERIFY2(newer.find("has format 2") != std::string::npos && newer.find("up to 1") != std::string::npos, newer.c_str());
        const auto changed = [&](const char* name, const char* sql) {
            saveTrace(*test::buildTrace(), path(name));
            return make(name, sql);
        };
        QVERIFY(changed("gone.keep", "DELETE FROM tokens WHERE id=7").find("table tokens holds 79 rows") != std::string::npos);
        QVERIFY(changed("edited.keep", "UPDATE steps SET nll=1.0 WHERE id=7").find("table steps, row 7 does not match its checksum") !=
                std::string::npos);
        QVERIFY(changed("dropped.keep", "DROP TABLE maps").find("damaged") != std::string::npos);
        QVERIFY(changed("view.keep", "CREATE VIEW v AS SELECT 1").find("more than tables") != std::string::npos);
        QVERIFY(refusalOf(m_folder.path().toStdString()).find("session") != std::string::npos);
    }

    void fullDisksLeaveTheEarlierFile() {
        const auto earlier = test::buildTrace();
        saveTrace(*earlier, path("disk.keep"));
        test::TraceShape shape;
        shape.prompt = 600;
        shape.decode = 300;
        for (int recording = 0; recording < 2; ++recording) {
            const pid_t child = ::fork();
            QVERIFY(child >= 0);
            if (child == 0) {
                const rlimit limit{60000, 60000};
                ::setrlimit(RLIMIT_FSIZE, &limit);
                std::signal(SIGXFSZ, SIG_IGN);
                int code = 1;
                try {
                    if (recording) {
                        TraceFileWriter writer(path("disk2.keep"));
                        test::record(writer, shape);
                        writer.end(Outcome::complete, {});
                    } else {
                        saveTrace(*test::buildTrace(shape), path("disk.keep"));
                    }
                } catch (const EngineError& error) {
                    const std::string text = error.what();
                    code = text.find(recording ? "disk2.keep" : "disk.keep") != std::string::npos &&
                                   text.find("File too large") != std::string::npos
                               ? 42
                               : 3;
                    if (code == 3) std::fprintf(stderr, "%s\n", text.c_str());
                }
                ::_exit(code);
            }
            int status = 0;
            ::waitpid(child, &status, 0);
            QVERIFY(WIFEXITED(status));
            QCOMPARE(WEXITSTATUS(status), 42);
        }
        QCOMPARE(test::difference(*earlier, *loadTrace(path("disk.keep"))), std::string());
        QVERIFY(onlyFile(path("disk.keep")));
        const auto partial = loadTrace(path("disk2.keep")); // what was committed before the disk was full
        QVERIFY(!partial->run.finished);
        QCOMPARE(partial->lanes.size(), std::size_t(2));
    }

    void unwritableFoldersAreNamed() {
        const fs::path nowhere = path("no-such-folder/x.keep");
        try {
            saveTrace(*test::buildTrace(), nowhere);
            QFAIL("not refused");
        } catch (const EngineError& error) {
            QVERIFY2(std::string(error.what()).find("no-such-folder/x.keep") != std::string::npos &&
                         std::string(error.what()).find("No such file") != std::string::npos,
                     error.what());
        }
        TraceFileWriter writer(nowhere);
        QVERIFY_EXCEPTION_THROWN(test::record(writer), EngineError);
        QVERIFY_EXCEPTION_THROWN(writer.end(Outcome::complete, {}), EngineError);
    }

    void failedBeginsLeaveTheEarlierFile() {
        saveTrace(*test::buildTrace(), path("begin.keep"));
        const std::string before = bytesOf(path("begin.keep"));
        Trace bad = *test::buildTrace();
        bad.lanes[1].steps.resize(3); // its evictions name steps that are gone
        TraceFileWriter writer(path("begin.keep"));
        QVERIFY_EXCEPTION_THROWN(writer.begin(bad), EngineError);
        QVERIFY(bytesOf(path("begin.keep")) == before);
        QVERIFY(onlyFile(path("begin.keep")));
    }

    void sharedSessionsHoldNoText() {
        Trace trace = *test::buildTrace();
        saveTrace(trace, path("shared.keep"), {.withoutText = true});
        const auto loaded = loadTrace(path("shared.keep"));
        for (const TokenRecord& token : loaded->tokens) {
            QCOMPARE(token.id, -1);
            QVERIFY(token.bytes.empty());
        }
        QCOMPARE(loaded->tokens.size(), trace.tokens.size());
        QCOMPARE(loaded->tokens[70].position, 70);
        QCOMPARE(test::difference(trace.lanes, loaded->lanes, "lanes"), std::string());
        QVERIFY(jobFromJson(loaded->run.jobJson).prompt.text.empty());
        QCOMPARE(jobFromJson(loaded->run.jobJson).lanes.size(), std::size_t(2));
        QVERIFY(loaded->run.commandLine.find("--text-file prompt.txt") != std::string::npos);
        const std::string bytes = bytesOf(path("shared.keep"));
        for (const char* word : {"lantern", "keeper counted", "caf\xc3\xa9", " 71432."})
            QVERIFY2(bytes.find(word) == std::string::npos, word);
        saveTrace(trace, path("open.keep"));
        QVERIFY(bytesOf(path("open.keep")).find("lantern") != std::string::npos);
    }

    void aThousandStepsStaySmall() {
        test::TraceShape shape;
        shape.layers = 30;
        shape.prompt = 500;
        shape.decode = 1000;
        shape.mapBins = 0;
        shape.measurements = false;
        Trace trace = *test::buildTrace(shape);
        saveTrace(trace, path("both.keep"));
        trace.lanes.resize(1); // full only: what tokens and steps take without evictions
        saveTrace(trace, path("full.keep"));
        qInfo("1000 steps, 30 layers x 3 heads, 500 tokens: session with evictions %.0f kB, without %.0f kB",
              fs::file_size(path("both.keep")) / 1e3, fs::file_size(path("full.keep")) / 1e3);
        QVERIFY(fs::file_size(path("both.keep")) < 700000);
    }

    void recordedSamplesOfEveryFormatOpen() {
        const auto loaded = loadTrace(fs::path(KEEPSIGHT_TEST_DATA) / "format-1.keep");
        QCOMPARE(loaded->formatVersion, 1);
        QCOMPARE(test::difference(*test::buildTrace(), *loaded), std::string());
    }
};

QTEST_GUILESS_MAIN(TraceFileTest)
#include "trace_file_test.moc"
