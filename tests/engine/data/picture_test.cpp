// The numbers behind the pictures on a hand-built trace, their formats, and files that are replaced whole.
#include "engine/data/error.h"
#include "engine/data/picture.h"

#include <QJsonArray>
#include <QJsonDocument>
#include <QJsonObject>
#include <QtTest>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace keepsight;
namespace fs = std::filesystem;

namespace {

constexpr double Missing = std::numeric_limits<double>::quiet_NaN();

StepRecord step(int value, StepRecord::Kind kind, int count, double ms, double nll, std::int64_t bytes) {
    StepRecord record;
    record.step = Step{value};
    record.kind = kind;
    record.count = count;
    record.milliseconds = ms;
    record.nll = nll;
    record.kvBytes = bytes;
    return record;
}

std::shared_ptr<const AttentionMap> map(LaneIndex lane, Position begin, int rowBin, int colBin, int rows, int cols,
                                        std::vector<float> values) {
    auto out = std::make_shared<AttentionMap>();
    out->lane = lane;
    out->layer = LayerIndex{1};
    out->rowBegin = begin;
    out->rowEnd = begin + rows * rowBin;
    out->rowBin = rowBin;
    out->colBin = colBin;
    out->rows = rows;
    out->cols = cols;
    out->values = std::move(values);
    return out;
}

Measurement needle(int lane, int length, double depth, double score) {
    Measurement m{"needle", LaneIndex{lane}, {}};
    m.set("length", std::int64_t{length});
    m.set("depth", depth);
    m.set("score", score);
    return m;
}

// Two layers of one head; four prompt tokens, two decoded. Lane B drops 1 and 2 in layer 1 after the prefill, 0 at step 3.
Trace handmade() {
    using Kind = StepRecord::Kind;
    Trace trace;
    trace.model.config.name = "tiny";
    trace.model.config.layers = 2;
    trace.model.config.queryHeads = trace.model.config.kvHeads = 1;
    trace.prefillLength = 4;
    trace.lanes.resize(2);
    for (int i = 0; i < 2; ++i) {
        Lane& lane = trace.lanes[static_cast<std::size_t>(i)];
        lane.label = i ? "B" : "A";
        lane.steps = {step(0, Kind::prefill, 4, 40, Missing, 400), step(1, Kind::evict, 0, 1, Missing, i ? 300 : 400),
                      step(2, Kind::decode, 1, 5 - i, 1 + i, i ? 400 : 500)};
        if (i) lane.steps.push_back(step(3, Kind::decode, 1, 6, 3, 450));
        lane.retention = Retention(2, 1);
        for (const StepRecord& s : lane.steps)
            lane.retention.append(s.step, s.count);
    }
    Lane& b = trace.lanes[1];
    b.policy.id = "snapkv";
    b.policy.budget = Budget::removed(0.5);
    b.retention.evict({LaneIndex{1}, Step{1}, LayerIndex{1}, HeadIndex{0}, {1, 2}});
    b.retention.evict({LaneIndex{1}, Step{3}, LayerIndex{1}, HeadIndex{0}, {0}});
    const float none = std::numeric_limits<float>::quiet_NaN();
    trace.maps = {map(SharedLane, 0, 2, 2, 2, 2, {0.75f, none, 0.25f, 0.5f})};
    b.maps = {map(LaneIndex{1}, 4, 1, 1, 2, 6, {0.5f, 0, 0, 0.25f, 0.25f, none, 0.125f, 0, 0, 0.5f, 0.25f, 0.125f})};
    trace.measurements = {needle(0, 500, 0, 1), needle(0, 500, 0, 0.5), needle(0, 1000, 50, 0.25), needle(1, 500, 50, 1)};
    Measurement ppl{"ppl", LaneIndex{1}, {}};
    ppl.set("ppl", 19.5);
    ppl.set("kv_bytes", std::int64_t{4096});
    ppl.set("policy", std::string("a \"b\", c"));
    ppl.set("per_window", std::vector<double>{2.5, 3});
    ppl.set("budget", Measurement::Value());
    ppl.set("nan", Missing);
    trace.measurements.push_back(ppl);
    return trace;
}

void compare(const std::vector<double>& values, const std::vector<double>& expected) {
    QCOMPARE(values.size(), expected.size());
    for (std::size_t i = 0; i < values.size(); ++i)
        QVERIFY2(values[i] == expected[i] || (std::isnan(values[i]) && std::isnan(expected[i])),
                 qPrintable(QString("value %1: %2, expected %3").arg(i).arg(values[i]).arg(expected[i])));
}

std::string bytesOf(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

} // namespace

class PictureTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void retainedShowsWhatEachHeadHolds() {
        const Trace trace = handmade();
        const PictureData all = picture(trace, "retained", {.lane = LaneIndex{1}, .step = Step{1}});
        QCOMPARE(all.name, std::string("retained-B"));
        QCOMPARE(all.shape, (std::vector<std::size_t>{2, 1, 4}));
        compare(all.values, {1, 1, 1, 1, 1, 0, 0, 1});
        QVERIFY(std::find(all.notes.begin(), all.notes.end(), "lane B: snapkv, 50 % removed") != all.notes.end());
        const PictureData last = picture(trace, "retained", {.lane = LaneIndex{1}});
        compare(last.values, {1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1});
        const PictureData head = picture(trace, "retained", {.lane = LaneIndex{1}, .layer = LayerIndex{1}, .head = HeadIndex{0}});
        QCOMPARE(head.name, std::string("retained-B-L1-H0"));
        QCOMPARE(head.shape, (std::vector<std::size_t>{4, 6}));
        compare(head.values, {1, 1, 1, 1, Missing, Missing, 1, 0, 0, 1, Missing, Missing, 1, 0, 0, 1, 1, Missing, 0, 0, 0, 1, 1, 1});
    }

