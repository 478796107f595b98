// Properties every quantizer must have, over the whole registry and some variants.
#include "tests/engine/cache/support.h"

#include "engine/cache/quant_levels.h"
#include "engine/policy/spec.h"

using namespace keepsight;
using namespace keepsight::testing;

namespace {

constexpr int Heads = 3, Dim = 64, Prompt = 300;

bool across(const std::string& text, Side side) { // groups cross tokens: nothing can leave without the others changing
    const QuantSpec spec = parseQuantSpec(text);
    if (spec.id == "layerquant") return side == Side::values && spec.text().find("range_bits=16") == std::string::npos;
    if (spec.id != "hqq_rtn" && spec.id != "outlier_rtn") return false;
    return Params(quantEntry(spec.id).info, spec).integer(side == Side::keys ? "axis_key" : "axis_value") == 0;
}

} // namespace

class QuantizersTest : public QObject {
    Q_OBJECT

    static void rows(bool types = false) {
        QTest::addColumn<QString>("text");
        QTest::addColumn<bool>("keys");
        QTest::addColumn<int>("type");
        for (const std::string& text : specs())
            for (const bool keys : {true, false})
                for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf})
                    if (types || type == at::kFloat)
                        QTest::addRow("%s %s %s", text.c_str(), keys ? "keys" : "values", c10::toString(type))
                            << QString::fromStdString(text) << keys << static_cast<int>(type);
    }

