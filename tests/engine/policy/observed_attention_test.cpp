// Mean attention per query that could see an entry: against the plain reference and kvpress's formula.
#include "tests/support/policy_rig.h"

using namespace keepsight;
using namespace keepsight::testing;

class ObservedAttentionTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void keepsWhatTheReferenceKeeps_data() { referenceRows("observed_attention"); }
    void keepsWhatTheReferenceKeeps() {
        QFETCH(QJsonObject, reference);
        QCOMPARE(differenceFrom(reference), QString());
    }
    void dividesByTheQueriesThatSeeAnEntry() {
        // Sums 1 everywhere: the newest entry, seen once, wins; n − t is kvpress's arange(n, 0, −1).
        const int n = 30;
        const LayerFixture f(at::ones({2, n, 8}), at::ones({2, n, 8}), at::ones({4, 1, 8}));
        const auto policy = policyOf("observed_attention", Budget::kept(5));
        const at::Tensor scores = policy->score(f.view(), policy->planFor(f.place()), at::ones({4, n}));
        QVERIFY(at::allclose(scores, (1.0 / at::arange(n, 0, -1).to(at::kFloat)).expand({2, n})));
        QCOMPARE(f.selection(*policy, at::ones({4, n})).keep[1], (std::vector<std::int32_t>{25, 26, 27, 28, 29}));
    }
    void uniformAttentionScoresFavourNobodyByAgeAlone() { // unlike h2o's sums: Σ_q≥t 1/(q+1) / (n − t) grows with t only slowly at first
        const int n = 40;
        at::Tensor sums = at::zeros({2, n});
        for (int q = 0; q < n; ++q)
            for (int t = 0; t <= q; ++t) sums.select(1, t).add_(1.0 / (q + 1));
        const LayerFixture f(at::ones({1, n, 8}), at::ones({1, n, 8}), at::ones({2, 1, 8}));
        const auto policy = policyOf("observed_attention", Budget::kept(4));
        const at::Tensor scores = policy->score(f.view(), policy->planFor(f.place()), sums)[0];
        for (int t = 0; t < n; ++t) {
            double expected = 0;
            for (int q = t; q < n; ++q) expected += 1.0 / (q + 1);
            QVERIFY(std::abs(scores[t].item<double>() - expected / (n - t)) < 1e-5);
        }
    }
};

QTEST_APPLESS_MAIN(ObservedAttentionTest)
#include "observed_attention_test.moc"
