#include "tests/kernels/support.h"

using namespace keepsight;
using namespace keepsight::test;

namespace {

struct Kept {
    at::Tensor index, counts;
    std::vector<std::vector<int>> lists;
};

// Every head keeps another share of `entries`; what lies behind a head's count is rubbish.
Kept keep(int heads, int entries, unsigned seed) {
    std::mt19937 generator(seed);
    Kept k{at::full({heads, entries}, 123456789, at::kInt), at::zeros({heads}, at::kInt), {}};
    for (int h = 0; h < heads; ++h) {
        std::vector<int> list;
        for (int i = 0; i < entries; ++i)
            if (h == 1 ? i != entries / 2 : generator() % 4 < static_cast<unsigned>(h % 4))
                list.push_back(i); // head 0 keeps nothing, head 1 all but one
        for (size_t i = 0; i < list.size(); ++i)
            k.index[h][static_cast<int64_t>(i)] = list[i];
        k.counts[h] = static_cast<int>(list.size());
        k.lists.push_back(list);
    }
    return k;
}

at::Tensor expected(const at::Tensor& src, const Kept& kept, int64_t capacity) {
    std::vector<int64_t> sizes = src.sizes().vec();
    sizes[1] = capacity;
    at::Tensor out = at::zeros(sizes, src.options());
    for (size_t h = 0; h < kept.lists.size(); ++h)
        for (size_t i = 0; i < kept.lists[h].size(); ++i)
            out[static_cast<int64_t>(h)][static_cast<int64_t>(i)] = src[static_cast<int64_t>(h)][kept.lists[h][i]];
    return out;
}

} // namespace

class EntriesTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void moves_data() {
        QTest::addColumn<bool>("composite");
        QTest::addColumn<int>("entries");
        QTest::addColumn<int>("type");
        QTest::addColumn<QList<int>>("rest"); // trailing sizes
        for (bool composite : {false, true})
            for (int entries : {1, 31, 33, 257})
                for (auto type : {at::kFloat, at::kBFloat16, at::kInt, at::kByte})
                    for (const QList<int>& rest : {QList<int>{}, QList<int>{64}, QList<int>{3, 5}})
                        QTest::addRow("%s %d %s %lld", composite ? "composite" : "cpu", entries, c10::toString(type),
                                      static_cast<long long>(rest.size()))
                            << composite << entries << static_cast<int>(type) << rest;
    }
    void moves() {
        QFETCH(bool, composite);
        QFETCH(int, entries);
        QFETCH(int, type);
        QFETCH(QList<int>, rest);
        std::vector<int64_t> sizes = {5, entries};
        sizes.insert(sizes.end(), rest.begin(), rest.end());
        const at::Tensor src = random(sizes, 4, at::kFloat, 50).abs().to(static_cast<at::ScalarType>(type));
        const Kept kept = keep(5, entries, 9);
        const int64_t capacity = entries + 3;

        const at::Tensor gathered =
            composite ? test::composite<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t)>("gather_entries")
                            .call(src, kept.index, kept.counts, capacity)
                      : ops::gather_entries(src, kept.index, kept.counts, capacity);
        QVERIFY(sameBits(gathered, expected(src, kept, capacity)));

        at::Tensor compacted = src.clone();
        if (composite)
            test::composite<void(at::Tensor&, const at::Tensor&, const at::Tensor&)>("compact_entries")
                .call(compacted, kept.index, kept.counts);
        else
            ops::compact_entries(compacted, kept.index, kept.counts);
        for (int64_t h = 0; h < 5; ++h) {
            const int64_t count = kept.counts[h].item<int>();
            QVERIFY(sameBits(compacted[h].narrow(0, 0, count), gathered[h].narrow(0, 0, count)));
        }

        at::Tensor held = gathered.clone();
        const at::Tensor added = random(sizes, 6, at::kFloat, 50).abs().to(static_cast<at::ScalarType>(type)).narrow(1, 0, 1);
        if (composite)
            test::composite<void(at::Tensor&, const at::Tensor&, const at::Tensor&)>("append_entries").call(held, added, kept.counts);
        else
            ops::append_entries(held, added, kept.counts);
        at::Tensor wanted = gathered.clone();
        for (int64_t h = 0; h < 5; ++h)
            wanted[h][kept.counts[h].item<int>()] = added[h][0];
        QVERIFY(sameBits(held, wanted));
    }

    void stridedTensorsAreTaken() {
        const Kept kept = keep(4, 33, 9);
        const at::Tensor src = random({33, 4, 6}, 4).transpose(0, 1); // [4, 33, 6], entries not one behind the other
        QVERIFY(sameBits(ops::gather_entries(src, kept.index, kept.counts, 40), expected(src, kept, 40)));
        at::Tensor inPlace = src.clone().transpose(1, 2).contiguous().transpose(1, 2);
        QVERIFY(!inPlace.is_contiguous());
        ops::compact_entries(inPlace, kept.index, kept.counts);
        for (int64_t h = 0; h < 4; ++h)
            QVERIFY(sameBits(inPlace[h].narrow(0, 0, kept.counts[h].item<int>()),
                             expected(src, kept, 33)[h].narrow(0, 0, kept.counts[h].item<int>())));
        at::Tensor dst = at::zeros({4, 10, 6}), rows = random({3, 4, 6}, 5).transpose(0, 1);
        ops::append_entries(dst, rows, at::full({4}, 2, at::kInt));
        QVERIFY(sameBits(dst.narrow(1, 2, 3), rows));
        at::Tensor part = at::zeros({4, 20, 6}).narrow(1, 5, 10); // a window of a greater buffer
        ops::append_entries(part, rows, at::full({4}, 7, at::kInt));
        QVERIFY(sameBits(part.narrow(1, 7, 3), rows));
    }

    void badArgumentsAreRefused() {
        at::Tensor x = random({2, 5, 4}, 1);
        const auto ints = [](std::vector<int> values, std::vector<int64_t> sizes) { return at::tensor(values, at::kInt).view(sizes); };
        const at::Tensor index = ints({0, 1, 2, 3}, {2, 2}), counts = ints({2, 2}, {2});
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::gather_entries(x, ints({0, 5, 0, 1}, {2, 2}), counts, 5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::gather_entries(x, ints({1, 0, 0, 1}, {2, 2}), counts, 5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::gather_entries(x, ints({-1, 0, 0, 1}, {2, 2}), counts, 5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::gather_entries(x, index, ints({3, 2}, {2}), 5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::gather_entries(x, index, counts, 1));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::gather_entries(x, index.to(at::kLong), counts, 5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::compact_entries(x, ints({0, 0, 0, 1}, {2, 2}), counts));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::compact_entries(x, index, ints({2}, {1})));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::append_entries(x, random({2, 1, 4}, 1), ints({5, 0}, {2})));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::append_entries(x, random({2, 1, 4}, 1), ints({-1, 0}, {2})));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::append_entries(x, random({2, 1, 3}, 1), counts));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::append_entries(x, random({2, 1, 4}, 1, at::kBFloat16), counts));
    }
};

QTEST_APPLESS_MAIN(EntriesTest)
#include "entries_test.moc"