private Q_SLOTS:
    void readsBackWhatWasStored_data() { rows(true); }
    void readsBackWhatWasStored() {
        QFETCH(QString, text);
        QFETCH(bool, keys);
        QFETCH(int, type);
        const auto dtype = static_cast<at::ScalarType>(type);
        const auto side = sideOf(text.toStdString(), keys ? Side::keys : Side::values, shapeOf(Heads, Dim, dtype));
        const at::Tensor x = randomEntries(Heads, Prompt, Dim, 1).to(dtype), more = randomEntries(Heads, 40, Dim, 2).to(dtype);
        side->append(x);
        QCOMPARE(worst(side->dense(Prompt), x), 0.0); // nothing is lost before it is packed
        side->settle(true);
        for (int i = 0; i < 40; ++i) {
            side->append(more.narrow(1, i, 1));
            side->settle(false);
        }
        const at::Tensor dense = side->dense(400), expected = at::cat({x, more}, 1);
        QCOMPARE(dense.scalar_type(), dtype);
        QCOMPARE(dense.sizes().vec(), (std::vector<std::int64_t>{Heads, 400, Dim}));
        QVERIFY(dense.narrow(1, 340, 60).eq(0).all().item<bool>());
        const double error = (dense.narrow(1, 0, 340).to(at::kFloat) - expected.to(at::kFloat)).square().mean().item<double>();
        QVERIFY2(error < 0.25, qPrintable(QString::number(error))); // of a variance of 1; 2 bits in wide groups come to 0.2
        QVERIFY(side->allocatedBytes() >= side->storedBytes());
    }

    void evictsWithoutTouchingWhatStays_data() { rows(true); }
    void evictsWithoutTouchingWhatStays() {
        QFETCH(QString, text);
        QFETCH(bool, keys);
        QFETCH(int, type);
        const Side which = keys ? Side::keys : Side::values;
        const auto dtype = static_cast<at::ScalarType>(type);
        const auto side = sideOf(text.toStdString(), which, shapeOf(Heads, Dim, dtype));
        side->append(randomEntries(Heads, Prompt, Dim, 3, 3).to(dtype));
        side->settle(true);
        std::vector<std::int32_t> held(Heads, Prompt);
        for (unsigned round = 0; round < 4; ++round) { // ragged from the first on
            const at::Tensor before = side->dense(500);
            const Selection selection = someOf(held, round);
            side->keep(selection);
            held = countsOf(selection);
            const at::Tensor after = side->dense(500), expected = picked(before, selection, 500);
            if (across(text.toStdString(), which))
                QVERIFY2(worst(after, expected) < 8, "coded again: within a step or so");
            else
                QVERIFY(at::equal(after, expected));
            const at::Tensor fresh = randomEntries(Heads, 7, Dim, 10 + round, 3).to(dtype);
            for (int i = 0; i < 7; ++i) {
                side->append(fresh.narrow(1, i, 1));
                side->settle(false);
            }
            for (std::int32_t& n : held)
                n += 7;
            if (!across(text.toStdString(), which)) { // old rows read as before: never coded twice, unless they were still exact
                const at::Tensor now = side->dense(500);
                for (int h = 0; h < Heads; ++h) {
                    const auto codes = std::min(held[static_cast<std::size_t>(h)] - 7, side->packed()[static_cast<std::size_t>(h)]);
                    const auto stable =
                        parseQuantSpec(text.toStdString()).id == "kivi" || parseQuantSpec(text.toStdString()).id == "kvquant"
                            ? std::min(codes, 40)
                            : 0;
                    QVERIFY(at::equal(now[h].narrow(0, 0, stable), after[h].narrow(0, 0, stable)));
                }
            }
        }
        Selection none;
        none.keep.resize(Heads);
        side->keep(none);
        QVERIFY(side->dense(4).eq(0).all().item<bool>());
        side->append(randomEntries(Heads, 5, Dim, 77).to(dtype)); // usable again
        side->settle(false);
        QVERIFY(!side->dense(5).eq(0).all().item<bool>());
    }

    void headsMayComeWithDifferentCounts_data() { rows(); }
    void headsMayComeWithDifferentCounts() {
        QFETCH(QString, text);
        QFETCH(bool, keys);
        const Side which = keys ? Side::keys : Side::values;
        const auto q = quantizerOf(text.toStdString(), 1, Heads, Dim);
        const auto ragged = q->make(which, LayerIndex{0}, shapeOf(Heads, Dim));
        const at::Tensor x = randomEntries(Heads, Prompt, Dim, 5);
        const std::vector<std::int32_t> counts{Prompt, 0, 170};
        at::Tensor rubbish = x.clone();
        for (int h = 0; h < Heads; ++h)
            rubbish[h].narrow(0, counts[static_cast<std::size_t>(h)], Prompt - counts[static_cast<std::size_t>(h)]).fill_(1e4);
        ragged->append(rubbish, counts);
        ragged->settle(true);
        const at::Tensor dense = ragged->dense(Prompt);
        for (int h = 0; h < Heads; ++h) {
            const auto n = counts[static_cast<std::size_t>(h)];
            QVERIFY(dense[h].narrow(0, n, Prompt - n).eq(0).all().item<bool>());
            if (n == 0 || across(text.toStdString(), which)) continue;
            const auto alone = q->make(which, LayerIndex{0}, shapeOf(Heads, Dim)); // as if all heads were as long
            alone->append(x.narrow(1, 0, n));
            alone->settle(true);
            QVERIFY(at::equal(dense[h].narrow(0, 0, n), alone->dense(n)[h]));
        }
    }

    void samePathTwiceGivesTheSameBits_data() { rows(); }
    void samePathTwiceGivesTheSameBits() {
        QFETCH(QString, text);
        QFETCH(bool, keys);
        at::Tensor first;
        for (int run = 0; run < 2; ++run) {
            const auto side = sideOf(text.toStdString(), keys ? Side::keys : Side::values, shapeOf(Heads, Dim));
            side->append(randomEntries(Heads, Prompt, Dim, 6));
            side->settle(true);
            if (run == 0)
                first = side->dense(Prompt);
            else
                QVERIFY(at::equal(first, side->dense(Prompt)));
        }
    }

    void textsAreRead() {
        QCOMPARE(parseQuantSpec("none").text(), std::string("none"));
        QCOMPARE(parseQuantSpec("kivi:bits=2,group=32").text(), std::string("kivi"));
        QCOMPARE(parseQuantSpec("kivi:residual=64,bits=4").text(), std::string("kivi:bits=4,residual=64"));
        QCOMPARE(parseQuantSpec("hqq").id, std::string("hqq_rtn"));
        QVERIFY(makeQuantizer(parseQuantSpec("none")) == nullptr);
        for (const std::string& text : specs())
            QVERIFY(parseQuantSpec(parseQuantSpec(text).text()) == parseQuantSpec(text));
    }
    void wrongTextsAreRefused_data() {
        QTest::addColumn<QString>("text");
        QTest::addColumn<QString>("part");
        QTest::newRow("unknown") << "kiwi"
                                 << "expected one of: none, kivi";
        QTest::newRow("bits") << "kivi:bits=3"
                              << "expects one of 2, 4, 8";
        QTest::newRow("parameter") << "kivi:axis_key=1"
                                   << "no parameter 'axis_key'";
        QTest::newRow("residual is no multiple") << "kivi:residual=100"
                                                 << "multiple of the group 32";
        QTest::newRow("range turned round") << "layerquant:begin=5"
                                            << "at most the end 4";
        QTest::newRow("share") << "kvquant:outliers=1.5"
                               << "from 0 to 1";
        QTest::newRow("none takes nothing") << "none:bits=4"
                                            << "takes none";
    }
    void wrongTextsAreRefused() {
        QFETCH(QString, text);
        QFETCH(QString, part);
        try {
            parseQuantSpec(text.toStdString());
            QFAIL("not refused");
        } catch (const UsageError& e) {
            QVERIFY2(QString(e.what()).contains(part), e.what());
        }
    }
    void modelsThatDoNotFitAreRefused() {
        QVERIFY(quantizerOf("kivi")->refuses(configOf(1, 3, 64)).empty());
        QCOMPARE(quantizerOf("kivi")->refuses(configOf(1, 3, 80)),
                 std::string("kivi: groups of 32 values do not divide the model's head size 80"));
        QVERIFY(!quantizerOf("layerquant")->refuses(configOf(8, 3, 80)).empty());
        QVERIFY(quantizerOf("layerquant:bits=16,end=0")->refuses(configOf(8, 3, 80)).empty());
        QVERIFY_THROWS_EXCEPTION(EngineError, quantizerOf("hqq_rtn")->make(Side::keys, LayerIndex{0}, shapeOf(3, 80)));
        QVERIFY_THROWS_EXCEPTION(
            EngineError, makeQuantizer(parseQuantSpec("kvquant"))->make(Side::keys, LayerIndex{0}, shapeOf(3, 64))); // not calibrated
    }
    void sidesRefuseWhatDoesNotFit() {
        const auto side = sideOf("kivi", Side::keys, shapeOf(Heads, Dim));
        side->append(randomEntries(Heads, 10, Dim, 1));
        QVERIFY_THROWS_EXCEPTION(EngineError, side->append(randomEntries(Heads, 10, 32, 1)));
        QVERIFY_THROWS_EXCEPTION(EngineError, side->dense(9));
        QVERIFY_THROWS_EXCEPTION(EngineError, side->keep({{{0}, {10}, {}}}));
        QVERIFY_THROWS_EXCEPTION(EngineError, side->keep({{{0}}}));
    }

    void bitsAreCountedWithScales() {
        const ModelConfig config = configOf(30, 3, 64);
        QCOMPARE(quantizerOf("kivi")->effectiveBits(LayerIndex{0}, config), 3.0);
        QCOMPARE(quantizerOf("hqq_rtn")->effectiveBits(LayerIndex{0}, config), 4.5);
        QCOMPARE(quantizerOf("outlier_rtn")->effectiveBits(LayerIndex{0}, config), 4.5);
        QCOMPARE(quantizerOf("kvquant:bits=3")->effectiveBits(LayerIndex{0}, config), 3.25);
        QCOMPARE(quantizerOf("layerquant")->effectiveBits(LayerIndex{3}, config), 8.5);
        QCOMPARE(quantizerOf("layerquant")->effectiveBits(LayerIndex{4}, config), 4.5);
        QCOMPARE(quantizerOf("kivi")->tokensFor(128, LayerIndex{0}, config), 128);
        QCOMPARE(quantizerOf("kivi:equal_memory=on")->tokensFor(128, LayerIndex{0}, config), 682); // ⌊128 · 16 / 3⌋
        QCOMPARE(quantizerOf("hqq_rtn:equal_memory=on")->tokensFor(128, LayerIndex{0}, config), 455);
    }
};

QTEST_APPLESS_MAIN(QuantizersTest)
#include "quantizers_test.moc"
