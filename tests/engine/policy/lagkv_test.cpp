// lagkv: both forms, on hand-made tensors and while decoding.
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class LagKvTest : public QObject {
    Q_OBJECT

    static LayerFixture fixture(int n, unsigned seed = 1) {
        at::manual_seed(seed);
        return {at::randn({2, n, 8}), at::randn({2, n, 8}), at::zeros({4, 1, 8})};
    }
    static at::Tensor scores(const LayerFixture& f, const std::string& spec) {
        const auto policy = policyOf(spec, Budget::kept(10));
        return policy->score(f.view(), policy->planFor(f.place()), {});
    }
    // u_K + u_V of one head in plain loops; [partitions − 1][lag]
    static std::vector<std::vector<double>> reference(const LayerFixture& f, int head, int sinks, int lag) {
        const int n = f.entries.maxHeld(), partitions = (n - sinks) / lag;
        std::vector<std::vector<double>> out;
        for (int p = 0; p + 1 < partitions; ++p) {
            std::vector<double> u(static_cast<std::size_t>(lag), 0.0);
            for (const at::Tensor& x : {f.entries.keys[head], f.entries.values[head]}) {
                std::vector<double> e;
                double sum = 0;
                for (int t = sinks + p * lag; t < sinks + (p + 1) * lag; ++t) {
                    double mean = 0, square = 0;
                    for (int d = 0; d < 8; ++d) {
                        double low = 1e9, high = -1e9;
                        for (int r = sinks + (p + 1) * lag; r < sinks + (p + 2) * lag; ++r) {
                            low = std::min(low, x[r][d].item<double>());
                            high = std::max(high, x[r][d].item<double>());
                        }
                        const double scaled = (x[t][d].item<double>() - low) / std::max(high - low, 1e-6);
                        mean += scaled / 8;
                        square += scaled * scaled;
                    }
                    e.push_back(std::exp(std::sqrt((square - 8 * mean * mean) / 7)));
                    sum += e.back();
                }
                for (std::size_t i = 0; i < e.size(); ++i) u[i] += e[i] / sum;
            }
            out.push_back(u);
        }
        return out;
    }

private Q_SLOTS:
    void rawScoresEqualThePaper() {
        const LayerFixture f = fixture(2 + 5 * 10 + 3);
        const at::Tensor got = scores(f, "lagkv:sinks=2,lag=10,cross_scoring=on");
        for (int h = 0; h < 2; ++h) {
            const auto expected = reference(f, h, 2, 10);
            for (std::size_t p = 0; p < 4; ++p)
                for (std::size_t i = 0; i < 10; ++i) QVERIFY(std::abs(got[h][static_cast<std::int64_t>(2 + p * 10 + i)].item<double>() - expected[p][i] / 2) < 1e-5);
            for (const int sure : {0, 1, 42, 51, 52, 54}) QCOMPARE(got[h][sure].item<double>(), 1.0);
        }
    }
    void ranksAreWithinPartitions() {
        const LayerFixture f = fixture(54);
        const at::Tensor ranks = scores(f, "lagkv:sinks=4,lag=10"), raw = scores(f, "lagkv:sinks=4,lag=10,cross_scoring=on");
        for (int p = 0; p < 4; ++p) {
            const at::Tensor own = ranks[0].narrow(0, 4 + p * 10, 10);
            QVERIFY(at::allclose(std::get<0>(own.sort()), at::arange(10, at::kFloat) / 10));
            QVERIFY(at::equal(own.argsort(), raw[0].narrow(0, 4 + p * 10, 10).argsort()));
        }
    }
    void aChannelsScaleAndOffsetDoNotMatter() {
        const LayerFixture f = fixture(60, 2);
        at::manual_seed(8);
        const at::Tensor scale = at::rand({2, 1, 8}) + 0.5, offset = at::randn({2, 1, 8});
        const LayerFixture g(f.entries.keys * scale + offset, f.entries.values * scale - offset, at::zeros({4, 1, 8}));
        QVERIFY(at::allclose(scores(f, "lagkv:lag=10,cross_scoring=on"), scores(g, "lagkv:lag=10,cross_scoring=on"), 1e-4, 1e-6));
    }
    void aConstantChannelIsNoTrouble() {
        LayerFixture f = fixture(60, 3);
        f.entries.keys.select(2, 3).fill_(1);
        f.entries.values.zero_();
        QVERIFY(scores(f, "lagkv:lag=10,cross_scoring=on").isfinite().all().item<bool>());
    }
    void protectedPartsComeFirst() {
        const LayerFixture f = fixture(4 + 7 * 10 + 6);
        const Selection s = f.selection(*policyOf("lagkv:lag=10", Budget::kept(30)));
        for (const auto& keep : s.keep) {
            QCOMPARE(keep.size(), std::size_t{30});
            for (int t = 0; t < 4; ++t) QCOMPARE(keep[static_cast<std::size_t>(t)], t);
            for (int t = 64; t < 80; ++t) QVERIFY(std::binary_search(keep.begin(), keep.end(), t));
        }
        // Less than the protected parts: sinks, then the newest.
        const Selection few = f.selection(*policyOf("lagkv:lag=10", Budget::kept(9)));
        QCOMPARE(few.keep[0], (std::vector<std::int32_t>{0, 1, 2, 3, 75, 76, 77, 78, 79}));
    }
    void shortInputKeepsSinksAndTheNewest() {
        const LayerFixture f = fixture(200);
        QCOMPARE(f.selection(*policyOf("lagkv", Budget::kept(6))).keep[1], (std::vector<std::int32_t>{0, 1, 2, 3, 198, 199}));
        QVERIFY(!policyOf("lagkv", Budget::kept(6))->planFor(f.place()).notice.empty());
    }
    void chunksAreScoredAlone() {
        const LayerFixture f = fixture(120, 4);
        const LayerFixture tail(f.entries.keys.narrow(1, 60, 60).contiguous(), f.entries.values.narrow(1, 60, 60).contiguous(), at::zeros({4, 1, 8}));
        QVERIFY(at::equal(scores(f, "lagkv:lag=10,chunk=60").narrow(1, 60, 60), scores(tail, "lagkv:lag=10")));
    }

    void officialKeepsARatioOfEachPartition() {
        const int sinks = 3, lag = 10, n = 3 + 6 * 10 + 7;
        const LayerFixture f = fixture(n, 5);
        const auto policy = policyOf("lagkv:form=official,sinks=3,lag=10,ratio=0.35", {});
        const auto memory = policy->remember();
        const Selection s = f.selection(*policy, {}, memory.get());
        QCOMPARE(policy->planFor(f.place()).keep, sinks + 5 * 3 + lag + 7);
        for (int h = 0; h < 2; ++h) {
            const auto& keep = s.keep[static_cast<std::size_t>(h)];
            QCOMPARE(static_cast<int>(keep.size()), sinks + 5 * 3 + lag + 7); // floor(0.35 · 10) = 3
            for (int t = 53; t < n; ++t) QVERIFY(std::binary_search(keep.begin(), keep.end(), t));
            const auto expected = reference(f, h, sinks, lag);
            for (int p = 0; p < 5; ++p) {
                std::vector<std::int32_t> order(10);
                std::iota(order.begin(), order.end(), 0);
                std::ranges::sort(order, [&](int a, int b) { return expected[static_cast<std::size_t>(p)][static_cast<std::size_t>(a)] > expected[static_cast<std::size_t>(p)][static_cast<std::size_t>(b)]; });
                for (int i = 0; i < 10; ++i) QCOMPARE(std::binary_search(keep.begin(), keep.end(), sinks + p * lag + order[static_cast<std::size_t>(i)]), i < 3);
            }
        }
    }
    void officialTakesItsRatioFromTheBudget() {
        QCOMPARE(policyOf("lagkv:form=official,sinks=0,lag=100", Budget::removed(0.7))->planFor(Place::afterPrompt(1000)).keep, 9 * 30 + 100);
        QCOMPARE(policyOf("lagkv:form=official,sinks=0,lag=100", Budget::kept(250))->planFor(Place::afterPrompt(1000)).keep, 9 * 25 + 100);
        QVERIFY(policyOf("lagkv:form=official,sinks=0,lag=100", Budget::removed(0.7))->planFor(Place::afterPrompt(1000)).notice.find("370") != std::string::npos);
    }
    void officialsOwnSizesAreTheAuthors() {
        const Plan plan = policyOf("lagkv:form=official", Budget::removed(0.5))->planFor(Place::afterPrompt(16 + 3 * 1024 + 5));
        QCOMPARE(plan.keep, 16 + 2 * 512 + 1024 + 5);
        QCOMPARE(plan.protect.sinks, 16);
        const Place brief = Place::afterPrompt(16 + 2047);
        const auto policy = policyOf("lagkv:form=official", Budget::removed(0.5));
        QVERIFY(!policy->decides(brief, policy->planFor(brief), 2 * brief.held, 2, nullptr));
    }
    void officialGoesOnWhileDecoding() {
        const auto model = tinyModel();
        const auto policy = policyOf("lagkv:form=official,sinks=2,lag=8,ratio=0.5", {});
        const int prompt = 50; // 2 + 6·8: five partitions are cut to 4
        Branch branch(*model, prefillFor(*model, tinyIds(prompt), policy), policy, {.headroom = 40});
        QCOMPARE(branch.cache().layer(LayerIndex{0}).maxHeld(), 2 + 5 * 4 + 8);
        std::vector<std::vector<Position>> before = keptSetsOf(branch);
        int held = 30;
        for (int n = 1; n <= 40; ++n) {
            const TokenId id = static_cast<TokenId>(n % 60);
            branch.feed(std::span(&id, 1), LogitRows::none, true, {});
            held += n % 8 == 0 ? 1 - 4 : 1; // every 8 tokens one more partition is finished
            QCOMPARE(branch.cache().layer(LayerIndex{1}).maxHeld(), held);
        }
        // What was compressed once is never cut again.
        const std::vector<std::vector<Position>> after = keptSetsOf(branch);
        for (std::size_t h = 0; h < after.size(); ++h)
            for (std::size_t i = 0; i < 22; ++i) QCOMPARE(after[h][i], before[h][i]);
    }
    void officialRefusesWhatItCannotShare() {
        QVERIFY_EXCEPTION_THROWN(policyOf("lagkv:form=official,heads=ada", Budget::removed(0.5)), UsageError);
        QVERIFY_EXCEPTION_THROWN(policyOf("lagkv:form=official,chunk=100", Budget::removed(0.5)), UsageError);
    }
    void skippedLayersKeepEverything() {
        const auto policy = policyOf("lagkv:skip=0/2", Budget::removed(0.5));
        QVERIFY(policy->skips(LayerIndex{0}) && !policy->skips(LayerIndex{1}) && policy->skips(LayerIndex{2}));
    }

private:
    static std::vector<std::vector<Position>> keptSetsOf(const Branch& branch) {
        std::vector<std::vector<Position>> out;
        const CacheLayer& layer = branch.cache().layer(LayerIndex{0});
        for (std::size_t h = 0; h < layer.held.size(); ++h) {
            const at::Tensor row = layer.positions[static_cast<std::int64_t>(h)].narrow(0, 0, layer.held[h]).contiguous();
            out.emplace_back(row.data_ptr<std::int32_t>(), row.data_ptr<std::int32_t>() + row.numel());
        }
        return out;
    }
};

QTEST_APPLESS_MAIN(LagKvTest)
#include "lagkv_test.moc"
