// The default model against its peers: transformers' logits, kvpress's kept sets and perplexities, a plain H2O.
// tests/golden holds the numbers and the scripts that made them.
#include "engine/engine.h"
#include "engine/trace/recorder.h"
#include "tests/support/tiny_model.h"

#include <QtTest>
#include <c10/core/InferenceMode.h>
#include <fstream>
#include <nlohmann/json.hpp>

using namespace keepsight;
using nlohmann::json;

namespace {

json golden(const char* name) {
    std::ifstream in(std::string(KEEPSIGHT_GOLDEN "/") + name);
    return json::parse(in);
}

const char* ModelPath = KEEPSIGHT_BUILD "/models/SmolLM2-135M-Instruct.Q4_1.gguf";

} // namespace

class GoldenTest : public QObject {
    Q_OBJECT

    std::shared_ptr<const WeightFile> m_file;
    std::unique_ptr<Model> m_model;
    std::unique_ptr<Engine> m_engine;

private Q_SLOTS:
    void initTestCase() {
        m_file = openWeights(ModelPath);
        m_model = Model::make(m_file, at::kFloat, at::kCPU);
        m_engine = std::make_unique<Engine>();
        m_engine->open({.model = ModelPath, .device = "cpu", .dtype = "fp32"});
    }

    void logitsEqualTransformers() {
        const json g = golden("logits.json");
        const LogitsResult got = m_engine->logits(g["ids"].get<std::vector<TokenId>>(), 64);
        QVERIFY2(std::abs(got.nll - g["nll"].get<double>()) < 1e-4, qPrintable(QString::number(got.nll, 'g', 10)));
        const auto argmax = g["argmax"].get<std::vector<TokenId>>();
        const auto margin = g["argmax_margin"].get<std::vector<double>>();
        for (std::size_t i = 0; i < argmax.size(); ++i)
            if (margin[i] > 1e-3) QCOMPARE(got.argmax[i], argmax[i]); // nearer than that, rounding decides
        const double tolerance = 1e-4 * g["last_logits"]["max_abs"].get<double>();
        double worst = 0;
        for (const char* part : {"top", "sample"}) {
            const auto ids = g["last_logits"][part]["ids"].get<std::vector<TokenId>>();
            const auto values = g["last_logits"][part]["values"].get<std::vector<double>>();
            for (std::size_t i = 0; i < ids.size(); ++i) worst = std::max(worst, std::abs(got.lastLogits[static_cast<std::size_t>(ids[i])] - values[i]));
        }
        QVERIFY2(worst <= tolerance, qPrintable(QString("max abs %1, allowed %2").arg(worst).arg(tolerance)));
        qInfo("max abs logit difference %.2e of %.1f", worst, g["last_logits"]["max_abs"].get<double>());
        QCOMPARE(got.greedy, g["greedy"].get<std::vector<TokenId>>());
    }

    void bf16StaysClose() {
        const json g = golden("logits.json");
        Engine engine;
        engine.open({.model = ModelPath, .device = "cpu", .dtype = "bf16"});
        const LogitsResult got = engine.logits(g["ids"].get<std::vector<TokenId>>(), 0);
        QVERIFY2(std::abs(got.nll - g["nll"].get<double>()) < 1e-2 * g["nll"].get<double>(), qPrintable(QString::number(got.nll)));
        const auto ids = g["last_logits"]["top"]["ids"].get<std::vector<TokenId>>();
        const auto values = g["last_logits"]["top"]["values"].get<std::vector<double>>();
        for (std::size_t i = 0; i < ids.size(); ++i)
            QVERIFY(std::abs(got.lastLogits[static_cast<std::size_t>(ids[i])] - values[i]) < 0.05 * g["last_logits"]["max_abs"].get<double>());
    }

