// The engine as its two programs use it: the default model through Engine only. Short prompts; the whole file takes well under a minute.
#include "engine/data/error.h"
#include "engine/data/trace_file.h"
#include "engine/engine.h"
#include "tests/support/trace_compare.h"

#include <QTemporaryDir>
#include <QtTest>
#include <atomic>
#include <cmath>
#include <fstream>
#include <functional>
#include <malloc.h>
#include <map>
#include <thread>

using namespace keepsight;
using keepsight::test::difference;

namespace {

using Clock = std::chrono::steady_clock;

const char* ModelPath = KEEPSIGHT_BUILD "/models/SmolLM2-135M-Instruct.Q4_1.gguf";

std::string textOf(const char* name) {
    std::ifstream in(std::string(KEEPSIGHT_RESOURCES "/texts/") + name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

LaneSpec lane(const char* policy, Budget budget = Budget::removed(0.5)) {
    LaneSpec out{policy, Engine::parsePolicy(policy)};
    out.policy.budget = budget;
    return out;
}

// Counts begin and end, and notes the first record that comes out of order.
class OrderSink final : public TraceSink {
public:
    int begins = 0, ends = 0;
    Outcome outcome = Outcome::complete;
    std::string failure, wrong;
    bool throwsInEnd = false;

    void begin(const Trace& header) override {
        note(begins == 0 && ends == 0, "begin");
        note(header.tokens.empty() && header.measurements.empty(), "records in begin");
        ++begins;
    }
    void add(LaneIndex index, const TokenRecord& token) override {
        open("token");
        Position& next = m_position[index.value];
        if (index != SharedLane) next = std::max(next, m_position[SharedLane.value]);
        note(token.position == next, "token position");
        ++next;
    }
    void add(LaneIndex index, const StepRecord& step) override {
        open("step");
        const auto last = m_step.find(index.value);
        note(step.step.value == (last == m_step.end() ? 0 : last->second + 1), "step");
        m_step[index.value] = step.step.value;
    }
    void add(const KeepRecord& record) override {
        open("evictions");
        note(m_step.count(record.lane.value) && m_step[record.lane.value] == record.step.value, "evictions before their step");
        note(!record.evicted.empty() && std::is_sorted(record.evicted.begin(), record.evicted.end()), "evicted positions");
    }
    void add(std::shared_ptr<const AttentionMap> map) override {
        open("map");
        note(map->values.size() == static_cast<std::size_t>(map->rows) * static_cast<std::size_t>(map->cols), "map size");
    }
    void add(const Measurement&) override { open("measurement"); }
    void notice(LaneIndex, const std::string& text) override {
        open("notice");
        note(!text.empty(), "empty notice");
    }
    void end(Outcome how, const std::string& why) override {
        open("end");
        ++ends;
        outcome = how;
        failure = why;
        if (throwsInEnd) throw EngineError("the medium is full");
    }

private:
    void note(bool right, const char* what) {
        if (!right && wrong.empty()) wrong = what;
    }
    void open(const char* what) { note(begins == 1 && ends == 0, what); }
    std::map<int, Position> m_position;
    std::map<int, std::int32_t> m_step;
};

// Memory, file and order at once.
struct Recording {
    explicit Recording(const QTemporaryDir& folder) : path(folder.filePath("run.keep").toStdString()), writer(path) {}
    std::filesystem::path path;
    OrderSink order;
    MemoryTrace memory;
    TraceFileWriter writer;
    TeeSink sink{{&order, &memory, &writer}};

    std::string differenceOnDisk() const { return difference(*loadTrace(path), *memory.snapshot()); }
};

std::int64_t statusKilobytes(const char* key) {
    std::ifstream in("/proc/self/status");
    for (std::string line; std::getline(in, line);)
        if (line.starts_with(key)) return std::atoll(line.c_str() + std::strlen(key) + 1);
    return -1;
}

} // namespace

class EngineTest : public QObject {
    Q_OBJECT

    Engine m_engine;
    std::vector<TokenId> m_ids; // a long text
    QTemporaryDir m_folder;

    std::vector<TokenId> ids(std::size_t count) const { return {m_ids.begin(), m_ids.begin() + static_cast<std::ptrdiff_t>(count)}; }
    Job jobOf(RunKind kind, std::size_t tokens, std::vector<LaneSpec> lanes) const {
        Job job;
        job.kind = kind;
        job.lanes = std::move(lanes);
        if (kind != RunKind::needle) job.prompt.ids = ids(tokens);
        job.trace.attentionBins = 16;
        job.generate = {.maxNew = 8, .ignoreEos = true};
        job.ppl = {.maxLength = 64, .windows = 2};
        job.bench = {.context = 48, .newTokens = 4, .warmup = 0, .repeats = 2};
        job.needle = {.lengths = {200}, .depths = {50}};
        return job;
    }
    std::shared_ptr<const Trace> run(const Job& job) {
        MemoryTrace trace;
        if (m_engine.run(job, trace) != Outcome::complete) return nullptr;
        return trace.snapshot();
    }

private Q_SLOTS:
    void initTestCase() {
        QVERIFY(m_folder.isValid());
        QCOMPARE(m_engine.open({.model = ModelPath, .device = "cpu", .dtype = "fp32"}), Outcome::complete);
        m_ids = m_engine.tokenize({.text = textOf("harbour_long.txt")}).ids;
        QVERIFY(m_ids.size() > 4000);
    }

    void recordsJobs_data() {
        QTest::addColumn<int>("kind");
        for (const RunKind kind : {RunKind::score, RunKind::generate, RunKind::needle, RunKind::ppl, RunKind::bench}) QTest::newRow(name(kind)) << static_cast<int>(kind);
    }
    void recordsJobs() {
        QFETCH(int, kind);
        const Job job = jobOf(static_cast<RunKind>(kind), 128, {lane("full"), lane("h2o"), lane("streaming_llm", Budget::removed(0.75)), lane("snapkv:window=16")});
        Recording recording(m_folder);
        int progresses = 0;
        QCOMPARE(m_engine.run(job, recording.sink, {}, [&](const Progress& p) { progresses += p.done <= p.total && !p.stage.empty(); }), Outcome::complete);
        QCOMPARE(recording.order.wrong, std::string());
        QCOMPARE(recording.order.begins, 1);
        QCOMPARE(recording.order.ends, 1);
        QCOMPARE(recording.order.failure, std::string());
        QVERIFY(progresses > 0);
        QCOMPARE(recording.differenceOnDisk(), std::string());

        const auto trace = recording.memory.snapshot();
        QCOMPARE(trace->lanes.size(), job.lanes.size());
        QCOMPARE(trace->measurements.size(), job.lanes.size());
        QCOMPARE(trace->run.kind, std::string(name(job.kind)));
        QVERIFY(jobFromJson(trace->run.jobJson) == job);
        QVERIFY(trace->run.commandLine.starts_with("keepsight-cli"));
        for (const Measurement& m : trace->measurements) QCOMPARE(m.kind, trace->run.kind);
        if (job.kind == RunKind::score || job.kind == RunKind::generate) {
            for (const Lane& l : trace->lanes) {
                QCOMPARE(l.steps.size(), job.kind == RunKind::score ? 2u + 32u : 2u + 8u);
                QCOMPARE(l.steps[0].kind, StepRecord::Kind::prefill);
                QCOMPARE(l.steps[1].kind, StepRecord::Kind::evict);
                QCOMPARE(l.maps.size(), static_cast<std::size_t>(trace->model.config.layers * trace->model.config.kvHeads));
            }
            const int whole = trace->lanes[0].retention.countAt(Step{1}, LayerIndex{3}, HeadIndex{1});
            QCOMPARE(whole, trace->prefillLength);
            QCOMPARE(trace->lanes[1].retention.countAt(Step{1}, LayerIndex{3}, HeadIndex{1}), Budget::removed(0.5).resolve(whole));
            QVERIFY(trace->lanes[2].steps.back().kvBytes < trace->lanes[0].steps.back().kvBytes);
        }
    }

    void refusesWithOneSentence_data() {
        QTest::addColumn<int>("kind");
        QTest::addColumn<QString>("what");
        QTest::addColumn<QStringList>("words");
        const auto row = [](const char* title, RunKind kind, const char* what, QStringList words) { QTest::newRow(title) << static_cast<int>(kind) << what << words; };
        row("unknown parameter", RunKind::score, "parameter", {"h2o", "'kernel'", "heavy"});
        row("unknown policy", RunKind::score, "policy", {"'nothing'", "snapkv"});
        row("budget out of range", RunKind::score, "ratio", {"compression ratio", "0 <= c < 1"});
        row("no lanes", RunKind::generate, "lanes", {"at least one lane"});
        row("longer than the context", RunKind::score, "long", {"9000", "8192", "context"});
        row("longer with its continuation", RunKind::generate, "continuation", {"8200", "8192"});
        row("empty text", RunKind::score, "empty", {"empty text"});
        row("no ids", RunKind::score, "no ids", {"empty list"});
        row("NUL byte", RunKind::generate, "nul", {"NUL byte", "byte 3"});
        row("invalid UTF-8", RunKind::ppl, "utf8", {"not UTF-8"});
        row("id above the vocabulary", RunKind::score, "id", {"60000", "index 2", "49152"});
        row("negative id", RunKind::generate, "negative", {"-1", "index 2"});
        row("one token to score", RunKind::score, "one", {"at least 2 tokens", "found 1"});
        row("text shorter than a window", RunKind::ppl, "short", {"at least 1024 tokens", "found 100"});
        row("bench without repeats", RunKind::bench, "repeats", {"repeats 0"});
        row("needle without room", RunKind::needle, "room", {"length", "found 20"});
        row("needle depth", RunKind::needle, "depth", {"0 to 100 percent", "120"});
    }
    void refusesWithOneSentence() {
        QFETCH(int, kind);
        QFETCH(QString, what);
        QFETCH(QStringList, words);
        Job job = jobOf(static_cast<RunKind>(kind), 100, {lane("h2o")});
        const auto text = [&](std::string bytes) {
            job.prompt.ids.reset();
            job.prompt.text = std::move(bytes);
        };
        if (what == "parameter") job.lanes[0].policy.params["kernel"] = "5";
        if (what == "policy") job.lanes[0].policy.id = "nothing";
        if (what == "ratio") job.lanes[0].policy.budget = Budget::removed(1.0);
        if (what == "lanes") job.lanes.clear();
        if (what == "long") job.prompt.ids = std::vector<TokenId>(9000, 30);
        if (what == "continuation") job.prompt.ids = std::vector<TokenId>(8192, 30);
        if (what == "empty") text("");
        if (what == "no ids") job.prompt.ids->clear();
        if (what == "nul") text(std::string("abc\0def", 7));
        if (what == "utf8") text("caf\xe9 au lait");
        if (what == "id") (*job.prompt.ids)[2] = 60000;
        if (what == "negative") (*job.prompt.ids)[2] = -1;
        if (what == "one") job.prompt.ids->resize(1);
        if (what == "short") job.ppl.maxLength = 1024;
        if (what == "repeats") job.bench.repeats = 0;
        if (what == "room") job.needle.lengths = {20};
        if (what == "depth") job.needle.depths = {120};

        Recording recording(m_folder);
        std::string sentence;
        try {
            m_engine.run(job, recording.sink);
        } catch (const EngineError& e) {
            sentence = e.what();
        }
        for (const QString& word : words) QVERIFY2(QString::fromStdString(sentence).contains(word), qPrintable(word + " is not in: " + QString::fromStdString(sentence)));
        QVERIFY(sentence.find('\n') == std::string::npos && sentence.size() < 300);
        QCOMPARE(recording.order.begins, 1);
        QCOMPARE(recording.order.ends, 1);
        QCOMPARE(recording.order.failure, sentence);
        QCOMPARE(recording.order.wrong, std::string());
        QCOMPARE(recording.memory.snapshot()->run.failure, sentence);
        QCOMPARE(recording.differenceOnDisk(), std::string());
        const auto after = run(jobOf(RunKind::score, 12, {lane("h2o")}));
        QVERIFY(after && after->run.failure.empty() && after->measurements.size() == 1);
    }

    void aSinkThatFailsAtTheEndIsToldOnce() {
        OrderSink sink;
        sink.throwsInEnd = true;
        QVERIFY_EXCEPTION_THROWN(m_engine.run(jobOf(RunKind::score, 12, {lane("full")}), sink), EngineError);
        QCOMPARE(sink.begins, 1);
        QCOMPARE(sink.ends, 1);
    }

    void cancels_data() {
        QTest::addColumn<bool>("decoding");
        QTest::newRow("in the middle of a prefill of 2000 tokens") << false;
        QTest::newRow("in the middle of decoding") << true;
    }
    void cancels() {
        QFETCH(bool, decoding);
        Job job = jobOf(decoding ? RunKind::generate : RunKind::score, decoding ? 100 : 2100, {lane("full"), lane("h2o")});
        job.score.prefixRatio = 0.96;
        job.generate.maxNew = 400;
        Recording recording(m_folder);
        std::stop_source source;
        std::atomic<bool> reached = false;
        Clock::time_point asked{};
        std::jthread other([&] {
            while (!reached) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            std::this_thread::sleep_for(std::chrono::milliseconds(70)); // into the next block or token
            asked = Clock::now();
            source.request_stop();
        });
        const Outcome outcome = m_engine.run(job, recording.sink, source.get_token(), [&](const Progress& p) {
            if (decoding ? p.done >= 110 : p.done >= 512) reached = true;
        });
        const double ms = std::chrono::duration<double, std::milli>(Clock::now() - asked).count();
        reached = true; // lets the other thread end if the job never came this far
        other.join();
        QCOMPARE(outcome, Outcome::cancelled);
        qInfo("%.1f ms from the request to the return", ms);
        QVERIFY(ms < 2000);
        QCOMPARE(recording.order.ends, 1);
        QCOMPARE(recording.order.outcome, Outcome::cancelled);
        QCOMPARE(recording.order.wrong, std::string());
        const auto trace = recording.memory.snapshot();
        QVERIFY(trace->run.finished && trace->run.cancelled && trace->run.failure.empty());
        QVERIFY(trace->measurements.empty());
        if (decoding) {
            QVERIFY(trace->lanes[0].generated.size() >= 5 && trace->lanes[0].generated.size() < 400);
            QVERIFY(trace->lanes[1].steps.size() >= 7);
            QVERIFY(trace->perplexityAt(LaneIndex{0}, Step{4}) > 1.0);
        } else {
            QCOMPARE(trace->tokens.size(), 2100u);
            QVERIFY(trace->lanes[0].steps.empty());
        }
        QCOMPARE(recording.differenceOnDisk(), std::string());
    }

    void repeatsItself_data() {
        QTest::addColumn<double>("temperature");
        QTest::newRow("greedy") << 0.0;
        QTest::newRow("sampled with a seed") << 0.9;
    }
    void repeatsItself() {
        QFETCH(double, temperature);
        Job job = jobOf(RunKind::generate, 90, {lane("full"), lane("h2o"), lane("streaming_llm"), lane("snapkv:window=8", Budget::removed(0.8))});
        job.sampler = {temperature, 0.95};
        job.seed = 11;
        const auto first = run(job), second = run(job);
        std::vector<TokenId> said;
        for (std::size_t l = 0; l < job.lanes.size(); ++l) {
            const Lane &a = first->lanes[l], &b = second->lanes[l];
            QCOMPARE(a.generated.size(), 8u);
            QCOMPARE(difference(a.generated, b.generated, "generated"), std::string());
            QCOMPARE(difference(a.retention, b.retention), std::string());
            QCOMPARE(difference(a.maps, b.maps, "maps"), std::string());
            for (std::size_t s = 0; s < a.steps.size(); ++s) QVERIFY(keepsight::test::same(a.steps[s].nll, b.steps[s].nll));
            for (const TokenRecord& t : a.generated) said.push_back(t.id);
        }
        if (temperature > 0) {
            job.seed = 12;
            const auto third = run(job);
            std::vector<TokenId> other;
            for (const Lane& l : third->lanes)
                for (const TokenRecord& t : l.generated) other.push_back(t.id);
            QVERIFY(other != said);
        }
    }

    void fullGeneratesWhatTheLogitsSay() {
        const auto trace = run(jobOf(RunKind::generate, 90, {lane("full")}));
        std::vector<TokenId> said;
        for (const TokenRecord& t : trace->lanes[0].generated) said.push_back(t.id);
        QCOMPARE(said, m_engine.logits(ids(90), 8).greedy);
    }

    void fullScoresWhatTheLogitsSay() {
        Job job = jobOf(RunKind::score, 70, {lane("full")});
        job.score.prefixRatio = 0; // all but the first token
        const auto trace = run(job);
        QCOMPARE(trace->measurements[0].number("n_tokens"), 69.0);
        const double scored = trace->measurements[0].number("nll"), expected = m_engine.logits(ids(70), 0).nll;
        QVERIFY2(std::abs(scored - expected) < 1e-4, qPrintable(QString("%1, logits() says %2").arg(scored, 0, 'g', 9).arg(expected, 0, 'g', 9)));
        QVERIFY(std::abs(std::log(trace->perplexityAt(LaneIndex{0}, Step{trace->lastStep()})) - scored) < 1e-9);
    }

    void previewsWhatTheRunKeeps() {
        Job job = jobOf(RunKind::score, 200, {});
        for (const PolicyInfo& info : Engine::policies()) {
            if (info.id.starts_with("kvc") && info.id != "kvcVK" && info.id != "kvcV+maxpool") continue; // the family differs in its scores only
            for (const Budget budget : {Budget::removed(0.25), Budget::removed(0.7), Budget::kept(12)}) {
                job.lanes.push_back(lane(info.id.c_str(), budget));
                if (!info.quant.empty()) job.lanes.back().policy.quant = Engine::parseQuant(info.quant);
            }
        }
        job.score.prefixRatio = 1; // all but the last token are prefilled
        const auto trace = run(job);
        QCOMPARE(trace->prefillLength, 199);
        for (std::size_t i = 0; i < job.lanes.size(); ++i) {
            const QString where = QString::fromStdString(laneText(job.lanes[i]));
            const auto sets = m_engine.preview(job.lanes[i].policy);
            QVERIFY2(sets, qPrintable(where));
            QCOMPARE(sets->notice, trace->lanes[i].notice);
            const Retention& retention = trace->lanes[i].retention;
            for (int l = 0; l < retention.layers(); ++l)
                for (int h = 0; h < retention.heads(); ++h)
                    QVERIFY2(sets->kept[static_cast<std::size_t>(l)][static_cast<std::size_t>(h)] == retention.keptAt(Step{1}, LayerIndex{l}, HeadIndex{h}),
                             qPrintable(where + QString(" layer %1 head %2").arg(l).arg(h)));
            const auto shown = withPreview(*trace, LaneIndex{static_cast<std::int32_t>(i)}, job.lanes[i].policy, *sets);
            QCOMPARE(shown->lanes[i].retention.holdersAt(Step{1}), retention.holdersAt(Step{1}));
            const double shownBytes = static_cast<double>(shown->lanes[i].steps[1].kvBytes), ranBytes = static_cast<double>(trace->lanes[i].steps[1].kvBytes);
            if (job.lanes[i].policy.quant == QuantSpec())
                QCOMPARE(shownBytes, ranBytes);
            else // the mean of its bits over the layers
                QVERIFY2(std::abs(shownBytes - ranBytes) < 0.2 * ranBytes, qPrintable(where));
        }
        QVERIFY_EXCEPTION_THROWN(m_engine.preview(PolicySpec{.id = "h2o", .params = {{"kernel", "4"}}}), UsageError);
    }

    void tellsWhatABudgetForced() {
        Job job = jobOf(RunKind::score, 120, {lane("streaming_llm", Budget::kept(2)), lane("snapkv", Budget::kept(16)), lane("h2o"), lane("full")});
        job.score.prefixRatio = 0.9;
        const auto trace = run(job);
        QVERIFY(trace->lanes[0].notice.find("2 of 4 sinks") != std::string::npos);
        QVERIFY(trace->lanes[1].notice.find("shrunk from 64 to 8") != std::string::npos);
        QVERIFY(trace->lanes[2].notice.empty() && trace->lanes[3].notice.empty());
        QCOMPARE(trace->lanes[0].retention.countAt(Step{1}, LayerIndex{5}, HeadIndex{2}), 2);
        QCOMPARE(trace->lanes[1].retention.countAt(Step{1}, LayerIndex{5}, HeadIndex{2}), 16);
    }

    void attentionOfAHeadSumsToOne() {
        const auto map = m_engine.attention({.text = {}, .ids = ids(600)}, LayerIndex{2}, HeadIndex{7}); // more than one block
        QCOMPARE(map->rows, 600);
        QVERIFY(map->perQueryHead && map->head == HeadIndex{7} && map->layer == LayerIndex{2});
        for (int q = 0; q < 600; ++q) {
            double sum = 0;
            for (int k = 0; k < 600; ++k) {
                const float w = map->values[static_cast<std::size_t>(q * 600 + k)];
                QVERIFY(k <= q ? w >= 0 : std::isnan(w));
                if (k <= q) sum += w;
            }
            QVERIFY2(std::abs(sum - 1) < 1e-4, qPrintable(QString("row %1 sums to %2").arg(q).arg(sum)));
        }
        QVERIFY_EXCEPTION_THROWN(m_engine.attention({.ids = ids(4)}, LayerIndex{30}, HeadIndex{0}), UsageError);
        QVERIFY_EXCEPTION_THROWN(m_engine.attention({.ids = ids(4)}, LayerIndex{0}, HeadIndex{9}), UsageError);
        std::stop_source stopped;
        stopped.request_stop();
        QVERIFY(!m_engine.attention({.ids = ids(40)}, LayerIndex{0}, HeadIndex{0}, stopped.get_token()));
    }

    void attentionBinsToTheRecordedMaps() {
        Job job = jobOf(RunKind::score, 150, {lane("full")});
        job.score.prefixRatio = 1;
        const auto trace = run(job);
        const int group = trace->model.config.groupSize(), n = trace->prefillLength;
        int compared = 0;
        for (const int layer : {0, 17}) {
            const int kvHead = layer == 0 ? 0 : 2;
            const auto map = trace->map(SharedLane, LayerIndex{layer}, HeadIndex{kvHead});
            QVERIFY(map && map->rowEnd == n);
            std::vector<std::shared_ptr<const AttentionMap>> heads;
            for (int q = 0; q < group; ++q) heads.push_back(m_engine.attention({.ids = ids(static_cast<std::size_t>(n))}, LayerIndex{layer}, HeadIndex{kvHead * group + q}));
            for (int r = 0; r < map->rows; ++r)
                for (int c = 0; c < map->cols; ++c) {
                    double sum = 0;
                    int pairs = 0;
                    for (int q = r * map->rowBin; q < std::min((r + 1) * map->rowBin, n); ++q)
                        for (int k = c * map->colBin; k < std::min((c + 1) * map->colBin, q + 1); ++k, ++pairs)
                            for (const auto& head : heads) sum += head->values[static_cast<std::size_t>(q * n + k)] / group;
                    const double stored = map->values[static_cast<std::size_t>(r * map->cols + c)];
                    QCOMPARE(std::isnan(stored), pairs == 0);
                    if (pairs == 0) continue;
                    const double expected = sum / pairs;
                    ++compared;
                    QVERIFY2(std::abs(stored - expected) <= 0.0223 * expected + 2e-5,
                             qPrintable(QString("layer %1 cell %2, %3: %4, expected %5").arg(layer).arg(r).arg(c).arg(stored).arg(expected)));
                }
        }
        QVERIFY(compared > 200);
    }

    void textGoesThereAndBack() {
        for (const std::string& text : {textOf("lighthouse.txt"), textOf("code_sample.txt"), std::string("Wie geht's? 你好, мир \xf0\x9f\xa6\x94\n\n\t x ")}) {
            const Tokens tokens = m_engine.tokenize({.text = text});
            QCOMPARE(tokens.ids.size(), tokens.pieces.size());
            std::string joined;
            for (const std::string& piece : tokens.pieces) joined += piece;
            QCOMPARE(joined, text);
            QCOMPARE(m_engine.decode(tokens.ids), text);
        }
        const Tokens chat = m_engine.tokenize({.text = "Hello", .chat = true});
        QVERIFY(m_engine.decode(chat.ids).find("Hello") != std::string::npos);
        QVERIFY(chat.ids.size() > m_engine.tokenize({.text = "Hello"}).ids.size());
        QVERIFY_EXCEPTION_THROWN(m_engine.logits({1, 60000}, 0), EngineError);
    }

    // Summing attention while it streams must not hold a T × T matrix: at 2000 tokens one layer's would take 9 · 2000² · 4 bytes = 137 MiB.
    void statisticsGrowWithTheLength() {
        if (!std::ofstream("/proc/self/clear_refs").is_open()) QSKIP("this kernel does not reset the peak of resident memory");
        const auto peak = [&](const char* policy) {
            Job job = jobOf(RunKind::bench, 2000, {lane(policy, Budget::removed(0.0))});
            job.bench = {.context = 2000, .newTokens = 1, .warmup = 0, .repeats = 1};
            malloc_trim(0); // what earlier jobs freed is not to hide what this one takes
            std::ofstream("/proc/self/clear_refs") << "5";
            MemoryTrace trace;
            m_engine.run(job, trace);
            return statusKilobytes("VmHWM:") / 1024;
        };
        peak("full"); // what stays allocated afterwards is the same for both
        const std::int64_t full = peak("full"), h2o = peak("h2o");
        qInfo("peak of resident memory: full %lld MiB, h2o %lld MiB", static_cast<long long>(full), static_cast<long long>(h2o));
        QVERIFY(full > 0);
        QVERIFY2(h2o <= full + 90, qPrintable(QString("%1 MiB, full %2 MiB").arg(h2o).arg(full)));
    }

    void closesAndOpensAgain() {
        QVERIFY(run(jobOf(RunKind::score, 20, {lane("full")})));
        QVERIFY(m_engine.preview(lane("h2o").policy));
        m_engine.close();
        QVERIFY(!m_engine.isOpen());
        QVERIFY(!m_engine.preview(lane("h2o").policy));
        OrderSink sink;
        QVERIFY_EXCEPTION_THROWN(m_engine.run(jobOf(RunKind::score, 20, {lane("full")}), sink), EngineError);
        QVERIFY(sink.begins == 1 && sink.ends == 1 && sink.failure.find("no model is open") != std::string::npos);
        m_engine.open({.model = ModelPath, .device = "cpu", .dtype = "fp32"});
        QVERIFY(!m_engine.preview(lane("h2o").policy)); // nothing was prefilled since
        QVERIFY_EXCEPTION_THROWN(m_engine.open({.model = "/nowhere/model.gguf"}), EngineError);
        QVERIFY(m_engine.isOpen()); // a failed open leaves the model that was there
        QVERIFY(run(jobOf(RunKind::score, 20, {lane("full")})));
    }
};

QTEST_GUILESS_MAIN(EngineTest)
#include "engine_test.moc"
