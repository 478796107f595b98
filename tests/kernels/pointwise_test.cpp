#include "tests/kernels/support.h"

using namespace keepsight;
using namespace keepsight::test;

class PointwiseTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cleanup() { QVERIFY(useCpuKernels("avx512") || useCpuKernels("avx2") || useCpuKernels("baseline")); }

    void matchesTheDefinition_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<int>("rows");
        QTest::addColumn<int>("width");
        QTest::addColumn<bool>("bf16");
        for (const char* name : implementations)
            for (int rows : {1, 31, 33})
                for (int width : {2, 30, 34, 576, 4098})
                    for (bool bf16 : {false, true})
                        QTest::addRow("%s %d x %d%s", name, rows, width, bf16 ? " bf16" : "") << QString(name) << rows << width << bf16;
    }
    void matchesTheDefinition() {
        QFETCH(QString, implementation);
        QFETCH(int, rows);
        QFETCH(int, width);
        QFETCH(bool, bf16);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        const bool aten = implementation == "composite";
        const auto type = bf16 ? at::kBFloat16 : at::kFloat;
        const double limit = bf16 ? 0.01 : 2e-6;

        const at::Tensor x = random({rows, width}, 1, type, 3), weight = random({width}, 2);
        const double eps = 1e-5;
        const at::Tensor normed = aten
                                      ? composite<at::Tensor(const at::Tensor&, const at::Tensor&, double)>("rms_norm").call(x, weight, eps)
                                      : ops::rms_norm(x, weight, eps);
        const at::Tensor wide = x.to(at::kDouble);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(normed), doubles(wide / at::sqrt(wide.square().mean(1, true) + eps) * weight.to(at::kDouble)),
                                    limit);
        QVERIFY(sameBits(aten ? normed : ops::rms_norm(x.t().contiguous().t(), weight, eps), normed));

        const at::Tensor gateUp = random({rows, 2 * width}, 3, type, 10);
        const at::Tensor gated = aten ? composite<at::Tensor(const at::Tensor&)>("silu_mul").call(gateUp) : ops::silu_mul(gateUp);
        const at::Tensor a = gateUp.narrow(1, 0, width).to(at::kDouble), b = gateUp.narrow(1, width, width).to(at::kDouble);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(gated), doubles(a / (1 + at::exp(-a)) * b), limit);

        const int64_t heads = 3;
        const at::Tensor q = random({rows, heads, width}, 4, type).transpose(0, 1),
                         frequencies = at::pow(10000.0, at::arange(0, width, 2, at::kFloat) / -width);
        for (bool perHead : {false, true})
            for (double sign : {1.0, -1.0}) {
                const at::Tensor positions =
                    perHead ? at::arange(heads * rows, at::kInt).view({heads, rows}) * 91 : at::arange(rows, at::kInt) * 251;
                const at::Tensor turned =
                    aten ? composite<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, double)>("rope").call(
                               q, positions, frequencies, sign)
                         : ops::rope(q, positions, frequencies, sign);
                const at::Tensor angles =
                    (positions.to(at::kFloat).unsqueeze(-1) * frequencies).to(at::kDouble) * sign; // the angle itself is fp32
                const at::Tensor first = q.narrow(2, 0, width / 2).to(at::kDouble),
                                 second = q.narrow(2, width / 2, width / 2).to(at::kDouble);
                const at::Tensor expected =
                    at::cat({first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()}, 2);
                KEEPSIGHT_VERIFY_DIFFERENCE(doubles(turned), doubles(expected), limit);
            }
    }

    void extremeGatesStayFinite() {
        const at::Tensor gates = at::tensor({-1e30f, -200.f, -90.f, 0.f, 90.f, 1e30f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f}).view({1, 12});
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(ops::silu_mul(gates)), (std::vector<double>{0, 0, 0, 0, 90, 1e30}), 1e-6);
    }

    void turningBackRestores() {
        const at::Tensor x = random({3, 7, 64}, 1), positions = at::arange(7, at::kInt) * 1000,
                         frequencies = at::pow(10000.0, at::arange(0, 64, 2, at::kFloat) / -64);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(ops::rope(ops::rope(x, positions, frequencies), positions, frequencies, -1)), doubles(x), 1e-6);
    }

    void badArgumentsAreRefused() {
        const at::Tensor x = random({3, 7, 64}, 1), positions = at::arange(7, at::kInt), frequencies = at::ones({32});
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::rms_norm(random({2, 8}, 1), random({9}, 1), 1e-5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::rms_norm(at::ones({2, 8}, at::kInt), random({8}, 1), 1e-5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::silu_mul(random({2, 9}, 1)));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::rope(x, positions.narrow(0, 0, 6), frequencies));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::rope(x, positions, frequencies.narrow(0, 0, 31)));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::rope(x, positions.to(at::kLong), frequencies));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::rope(x.narrow(2, 0, 63), positions, frequencies));
    }
};

QTEST_APPLESS_MAIN(PointwiseTest)
#include "pointwise_test.moc"
