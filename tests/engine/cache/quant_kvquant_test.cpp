#include "tests/engine/cache/support.h"

#include "engine/cache/quant_levels.h"
#include "kernels/bind/ops.h"

using namespace keepsight;
using namespace keepsight::testing;

namespace {

double error(const at::Tensor& x, const at::Tensor& levels) {
    return (levels.index_select(0, levelCodes(x, levelBounds(levels)).to(at::kLong)) - x).square().mean().item<double>();
}

std::unique_ptr<Quantizer> calibrated(const std::string& text, const at::Tensor& keys, const at::Tensor& values) {
    auto q = makeQuantizer(parseQuantSpec(text));
    q->calibrate({{keys}, {values}});
    return q;
}

at::Tensor stored(const Quantizer& q, Side side, const at::Tensor& x) {
    const auto s = q.make(side, LayerIndex{0}, shapeOf(static_cast<int>(x.size(0)), static_cast<int>(x.size(2)), x.scalar_type()));
    s->append(x);
    s->settle(true);
    return s->dense(x.size(1));
}

} // namespace

class QuantKvQuantTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void learntLevelsBeatEvenOnes_data() {
        QTest::addColumn<int>("bits");
        for (const int bits : {2, 3, 4, 8})
            QTest::addRow("%d bits", bits) << bits;
    }
    void learntLevelsBeatEvenOnes() {
        QFETCH(int, bits);
        const at::Tensor x = (randomEntries(1, 5000, 1, 1) / 3).reshape({-1}).clamp(-1, 1);
        const at::Tensor nuq = nuqLevels(x, bits);
        QVERIFY(nuq.diff().ge(0).all().item<bool>());
        QCOMPARE(nuq.size(0), std::int64_t{1} << bits);
        QVERIFY(error(x, nuq) < error(x, uniformLevels(bits)));
        QVERIFY(at::equal(nuq, nuqLevels(x, bits)));
    }
    void learntLevelsFindClusters() {
        const at::Tensor x = at::cat({at::full({40}, -0.8f), at::full({1}, -0.1f), at::full({7}, 0.3f), at::full({90}, 0.9f)});
        QVERIFY(worst(nuqLevels(x, 2), at::tensor({-0.8f, -0.1f, 0.3f, 0.9f})) < 1e-6);
        QVERIFY(at::equal(nuqLevels(at::empty({0}), 3), uniformLevels(3)));
    }
    void normalFloatIsNf4() { // bitsandbytes' table
        const at::Tensor nf4 =
            at::tensor({-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0});
        QVERIFY(worst(normalFloatLevels(4), nf4) < 1e-6);
    }
    void momentsAreMatched() {
        const at::Tensor x = (randomEntries(1, 4000, 1, 2) / 4 + 0.1).reshape({-1}).clamp(-1, 1), levels = uniformLevels(2),
                         matched = matchMoments(levels, x);
        const at::Tensor coded = matched.index_select(0, levelCodes(x, levelBounds(levels)).to(at::kLong));
        QVERIFY(std::abs((coded.mean() - x.mean()).item<double>()) < 1e-5);
        QVERIFY(std::abs((coded.std() - x.std()).item<double>()) < 1e-5);
    }

    void outliersAreExact_data() {
        QTest::addColumn<double>("share");
        for (const double p : {0.01, 0.05, 0.3})
            QTest::addRow("%g", p) << p;
    }
    void outliersAreExact() {
        QFETCH(double, share);
        const at::Tensor x = randomEntries(3, 200, 64, 3).to(at::kHalf).to(at::kFloat);
        const auto q = calibrated("kvquant:first=0,bits=2,outliers=" + std::to_string(share), x, x);
        // Values: the ends of each token by rank.
        const at::Tensor found = stored(*q, Side::values, x), exact = found == x;
        const std::int64_t each = static_cast<std::int64_t>(std::ceil(share / 2 * 63));
        const auto [sorted, order] = x.sort(/*stable=*/true, -1, false);
        QVERIFY(exact.gather(2, order.narrow(2, 0, each)).all().item<bool>());
        QVERIFY(exact.gather(2, order.narrow(2, 64 - each, each)).all().item<bool>());
        // Keys: what lies outside the channel's quantiles.
        const at::Tensor keys = stored(*q, Side::keys, x), low = at::quantile(x, share / 2, 1, true),
                         high = at::quantile(x, 1 - share / 2, 1, true);
        const at::Tensor outside = (x < low - 2e-3) | (x > high + 2e-3); // thresholds are rounded to fp16
        QVERIFY(outside.any().item<bool>());
        QVERIFY(keys.eq(x).logical_or(outside.logical_not()).all().item<bool>());
        QVERIFY(!keys.eq(x).all().item<bool>());
        // The others lie in the range of the others, whose codes are not widened by them.
        QVERIFY((found - x).abs().max().item<double>() < (sorted.select(2, 63 - each) - sorted.select(2, each)).max().item<double>());
    }
    void allOutliersLoseNothing_data() {
        QTest::addColumn<int>("dim");
        QTest::addColumn<int>("type");
        for (const int dim : {64, 33, 320})
            for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf})
                QTest::addRow("%d %s", dim, c10::toString(type)) << dim << static_cast<int>(type);
    }
    void allOutliersLoseNothing() {
        QFETCH(int, dim);
        QFETCH(int, type);
        const at::Tensor x = randomEntries(3, 120, dim, 4).to(at::kHalf).to(static_cast<at::ScalarType>(type)),
                         other = randomEntries(3, 50, dim, 5);
        const auto q = calibrated("kvquant:outliers=1,bits=2", other, other);
        for (const Side side : {Side::keys, Side::values})
            QVERIFY(at::equal(stored(*q, side, x), x));
    }

    void sharedValuesDoNotConfuseTheRanks() { // ties: the number of outliers is that of the ranks
        at::Tensor x = at::zeros({1, 3, 64});
        x[0][1].fill_(2.5f);
        x[0][2].narrow(0, 0, 10).fill_(1.f);
        const auto q = calibrated("kvquant:first=0", randomEntries(1, 50, 64, 1), randomEntries(1, 50, 64, 2));
        const at::Tensor found = stored(*q, Side::values, x);
        QVERIFY(at::equal(found.narrow(1, 0, 2), x.narrow(1, 0, 2)));
        QVERIFY(worst(found, x) < 0.1);
    }

    void packedKeysRotateAsTheyAre() { // turning x̃ and turning back gives x̃: positions do not matter to what is stored
        const at::Tensor plain = randomEntries(3, 100, 64, 6);
        const auto q = calibrated("kvquant", plain, plain);
        QVERIFY(q->plainKeys());
        const at::Tensor frequencies = at::pow(10000.0, at::arange(32, at::kFloat) * (-1.0 / 32)),
                         positions = at::arange(100, at::kInt) + 5000;
        const at::Tensor read = stored(*q, Side::keys, plain), rotated = ops::rope(read, positions, frequencies);
        QVERIFY(worst(ops::rope(rotated, positions, frequencies, -1), read) < 1e-5);
        const at::Tensor exact = ops::rope(plain, positions, frequencies); // rotation keeps lengths, so the error is that of x̃
        QVERIFY(std::abs((rotated - exact).square().sum().item<double>() / (read - plain).square().sum().item<double>() - 1) < 1e-3);
    }

    void firstEntriesStayExact() {
        const at::Tensor x = randomEntries(3, 50, 64, 7);
        const auto q = calibrated("kvquant:first=4,bits=2", x, x);
        const auto side = q->make(Side::keys, LayerIndex{0}, shapeOf(3, 64));
        side->append(x, {50, 2, 50});
        side->settle(true);
        QCOMPARE(side->packed(), (std::vector<std::int32_t>{46, 0, 46}));
        QVERIFY(at::equal(side->dense(50).narrow(1, 0, 2), x.narrow(1, 0, 2)));
        side->append(x.narrow(1, 10, 5)), side->settle(false); // the short head fills up its first ones
        QCOMPARE(side->packed(), (std::vector<std::int32_t>{51, 3, 51}));
        QVERIFY(at::equal(side->dense(55)[1].narrow(0, 2, 2), x[1].narrow(0, 10, 2)));
        Selection later{{{10, 20}, {5}, {4}}};
        const at::Tensor expected = picked(side->dense(55), later, 2);
        side->keep(later);
        QVERIFY(at::equal(side->dense(2), expected));
        side->append(x.narrow(1, 0, 1)), side->settle(false); // evicted ones are not replaced
        QCOMPARE(side->packed(), (std::vector<std::int32_t>{3, 2, 2}));
    }

    void bytesFollowTheFormula() {
        const at::Tensor x = randomEntries(3, 101, 64, 8);
        const auto q = calibrated("kvquant:bits=4", x, x);
        const auto values = q->make(Side::values, LayerIndex{0}, shapeOf(3, 64));
        values->append(x), values->settle(true);
        const std::int64_t levels = (16 + 15) * 4, first = 3 * 64 * 4;
        QCOMPARE(values->storedBytes(),
                 first + std::int64_t{3 * 100 * (32 + 4 + 2 * (2 + 1))} + levels); // one outlier at each end: fp16 and channel
        const auto keys = q->make(Side::keys, LayerIndex{0}, shapeOf(3, 64));
        keys->append(x), keys->settle(true);
        const at::Tensor read = keys->dense(101);
        const std::int64_t constants = levels + 3 * 64 * 4, sparse = keys->storedBytes() - first - 3 * 100 * 32 - constants;
        QVERIFY(sparse % 6 == 0 && sparse > 0);
        QVERIFY2(std::abs(static_cast<double>(sparse) / 6 / (3 * 100 * 64) - 0.01) < 0.015, qPrintable(QString::number(sparse)));
    }
};

QTEST_APPLESS_MAIN(QuantKvQuantTest)
#include "quant_kvquant_test.moc"
