// keydiff: distinct keys stay.
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class KeyDiffTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void keepsTheKeyThatPointsElsewhere() {
        at::manual_seed(1);
        at::Tensor keys = 0.05 * at::randn({2, 40, 8});
        keys.select(2, 0).add_(1);
        keys[0][17] = -keys[0][17];
        keys[1][5] = 3 * at::eye(8)[3]; // its length does not matter, only where it points
        const LayerFixture f(keys, keys, at::randn({4, 1, 8}));
        const Selection s = f.selection(*policyOf("keydiff", Budget::kept(1)));
        QCOMPARE(s.keep[0], (std::vector<std::int32_t>{17}));
        QCOMPARE(s.keep[1], (std::vector<std::int32_t>{5}));
    }
    void equalsAPlainReference() {
        at::manual_seed(2);
        const at::Tensor keys = at::randn({2, 50, 8});
        const LayerFixture f(keys, keys, at::randn({4, 1, 8}));
        const auto policy = policyOf("keydiff", Budget::kept(10));
        const at::Tensor got = policy->score(f.view(), policy->planFor(f.place()), {});
        for (int h = 0; h < 2; ++h) {
            at::Tensor mu = at::zeros({8});
            for (int t = 0; t < 50; ++t) mu += keys[h][t] / keys[h][t].norm() / 50;
            for (int t = 0; t < 50; ++t) {
                const double expected = -at::dot(keys[h][t], mu).item<double>() / (keys[h][t].norm().item<double>() * mu.norm().item<double>());
                QVERIFY(std::abs(got[h][t].item<double>() - expected) < 1e-5);
            }
        }
    }
    void chunksHaveMeansOfTheirOwn() {
        at::manual_seed(3);
        const at::Tensor keys = at::randn({2, 50, 8});
        const LayerFixture whole(keys, keys, at::randn({4, 1, 8})), tail(keys.narrow(1, 40, 10).contiguous(), keys.narrow(1, 40, 10).contiguous(), at::randn({4, 1, 8}));
        const auto policy = policyOf("keydiff:chunk=20", Budget::kept(25)), plain = policyOf("keydiff", Budget::kept(5));
        const at::Tensor chunked = policy->score(whole.view(), policy->planFor(whole.place()), {}), alone = plain->score(tail.view(), plain->planFor(tail.place()), {});
        QVERIFY(at::equal(chunked.narrow(1, 40, 10), alone));
    }
    void headsThatHoldLessAreScoredOverTheirOwnEntries() {
        at::manual_seed(4);
        const at::Tensor keys = at::randn({2, 50, 8});
        LayerFixture f(keys, keys, at::randn({4, 1, 8}));
        f.entries.held[1] = 30;
        f.entries.lengths[1] = 30;
        const LayerFixture alone(keys.narrow(1, 0, 30).contiguous(), keys.narrow(1, 0, 30).contiguous(), at::randn({4, 1, 8}));
        const auto policy = policyOf("keydiff", Budget::kept(10));
        const at::Tensor got = policy->score(f.view(), policy->planFor(f.place()), {}), expected = policy->score(alone.view(), policy->planFor(alone.place()), {});
        QVERIFY(at::allclose(got[1].narrow(0, 0, 30), expected[1], 0, 1e-6)); // sums over more entries, of which some count nothing
    }
};

QTEST_APPLESS_MAIN(KeyDiffTest)
#include "keydiff_test.moc"
