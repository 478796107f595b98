#include "tests/kernels/support.h"

#include <ATen/Parallel.h>

using namespace keepsight;
using namespace keepsight::test;
using OptionalTensor = std::optional<at::Tensor>;

namespace {

// attention() has one form more than the other operators: bf16 in tiles.
const std::vector<const char*> forms = [] {
    std::vector<const char*> all = implementations;
    all.push_back("avx512amx");
    return all;
}();

struct Reference {
    std::vector<double> out, weights; // [S, Hq·D], [Hq, S, C]
};

Reference reference(const AttentionCase& c) {
    const int64_t queryHeads = c.q.size(0), queries = c.q.size(1), dim = c.q.size(2), kvHeads = c.k.size(0), capacity = c.k.size(1);
    const std::vector<double> q = doubles(c.q), k = doubles(c.k), v = doubles(c.v);
    const int32_t *positions = c.positions.const_data_ptr<int32_t>(), *queryPositions = c.queryPositions.const_data_ptr<int32_t>();
    Reference r;
    r.out.assign(static_cast<size_t>(queries * queryHeads * dim), 0);
    r.weights.assign(static_cast<size_t>(queryHeads * queries * capacity), 0);
    for (int64_t head = 0; head < queryHeads; ++head)
        for (int64_t i = 0; i < queries; ++i) {
            const int64_t h = head / (queryHeads / kvHeads);
            double* weights = r.weights.data() + (head * queries + i) * capacity;
            const auto sees = [&](int64_t t) {
                return t < c.lengths.const_data_ptr<int32_t>()[h] && positions[h * capacity + t] <= queryPositions[i];
            };
            double total = 0, top = -INFINITY;
            for (int64_t t = 0; t < capacity; ++t) {
                if (!sees(t)) continue;
                double s = 0;
                for (int64_t d = 0; d < dim; ++d)
                    s += q[static_cast<size_t>((head * queries + i) * dim + d)] * k[static_cast<size_t>((h * capacity + t) * dim + d)];
                weights[t] = s * c.scale;
                top = std::max(top, weights[t]);
            }
            for (int64_t t = 0; t < capacity && top > -INFINITY; ++t)
                if (sees(t)) total += weights[t] = std::exp(weights[t] - top);
            for (int64_t t = 0; t < capacity && total > 0; ++t) {
                weights[t] /= total;
                for (int64_t d = 0; d < dim && weights[t] > 0; ++d)
                    r.out[static_cast<size_t>((i * queryHeads + head) * dim + d)] +=
                        weights[t] * v[static_cast<size_t>((h * capacity + t) * dim + d)];
            }
        }
    return r;
}

at::Tensor attentionBy(const QString& name, const AttentionCase& c, ops::AttentionStats& stats) {
    if (name != "composite") return ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, &stats);
    const auto optional = [](const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    return composite<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                const at::Tensor&, double, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
                                int64_t, int64_t)>("attention")
        .call(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, optional(stats.columnSum), optional(stats.lastRows),
              optional(stats.map), stats.mapRowBegin, stats.rowBin, stats.colBin);
}

at::Tensor sumsBy(const QString& name, const AttentionCase& c) {
    if (name != "composite") return ops::attention_sums(c.q, c.k, c.positions, c.lengths, c.queryPositions, c.scale);
    return composite<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double)>(
               "attention_sums")
        .call(c.q, c.k, c.positions, c.lengths, c.queryPositions, c.scale);
}

at::Tensor rowsBy(const QString& name, const AttentionCase& c) {
    if (name != "composite") return ops::attention_rows(c.q, c.k, c.positions, c.lengths, c.queryPositions, c.scale);
    return composite<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double)>(
               "attention_rows")
        .call(c.q, c.k, c.positions, c.lengths, c.queryPositions, c.scale);
}

} // namespace

class AttentionOpTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cleanup() { QVERIFY(useCpuKernels("avx512amx") || useCpuKernels("avx512") || useCpuKernels("avx2") || useCpuKernels("baseline")); }

    void matchesTheDefinition_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<QList<int>>("shape"); // query heads, KV heads, queries, held, capacity, dim
        QTest::addColumn<bool>("bf16");
        QTest::addColumn<bool>("ragged");
        const QList<QList<int>> shapes = {{1, 1, 1, 1, 1, 8},       {9, 3, 1, 4097, 4100, 64}, {9, 3, 31, 31, 31, 64},
                                          {9, 3, 33, 100, 128, 64}, {4, 4, 7, 300, 301, 80},   {8, 1, 70, 70, 71, 128},
                                          {10, 2, 1, 33, 64, 20},   {9, 3, 131, 131, 140, 64}, {12, 2, 3, 520, 520, 33},
                                          {32, 2, 5, 40, 64, 256},   {9, 3, 70, 600, 601, 64},   {8, 1, 17, 530, 531, 96},
                                          {2, 2, 65, 300, 300, 256}, {70, 1, 3, 290, 290, 40}};
        for (const char* name : forms)
            for (const auto& s : shapes)
                for (int variant = 0; variant < 4; ++variant)
                    QTest::addRow("%s %d/%d heads, %d of %d/%d, %d%s%s", name, s[0], s[1], s[2], s[3], s[4], s[5],
                                  variant & 1 ? " bf16" : "", variant & 2 ? " ragged" : "")
                        << QString(name) << s << bool(variant & 1) << bool(variant & 2);
    }
    void matchesTheDefinition() {
        QFETCH(QString, implementation);
        QFETCH(QList<int>, shape);
        QFETCH(bool, bf16);
        QFETCH(bool, ragged);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        const AttentionCase c = makeAttentionCase(shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], bf16 ? at::kBFloat16 : at::kFloat, ragged, 17);
        const int64_t queries = shape[2], capacity = shape[4], last = std::min<int64_t>(queries, 5), group = shape[0] / shape[1];
        const Reference expected = reference(c);

        ops::AttentionStats stats;
        stats.columnSum = at::ones({shape[0], capacity}); // accumulated
        stats.lastRows = at::full({shape[0], last, capacity}, NAN);
        const bool perKvHead = shape[5] != 80;
        stats.rowBin = 10, stats.colBin = 7, stats.mapRowBegin = std::max(0, shape[3] - shape[2] - 3);
        const int64_t mapRows = (queries + 3) / 10 + 1, mapColumns = shape[3] / 7 + 1;
        stats.map = at::ones({perKvHead ? shape[1] : shape[0], mapRows, mapColumns});
        const at::Tensor out = attentionBy(implementation, c, stats);

        std::vector<double> columns(static_cast<size_t>(shape[0] * capacity), 1), lastRows, map(static_cast<size_t>(stats.map.numel()), 1);
        for (int64_t head = 0; head < shape[0]; ++head)
            for (int64_t i = 0; i < queries; ++i)
                for (int64_t t = 0; t < capacity; ++t) {
                    const double w = expected.weights[static_cast<size_t>((head * queries + i) * capacity + t)];
                    columns[static_cast<size_t>(head * capacity + t)] += w;
                    if (i >= queries - last) lastRows.push_back(w);
                    if (w == 0) continue;
                    const int64_t row = (c.queryPositions.const_data_ptr<int32_t>()[i] - stats.mapRowBegin) / stats.rowBin;
                    const int64_t column = c.positions.const_data_ptr<int32_t>()[head / group * capacity + t] / stats.colBin;
                    map[static_cast<size_t>(((perKvHead ? head / group : head) * mapRows + row) * mapColumns + column)] +=
                        perKvHead ? w / static_cast<double>(group) : w;
                }
        QCOMPARE(out.scalar_type(), c.q.scalar_type());
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(out), expected.out, bf16 ? 0.01 : 3e-6);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.columnSum), columns, 1e-5);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.lastRows), lastRows, 3e-6);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.map), map, 1e-5);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(rowsBy(implementation, c)), expected.weights, 3e-6);
        const at::Tensor sums = sumsBy(implementation, c);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(sums), doubles(rowsBy(implementation, c).to(at::kDouble).sum(1)), 3e-6 * static_cast<double>(c.q.size(1)));
        QVERIFY(sameBits(sums, sumsBy(implementation, c)));
    }

    void columnSumsAddUpToTheRows() {
        for (const auto& [queries, type] : {std::pair(1, at::kFloat), {33, at::kFloat}, {600, at::kFloat}, {600, at::kBFloat16}}) {
            const AttentionCase c = makeAttentionCase(9, 3, queries, 700, 704, 64, type, true, 5);
            c.queryPositions[0] = -1; // sees nothing
            ops::AttentionStats stats;
            stats.columnSum = at::zeros({9, 704});
            const at::Tensor out = ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, &stats);
            for (double sum : doubles(stats.columnSum.sum(1)))
                QVERIFY(std::abs(sum - (queries - 1)) < 1e-3);
            QCOMPARE(out[0].abs().max().to(at::kFloat).item<float>(), 0.f);
            QVERIFY(out.isfinite().all().item<bool>());
        }
    }

    void mapHoldsAllWeightInsideIt() {
        const AttentionCase c = makeAttentionCase(6, 2, 100, 100, 100, 64, at::kFloat, false, 5);
        ops::AttentionStats stats;
        stats.map = at::zeros({2, 5, 10});
        stats.rowBin = 10, stats.colBin = 10, stats.mapRowBegin = 50; // queries 0 … 49 lie before it
        ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, &stats);
        for (double sum : doubles(stats.map.sum(2)))
            QVERIFY(std::abs(sum - 10) < 1e-4);
    }

    void runsAndThreadsAreBitEqual() {
        for (const auto& [queries, type] : {std::pair(1, at::kFloat), {500, at::kFloat}, {500, at::kBFloat16}}) {
            const AttentionCase c = makeAttentionCase(9, 3, queries, 3000, 3000, 64, type, true, 8);
            at::Tensor outs[3], sums[3], maps[3];
            for (int run = 0; run < 3; ++run) {
                at::set_num_threads(run == 2 ? 1 : 2);
                ops::AttentionStats stats;
                sums[run] = stats.columnSum = at::zeros({9, 3000});
                maps[run] = stats.map = at::zeros({3, 100, 100});
                stats.rowBin = stats.colBin = 30;
                outs[run] = ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, &stats);
            }
            at::set_num_threads(2);
            for (int run = 1; run < 3; ++run)
                QVERIFY(sameBits(outs[0], outs[run]) && sameBits(sums[0], sums[run]) && sameBits(maps[0], maps[run]));
        }
    }

    void statisticsLeaveTheOutputAsItIs() {
        const AttentionCase c = makeAttentionCase(9, 3, 200, 900, 900, 64, at::kBFloat16, true, 9);
        ops::AttentionStats stats;
        stats.columnSum = at::zeros({9, 900});
        QVERIFY(sameBits(ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, &stats),
                         ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale)));
    }

    void largeScoresStayFinite() {
        const AttentionCase c = makeAttentionCase(2, 1, 3, 100, 100, 64, at::kFloat, false, 5);
        c.q.mul_(100);
        const at::Tensor out = ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(out), reference(c).out, 1e-3);
    }

    void emptyCacheAndNoQueries() {
        const AttentionCase c = makeAttentionCase(2, 1, 3, 10, 10, 64, at::kFloat, false, 5);
        const at::Tensor none = at::zeros({1}, at::kInt);
        QCOMPARE(ops::attention(c.q, c.k, c.v, c.positions, none, c.queryPositions, 1).abs().max().item<float>(), 0.f);
        QCOMPARE(ops::attention_rows(c.q, c.k, c.positions, none, c.queryPositions, 1).abs().max().item<float>(), 0.f);
        const at::Tensor out = ops::attention(c.q.narrow(1, 0, 0), c.k, c.v, c.positions, c.lengths, c.queryPositions.narrow(0, 0, 0), 1);
        QCOMPARE(out.size(0), int64_t(0));
    }

    void badArgumentsAreRefused() {
        const AttentionCase c = makeAttentionCase(4, 2, 3, 10, 10, 64, at::kFloat, false, 5);
        const auto refused = [&](auto change) {
            AttentionCase bad = c;
            ops::AttentionStats stats;
            change(bad, stats);
            try {
                ops::attention(bad.q, bad.k, bad.v, bad.positions, bad.lengths, bad.queryPositions, bad.scale, &stats);
            } catch (const EngineError& error) {
                return std::string(error.what()).starts_with("attention: ");
            }
            return false;
        };
        QVERIFY(!refused([](AttentionCase&, ops::AttentionStats&) {}));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.q = random({3, 3, 64}, 1); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.q = random({4, 64}, 1); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.k = b.k.narrow(2, 0, 32); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.v = b.v.narrow(1, 0, 9); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.k = b.k.to(at::kBFloat16); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.positions = b.positions.to(at::kLong); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.lengths = at::full({2}, 11, at::kInt); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.lengths = at::full({2}, -1, at::kInt); }));
        QVERIFY(refused([](AttentionCase& b, ops::AttentionStats&) { b.queryPositions = b.queryPositions.flip(0); }));
        QVERIFY(refused([](AttentionCase&, ops::AttentionStats& s) { s.columnSum = at::zeros({2, 10}); }));
        QVERIFY(refused([](AttentionCase&, ops::AttentionStats& s) { s.columnSum = at::zeros({10, 4}).t(); }));
        QVERIFY(refused([](AttentionCase&, ops::AttentionStats& s) { s.lastRows = at::zeros({4, 4, 10}); }));
        QVERIFY(refused([](AttentionCase&, ops::AttentionStats& s) { s.map = at::zeros({3, 4, 4}); }));
        QVERIFY(refused([](AttentionCase&, ops::AttentionStats& s) {
            s.map = at::zeros({2, 4, 4});
            s.rowBin = 0;
        }));
    }
};

QTEST_APPLESS_MAIN(AttentionOpTest)
#include "attention_op_test.moc"