    void attentionStacksTheLaneUnderThePrefill() {
        const Trace trace = handmade();
        const PictureFocus focus{.lane = LaneIndex{1}, .layer = LayerIndex{1}, .head = HeadIndex{0}};
        const PictureData data = picture(trace, "attention", focus);
        QCOMPARE(data.name, std::string("attention-B-L1-H0"));
        QCOMPARE(data.shape, (std::vector<std::size_t>{4, 6}));
        compare(data.values, {0.75, 0.75,    Missing, Missing, Missing, Missing, 0.25,  0.25,    0.5,     0.5, Missing, Missing,
                              0.5,  Missing, Missing, 0.25,    0.25,    Missing, 0.125, Missing, Missing, 0.5, 0.25,    0.125});
        QCOMPARE(data.axes[0].labels, (std::vector<std::string>{"0–1", "2–3", "4", "5"}));
        PictureFocus early = focus;
        early.step = Step{2};
        QCOMPARE(picture(trace, "attention", early).shape, (std::vector<std::size_t>{3, 5}));
        early.step = Step{0};
        const PictureData prefill = picture(trace, "attention", early);
        compare(prefill.values, {0.75, Missing, 0.25, 0.5});
        QCOMPARE(prefill.axes[0].step, 2.0);
        QVERIFY(prefill.axes[0].labels.empty());
    }

    void needleAveragesKeysAndLeavesGaps() {
        const PictureData data = picture(handmade(), "needle", {.lane = LaneIndex{0}});
        QCOMPARE(data.shape, (std::vector<std::size_t>{2, 2}));
        compare(data.values, {0.75, Missing, Missing, 0.25});
        QCOMPARE(data.axes[0].labels, (std::vector<std::string>{"0", "50"}));
        QCOMPARE(data.axes[1].labels, (std::vector<std::string>{"500", "1000"}));
    }

    void tokensCountHolders() {
        const PictureData data = picture(handmade(), "tokens");
        QCOMPARE(data.shape, (std::vector<std::size_t>{6, 2}));
        compare(data.values, {1, 0.5, 1, 0.5, 1, 0.5, 1, 1, 1, 1, Missing, 1});
    }

    void curvesHaveOneSeriesPerLane() {
        const Trace trace = handmade();
        const PictureData ppl = picture(trace, "ppl");
        compare(ppl.x, {2, 3});
        compare(ppl.values, {std::exp(1.0), std::exp(2.0), Missing, std::exp(2.5)});
        compare(picture(trace, "tpot").values, {5, 4, Missing, 6});
        compare(picture(trace, "memory").values, {400, 400, 400, 300, 500, 400, Missing, 450});
        const PictureData pareto = picture(trace, "pareto");
        QCOMPARE(pareto.shape, (std::vector<std::size_t>{1, 2}));
        compare(pareto.values, {4096, 19.5});
        QCOMPARE(toCsv(pareto), std::string("run,KV bytes,perplexity\nB snapkv −50 %,4096,19.5\n"));
    }

