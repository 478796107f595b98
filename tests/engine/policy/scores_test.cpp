// What each policy's score means, on hand-made tensors.
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class ScoresTest : public QObject {
    Q_OBJECT

    static at::Tensor random(at::IntArrayRef shape, std::uint64_t seed) {
        at::manual_seed(seed);
        return at::randn(shape);
    }

private Q_SLOTS:
    void knormEvictsALongKeyFirst() {
        at::Tensor keys = random({2, 20, 8}, 1);
        keys[0][7] *= 10;
        const LayerFixture f(keys, keys, random({4, 1, 8}, 2));
        const Selection low = f.selection(*policyOf("knorm", Budget::kept(19))), high = f.selection(*policyOf("knorm:keep=high", Budget::kept(1)));
        QVERIFY(!std::binary_search(low.keep[0].begin(), low.keep[0].end(), 7));
        QCOMPARE(high.keep[0], (std::vector<std::int32_t>{7}));
    }
    void knormScoreIsInvariantUnderRope() {
        const at::Tensor keys = random({2, 40, 8}, 3);
        ModelConfig config;
        config.headDim = 8;
        const at::Tensor rotated = ops::rope(keys, at::arange(40, at::kInt), ropeInverseFrequencies(config));
        QVERIFY(at::allclose(keys.norm(2, -1), rotated.norm(2, -1), 1e-4, 1e-4));
    }
    void snapkvKeepsAMatchedKeyWithItsNeighbours() {
        at::Tensor keys = 0.01 * random({1, 60, 8}, 4), queries = at::zeros({2, 8, 8});
        queries.select(2, 0).fill_(5);
        keys[0][20] = 0;
        keys[0][20][0] = 9; // matched by every window query
        const LayerFixture f(keys, keys, queries);
        const Selection s = f.selection(*policyOf("snapkv:window=8,kernel=5,pool=max", Budget::kept(13)));
        for (int t = 18; t <= 22; ++t) QVERIFY2(std::binary_search(s.keep[0].begin(), s.keep[0].end(), t), qPrintable(QString::number(t)));
        for (int t = 52; t < 60; ++t) QVERIFY(std::binary_search(s.keep[0].begin(), s.keep[0].end(), t));
        // κ = 1 is plain top-k: the neighbours have no claim.
        const Selection plain = f.selection(*policyOf("snapkv:window=8,kernel=1", Budget::kept(9)));
        QVERIFY(std::binary_search(plain.keep[0].begin(), plain.keep[0].end(), 20));
    }
    void snapkvEqualsAPlainReference() {
        const int n = 90, w = 16, kernel = 5;
        const at::Tensor keys = random({2, n, 8}, 5), queries = random({6, w, 8}, 6);
        const LayerFixture f(keys, keys, queries);
        // Plain: softmax over what each window query sees, mean over the window, mean over the group, zero-padded average of 5.
        std::vector<std::vector<double>> votes(2, std::vector<double>(n - w, 0.0));
        for (int h = 0; h < 6; ++h)
            for (int i = 0; i < w; ++i) {
                const int seen = n - w + i + 1;
                std::vector<double> p(static_cast<std::size_t>(seen));
                double sum = 0;
                for (int t = 0; t < seen; ++t) sum += p[static_cast<std::size_t>(t)] = std::exp(at::dot(queries[h][i], keys[h / 3][t]).item<double>() / std::sqrt(8.0));
                for (int t = 0; t < n - w; ++t) votes[static_cast<std::size_t>(h / 3)][static_cast<std::size_t>(t)] += p[static_cast<std::size_t>(t)] / sum / w / 3;
            }
        at::Tensor expected = at::zeros({2, n});
        for (int h = 0; h < 2; ++h)
            for (int t = 0; t < n - w; ++t) {
                double pooled = 0;
                for (int k = -kernel / 2; k <= kernel / 2; ++k)
                    if (t + k >= 0 && t + k < n - w) pooled += votes[static_cast<std::size_t>(h)][static_cast<std::size_t>(t + k)] / kernel;
                expected[h][t] = pooled;
            }
        const auto policy = policyOf("snapkv:window=16", Budget::kept(40));
        const at::Tensor got = policy->score(f.view(), policy->planFor(Place::afterPrompt(n)), {});
        QVERIFY(at::allclose(got, expected, 1e-4, 1e-6));
    }
    void snapkvShrinksItsWindowAndSaysSo() {
        const auto policy = policyOf("snapkv", Budget::kept(50));
        const Plan plan = policy->planFor(Place::afterPrompt(400));
        QCOMPARE(plan.window, 25);
        QVERIFY(plan.notice.find("from 64 to 25") != std::string::npos);
    }
    void tovaKeepsOneSetForAllHeadsAndTheNewest() {
        const at::Tensor keys = random({3, 50, 8}, 7);
        const LayerFixture f(keys, keys, random({9, 1, 8}, 8));
        const Selection s = f.selection(*policyOf("tova", Budget::kept(10)));
        QCOMPARE(s.keep[0], s.keep[1]);
        QCOMPARE(s.keep[0], s.keep[2]);
        QCOMPARE(s.keep[0].back(), 49);
        QCOMPARE(f.selection(*policyOf("tova", Budget::kept(1))).keep[0], (std::vector<std::int32_t>{49}));
    }
    void h2oOnUniformAttentionKeepsTheOldestAsHeavy() {
        // Equal keys: every query spreads evenly over what it sees, so earlier columns gather more rows.
        const int n = 40;
        const at::Tensor keys = at::ones({1, n, 8});
        const LayerFixture f(keys, keys, at::ones({2, 1, 8}));
        at::Tensor sums = at::zeros({2, n});
        for (int q = 0; q < n; ++q)
            for (int t = 0; t <= q; ++t) sums.select(1, t).add_(1.0 / (q + 1));
        QCOMPARE(f.selection(*policyOf("h2o:heavy=3,recent=2", {}), sums).keep[0], (std::vector<std::int32_t>{0, 1, 2, 38, 39}));
    }
    void h2oSumsCountEveryQueryOnce() {
        const auto model = tinyModel();
        const auto policy = policyOf("h2o", Budget::removed(0.5));
        const auto ids = tinyIds(700); // more than one prefill block
        const auto snapshot = prefillFor(*model, ids, policy);
        const Snapshot::Choice choice = snapshot->choose(*policy);
        for (const at::Tensor& sums : choice.statistics) QVERIFY(at::allclose(sums.sum(1), at::full({4}, 700.0f), 1e-4, 1e-2));
    }
    void h2oWithoutHeavyIsTheWindow() {
        const auto model = tinyModel();
        const auto ids = tinyIds(100);
        const auto h2o = policyOf("h2o:recent=50", Budget::kept(50)), window = policyOf("window", Budget::kept(50));
        const Snapshot::Choice a = prefillFor(*model, ids, h2o)->choose(*policyOf("h2o:recent=25,heavy=25", {}));
        QCOMPARE(static_cast<int>(a.selections[0].keep[0].size()), 50);
        const Snapshot::Choice w = prefillFor(*model, ids, window)->choose(*window);
        QCOMPARE(w.selections[0].keep[0].front(), 50);
    }
    void streamingWithoutSinksIsTheWindow() {
        const auto model = tinyModel();
        const auto ids = tinyIds(200);
        const auto a = policyOf("streaming_llm:sinks=0", Budget::kept(60)), b = policyOf("window", Budget::kept(60));
        QCOMPARE(prefillFor(*model, ids, a)->choose(*a).selections[1].keep, prefillFor(*model, ids, b)->choose(*b).selections[1].keep);
    }
    void cacheRelativeKeysAreThePreRopeKeysAtTheirSlots() {
        const auto model = tinyModel();
        const auto ids = tinyIds(120);
        const auto p = policyOf("streaming_llm", Budget::kept(30));
        const auto snapshot = prefillFor(*model, ids, p);
        Branch branch(*model, snapshot, p, {});
        const CacheLayer& kept = branch.cache().layer(LayerIndex{1});
        // Turning the stored key by its original position gives back the key of the uncompressed prefill.
        const at::Tensor turned = ops::rope(kept.keys, kept.positions, model->inverseFrequencies());
        const at::Tensor& whole = snapshot->cache().layer(LayerIndex{1}).keys;
        for (std::int64_t i = 0; i < 30; ++i) {
            const std::int64_t position = kept.positions[0][i].item<std::int32_t>();
            QVERIFY(at::allclose(turned[0][i], whole[0][position], 1e-4, 1e-5));
        }
    }
    void permutingKvHeadsPermutesTheResult_data() {
        QTest::addColumn<QString>("policy");
        for (const char* p : {"knorm", "snapkv:window=8", "h2o", "h2o:history=last"}) QTest::newRow(p) << QString(p);
    }
    void permutingKvHeadsPermutesTheResult() {
        QFETCH(QString, policy);
        const at::Tensor keys = random({2, 64, 8}, 11), queries = random({4, 16, 8}, 12), sums = random({4, 64}, 13).abs();
        const at::Tensor heads = at::tensor({1, 0}, at::kLong), queryHeads = at::tensor({2, 3, 0, 1}, at::kLong);
        const LayerFixture a(keys, keys, queries), b(keys.index_select(0, heads), keys.index_select(0, heads), queries.index_select(0, queryHeads));
        const auto p = policyOf(policy.toStdString(), Budget::kept(24));
        const Selection x = a.selection(*p, sums), y = b.selection(*p, sums.index_select(0, queryHeads));
        QCOMPARE(x.keep[0], y.keep[1]);
        QCOMPARE(x.keep[1], y.keep[0]);
    }
};

QTEST_APPLESS_MAIN(ScoresTest)
#include "scores_test.moc"
