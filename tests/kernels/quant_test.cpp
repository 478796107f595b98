#include "kernels/quant.h"
#include "kernels/bind/quantize.h"
#include "tests/kernels/support.h"

using namespace keepsight;
using namespace keepsight::test;

namespace {

at::Tensor randomCodes(std::vector<int64_t> sizes, int bits, unsigned seed) {
    std::mt19937 generator(seed);
    at::Tensor t = at::empty(sizes, at::kByte);
    for (int64_t i = 0; i < t.numel(); ++i)
        t.data_ptr<uint8_t>()[i] = static_cast<uint8_t>(generator() % (1u << bits));
    return t;
}

using Dequantize = void(at::Tensor&, const at::Tensor&, int64_t, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                        const std::optional<at::Tensor>&, at::IntArrayRef, at::IntArrayRef);

} // namespace

class QuantTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void packsAndUnpacks_data() {
        QTest::addColumn<int>("bits");
        QTest::addColumn<int>("dim");
        for (int bits : {2, 3, 4, 8})
            for (int dim : {1, 2, 7, 8, 31, 33, 64, 80, 127, 4097})
                QTest::addRow("%d bits, %d", bits, dim) << bits << dim;
    }
    void packsAndUnpacks() {
        QFETCH(int, bits);
        QFETCH(int, dim);
        const at::Tensor codes = randomCodes({3, 5, dim}, bits, 1), packed = ops::pack_codes(codes, bits);
        QCOMPARE(packed.size(2), packedBytes(dim, bits));
        if (dim % 8 == 0) QCOMPARE(packed.size(2), int64_t{dim} * bits / 8);
        QVERIFY(at::equal(ops::unpack_codes(packed, bits, dim), codes));
    }

    // The way for few rows gives what the calls on many give.
    void packsGroups_data() {
        QTest::addColumn<int>("bits");
        QTest::addColumn<int>("dim");
        QTest::addColumn<int>("group");
        for (int bits : {2, 4, 8})
            for (const auto& [dim, group] : {std::pair{64, 32}, {64, 64}, {128, 4}, {33, 11}, {31, 31}, {80, 16}})
                QTest::addRow("%d bits, %d by %d", bits, dim, group) << bits << dim << group;
    }
    void packsGroups() {
        QFETCH(int, bits);
        QFETCH(int, dim);
        QFETCH(int, group);
        at::Tensor x = random({3, 7, dim}, 5, at::kFloat, 3);
        x[0][0].fill_(-1.5); // a constant group
        x[1][2][3] = 1e6;    // beyond fp16
        const auto expected = composite<std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, int64_t, int64_t, double)>("pack_groups").call(x, bits, group, 5e-5);
        const ops::PackedRows rows = ops::pack_groups(x, bits, group, 5e-5);
        QVERIFY(at::equal(rows.codes, std::get<0>(expected)));
        QVERIFY(at::equal(rows.scale, std::get<1>(expected)) && at::equal(rows.zero, std::get<2>(expected)));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::pack_groups(x, bits, dim + 1, 5e-5));
    }

    void reads_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<int>("bits");
        QTest::addColumn<int>("dim");
        QTest::addColumn<int>("groups");
        QTest::addColumn<bool>("ends");
        QTest::addColumn<bool>("levels");
        QTest::addColumn<int>("type");
        for (const char* implementation : implementations)
            for (int bits : {2, 3, 4, 8})
                for (const auto& [dim, groups] : {std::pair{64, 2}, {64, 1}, {64, 64}, {33, 3}, {31, 31}, {80, 5}, {7, 1}})
                    for (bool ends : {false, true})
                        for (bool levels : {false, true})
                            for (auto type : {at::kFloat, at::kBFloat16, at::kHalf})
                                QTest::addRow("%s %d bits %d/%d%s%s %s", implementation, bits, dim, groups,
                                              ends ? " groups of entries" : "", levels ? " levels" : "", c10::toString(type))
                                    << QString(implementation) << bits << dim << groups << ends << levels << static_cast<int>(type);
    }
    void reads() {
        QFETCH(QString, implementation);
        QFETCH(int, bits);
        QFETCH(int, dim);
        QFETCH(int, groups);
        QFETCH(bool, ends);
        QFETCH(bool, levels);
        QFETCH(int, type);
        if (!choose(implementation)) QSKIP("this processor lacks it");
        constexpr int64_t Heads = 3, Capacity = 150;
        const std::vector<int64_t> counts{137, 0, 70}, offsets{5, 3, 80};
        const at::Tensor codes = randomCodes({Heads, 140, dim}, bits, 2);
        const int64_t rows = ends ? 4 : 140;
        const at::Tensor scale = random({Heads, rows, groups}, 3, at::kHalf), zero = random({Heads, rows, groups}, 4, at::kHalf);
        const at::Tensor groupEnds = at::tensor({10, 40, 41, 200, 1, 2, 3, 4, 64, 65, 128, 2147483647}, at::kInt).view({Heads, 4}),
                         table = random({1 << bits}, 5);
        at::Tensor out = at::full({Heads, Capacity, dim}, 7, static_cast<at::ScalarType>(type));
        const std::optional<at::Tensor> e = ends ? std::optional(groupEnds) : std::nullopt,
                                        l = levels ? std::optional(table) : std::nullopt;
        if (implementation == "composite")
            composite<Dequantize>("dequantize_entries").call(out, ops::pack_codes(codes, bits), bits, scale, zero, e, l, counts, offsets);
        else
            ops::dequantize_entries(out, ops::pack_codes(codes, bits), bits, scale, zero, e, l, counts, offsets);

        at::Tensor expected = at::full({Heads, Capacity, dim}, 7, at::kDouble);
        const at::Tensor wideScale = scale.to(at::kDouble), wideZero = zero.to(at::kDouble), wideTable = table.to(at::kDouble);
        const auto *s = wideScale.data_ptr<double>(), *z = wideZero.data_ptr<double>();
        for (int64_t h = 0; h < Heads; ++h)
            for (int64_t r = 0, row = 0; r < counts[static_cast<size_t>(h)]; ++r) {
                while (ends && row < 3 && r >= groupEnds.data_ptr<int32_t>()[h * 4 + row])
                    ++row;
                if (!ends) row = r;
                double* to = expected.data_ptr<double>() + (h * Capacity + offsets[static_cast<size_t>(h)] + r) * dim;
                for (int64_t i = 0; i < dim; ++i) {
                    const uint8_t code = codes.data_ptr<uint8_t>()[(h * 140 + r) * dim + i];
                    const int64_t at = (h * rows + row) * groups + i / (dim / groups);
                    to[i] = (levels ? wideTable.data_ptr<double>()[code] : code) * s[at] + z[at];
                }
            }
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(out), doubles(expected),
                                    type == static_cast<int>(at::kFloat)  ? 2e-6 * (bits == 8 ? 64 : 4)
                                    : type == static_cast<int>(at::kHalf) ? 1e-3
                                                                          : 8e-3);
    }

    void refusesWhatDoesNotFit() {
        at::Tensor out = at::zeros({2, 10, 64});
        const at::Tensor codes = at::zeros({2, 5, 32}, at::kByte), half = at::zeros({2, 5, 2}, at::kHalf);
        const auto call = [&](const at::Tensor& c, int64_t bits, const at::Tensor& s, std::vector<int64_t> counts,
                              std::vector<int64_t> offsets) { ops::dequantize_entries(out, c, bits, s, s, {}, {}, counts, offsets); };
        call(codes, 4, half, {5, 5}, {0, 5});
        QVERIFY_THROWS_EXCEPTION(EngineError, call(codes, 5, half, {5, 5}, {0, 0}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(codes, 2, half, {5, 5}, {0, 0}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(codes, 4, half.to(at::kFloat), {5, 5}, {0, 0}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(codes, 4, half.narrow(1, 0, 4), {5, 5}, {0, 0}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(codes, 4, half, {6, 5}, {0, 0}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(codes, 4, half, {5, 5}, {6, 0}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(codes, 4, half, {5}, {0}));
    }
};

QTEST_APPLESS_MAIN(QuantTest)
#include "quant_test.moc"