    void keepsWhatKvpressKeeps() {
        const c10::InferenceMode guard;
        const json g = golden("kvpress.json");
        const auto ids = g["ids"].get<std::vector<TokenId>>();
        const int split = g["prefix"], layers = g["layers"], heads = g["kv_heads"];
        PrefillOptions options;
        options.lastRows = 64;
        options.columnSums = true;
        const auto snapshot = Snapshot::prefill(*m_model, std::span(ids).first(static_cast<std::size_t>(split)), options, {});
        for (const json& row : g["rows"]) {
            if (row["kept"].is_null()) continue;
            PolicySpec spec = parsePolicySpec(row["policy"].get<std::string>());
            spec.budget = Budget::removed(row["compression_ratio"]);
            const auto policy = makePolicy(spec);
            const Snapshot::Choice choice = snapshot->choose(*policy);
            const QByteArray bits = QByteArray::fromBase64(QByteArray::fromStdString(row["kept"]["bits"].get<std::string>()));
            const Plan plan = policy->plan(split, policy->budget(split));
            int differing = 0;
            for (int l = 0; l < layers; ++l) {
                const at::Tensor scores = policy->score(snapshot->view(LayerIndex{l}), plan, choice.statistics[static_cast<std::size_t>(l)]);
                for (int h = 0; h < heads; ++h) {
                    const auto& keep = choice.selections[static_cast<std::size_t>(l)].keep[static_cast<std::size_t>(h)];
                    QCOMPARE(static_cast<int>(keep.size()), row["kept"]["count"].get<int>());
                    // Entries may trade places only where their scores tie up to fp32's rounding: layer 0's keys depend on the token alone,
                    // so the norms of a word's repetitions differ by rounding only.
                    double cutoff = std::numeric_limits<double>::infinity();
                    std::vector<std::int32_t> traded;
                    for (const std::int32_t p : keep) {
                        if (scores.defined() && p < split - plan.protect.recent) cutoff = std::min(cutoff, scores[h][p].item<double>());
                        const int bit = (l * heads + h) * split + p;
                        if (!(bits[bit / 8] >> (bit % 8) & 1)) traded.push_back(p);
                    }
                    for (const std::int32_t p : traded) {
                        ++differing;
                        const double apart = scores.defined() ? std::abs(scores[h][p].item<double>() - cutoff) / std::abs(cutoff) : 1.0;
                        QVERIFY2(apart < 2e-6, qPrintable(QString("%1: layer %2 head %3 position %4 is %5 above the cutoff")
                                                              .arg(QString::fromStdString(row["policy"])).arg(l).arg(h).arg(p).arg(apart)));
                    }
                }
            }
            const QString where = QString("%1 at %2: %3 of %4 entries differ")
                                      .arg(QString::fromStdString(row["policy"])).arg(row["compression_ratio"].get<double>()).arg(differing)
                                      .arg(layers * heads * row["kept"]["count"].get<int>());
            if (differing) qInfo("%s", qPrintable(where));
            QVERIFY2(differing * 1000 < layers * heads * row["kept"]["count"].get<int>(), qPrintable(where));
        }
    }

    void suffixPerplexityEqualsKvpress() {
        const json g = golden("kvpress.json");
        Job job;
        job.kind = RunKind::ppl;
        job.prompt.ids = g["ids"].get<std::vector<TokenId>>();
        job.ppl.windows = 2;
        for (const json& row : g["rows"]) {
            // kvpress keeps original positions under streaming_llm.
            const std::string id = row["policy"];
            PolicySpec spec = parsePolicySpec(id == "streaming_llm" ? "streaming_llm:rope=original" : id);
            spec.budget = Budget::removed(row["compression_ratio"]);
            job.lanes.push_back({"", spec});
        }
        MemoryTrace trace;
        QCOMPARE(m_engine->run(job, trace), Outcome::complete);
        const auto rows = trace.snapshot()->measurements;
        QCOMPARE(rows.size(), g["rows"].size());
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const double expected = g["rows"][i]["ppl"], got = rows[i].number("ppl");
            QVERIFY2(std::abs(got - expected) <= 1e-3 * expected,
                     qPrintable(QString("%1 at %2: ppl %3, kvpress %4").arg(QString::fromStdString(rows[i].text("policy"))).arg(rows[i].number("compression_ratio")).arg(got, 0, 'g', 8).arg(expected, 0, 'g', 8)));
            QCOMPARE(rows[i].number("n_tokens"), 1024.0);
        }
        QCOMPARE(rows[0].number("ppl_delta"), 0.0);
    }

    void h2oEqualsAPlainReference() {
        const c10::InferenceMode guard;
        const json g = golden("h2o.json");
        const auto ids = g["ids"].get<std::vector<TokenId>>();
        const auto prefix = g["prefix"].get<std::size_t>();
        PolicySpec spec = parsePolicySpec("h2o");
        spec.budget = Budget::removed(g["compression_ratio"]);
        const std::shared_ptr<const Policy> policy = makePolicy(spec);
        const auto snapshot =
            Snapshot::prefill(*m_model, std::span(ids).first(prefix), prefillOptionsFor(std::span(&policy, 1), static_cast<std::int64_t>(prefix)), {});
        Branch branch(*m_model, snapshot, policy, {});
        const auto compare = [&](const json& expected) {
            const KeptSets sets = keptSets(branch.cache());
            int differing = 0;
            for (std::size_t l = 0; l < sets.kept.size(); ++l)
                for (std::size_t h = 0; h < sets.kept[l].size(); ++h) {
                    const auto kept = expected[l][h].get<std::vector<Position>>();
                    QCOMPARE(sets.kept[l][h].size(), kept.size());
                    for (const Position p : sets.kept[l][h]) differing += !std::binary_search(kept.begin(), kept.end(), p);
                }
            QCOMPARE(differing, 0);
        };
        compare(g["kept_after_prefill"]);
        at::Tensor logits = snapshot->lastLogits();
        for (std::size_t i = 0; i < g["nll"].size(); ++i) {
            logits = branch.feed(std::span(ids).subspan(prefix + i, 1), LogitRows::last, true, {}).reshape({-1});
            const at::Tensor cost = at::logsumexp(logits, 0) - logits[ids[prefix + i + 1]];
            const double expected = g["nll"][i];
            QVERIFY2(std::abs(cost.item<double>() - expected) < 1e-3 * std::max(1.0, expected),
                     qPrintable(QString("step %1: %2, expected %3").arg(i).arg(cost.item<double>()).arg(expected)));
        }
        compare(g["kept_at_end"]);
    }
};

QTEST_GUILESS_MAIN(GoldenTest)
#include "golden_test.moc"
