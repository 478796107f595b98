// granularity=query_head: every query head chooses for itself and holds its own copy, as the papers' codes do (policies.md §0.6).
#include "engine/cache/quantizer.h"
#include "engine/trace/recorder.h"
#include "tests/support/tiny_model.h"

#include <QtTest>
#include <set>

using namespace keepsight;
using namespace keepsight::testing;

namespace {

constexpr int Prompt = 96, Steps = 12, Layers = 2, QueryHeads = 6, KvHeads = 2;

std::unique_ptr<Model> model(bool copied) {
    const auto weights = std::make_shared<TinyWeights>(Layers, QueryHeads, KvHeads, 8);
    if (copied) weights->copyKvHeads();
    return Model::make(weights, at::kFloat, at::kCPU);
}

} // namespace

class GranularityTest : public QObject {
    Q_OBJECT
    std::unique_ptr<Model> m_grouped = model(false), m_copied = model(true);
    std::vector<TokenId> m_ids = tinyIds(Prompt);

private Q_SLOTS:
    // A model whose KV heads are written out once per query head has no groups: there every policy is per query head by itself.
    void equalsAModelWithoutGroups_data() {
        QTest::addColumn<QString>("policy");
        for (const char* text : {"snapkv:window=8", "snapkv:window=8,heads=ada", "snapkv:window=8,rope=cache_relative", "snapkv:window=8,timing=every:3", "h2o", "h2o:heads=ada",
                                 "h2o:history=last", "tova", "attn", "kvcVK", "kvcK_fullhist", "kvcV+tova", "pyramidkv:window=8", "observed_attention", "expected_attention"})
            QTest::newRow(text) << QString(text);
    }
    void equalsAModelWithoutGroups() {
        QFETCH(QString, policy);
        const auto plain = policyOf(policy.toStdString(), Budget::removed(0.6));
        const auto wide = policyOf((policy + (policy.contains(':') ? "," : ":") + "granularity=query_head").toStdString(), Budget::removed(0.6));
        QVERIFY(wide->perQueryHead() && !plain->perQueryHead());
        Branch a(*m_grouped, prefillFor(*m_grouped, m_ids, wide), wide, {.headroom = Steps}), b(*m_copied, prefillFor(*m_copied, m_ids, plain), plain, {.headroom = Steps});
        const std::vector<TokenId> next = tinyIds(Steps, 99);
        for (int n = 0; n <= Steps; ++n) {
            QCOMPARE(keptSets(a.cache()).kept, keptSets(b.cache()).kept);
            QCOMPARE(a.cache().stats().storedBytes, b.cache().stats().storedBytes); // the true bytes: a copy for each query head
            if (n == Steps) break;
            const std::span<const TokenId> one = std::span(next).subspan(static_cast<std::size_t>(n), 1);
            const at::Tensor x = a.feed(one, LogitRows::last, true, {}), y = b.feed(one, LogitRows::last, true, {});
            QVERIFY(at::allclose(x, y, 1e-4, 1e-4));
            const auto gone = a.takeEvictions(), expected = b.takeEvictions();
            QCOMPARE(gone.size(), expected.size());
            for (std::size_t i = 0; i < gone.size(); ++i)
                QVERIFY(gone[i].layer == expected[i].layer && gone[i].head == expected[i].head && gone[i].positions == expected[i].positions);
        }
    }

    void explainsEveryQueryHead() {
        const auto policy = policyOf("snapkv:window=8,granularity=query_head", Budget::kept(40));
        const auto snapshot = prefillFor(*m_grouped, m_ids, policy);
        const Snapshot::Choice choice = snapshot->choose(*policy);
        bool differs = false; // within a group
        for (int h = 0; h < QueryHeads; ++h) {
            const auto& keep = choice.selections[1].keep[static_cast<std::size_t>(h)];
            differs |= keep != choice.selections[1].keep[static_cast<std::size_t>(h / 3 * 3)];
            for (const Position p : {0, 17, 60, 95}) {
                const Explanation e = snapshot->explain(*policy, nullptr, LayerIndex{1}, HeadIndex{h}, p);
                QVERIFY(e.found);
                QCOMPARE(e.kept, std::binary_search(keep.begin(), keep.end(), p));
                QCOMPARE(e.budget, 40);
            }
        }
        QVERIFY(differs);
        QVERIFY(!snapshot->explain(*policy, nullptr, LayerIndex{1}, HeadIndex{QueryHeads}, 0).found);
    }

    // Maps stay those of the model's KV heads: the mean of their query heads.
    void mapsAreOfTheModelsKvHeads() {
        const auto one = policyOf("snapkv:window=8", Budget::kept(Prompt + 4)), wide = policyOf("snapkv:window=8,granularity=query_head", Budget::kept(Prompt + 4));
        BranchOptions options{.headroom = 4, .mapBin = 10, .mapRows = 1, .mapCols = 10};
        Branch a(*m_grouped, prefillFor(*m_grouped, m_ids, one), one, options), b(*m_grouped, prefillFor(*m_grouped, m_ids, wide), wide, options);
        for (const TokenId id : tinyIds(3, 5)) {
            a.feed(std::span(&id, 1), LogitRows::none, true, {});
            b.feed(std::span(&id, 1), LogitRows::none, true, {});
        }
        for (int l = 0; l < Layers; ++l) {
            QCOMPARE(b.map(LayerIndex{l}).size(0), KvHeads);
            QVERIFY(at::allclose(a.map(LayerIndex{l}), b.map(LayerIndex{l}), 1e-4, 1e-5));
        }
    }

    void isOfferedWhereQueriesScore() {
        const std::set<std::string> scorers = {"snapkv", "h2o", "tova", "attn", "pyramidkv", "observed_attention", "expected_attention"};
        for (const PolicyEntry& entry : policyRegistry()) {
            const bool offered = std::ranges::find(entry.info.params, "granularity", &ParamInfo::name) != entry.info.params.end();
            const bool scores = entry.info.id.starts_with("kvc") || scorers.contains(entry.info.id);
            QVERIFY2(offered == scores, entry.info.id.c_str());
        }
    }
};

QTEST_APPLESS_MAIN(GranularityTest)
#include "granularity_test.moc"
