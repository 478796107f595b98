// matvec, stored_matvec, rope_append and causal_attention in the operators they replace, or against these or plain sums.
#include "engine/data/error.h"
#include "kernels/bind/ops.h"
#include "kernels/cpu_kernels.h"
#include "kernels/stored.h"

#include <tuple>
#include <ATen/ATen.h>
#include <QtTest>

using namespace keepsight;

class DecodeOpTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void matvecIsNormProductGateBiasAndResidual() {
        at::manual_seed(3);
        const at::Tensor x = at::randn({1, 31}), w = at::randn({14, 31}), b = at::randn({14}), norm = at::rand({31}) + 0.5, residual = at::randn({1, 7});
        const at::Tensor y = ops::matvec(x, w, {.bias = b, .norm = norm, .residual = residual, .eps = 1e-3, .gated = true});
        const at::Tensor wide = x.to(at::kDouble), normed = wide / at::sqrt(wide.square().mean() + 1e-3) * norm.to(at::kDouble);
        const at::Tensor both = at::matmul(w.to(at::kDouble), normed[0]) + b.to(at::kDouble);
        const at::Tensor gate = both.narrow(0, 0, 7), expected = gate / (1 + at::exp(-gate)) * both.narrow(0, 7, 7) + residual[0].to(at::kDouble);
        QVERIFY(at::allclose(y[0].to(at::kDouble), expected, 1e-5, 1e-5));
        QVERIFY(at::allclose(ops::matvec(x, w, {}), at::matmul(x, w.t()), 1e-5, 1e-5));
    }

    // A stored matrix: what the separate operators give, to the bit.
    void storedMatvecRoundsAsItsSteps_data() {
        QTest::addColumn<bool>("bf16");
        QTest::addColumn<bool>("gated");
        QTest::addColumn<bool>("all");
        for (const bool bf16 : {false, true})
            for (const bool gated : {false, true})
                for (const bool all : {false, true}) QTest::addRow("%s%s%s", bf16 ? "bf16" : "fp32", gated ? ", gated" : "", all ? ", with norm, bias and residual" : "") << bf16 << gated << all;
    }
    void storedMatvecRoundsAsItsSteps() {
        QFETCH(bool, bf16);
        QFETCH(bool, gated);
        QFETCH(bool, all);
        at::manual_seed(6);
        const auto type = bf16 ? at::kBFloat16 : at::kFloat;
        constexpr std::int64_t In = 33, Rows = 62;
        const at::Tensor x = at::randn({1, In}).to(type), packed = at::randn({Rows, In}).view(at::kByte), norm = at::rand({In}) + 0.5, bias = at::randn({Rows}),
                         residual = at::randn({1, gated ? Rows / 2 : Rows}).to(type), residualBefore = residual.clone(), xBefore = x.clone();
        const int stored = static_cast<int>(Stored::f32);
        ops::MatvecOptions with{.eps = 1e-5, .gated = gated};
        if (all) with.norm = norm, with.bias = bias, with.residual = residual;
        const at::Tensor y = ops::stored_matvec(x, packed, stored, In, with);
        at::Tensor expected = ops::linear(all ? ops::rms_norm(x, norm, 1e-5) : x, packed, stored, In, all ? std::optional(bias) : std::nullopt);
        if (gated) expected = ops::silu_mul(expected);
        if (all) expected = expected + residual;
        QCOMPARE(y.scalar_type(), type);
        QVERIFY(at::equal(y, expected));
        QVERIFY(at::equal(residual, residualBefore) && at::equal(x, xBefore));
    }

    void ropeAppendWritesBehindEveryHead() {
        const std::int64_t kv = 2, queries = 6, dim = 8, capacity = 9;
        at::manual_seed(4);
        const at::Tensor qkv = at::randn({1, (queries + 2 * kv) * dim}), position = at::full({1}, 21, at::kInt), inverse = at::rand({dim / 2});
        at::Tensor keys = at::randn({kv, capacity, dim}), values = at::randn({kv, capacity, dim}), positions = at::zeros({kv, capacity}, at::kInt), lengths = at::tensor({0, 8}, at::kInt);
        const at::Tensor keysBefore = keys.clone(), valuesBefore = values.clone();
        const at::Tensor q = ops::rope_append(qkv, position, inverse, keys, values, positions, lengths);
        const at::Tensor each = qkv.view({queries + 2 * kv, 1, dim});
        const auto turned = [&](std::int64_t head, std::int64_t i) {
            const double angle = 21.0 * inverse[i % (dim / 2)].item<double>(), a = each[head][0][i % (dim / 2)].item<double>(), c = each[head][0][i % (dim / 2) + dim / 2].item<double>();
            return i < dim / 2 ? a * std::cos(angle) - c * std::sin(angle) : c * std::cos(angle) + a * std::sin(angle);
        };
        for (std::int64_t i = 0; i < dim; ++i) {
            for (std::int64_t h = 0; h < queries; ++h) QVERIFY(std::abs(q[h][0][i].item<double>() - turned(h, i)) < 1e-5);
            for (std::int64_t h = 0; h < kv; ++h) {
                const std::int64_t slot = h == 0 ? 0 : 8;
                QVERIFY(std::abs(keys[h][slot][i].item<double>() - turned(queries + h, i)) < 1e-5);
                QCOMPARE(values[h][slot][i].item<float>(), each[queries + kv + h][0][i].item<float>());
            }
        }
        QCOMPARE(lengths[0].item<int>(), 1);
        QCOMPARE(lengths[1].item<int>(), 9);
        QCOMPARE(positions[1][8].item<int>(), 21);
        QVERIFY(at::equal(keys[1].narrow(0, 0, 8), keysBefore[1].narrow(0, 0, 8)) && at::equal(values[0].narrow(0, 1, 8), valuesBefore[0].narrow(0, 1, 8)));
    }

    void causalAttentionSeesWhatAttentionSees() {
        at::manual_seed(5);
        const at::Tensor q = at::randn({4, 5, 16}), k = at::randn({2, 12, 16}), v = at::randn({2, 12, 16});
        ops::AttentionStats stats;
        stats.logSumExp = at::zeros({1}); // of a pass before
        const at::Tensor out = ops::causal_attention(q, k, v, 10, 0.25, &stats);
        QCOMPARE(stats.logSumExp.sizes(), at::IntArrayRef({4, 5}));
        for (std::int64_t h = 0; h < 4; ++h)
            for (std::int64_t i = 0; i < 5; ++i) {
                const std::int64_t seen = 10 - 4 + i; // the own entry and all before it
                const at::Tensor logits = at::matmul(k[h / 2].narrow(0, 0, seen), q[h][i]) * 0.25, weights = at::softmax(logits, 0);
                QVERIFY(std::abs(stats.logSumExp[h][i].item<float>() - logits.logsumexp(0).item<float>()) < 1e-5);
                QVERIFY(at::allclose(out[i].narrow(0, h * 16, 16), at::matmul(weights, v[h / 2].narrow(0, 0, seen)), 1e-5, 1e-5));
            }
    }

    void manyQueriesInBf16SeeTheSame_data() { // in tiles, or where the processor multiplies bf16 otherwise, by another library's kernel
        QTest::addColumn<QString>("kernels");
        QTest::addColumn<int>("queries");
        QTest::addColumn<int>("held");
        for (const char* kernels : {"avx512amx", "avx512vnni"})
            for (const int queries : {63, 64, 130, 300})
                for (const int past : {0, 1, 70, 513}) QTest::addRow("%s, %d of %d", kernels, queries, queries + past) << QString(kernels) << queries << queries + past;
    }
    void manyQueriesInBf16SeeTheSame() {
        QFETCH(int, queries);
        QFETCH(int, held);
        QFETCH(QString, kernels);
        const auto before = cpuKernels().name;
        if (!useCpuKernels(kernels.toStdString())) QSKIP("this processor lacks the instruction set");
        at::manual_seed(queries + held);
        for (const auto& [heads, kvHeads, dim] : {std::tuple(9, 3, 64), {4, 4, 80}, {8, 1, 128}}) {
            const auto made = [&](std::int64_t n, std::int64_t rows) { return at::randn({n, rows, dim}).to(at::kBFloat16); };
            const at::Tensor q = made(heads, queries), k = made(kvHeads, held + 9), v = made(kvHeads, held + 9);
            k.narrow(1, held, 9).fill_(NAN), v.narrow(1, held, 9).fill_(NAN); // room behind the entries
            ops::AttentionStats stats, expected;
            const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat); };
            const at::Tensor out = ops::causal_attention(q, k, v, held, 0.125, &stats), reference = ops::causal_attention(wide(q), wide(k), wide(v), held, 0.125, &expected);
            QCOMPARE(out.sizes(), at::IntArrayRef({queries, heads * dim}));
            QCOMPARE(out.scalar_type(), at::kBFloat16);
            QVERIFY(at::allclose(wide(out), reference, 1e-2, 2e-2));
            QCOMPARE(stats.logSumExp.sizes(), expected.logSumExp.sizes());
            QVERIFY(at::allclose(stats.logSumExp, expected.logSumExp, 1e-4, 1e-3));
        }
        useCpuKernels(before);
    }

    void refuseWhatDoesNotFit() {
        const at::Tensor stored = at::randn({7, 8}).view(at::kByte);
        const int f32 = static_cast<int>(Stored::f32);
        QVERIFY_EXCEPTION_THROWN(ops::stored_matvec(at::randn({1, 9}), stored, f32, 8, {}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::stored_matvec(at::randn({2, 8}), stored, f32, 8, {}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::stored_matvec(at::randn({1, 8}), stored, f32, 8, {.gated = true}), EngineError); // seven rows
        QVERIFY_EXCEPTION_THROWN(ops::stored_matvec(at::randn({1, 8}), stored, f32, 8, {.norm = at::rand({7})}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::stored_matvec(at::randn({1, 8}), stored, f32, 8, {.residual = at::rand({1, 8})}), EngineError);
        const at::Tensor x = at::randn({1, 8}), w = at::randn({6, 8});
        QVERIFY_EXCEPTION_THROWN(ops::matvec(at::randn({2, 8}), w, {}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::matvec(x, at::randn({6, 9}), {}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::matvec(x, at::randn({5, 8}), {.gated = true}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::matvec(x, w, {.residual = at::randn({1, 5})}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::matvec(x, w.to(at::kBFloat16), {}), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::causal_attention(at::randn({2, 5, 4}), at::randn({2, 8, 4}), at::randn({2, 8, 4}), 4, 1), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::causal_attention(at::randn({3, 5, 4}), at::randn({2, 8, 4}), at::randn({2, 8, 4}), 6, 1), EngineError);
        at::Tensor k = at::randn({2, 3, 4}), v = k.clone(), p = at::zeros({2, 3}, at::kInt), n = at::zeros({2}, at::kInt);
        QVERIFY_EXCEPTION_THROWN(ops::rope_append(at::randn({1, 20}), at::zeros({1}, at::kInt), at::rand({2}), k, v, p, n), EngineError);
        QVERIFY_EXCEPTION_THROWN(ops::rope_append(at::randn({1, 24}), at::zeros({1}, at::kLong), at::rand({2}), k, v, p, n), EngineError);
    }
};

QTEST_APPLESS_MAIN(DecodeOpTest)
#include "decode_op_test.moc"
