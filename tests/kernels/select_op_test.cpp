// top_k, soft_vote, drop_lowest and drop_entries in ATen calls, against plain loops.
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
        const at::Tensor vote = ops::soft_vote(q, k, lengths, 5, 7, 0.7);
        QCOMPARE(vote.size(0), 40);
        std::vector<double> expected(40, 0);
        for (int h = 0; h < 6; ++h) {
            const int end = lengths[h / 3].item<int>() - 7;
            std::vector<double> e;
            for (int t = 5; t < end; ++t) e.push_back(std::exp(0.7 * at::dot(q[h].to(at::kDouble), k[h / 3][t].to(at::kDouble)).item<double>()));
            const double sum = std::accumulate(e.begin(), e.end(), 0.0);
            for (std::size_t i = 0; i < e.size(); ++i) expected[i + 5] += e[i] / sum;
        }
        for (int t = 0; t < 40; ++t) QVERIFY(std::abs(vote[t].item<double>() - expected[static_cast<std::size_t>(t)]) < 1e-5);
    }

    void dropLowestMovesWhatLiesBehind() {
        at::manual_seed(4);
        const int capacity = 12;
        const at::Tensor lengths = at::tensor({12, 9, 8, 3}, at::kInt), limits = at::tensor({8, 2, 3}, at::kInt);
        at::Tensor scores = at::randint(-2, 3, {4, capacity}).to(at::kFloat); // ties
        scores[1][4] = NAN;
        const at::Tensor positions = at::arange(4 * capacity, at::kInt).view({4, capacity}) * 3, keys = at::randn({4, capacity, 5}), perQuery = at::randn({8, capacity});
        for (const bool scored : {true, false}) {
            at::Tensor held = lengths.clone();
            std::vector<at::Tensor> moved{positions.clone(), keys.clone(), perQuery.clone()};
            const at::Tensor gone = ops::drop_lowest(scored ? std::optional(scores) : std::nullopt, held, limits, moved);
            for (int h = 0; h < 4; ++h) {
                const int n = lengths[h].item<int>();
                if (n <= 8) {
                    QCOMPARE(gone[0][h].item<int>(), -1);
                    QCOMPARE(gone[1][h].item<int>(), -1);
                    QCOMPARE(held[h].item<int>(), n);
                    QVERIFY(at::equal(moved[1][h].narrow(0, 0, n), keys[h].narrow(0, 0, n)));
                    continue;
                }
                int lowest = 2; // of equal ones the oldest
                const auto value = [&](int i) { const float v = scores[h][i].item<float>(); return std::isnan(v) ? -INFINITY : v; };
                for (int i = 2; scored && i < n - 3; ++i)
                    if (value(i) < value(lowest)) lowest = i;
                QCOMPARE(gone[0][h].item<int>(), positions[h][lowest].item<int>());
                QCOMPARE(gone[1][h].item<int>(), lowest);
                QCOMPARE(held[h].item<int>(), n - 1);
                std::vector<std::int64_t> stays;
                for (int i = 0; i < n; ++i)
                    if (i != lowest) stays.push_back(i);
                const at::Tensor index = at::tensor(stays, at::kLong);
                QVERIFY(at::equal(moved[0][h].narrow(0, 0, n - 1), positions[h].index_select(0, index)));
                QVERIFY(at::equal(moved[1][h].narrow(0, 0, n - 1), keys[h].index_select(0, index)));
                for (int g = 0; g < 2; ++g) QVERIFY(at::equal(moved[2][2 * h + g].narrow(0, 0, n - 1), perQuery[2 * h + g].index_select(0, index)));
            }
        }
    }

    void dropEntriesMovesWhatLiesBehind() {
        at::manual_seed(5);
        const at::Tensor lengths = at::tensor({7, 4, 0, 6, 3}, at::kInt), entries = at::tensor({0, 3, 0, -1, 3}, at::kInt); // the third and the last have none such
        at::Tensor held = lengths.clone();
        const at::Tensor codes = at::randint(0, 256, {5, 7, 3}).to(at::kByte), perQuery = at::randn({10, 7});
        std::vector<at::Tensor> moved{codes.clone(), perQuery.clone()};
        ops::drop_entries(entries, held, moved);
        QVERIFY(at::equal(held, at::tensor({6, 3, 0, 6, 3}, at::kInt)));
        for (int h = 0; h < 5; ++h) {
            const int n = lengths[h].item<int>(), gone = entries[h].item<int>();
            std::vector<std::int64_t> stays;
            for (int i = 0; i < n; ++i)
                if (i != gone) stays.push_back(i);
            const at::Tensor index = at::tensor(stays, at::kLong);
            const auto left = static_cast<std::int64_t>(stays.size());
            QVERIFY(at::equal(moved[0][h].narrow(0, 0, left), codes[h].index_select(0, index)));
            for (int g = 0; g < 2; ++g) QVERIFY(at::equal(moved[1][2 * h + g].narrow(0, 0, left), perQuery[2 * h + g].index_select(0, index)));
        }
    }

    void dropEntriesTakesSeveralOfAHead() {
        at::manual_seed(6);
        constexpr int Heads = 4, Capacity = 30;
        for (int round = 0; round < 40; ++round) {
            const int most = 1 + round % 9;
            const at::Tensor lengths = at::randint(0, Capacity + 1, {Heads}).to(at::kInt), keys = at::randn({Heads, Capacity, 3}), perQuery = at::randn({2 * Heads, Capacity});
            if (round % 5 == 0) lengths[1] = 2; // all of it may go
            at::Tensor entries = at::full({Heads, most}, -1, at::kInt), held = lengths.clone();
            std::vector<at::Tensor> moved{keys.clone(), perQuery.clone()};
            std::vector<std::vector<std::int32_t>> gone(Heads);
            for (int h = 0; h < Heads; ++h) { // some behind the last one
                const at::Tensor some = std::get<0>(at::randperm(lengths[h].item<int>() + 3).narrow(0, 0, std::min<std::int64_t>((round + h) % (most + 1), lengths[h].item<int>() + 3)).sort()).to(at::kInt);
                entries[h].narrow(0, most - some.size(0), some.size(0)).copy_(some);
                gone[static_cast<std::size_t>(h)].assign(some.const_data_ptr<std::int32_t>(), some.const_data_ptr<std::int32_t>() + some.size(0));
            }
            ops::drop_entries(entries, held, moved);
            for (int h = 0; h < Heads; ++h) {
                std::vector<std::int64_t> stays;
                for (int i = 0; i < lengths[h].item<int>(); ++i)
                    if (!std::ranges::binary_search(gone[static_cast<std::size_t>(h)], i)) stays.push_back(i);
                const auto left = static_cast<std::int64_t>(stays.size());
                const at::Tensor index = at::tensor(stays, at::kLong);
                QCOMPARE(held[h].item<std::int64_t>(), left);
                QVERIFY(at::equal(moved[0][h].narrow(0, 0, left), keys[h].index_select(0, index)));
                for (int g = 0; g < 2; ++g) QVERIFY(at::equal(moved[1][2 * h + g].narrow(0, 0, left), perQuery[2 * h + g].index_select(0, index)));
            }
        }
    }

    void refuseWhatDoesNotFit() {
        QVERIFY_EXCEPTION_THROWN(ops::top_k(at::randn({2, 5}), at::zeros({3}, at::kInt), 2), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::top_k(at::randn({2, 5}), at::zeros({2}, at::kInt), -1), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::soft_vote(at::randn({3, 8}), at::randn({2, 5, 8}), at::zeros({2}, at::kInt), 0, 5, 1), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::soft_vote(at::randn({4, 8}), at::randn({2, 5, 8}), at::zeros({2}, at::kInt), 6, 0, 1), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::soft_vote(at::randn({4, 8}), at::randn({2, 5, 8}), at::zeros({2}, at::kInt), 3, -1, 1), EngineError);
        at::Tensor lengths = at::full({2}, 5, at::kInt);
        const at::Tensor limits = at::tensor({4, 0, 0}, at::kInt), positions = at::zeros({2, 6}, at::kInt);
        QVERIFY_EXCEPTION_THROWN(ops::drop_lowest(at::randn({2, 5}), lengths, limits, {positions}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::drop_lowest({}, lengths, limits.narrow(0, 0, 2), {positions}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::drop_lowest({}, lengths, limits, {}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::drop_lowest({}, lengths, limits, {positions, at::randn({3, 6, 4})}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::drop_entries(at::zeros({3}, at::kInt), lengths, {positions}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::drop_entries(at::zeros({3, 2}, at::kInt), lengths, {positions}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::drop_entries(at::zeros({2}, at::kLong), lengths, {positions}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::drop_entries(at::zeros({2}, at::kInt), lengths, {}), EngineError);
    }
};

QTEST_APPLESS_MAIN(SelectOpTest)
#include "select_op_test.moc"
