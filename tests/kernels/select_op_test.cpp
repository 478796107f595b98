// top_k and soft_vote in ATen calls, against plain loops.
#include "engine/data/error.h"
#include "kernels/bind/ops.h"

#include <ATen/ATen.h>
#include <QtTest>
#include <algorithm>
#include <cmath>
#include <numeric>

using namespace keepsight;

class SelectOpTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void topKTakesTheHighestAndOfEqualsTheNewest() {
        at::manual_seed(2);
        at::Tensor scores = at::randint(-3, 4, {3, 60}).to(at::kFloat); // many ties
        scores[1][7] = NAN;
        scores[1][8] = INFINITY;
        const at::Tensor counts = at::tensor({60, 31, 4}, at::kInt);
        for (const int k : {1, 5, 31, 60, 64}) {
            const at::Tensor got = ops::top_k(scores, counts, k);
            for (int h = 0; h < 3; ++h) {
                const int held = counts[h].item<int>();
                std::vector<int> order(static_cast<std::size_t>(held));
                std::iota(order.begin(), order.end(), 0);
                const auto value = [&](int i) { const float v = scores[h][i].item<float>(); return std::isnan(v) ? -INFINITY : v; };
                std::ranges::sort(order, [&](int a, int b) { return value(a) != value(b) ? value(a) > value(b) : a > b; });
                order.resize(static_cast<std::size_t>(std::min(k, held)));
                std::ranges::sort(order);
                order.resize(static_cast<std::size_t>(k), -1);
                for (int i = 0; i < k; ++i) QCOMPARE(got[h][i].item<int>(), order[static_cast<std::size_t>(i)]);
            }
        }
    }

    void softVoteSumsEachHeadsSoftmax() {
        at::manual_seed(3);
        const at::Tensor q = at::randn({6, 8}), k = at::randn({2, 40, 8}), lengths = at::tensor({40, 21}, at::kInt);
        const at::Tensor vote = ops::soft_vote(q, k, lengths, 5, 33, 0.7);
        std::vector<double> expected(28, 0);
        for (int h = 0; h < 6; ++h) {
            const int end = std::min(33, lengths[h / 3].item<int>());
            std::vector<double> e;
            for (int t = 5; t < end; ++t) e.push_back(std::exp(0.7 * at::dot(q[h].to(at::kDouble), k[h / 3][t].to(at::kDouble)).item<double>()));
            const double sum = std::accumulate(e.begin(), e.end(), 0.0);
            for (std::size_t i = 0; i < e.size(); ++i) expected[i] += e[i] / sum;
        }
        for (int t = 0; t < 28; ++t) QVERIFY(std::abs(vote[t].item<double>() - expected[static_cast<std::size_t>(t)]) < 1e-5);
    }

    void refuseWhatDoesNotFit() {
        QVERIFY_EXCEPTION_THROWN(ops::top_k(at::randn({2, 5}), at::zeros({3}, at::kInt), 2), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::top_k(at::randn({2, 5}), at::zeros({2}, at::kInt), -1), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::soft_vote(at::randn({3, 8}), at::randn({2, 5, 8}), at::zeros({2}, at::kInt), 0, 5, 1), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::soft_vote(at::randn({4, 8}), at::randn({2, 5, 8}), at::zeros({2}, at::kInt), 3, 6, 1), EngineError);
    }
};

QTEST_APPLESS_MAIN(SelectOpTest)
#include "select_op_test.moc"
