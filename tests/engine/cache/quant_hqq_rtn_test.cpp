// hqq_rtn, outlier_rtn and layerquant, which packs with the same codec.
#include "tests/engine/cache/support.h"

using namespace keepsight;
using namespace keepsight::testing;

namespace {

at::Tensor stored(const std::string& text, Side side, const at::Tensor& x, std::int64_t* bytes = nullptr) {
    const auto s = sideOf(text, side, shapeOf(static_cast<int>(x.size(0)), static_cast<int>(x.size(2)), x.scalar_type()));
    s->append(x);
    s->settle(true);
    if (bytes) *bytes = s->storedBytes();
    return s->dense(x.size(1));
}

} // namespace

class QuantHqqRtnTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void errorStaysWithinHalfAStep_data() {
        QTest::addColumn<int>("bits");
        QTest::addColumn<int>("axis");
        for (const int bits : {2, 4, 8})
            for (const int axis : {0, 1})
                QTest::addRow("%d bits, axis %d", bits, axis) << bits << axis;
    }
    void errorStaysWithinHalfAStep() {
        QFETCH(int, bits);
        QFETCH(int, axis);
        const at::Tensor x = randomEntries(3, 77, 64, 1) + 1; // HQQ's own layout: rows of 64, or 64 rows
        const at::Tensor table = axis == 1 ? x.reshape({-1, 64}) : x.reshape({64, -1});
        const auto [low, high] = at::aminmax(table, axis, true);
        const at::Tensor found =
            stored("hqq_rtn:bits=" + std::to_string(bits) + ",axis_key=" + std::to_string(axis), Side::keys, x).reshape(table.sizes());
        QVERIFY(((found - table).abs() <= (high - low) / ((1 << bits) - 1) / 2 + (low.abs() + high.abs()) / 1024).all().item<bool>());
    }

    void aValueTakesFourAndAHalfBits() { // evaluations.md §5
        for (const Side side : {Side::keys, Side::values}) {
            std::int64_t bytes = 0;
            stored("hqq_rtn", side, randomEntries(3, 500, 64, 2), &bytes);
            QCOMPARE(static_cast<double>(bytes) * 8 / (3 * 500 * 64), 4.5);
        }
    }

    void generatedTokensArePackedTogether_data() {
        QTest::addColumn<int>("axis");
        QTest::newRow("across tokens") << 0;
        QTest::newRow("in a token") << 1;
    }
    void generatedTokensArePackedTogether() {
        QFETCH(int, axis);
        constexpr int R = 10;
        const auto side = sideOf("hqq_rtn:residual=10,axis_key=" + std::to_string(axis), Side::keys, shapeOf(2, 64));
        const at::Tensor x = randomEntries(2, 60, 64, 3);
        side->append(x.narrow(1, 0, 25)), side->settle(true);
        at::Tensor old = side->dense(25);
        for (int n = 26; n <= 60; ++n) {
            side->append(x.narrow(1, n - 1, 1)), side->settle(false);
            const std::int32_t exact = (n - 25) % R;
            QCOMPARE(side->packed(), (std::vector<std::int32_t>(2, n - exact)));
            QVERIFY(at::equal(side->dense(n).narrow(1, n - exact, exact), x.narrow(1, n - exact, exact)));
            if (axis == 1) QVERIFY(at::equal(side->dense(n).narrow(1, 0, 25), old)); // never coded again
        }
    }

    void withoutLargeValuesOutlierRtnIsHqqRtn() {
        const at::Tensor x = randomEntries(3, 200, 64, 4).clamp(-6, 6);
        for (const Side side : {Side::keys, Side::values}) {
            std::int64_t plain = 0, sparse = 0;
            QVERIFY(at::equal(stored("hqq_rtn", side, x, &plain), stored("outlier_rtn", side, x, &sparse)));
            QCOMPARE(sparse, plain);
        }
    }
    void aLoneLargeValueIsExactAndWidensNothing() {
        const at::Tensor x = randomEntries(3, 100, 64, 5).clamp(-3, 3);
        at::Tensor quiet = x.clone(), loud = x.clone();
        quiet[1][40][9] = 0.f, loud[1][40][9] = 100.f;
        for (const Side side : {Side::keys, Side::values}) {
            std::int64_t plain = 0, sparse = 0;
            at::Tensor expected = stored("hqq_rtn", side, quiet, &plain).clone(), found = stored("outlier_rtn", side, loud, &sparse);
            QCOMPARE(found[1][40][9].item<float>(), 100.f);
            expected[1][40][9] = 100.f;
            QVERIFY(at::equal(found, expected));
            QCOMPARE(sparse, plain + 6); // its 16-bit value and 32-bit place
        }
    }
    void largeValuesStayExactThroughEvictionAndDecoding() {
        const auto side = sideOf("outlier_rtn:residual=3", Side::values, shapeOf(3, 64));
        at::Tensor x = randomEntries(3, 90, 64, 6, 4).to(at::kHalf).to(at::kFloat);
        side->append(x.narrow(1, 0, 60)), side->settle(true);
        const Selection some = someOf({60, 60, 60}, 1);
        side->keep(some);
        std::vector<std::int32_t> held = countsOf(some);
        at::Tensor expected = picked(x, some, 90);
        for (int n = 60; n < 90; ++n) {
            side->append(x.narrow(1, n, 1)), side->settle(false);
            for (int h = 0; h < 3; ++h)
                expected[h][held[static_cast<std::size_t>(h)]++] = x[h][n];
        }
        const at::Tensor large = expected.abs() > 6, found = side->dense(90);
        QVERIFY(large.sum().item<int>() > 500);
        QVERIFY(at::equal(found.masked_select(large), expected.masked_select(large)));
    }

    void nearlyConstantGroupsDoNotOverflow() { // −min/scale would, in fp16
        const at::Tensor x = at::full({1, 4, 64}, 50.f) + randomEntries(1, 4, 64, 7) * 1e-6;
        QVERIFY(worst(stored("hqq_rtn", Side::keys, x), x) < 0.05);
    }

    void layersGetTheirOwnBits() {
        const auto q = quantizerOf("layerquant:begin=1,end=2,range_bits=8,bits=2,group=32");
        const at::Tensor x = randomEntries(2, 64, 64, 8);
        const auto bytesOf = [&](int layer) {
            const auto side = q->make(Side::values, LayerIndex{layer}, shapeOf(2, 64));
            side->append(x), side->settle(true);
            return side->storedBytes();
        };
        QCOMPARE(bytesOf(0), std::int64_t{2 * 64 * (16 + 8)});
        QCOMPARE(bytesOf(1), std::int64_t{2 * 64 * (64 + 8)});
        const auto plain = quantizerOf("layerquant:bits=16,range_bits=16")->make(Side::keys, LayerIndex{2}, shapeOf(2, 64));
        plain->append(x), plain->settle(true);
        QVERIFY(at::equal(plain->dense(64), x));
    }
    void layerquantLeavesGeneratedTokensExact() {
        const auto side = sideOf("layerquant", Side::keys, shapeOf(2, 64));
        const at::Tensor x = randomEntries(2, 300, 64, 9);
        side->append(x.narrow(1, 0, 100)), side->settle(true);
        side->append(x.narrow(1, 100, 200)), side->settle(false);
        QCOMPARE(side->packed(), (std::vector<std::int32_t>(2, 100)));
        QVERIFY(at::equal(side->dense(300).narrow(1, 100, 200), x.narrow(1, 100, 200)));
    }
    void nominalBitsOfAllLayersAddUp() { // policies.md §13: Σ C_l · b_l = 16 · L · C
        const ModelConfig config = configOf(30, 3, 64);
        const auto nominal = quantizerOf("layerquant:equal_memory=nominal"), honest = quantizerOf("layerquant:equal_memory=on");
        double sum = 0, real = 0;
        for (int l = 0; l < 30; ++l) {
            sum += nominal->tokensFor(128, LayerIndex{l}, config) * (l < 4 ? 8 : 4);
            real += honest->tokensFor(128, LayerIndex{l}, config) * honest->effectiveBits(LayerIndex{l}, config);
        }
        QCOMPARE(sum, 16.0 * 30 * 128);
        QVERIFY(real <= 16.0 * 30 * 128 && real > 16.0 * 30 * 127);
    }
};

QTEST_APPLESS_MAIN(QuantHqqRtnTest)
#include "quant_hqq_rtn_test.moc"