    void requestsOutOfRangeSayTheRange_data() {
        QTest::addColumn<QString>("name");
        QTest::addColumn<int>("lane");
        QTest::addColumn<int>("step");
        QTest::addColumn<int>("layer");
        QTest::addColumn<int>("head");
        QTest::addColumn<QString>("says");
        QTest::newRow("name") << "retain" << 0 << -1 << -1 << -1 << "retained, attention, needle, tokens, ppl, tpot, memory, pareto";
        QTest::newRow("lane") << "retained" << 2 << -1 << -1 << -1 << "lane 2 is outside 0 … 1";
        QTest::newRow("step") << "retained" << 0 << 3 << -1 << -1 << "step 3 is outside 0 … 2";
        QTest::newRow("layer") << "retained" << 0 << -1 << 2 << 0 << "layer 2 is outside 0 … 1";
        QTest::newRow("head") << "attention" << 0 << -1 << 1 << 1 << "head 1 is outside 0 … 0";
        QTest::newRow("no layer") << "attention" << 0 << -1 << -1 << 0 << "layer -1 is outside 0 … 1";
        QTest::newRow("no map") << "attention" << 0 << -1 << 0 << 0 << "nothing to draw as 'attention'";
        QTest::newRow("tokens step") << "tokens" << 0 << 4 << -1 << -1 << "step 4 is outside 0 … 3";
    }
    void requestsOutOfRangeSayTheRange() {
        QFETCH(QString, name);
        QFETCH(int, lane);
        QFETCH(int, step);
        QFETCH(int, layer);
        QFETCH(int, head);
        QFETCH(QString, says);
        try {
            picture(handmade(), name.toStdString(), {LaneIndex{lane}, Step{step}, LayerIndex{layer}, HeadIndex{head}, false});
            QFAIL("not refused");
        } catch (const UsageError& error) {
            QVERIFY2(QString::fromUtf8(error.what()).contains(says), error.what());
        }
    }

    void emptyTracesHaveNoPictures() {
        for (const std::string& name : pictureNames())
            QVERIFY_EXCEPTION_THROWN(picture(Trace(), name, {.layer = LayerIndex{0}, .head = HeadIndex{0}}), UsageError);
    }

    void csvHasOneLinePerCellOrPoint() {
        PictureData grid = picture(handmade(), "needle");
        QCOMPARE(toCsv(grid), std::string("depth [%],length [tokens],mean score\n0,500,0.75\n0,1000,\n50,500,\n50,1000,0.25\n"));
        const PictureData tpot = picture(handmade(), "tpot");
        QCOMPARE(toCsv(tpot), std::string("step,A full [ms],B snapkv −50 % [ms]\n2,5,4\n3,,6\n"));
        grid.values[0] = 0.1 + 0.2;
        grid.axes[0].labels[0] = "a,\"b\"";
        QVERIFY(toCsv(grid).find("\"a,\"\"b\"\"\",500,0.30000000000000004\n") != std::string::npos);
    }

