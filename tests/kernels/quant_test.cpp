#include "kernels/quant.h"
#include "kernels/bind/quantize.h"
#include "tests/kernels/support.h"

#include <functional>
#include <limits>

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

    void packsAcrossHeadsAnew_data() {
        QTest::addColumn<int>("bits");
        QTest::addColumn<int>("dim");
        QTest::addColumn<int>("group");
        for (int bits : {2, 3, 4, 8})
            for (const auto& [dim, group] : {std::pair{64, 64}, {64, 16}, {128, 64}, {80, 16}, {31, 31}, {6, 1}})
                QTest::addRow("%d bits, %d by %d", bits, dim, group) << bits << dim << group;
    }
    // Against the rows themselves, coded as a whole after every change.
    void packsAcrossHeadsAnew() {
        QFETCH(int, bits);
        QFETCH(int, dim);
        QFETCH(int, group);
        constexpr int64_t Heads = 3, Room = 140; // entries
        const int64_t capacity = Room * dim / group;
        ops::AcrossCodes across{at::zeros({1, group, packedBytes(capacity, bits)}, at::kByte),
                                at::full({1, 1, capacity}, NAN, at::kHalf),
                                at::full({1, 1, capacity}, NAN, at::kHalf),
                                at::zeros({Heads}, at::kInt),
                                bits,
                                dim,
                                5e-5};
        std::vector<at::Tensor> rows(Heads, at::zeros({0, dim})); // of each head, as they were last decoded
        const auto changed = [&] {
            std::vector<int32_t> lengths;
            for (const at::Tensor& r : rows)
                lengths.push_back(static_cast<int32_t>(r.size(0)));
            const at::Tensor all = at::cat(rows);
            const int64_t width = all.numel() / group;
            if (!at::equal(across.lengths, at::tensor(lengths, at::kInt))) return false;
            if (width == 0) return true;
            const at::Tensor table = all.reshape({1, group, width});
            const auto [low, high] = at::aminmax(table, 1, true);
            const ops::Affine a = ops::affine(low, high, bits, 5e-5);
            const at::Tensor codes = ops::codes(table, a.scale, a.zero, bits),
                             decoded = (codes.to(at::kFloat) * a.scale.to(at::kFloat) + a.zero.to(at::kFloat)).view({-1, dim});
            for (int64_t h = 0, begin = 0; h < Heads; begin += lengths[static_cast<size_t>(h++)])
                rows[static_cast<size_t>(h)] = decoded.narrow(0, begin, lengths[static_cast<size_t>(h)]);
            return at::equal(ops::unpack_codes(across.codes, bits, capacity).narrow(2, 0, width), codes) &&
                   at::equal(across.scale.narrow(2, 0, width), a.scale) && at::equal(across.zero.narrow(2, 0, width), a.zero);
        };
        const auto come = [&](int64_t most, const std::vector<int32_t>& counts) {
            const at::Tensor x = random({Heads, most, dim}, static_cast<unsigned>(most) + 7, at::kFloat, 3);
            ops::repack_across(across, {}, x, counts.empty() ? std::optional<at::Tensor>() : at::tensor(counts, at::kInt));
            for (size_t h = 0; h < Heads; ++h)
                rows[h] = at::cat({rows[h], x[static_cast<int64_t>(h)].narrow(0, 0, counts.empty() ? most : counts[h])});
        };
        const auto go = [&](const at::Tensor& gone) {
            ops::repack_across(across, gone, {}, {});
            for (size_t h = 0; h < Heads; ++h) {
                const at::Tensor left = at::ones({rows[h].size(0)}, at::kBool);
                for (int64_t i = 0; i < gone.size(1); ++i)
                    if (const int entry = gone[static_cast<int64_t>(h)][i].item<int>(); entry >= 0 && entry < left.size(0))
                        left[entry] = false;
                rows[h] = rows[h].index_select(0, left.nonzero().flatten());
            }
        };
        come(30, {});
        QVERIFY(changed());
        go(at::tensor({0, 17, 29}, at::kInt).view({Heads, 1}));
        QVERIFY(changed());
        go(at::tensor({-1, -1, 3, -1, 28, 40, 0, 1, 2}, at::kInt).view({Heads, 3}));
        QVERIFY(changed());
        come(19, {19, 0, 4});
        QVERIFY(changed());
        const at::Tensor codes = across.codes.clone(), scale = across.scale.clone(), lengths = across.lengths.clone();
        go(at::tensor({-1, -1, -1, 48, 60, 99}, at::kInt).view({Heads, 2})), come(5, {0, 0, 0}); // nothing: values are not rounded again
        QVERIFY(at::equal(across.codes, codes) && at::equal(across.scale.nan_to_num(), scale.nan_to_num()) &&
                at::equal(across.lengths, lengths));
        go(at::arange(60, at::kInt).unsqueeze(0) + at::tensor({0, 1, 5}, at::kInt).unsqueeze(1));
        QVERIFY(changed());
        come(46, {40, 46, 1});
        QVERIFY(changed());
        go(at::arange(60, at::kInt).expand({Heads, 60}));
        QVERIFY(changed());
        come(46, {46, 46, 46});
        QVERIFY(changed());
        QVERIFY_THROWS_EXCEPTION(EngineError, come(46, {0, 0, 3})); // no room
    }
    void refusesArraysThatDoNotFit() {
        const ops::AcrossCodes good{at::zeros({1, 16, 20}, at::kByte),
                                    at::zeros({1, 1, 40}, at::kHalf),
                                    at::zeros({1, 1, 40}, at::kHalf),
                                    at::zeros({3}, at::kInt),
                                    4,
                                    64,
                                    0};
        const at::Tensor x = at::zeros({3, 2, 64}), gone = at::zeros({3, 1}, at::kInt);
        const auto call = [&](const std::function<void(ops::AcrossCodes&)>& change, const at::Tensor& g, const at::Tensor& rows,
                              const std::optional<at::Tensor>& counts) {
            ops::AcrossCodes bad = good;
            change(bad);
            ops::repack_across(bad, g, rows, counts);
        };
        const auto nothing = [](ops::AcrossCodes&) {};
        call(nothing, gone, x, gone.flatten());
        QVERIFY_THROWS_EXCEPTION(EngineError, call([](auto& a) { a.bits = 5; }, gone, x, {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call([](auto& a) { a.bits = 8; }, gone, x, {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call([](auto& a) { a.dim = 40; }, gone, x, {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call([](auto& a) { a.scale = a.scale.to(at::kFloat); }, gone, x, {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call([](auto& a) { a.zero = a.zero.narrow(2, 0, 39); }, gone, x, {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(nothing, gone.to(at::kLong), x, {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(nothing, gone.narrow(0, 0, 2), x, {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(nothing, gone, x.narrow(2, 0, 32), {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(nothing, gone, x.to(at::kHalf), {}));
        QVERIFY_THROWS_EXCEPTION(EngineError, call(nothing, gone, x, at::zeros({2}, at::kInt)));
    }

    void appendsChannels_data() {
        QTest::addColumn<int>("bits");
        QTest::addColumn<int>("dim");
        QTest::addColumn<int>("group");
        for (int bits : {2, 3, 4, 8})
            for (const auto& [dim, group] : {std::pair{64, 32}, {128, 16}, {33, 4}, {7, 1}})
                QTest::addRow("%d bits, %d by %d", bits, dim, group) << bits << dim << group;
    }
    void appendsChannels() {
        QFETCH(int, bits);
        QFETCH(int, dim);
        QFETCH(int, group);
        constexpr int64_t Heads = 3, Groups = 3;
        const at::Tensor x = random({Heads, Groups * group, dim}, 5, at::kFloat, 3), lengths = at::tensor({5, 0, 11}, at::kInt),
                         groups = at::tensor({2, 0, 1}, at::kInt);
        for (const bool all : {false, true}) {
            const at::Tensor counts = at::tensor({2 * group, 0, 3 * group}, at::kInt), ends = at::full({Heads, 6}, -7, at::kInt);
            ops::ChannelCodes to{at::zeros({Heads, 11 + 3 * group, packedBytes(dim, bits)}, at::kByte),
                                 at::zeros({Heads, 6, dim}, at::kHalf),
                                 at::zeros({Heads, 6, dim}, at::kHalf),
                                 ends,
                                 lengths,
                                 groups,
                                 bits,
                                 group,
                                 5e-5};
            ops::append_channels(to, x, all ? std::optional<at::Tensor>() : counts);
            for (int64_t h = 0; h < Heads; ++h) {
                const int64_t length = lengths[h].item<int>(), row = groups[h].item<int>(),
                              packs = all ? Groups : counts[h].item<int>() / group;
                for (int64_t g = 0; g < packs; ++g) {
                    const at::Tensor rows = x[h].narrow(0, g * group, group);
                    const auto [low, high] = at::aminmax(rows, 0, true);
                    const ops::Affine a = ops::affine(low, high, bits, 5e-5);
                    QVERIFY(at::equal(to.codes[h].narrow(0, length + g * group, group),
                                      ops::pack_codes(ops::codes(rows, a.scale, a.zero, bits), bits)));
                    QVERIFY(at::equal(to.scale[h][row + g], a.scale[0]) && at::equal(to.zero[h][row + g], a.zero[0]));
                    QCOMPARE(ends[h][row + g].item<int>(), static_cast<int>(length + (g + 1) * group));
                }
                QVERIFY(to.codes[h].narrow(0, 0, length).count_nonzero().item<int>() == 0 &&
                        to.scale[h].narrow(0, 0, row).count_nonzero().item<int>() == 0);
                for (int64_t g = packs; row + g < 6; ++g)
                    QVERIFY(ends[h][row + g].item<int>() == -7 || ends[h][row + g].item<int>() == std::numeric_limits<int32_t>::max());
            }
            QVERIFY_THROWS_EXCEPTION(EngineError, ops::append_channels(to, x.narrow(2, 0, dim - 1), {}));
            QVERIFY_THROWS_EXCEPTION(EngineError, ops::append_channels(to, x, at::zeros({2}, at::kInt)));
        }
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
