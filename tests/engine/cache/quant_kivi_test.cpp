#include "tests/engine/cache/support.h"

using namespace keepsight;
using namespace keepsight::testing;

class QuantKiviTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void errorStaysWithinHalfAStep_data() {
        QTest::addColumn<int>("bits");
        QTest::addColumn<bool>("keys");
        for (const int bits : {2, 4, 8})
            for (const bool keys : {true, false})
                QTest::addRow("%d bits, %s", bits, keys ? "keys" : "values") << bits << keys;
    }
    void errorStaysWithinHalfAStep() {
        QFETCH(int, bits);
        QFETCH(bool, keys);
        constexpr int Group = 32, Tokens = 128;
        const auto side = sideOf("kivi:bits=" + std::to_string(bits) + ",residual=32", keys ? Side::keys : Side::values, shapeOf(3, 64));
        const at::Tensor x = randomEntries(3, Tokens, 64, 1) + 2;
        side->append(x);
        side->settle(true);
        const std::int64_t packed = keys ? Tokens : Tokens - 32;
        const at::Tensor grouped = (keys ? x : x.narrow(1, 0, packed)).unflatten(keys ? 1 : 2, {-1, Group});
        const auto [low, high] = at::aminmax(grouped, keys ? 2 : 3, true);
        const at::Tensor step = (high - low) / ((1 << bits) - 1),
                         error = (side->dense(Tokens).narrow(1, 0, packed).unflatten(keys ? 1 : 2, {-1, Group}) - grouped).abs();
        const at::Tensor rounding = (low.abs() + high.abs()) / 1024; // of scale and zero to fp16
        QVERIFY((error <= step / 2 + rounding).all().item<bool>());
        QVERIFY((error > step / 4).any().item<bool>()); // it is coded at all
    }

    void outlierChannelStaysAlone() {
        at::Tensor x = randomEntries(1, 64, 64, 2), loud = x.clone();
        loud.select(2, 7).mul_(100);
        const auto plain = sideOf("kivi:residual=32", Side::keys, shapeOf(1, 64)),
                   other = sideOf("kivi:residual=32", Side::keys, shapeOf(1, 64));
        plain->append(x), plain->settle(true);
        other->append(loud), other->settle(true);
        at::Tensor a = plain->dense(64).clone(), b = other->dense(64).clone();
        QVERIFY(!at::equal(a, b));
        a.select(2, 7).zero_(), b.select(2, 7).zero_();
        QVERIFY(at::equal(a, b));
    }

    void constantGroupsReadAsTheirValue() {
        for (const Side side : {Side::keys, Side::values}) {
            const auto stored = sideOf("kivi:residual=32", side, shapeOf(2, 64));
            stored->append(at::full({2, 64, 64}, 0.375f));
            stored->settle(true);
            QVERIFY(at::equal(stored->dense(64), at::full({2, 64, 64}, 0.375f)));
        }
    }

    void residualFollowsTheRules_data() {
        QTest::addColumn<int>("prompt");
        for (const int n : {1, 63, 64, 65, 100, 128, 200})
            QTest::addRow("%d", n) << n;
    }
    void residualFollowsTheRules() {
        QFETCH(int, prompt);
        constexpr int R = 64;
        const auto keys = sideOf("kivi:residual=64", Side::keys, shapeOf(2, 64)),
                   values = sideOf("kivi:residual=64", Side::values, shapeOf(2, 64));
        const at::Tensor x = randomEntries(2, prompt + 150, 64, 3);
        const at::Tensor first = x.narrow(1, 0, prompt);
        keys->append(first), values->append(first);
        keys->settle(true), values->settle(true);
        for (int n = prompt;; ++n) {
            const std::int32_t packedKeys = n - n % R, packedValues = std::max(0, n - R);
            QCOMPARE(keys->packed(), (std::vector<std::int32_t>(2, packedKeys)));
            QCOMPARE(values->packed(), (std::vector<std::int32_t>(2, packedValues)));
            QVERIFY(at::equal(keys->dense(n).narrow(1, packedKeys, n - packedKeys), x.narrow(1, packedKeys, n - packedKeys)));
            QVERIFY(at::equal(values->dense(n).narrow(1, packedValues, n - packedValues), x.narrow(1, packedValues, n - packedValues)));
            // keys 2 bits a code, 4 bytes a group of 32 and channel; values the same per token; the rest in the model's type
            QCOMPARE(keys->storedBytes(), std::int64_t{2} * (packedKeys * 16 + packedKeys / 32 * 64 * 4 + (n - packedKeys) * 64 * 4));
            QCOMPARE(values->storedBytes(), std::int64_t{2} * (packedValues * (16 + 2 * 4) + (n - packedValues) * 64 * 4));
            if (n == prompt + 150) break;
            keys->append(x.narrow(1, n, 1)), values->append(x.narrow(1, n, 1));
            keys->settle(false), values->settle(false);
        }
    }

    void aPackedValueTakesThreeBits() { // evaluations.md §5
        const auto side = sideOf("kivi", Side::keys, shapeOf(3, 64));
        side->append(randomEntries(3, 1280, 64, 4)), side->settle(true);
        QCOMPARE(static_cast<double>(side->storedBytes()) * 8 / (3 * 1280 * 64), 3.0);
        const auto values = sideOf("kivi", Side::values, shapeOf(3, 64, at::kBFloat16));
        values->append(randomEntries(3, 1280, 64, 4)), values->settle(true);
        QCOMPARE(static_cast<double>(values->storedBytes() - 3 * 128 * 64 * 2) * 8 / (3 * 1152 * 64), 3.0);
    }

    void groupsShrinkAndGoWithTheirEntries() {
        const auto side = sideOf("kivi:residual=32", Side::keys, shapeOf(1, 64));
        side->append(randomEntries(1, 96, 64, 5)), side->settle(true);
        const auto bytes = [](std::int64_t entries, std::int64_t groups) { return entries * 16 + groups * 64 * 4; };
        QCOMPARE(side->storedBytes(), bytes(96, 3));
        Selection selection{{{}}};
        for (int i = 0; i < 96; ++i)
            if (i == 3 || i >= 64) selection.keep[0].push_back(i); // one of the first group, none of the second
        const at::Tensor expected = picked(side->dense(96), selection, 33);
        side->keep(selection);
        QCOMPARE(side->storedBytes(), bytes(33, 2));
        QVERIFY(at::equal(side->dense(33), expected));
        side->append(randomEntries(1, 32, 64, 6)), side->settle(false);
        QCOMPARE(side->storedBytes(), bytes(65, 3));
        QVERIFY(at::equal(side->dense(65).narrow(1, 0, 33), expected));
        side->keep({{{64}}});
        QCOMPARE(side->storedBytes(), bytes(1, 1));
    }

    void memoryOfThePromptIsFreed() {
        const auto side = sideOf("kivi", Side::keys, shapeOf(3, 64));
        side->append(randomEntries(3, 4096, 64, 7));
        const std::int64_t before = side->allocatedBytes();
        side->settle(true);
        QVERIFY(side->allocatedBytes() * 8 < before);
        QVERIFY(side->allocatedBytes() <= side->storedBytes() * 11 / 10);
    }
};

QTEST_APPLESS_MAIN(QuantKiviTest)
#include "quant_kivi_test.moc"
