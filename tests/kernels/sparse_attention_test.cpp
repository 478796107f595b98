// ops::sparse_attention against plain sums in fp64 over the chosen entries, each turned by its rank.
#include "tests/kernels/support.h"

#include <functional>

using namespace keepsight;
using namespace keepsight::test;

namespace {

struct Case {
    at::Tensor q, k, v, positions, chosen, inverse, now;
    double scale = 0.2;
    at::Tensor run(ops::AttentionStats* stats = nullptr) const {
        return ops::sparse_attention(q, k, v, positions, chosen, inverse, now, scale, stats);
    }
};

// Entries with gaps between their positions, those of odd heads one later; `size` of `capacity` chosen, the last one always.
Case makeCase(int kvHeads, int group, int dim, int capacity, int size, at::ScalarType type, bool hidden) {
    Case c;
    c.q = random({1, kvHeads * group, dim}, 1, type).transpose(0, 1); // as the model has it
    c.k = random({kvHeads, capacity, dim}, 2, type), c.v = random({kvHeads, capacity, dim}, 3, type);
    c.positions = (at::arange(capacity, at::kInt) * 2).unsqueeze(0) + (at::arange(kvHeads, at::kInt) % 2).unsqueeze(1);
    c.chosen = (at::arange(size) * capacity / size).to(at::kInt);
    c.chosen[size - 1].fill_(capacity - 1);
    c.inverse = at::pow(at::Scalar(10000.0), -at::arange(0, dim, 2, at::kFloat) / dim);
    c.now = at::full({1}, hidden ? capacity : 2 * capacity, at::kInt);
    return c;
}

struct Reference {
    std::vector<double> out, weights; // [Hq · D], [Hq, n]
};
Reference reference(const Case& c) {
    const int64_t heads = c.q.size(0), dim = c.q.size(2), capacity = c.k.size(1), n = c.chosen.size(0), group = heads / c.k.size(0),
                  half = dim / 2;
    const std::vector<double> q = doubles(c.q), k = doubles(c.k), v = doubles(c.v), inverse = doubles(c.inverse);
    const auto turned = [&](const double* x, int64_t rank, int64_t i) {
        const double angle = static_cast<double>(rank) * inverse[static_cast<size_t>(i % half)], a = x[i % half], b = x[i % half + half];
        return i < half ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle);
    };
    Reference r{std::vector<double>(static_cast<size_t>(heads * dim)), std::vector<double>(static_cast<size_t>(heads * n))};
    for (int64_t head = 0; head < heads; ++head) {
        const int64_t h = head / group;
        double *weights = r.weights.data() + head * n, *out = r.out.data() + head * dim, all = 0;
        for (int64_t rank = 0; rank < n; ++rank) {
            const int64_t entry = c.chosen.const_data_ptr<int32_t>()[rank];
            if (c.positions[h][entry].item<int>() > c.now.item<int>()) continue;
            double dot = 0;
            for (int64_t i = 0; i < dim; ++i)
                dot += turned(q.data() + head * dim, n - 1, i) * turned(k.data() + (h * capacity + entry) * dim, rank, i);
            all += weights[rank] = std::exp(c.scale * dot);
        }
        for (int64_t rank = 0; rank < n; ++rank) {
            weights[rank] /= all;
            for (int64_t i = 0; i < dim; ++i)
                out[i] += weights[rank] * v[static_cast<size_t>((h * capacity + c.chosen.const_data_ptr<int32_t>()[rank]) * dim + i)];
        }
    }
    return r;
}

} // namespace

class SparseAttentionTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void attendsToTheChosenByRank_data() {
        QTest::addColumn<int>("group");
        QTest::addColumn<int>("dim");
        QTest::addColumn<int>("capacity");
        QTest::addColumn<int>("size");
        QTest::addColumn<bool>("half");
        QTest::addColumn<bool>("hidden");
        for (const bool half : {false, true})
            for (const auto& [group, dim, capacity, size] :
                 {std::array{1, 64, 1, 1}, {3, 16, 40, 31}, {4, 80, 500, 33}, {8, 96, 700, 600}, {12, 128, 90, 90}})
                for (const bool hidden : {false, true})
                    if (!hidden || size > 1)
                        QTest::addRow("%s, group %d, %d of %d × %d%s", half ? "bf16" : "fp32", group, size, capacity, dim,
                                      hidden ? ", some behind the query" : "")
                            << group << dim << capacity << size << half << hidden;
    }
    void attendsToTheChosenByRank() {
        QFETCH(int, group);
        QFETCH(int, dim);
        QFETCH(int, capacity);
        QFETCH(int, size);
        QFETCH(bool, half);
        QFETCH(bool, hidden);
        const Case c = makeCase(2, group, dim, capacity, size, half ? at::kBFloat16 : at::kFloat, hidden);
        const Reference expected = reference(c);
        const double limit = half ? 2e-2 : 2e-5;
        const at::Tensor out = c.run();
        QCOMPARE(out.sizes(), at::IntArrayRef({1, c.q.size(0) * dim}));
        QCOMPARE(out.scalar_type(), c.q.scalar_type());
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(out), expected.out, limit);
        QVERIFY(sameBits(c.run(), out));

        ops::AttentionStats stats; // sized by the set
        stats.columnSum = at::ones({c.q.size(0), size});
        stats.lastRows = at::full({c.q.size(0), 1, size}, NAN);
        stats.map = at::ones({2, 3, capacity / 5 + 1});
        stats.mapRowBegin = c.now.item<int>() - 15, stats.rowBin = 10, stats.colBin = 11;
        QVERIFY(sameBits(c.run(&stats), out));
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.lastRows), expected.weights, limit);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.columnSum - 1), expected.weights, limit);
        at::Tensor map = at::ones(stats.map.sizes(), at::kDouble); // the positions of the chosen entries, and the mean of a group
        for (int64_t head = 0; head < c.q.size(0); ++head)
            for (int64_t rank = 0; rank < size; ++rank) {
                const int position = c.positions[head / group][c.chosen[rank].item<int>()].item<int>();
                map[head / group][1][position / 11] += expected.weights[static_cast<size_t>(head * size + rank)] / group;
            }
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.map), doubles(map), limit);
    }

    void equalsAttentionToTheGatheredSet() {
        const Case c = makeCase(3, 2, 32, 200, 57, at::kBFloat16, false);
        const at::Tensor entries = c.chosen.to(at::kLong), ranks = at::arange(57, at::kInt);
        const at::Tensor keys = ops::rope(c.k.index_select(1, entries), ranks, c.inverse),
                         q = ops::rope(c.q, ranks.narrow(0, 56, 1), c.inverse);
        const at::Tensor lengths = at::full({3}, 57, at::kInt);
        QVERIFY(sameBits(
            c.run(), ops::attention(q, keys, c.v.index_select(1, entries), c.positions.index_select(1, entries), lengths, c.now, c.scale)));
    }

    void refuseWhatDoesNotFit() {
        const Case good = makeCase(2, 3, 16, 20, 9, at::kFloat, false);
        const auto refused = [&](const std::function<void(Case&)>& change) {
            Case c = good;
            change(c);
            try {
                c.run();
            } catch (const EngineError&) {
                return true;
            }
            return false;
        };
        QVERIFY(refused([](Case& c) { c.q = at::randn({6, 2, 16}); })); // two queries
        QVERIFY(refused([](Case& c) { c.q = at::randn({5, 1, 16}); })); // no multiple of the KV heads
        QVERIFY(refused([](Case& c) { c.k = c.k.narrow(2, 0, 8); }));
        QVERIFY(refused([](Case& c) { c.v = c.v.narrow(1, 0, 19); }));
        QVERIFY(refused([](Case& c) { c.v = c.v.to(at::kBFloat16); }));
        QVERIFY(refused([](Case& c) { c.positions = c.positions.to(at::kLong); }));
        QVERIFY(refused([](Case& c) { c.positions = c.positions.narrow(1, 0, 19); }));
        QVERIFY(refused([](Case& c) { c.chosen = c.chosen.narrow(0, 0, 0); }));  // the query's own is always among them
        QVERIFY(refused([](Case& c) { c.chosen = at::zeros({21}, at::kInt); })); // more than there are
        QVERIFY(refused([](Case& c) { c.chosen = c.chosen.to(at::kLong); }));
        QVERIFY(refused([](Case& c) { c.inverse = c.inverse.narrow(0, 0, 7); }));
        QVERIFY(refused([](Case& c) { c.now = at::zeros({2}, at::kInt); }));
        QVERIFY(refused([](Case& c) { c.positions = at::empty({2, 20}, c.positions.options().device(at::kMeta)); }));
        ops::AttentionStats stats; // of all entries, not of the set
        stats.columnSum = at::zeros({6, 20});
        QVERIFY_EXCEPTION_THROWN(good.run(&stats), EngineError);
    }
};

QTEST_APPLESS_MAIN(SparseAttentionTest)
#include "sparse_attention_test.moc"