    void npyIsAlignedAndExact() {
        for (const char* name : {"retained", "tokens", "needle"}) {
            const PictureData data = picture(handmade(), name);
            const std::string bytes = toNpy(data);
            QVERIFY(bytes.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) == 0);
            const std::size_t header = 10 + static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
            QCOMPARE(header % 64, std::size_t(0));
            QCOMPARE(bytes[header - 1], '\n');
            QCOMPARE(bytes.size(), header + 8 * data.values.size());
            std::vector<double> values(data.values.size());
            std::memcpy(values.data(), bytes.data() + header, bytes.size() - header);
            compare(values, data.values);
        }
        QVERIFY(toNpy(picture(handmade(), "needle")).find("'shape': (2,2), }") != std::string::npos);
        PictureData line;
        line.shape = {3};
        line.values = {1, 2, 3};
        QVERIFY(toNpy(line).find("'shape': (3,), }") != std::string::npos);
    }

    void jsonHoldsEverything() {
        const PictureData data = picture(handmade(), "needle");
        const QJsonObject json = QJsonDocument::fromJson(QByteArray::fromStdString(toJson(data))).object();
        QCOMPARE(json["schema"].toString(), QString("keepsight.picture/1"));
        QCOMPARE(json["values"].toArray().size(), 4);
        QVERIFY(json["values"].toArray()[1].isNull());
        QCOMPARE(json["values"].toArray()[3].toDouble(), 0.25);
        QCOMPARE(json["axes"].toArray()[1].toObject()["labels"].toArray()[1].toString(), QString("1000"));
        QCOMPARE(
            QJsonDocument::fromJson(QByteArray::fromStdString(toJson(picture(handmade(), "ppl")))).object()["x"].toArray()[1].toDouble(),
            3.0);
    }

    void measurementsKeepTheirColumns() {
        const Trace trace = handmade();
        const std::vector<Measurement> ppl = {trace.measurements.back()};
        QCOMPARE(measurementsToCsv(ppl), std::string("ppl,kv_bytes,policy,per_window,budget,nan\n19.5,4096,\"a \"\"b\"\", c\",2.5;3,,\n"));
        const char* const json =
            "[{\"ppl\":19.5,\"kv_bytes\":4096,\"policy\":\"a \\\"b\\\", c\",\"per_window\":[2.5,3.0],\"budget\":null,\"nan\":null}]";
        QCOMPARE(measurementsToJson(ppl, -1), std::string(json));
        const std::string mixed = measurementsToCsv(trace.measurements);
        QCOMPARE(std::count(mixed.begin(), mixed.end(), '\n'), std::ptrdiff_t(6));
        QVERIFY(mixed.starts_with("length,depth,score,ppl,"));
        QCOMPARE(measurementsToJson({}), std::string("[]"));
    }

    void filesAreReplacedWhole() {
        QTemporaryDir folder;
        const fs::path path = fs::path(folder.path().toStdString()) / "out.csv";
        writeFileAtomically(path, "first");
        QCOMPARE(bytesOf(path), std::string("first"));
        ::chmod(path.c_str(), 0640);
        writeFileAtomically(path, std::string(100000, 'x'));
        QCOMPARE(bytesOf(path).size(), std::size_t(100000));
        struct stat info {};
        ::stat(path.c_str(), &info);
        QCOMPARE(info.st_mode & 0777u, 0640u);
        const fs::path link = fs::path(folder.path().toStdString()) / "link.csv";
        fs::create_symlink("out.csv", link);
        writeFileAtomically(link, "through");
        QVERIFY(fs::is_symlink(link));
        QCOMPARE(bytesOf(path), std::string("through"));
        const auto refusal = [](const fs::path& to) {
            try {
                writeFileAtomically(to, "x");
            } catch (const EngineError& error) {
                return std::string(error.what());
            }
            return std::string();
        };
        QVERIFY(refusal(folder.path().toStdString() + "/none/x").find("none/x': No such file") != std::string::npos);
        QVERIFY(refusal(folder.path().toStdString()).find("Is a directory") != std::string::npos);
        QVERIFY(refusal("/dev/full").find("'/dev/full': No space left") != std::string::npos);
        const pid_t child = ::fork();
        if (child == 0) { // a disk that is full after 50 kB
            const rlimit limit{50000, 50000};
            ::setrlimit(RLIMIT_FSIZE, &limit);
            std::signal(SIGXFSZ, SIG_IGN);
            int code = 1;
            try {
                writeFileAtomically(path, std::string(100000, 'y'));
            } catch (const EngineError& error) {
                code = std::string(error.what()).find("out.csv': File too large") != std::string::npos ? 42 : 2;
            }
            ::_exit(code);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        QCOMPARE(WEXITSTATUS(status), 42);
        QCOMPARE(bytesOf(path), std::string("through"));
        QCOMPARE(std::distance(fs::directory_iterator(path.parent_path()), {}), std::ptrdiff_t(2)); // no temporary left
    }
};

QTEST_GUILESS_MAIN(PictureTest)
#include "picture_test.moc"
