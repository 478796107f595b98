// ops::output_change against its definition in fp64, head by head and row by row.
#include "tests/kernels/support.h"

#include <array>

using namespace keepsight;
using namespace keepsight::test;
using ops::OutputChange;

TORCH_LIBRARY_FRAGMENT(keepsight_composite, m) { ops::registerOutputChange(m); }

namespace {

constexpr OutputChange Kinds[] = {OutputChange::value, OutputChange::key, OutputChange::joint, OutputChange::independent};

at::Tensor changeOf(const AttentionCase& c, OutputChange kind) {
    return ops::output_change(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, kind);
}
at::Tensor compositeChangeOf(const AttentionCase& c, OutputChange kind) {
    using Given = const std::optional<at::Tensor>&;
    return composite<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double, int64_t, Given, Given)>("output_change")
        .call(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, static_cast<int64_t>(kind), {}, {});
}

// Per query head and row: weights a, logits s (0 where not visible), output o. q [D], k and v [C, D] of its heads.
struct Row {
    std::vector<double> a, s, o;
};
Row rowOf(const AttentionCase& c, int64_t h, int64_t i, const double* q, const std::vector<double>& k, const std::vector<double>& v) {
    const int64_t n = c.k.size(1), dim = c.k.size(2);
    const int32_t *positions = c.positions.const_data_ptr<int32_t>() + h * n, position = c.queryPositions.const_data_ptr<int32_t>()[i];
    Row r{std::vector<double>(static_cast<size_t>(n)), std::vector<double>(static_cast<size_t>(n)), std::vector<double>(static_cast<size_t>(dim))};
    const auto sees = [&](int64_t t) { return t < c.lengths.const_data_ptr<int32_t>()[h] && positions[t] <= position; };
    double total = 0;
    for (int64_t t = 0; t < n; ++t) {
        if (!sees(t)) continue;
        for (int64_t d = 0; d < dim; ++d) r.s[static_cast<size_t>(t)] += c.scale * q[d] * k[static_cast<size_t>(t * dim + d)];
        total += r.a[static_cast<size_t>(t)] = std::exp(r.s[static_cast<size_t>(t)]);
    }
    for (int64_t t = 0; t < n && total > 0; ++t) {
        if (!sees(t)) continue;
        r.a[static_cast<size_t>(t)] /= total;
        for (int64_t d = 0; d < dim; ++d) r.o[static_cast<size_t>(d)] += r.a[static_cast<size_t>(t)] * v[static_cast<size_t>(t * dim + d)];
    }
    return r;
}

// [kind][Hq · C], in the order of Kinds; and the cross term alone.
struct Reference {
    std::array<std::vector<double>, 4> changes;
    std::vector<double> cross;
};

Reference reference(const AttentionCase& c) {
    const int64_t n = c.k.size(1), dim = c.k.size(2), rows = c.q.size(1);
    Reference out;
    for (auto& change : out.changes) change.resize(static_cast<size_t>(c.q.size(0) * n));
    out.cross.resize(static_cast<size_t>(c.q.size(0) * n));
    for (int64_t head = 0; head < c.q.size(0); ++head) {
        const int64_t h = head / (c.q.size(0) / c.k.size(0));
        const std::vector<double> q = doubles(c.q[head]), k = doubles(c.k[h]), v = doubles(c.v[h]);
        for (int64_t i = 0; i < rows; ++i) {
            const Row r = rowOf(c, h, i, q.data() + i * dim, k, v);
            for (int64_t t = 0; t < n; ++t) {
                const double a = r.a[static_cast<size_t>(t)], s = r.s[static_cast<size_t>(t)];
                double value = 0, key = 0, joint = 0, cross = 0;
                for (int64_t d = 0; d < dim && a > 0; ++d) {
                    const double x = v[static_cast<size_t>(t * dim + d)], o = r.o[static_cast<size_t>(d)], byValue = a * x, byKey = a * s * (x - o);
                    value += byValue * byValue, key += byKey * byKey, joint += (byValue + byKey) * (byValue + byKey);
                    cross += 2 * a * a * s * (x * x - o * x);
                }
                const auto at = static_cast<size_t>(head * n + t);
                out.changes[0][at] += value, out.changes[1][at] += key, out.changes[2][at] += joint, out.changes[3][at] += value + key;
                out.cross[at] += cross;
            }
        }
    }
    return out;
}

} // namespace

class OutputChangeTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cleanup() { QVERIFY(useCpuKernels("avx512") || useCpuKernels("avx2") || useCpuKernels("baseline")); }

    void matchesTheDefinition_data() {
        QTest::addColumn<QList<int>>("shape"); // query heads, KV heads, queries, held, capacity, dim
        QTest::addColumn<bool>("bf16");
        QTest::addColumn<bool>("ragged");
        for (const QList<int>& s : QList<QList<int>>{{1, 1, 1, 1, 1, 8}, {9, 3, 1, 33, 40, 16}, {4, 2, 31, 31, 31, 20}, {6, 2, 140, 300, 301, 8}, {8, 1, 33, 100, 128, 16}, {6, 2, 1, 700, 701, 20}, {10, 2, 1, 256, 256, 64}, {2, 1, 600, 600, 600, 16}, {9, 3, 13, 200, 203, 64}, {2, 2, 2, 4097, 4099, 8}})
            for (int variant = 0; variant < 4; ++variant)
                QTest::addRow("%d/%d heads, %d of %d/%d, %d%s%s", s[0], s[1], s[2], s[3], s[4], s[5], variant & 1 ? " bf16" : "", variant & 2 ? " ragged" : "")
                    << s << bool(variant & 1) << bool(variant & 2);
    }
    void matchesTheDefinition() {
        QFETCH(QList<int>, shape);
        QFETCH(bool, bf16);
        QFETCH(bool, ragged);
        const AttentionCase c = makeAttentionCase(shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], bf16 ? at::kBFloat16 : at::kFloat, ragged, 17);
        const Reference expected = reference(c);
        for (const char* implementation : implementations) {
            if (!choose(implementation)) continue; // this processor lacks the instruction set
            const auto change = std::string_view(implementation) == "composite" ? compositeChangeOf : changeOf;
            for (const OutputChange kind : Kinds) {
                const at::Tensor got = change(c, kind);
                QVERIFY(got.sizes() == at::IntArrayRef({shape[0], shape[4]}) && got.scalar_type() == at::kFloat);
                KEEPSIGHT_VERIFY_DIFFERENCE(doubles(got), expected.changes[static_cast<size_t>(kind)], 1e-4);
                QVERIFY(sameBits(got, change(c, kind)));
            }
        }
    }
    void jointIsTheSumWithItsCrossTerm() {
        const AttentionCase c = makeAttentionCase(4, 2, 20, 50, 50, 16, at::kFloat, false, 3);
        const std::vector<double> value = doubles(changeOf(c, OutputChange::value)), key = doubles(changeOf(c, OutputChange::key)),
                                  joint = doubles(changeOf(c, OutputChange::joint)), independent = doubles(changeOf(c, OutputChange::independent));
        const Reference expected = reference(c);
        std::vector<double> sum = value;
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += key[i];
        KEEPSIGHT_VERIFY_DIFFERENCE(independent, sum, 1e-5);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += expected.cross[i];
        KEEPSIGHT_VERIFY_DIFFERENCE(joint, sum, 1e-4);
        KEEPSIGHT_VERIFY_DIFFERENCE(expected.changes[2], sum, 1e-4);
    }
    void keyIsTheSlopeOfTheOutputAsTheKeyShrinks() { // do/dε for k → (1 − ε)k is −a·s·(v − o)
        const AttentionCase c = makeAttentionCase(1, 1, 1, 20, 20, 8, at::kFloat, false, 5);
        const std::vector<double> key = doubles(changeOf(c, OutputChange::key)), value = doubles(changeOf(c, OutputChange::value));
        const std::vector<double> q = doubles(c.q[0]), k = doubles(c.k[0]), v = doubles(c.v[0]);
        const Row r = rowOf(c, 0, 0, q.data(), k, v);
        constexpr double Epsilon = 1e-5;
        for (int64_t t = 0; t < 20; ++t) {
            std::vector<double> less = k;
            for (int64_t d = 0; d < 8; ++d) less[static_cast<size_t>(t * 8 + d)] *= 1 - Epsilon;
            const Row moved = rowOf(c, 0, 0, q.data(), less, v);
            double squared = 0;
            for (size_t d = 0; d < 8; ++d) {
                const double slope = (moved.o[d] - r.o[d]) / Epsilon, expected = -r.a[static_cast<size_t>(t)] * r.s[static_cast<size_t>(t)] * (v[static_cast<size_t>(t) * 8 + d] - r.o[d]);
                QVERIFY(std::abs(slope - expected) < 1e-4 * (1 + std::abs(expected)));
                squared += slope * slope;
            }
            QVERIFY(std::abs(key[static_cast<size_t>(t)] - squared) < 1e-4 * (1 + squared));
            // v → (1 − ε)v moves o by −ε·a·v
            double norm = 0;
            for (size_t d = 0; d < 8; ++d) norm += v[static_cast<size_t>(t) * 8 + d] * v[static_cast<size_t>(t) * 8 + d];
            QVERIFY(std::abs(value[static_cast<size_t>(t)] - r.a[static_cast<size_t>(t)] * r.a[static_cast<size_t>(t)] * norm) < 1e-5 * (1 + norm));
        }
    }
    void invisibleEntriesGetExactlyNothing() {
        AttentionCase c = makeAttentionCase(4, 2, 3, 40, 64, 8, at::kFloat, false, 7);
        c.queryPositions = at::tensor({4, 5, 9}, at::kInt); // entries behind position 9 are the future
        c.q.mul_(100);                                      // huge logits: 0 · s must stay 0
        for (const OutputChange kind : Kinds) {
            const at::Tensor got = changeOf(c, kind);
            QVERIFY(got.isfinite().all().item<bool>());
            QCOMPARE(got.narrow(1, 10, 54).abs().max().item<float>(), 0.0f);
            QVERIFY(got.min().item<float>() >= 0.0f);
        }
        c.queryPositions = at::tensor({-3, -2, -1}, at::kInt); // rows that see nothing
        for (const OutputChange kind : Kinds) QCOMPARE(changeOf(c, kind).abs().max().item<float>(), 0.0f);
    }
    void blocksOfRowsAddUp() { // more rows than a block: the same as row by row
        const AttentionCase c = makeAttentionCase(2, 1, 300, 300, 300, 8, at::kFloat, false, 9);
        for (const OutputChange kind : Kinds) {
            at::Tensor sum = at::zeros({2, 300});
            for (int64_t i = 0; i < 300; ++i)
                sum += ops::output_change(c.q.narrow(1, i, 1), c.k, c.v, c.positions, c.lengths, c.queryPositions.narrow(0, i, 1), c.scale, kind);
            KEEPSIGHT_VERIFY_DIFFERENCE(doubles(changeOf(c, kind)), doubles(sum), 1e-4);
        }
    }
    void knownAttentionChangesNothing() {
        for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
            const AttentionCase c = makeAttentionCase(6, 2, 20, 50, 64, 20, type, false, 21);
            ops::AttentionStats stats;
            const at::Tensor output = ops::causal_attention(c.q, c.k, c.v, 50, c.scale, &stats);
            const ops::KnownAttention known{output, stats.logSumExp}, none;
            for (const OutputChange kind : Kinds) {
                const auto given = [&](const ops::KnownAttention& k) { return ops::output_change(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale, kind, &k); };
                QVERIFY(sameBits(given(none), changeOf(c, kind)));
                KEEPSIGHT_VERIFY_DIFFERENCE(doubles(given(known)), doubles(changeOf(c, kind)), type == at::kFloat ? 1e-5 : 1e-2); // outputs come rounded
            }
        }
    }
    void causalAttentionKnowsItsLogSumExps() {
        const AttentionCase c = makeAttentionCase(6, 2, 33, 70, 80, 20, at::kFloat, false, 22);
        ops::AttentionStats stats;
        QVERIFY(sameBits(ops::causal_attention(c.q, c.k, c.v, 70, c.scale, &stats), ops::attention(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, c.scale)));
        std::vector<double> expected;
        for (int64_t head = 0; head < 6; ++head) {
            const std::vector<double> q = doubles(c.q[head]), k = doubles(c.k[head / 3]), v = doubles(c.v[head / 3]);
            for (int64_t i = 0; i < 33; ++i) {
                const Row r = rowOf(c, head / 3, i, q.data() + i * 20, k, v);
                const auto sees = static_cast<size_t>(70 - 33 + i); // the newest it sees, itself
                expected.push_back(r.s[sees] - std::log(r.a[sees]));
            }
        }
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.logSumExp), expected, 1e-5);
    }
    void noQueriesGiveZeros() {
        const AttentionCase c = makeAttentionCase(4, 2, 0, 10, 12, 8, at::kFloat, false, 1);
        QCOMPARE(changeOf(c, OutputChange::joint).abs().max().item<float>(), 0.0f);
    }
    void refusesWhatDoesNotFit() {
        const AttentionCase c = makeAttentionCase(4, 2, 3, 10, 12, 8, at::kFloat, false, 1);
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::output_change(c.q, c.k, c.v.narrow(1, 0, 11), c.positions, c.lengths, c.queryPositions, 1, OutputChange::key));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::output_change(c.q, c.k, c.v.to(at::kBFloat16), c.positions, c.lengths, c.queryPositions, 1, OutputChange::key));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::output_change(c.q.narrow(0, 0, 3), c.k, c.v, c.positions, c.lengths, c.queryPositions, 1, OutputChange::key));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::output_change(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions.to(at::kLong), 1, OutputChange::key));
        const auto given = [&](const at::Tensor& output, const at::Tensor& logSumExp) {
            const ops::KnownAttention known{output, logSumExp};
            ops::output_change(c.q, c.k, c.v, c.positions, c.lengths, c.queryPositions, 1, OutputChange::key, &known);
        };
        given(at::zeros({3, 32}), at::zeros({4, 3}));
        QVERIFY_THROWS_EXCEPTION(EngineError, given(at::zeros({4, 3, 8}), at::zeros({4, 3})));
        QVERIFY_THROWS_EXCEPTION(EngineError, given(at::zeros({3, 32}, at::kBFloat16), at::zeros({4, 3})));
        QVERIFY_THROWS_EXCEPTION(EngineError, given(at::zeros({3, 32}), at::zeros({3, 4})));
        QVERIFY_THROWS_EXCEPTION(EngineError, given(at::zeros({3, 32}), at::zeros({4, 3}, at::kDouble)));
    }
};

QTEST_APPLESS_MAIN(OutputChangeTest)
#include "output_change_test.moc"
