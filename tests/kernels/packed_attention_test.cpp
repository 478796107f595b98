// ops::packed_attention against fp64 over the entries that its codes stand for, and against ops::attention() over the same; the less usual forms are in
// coded_attention_test.cpp.
#include "kernels/bind/packed.h"
#include "kernels/quant.h"
#include "tests/kernels/packed_calls.h"

#include <ATen/Parallel.h>
#include <functional>

using namespace keepsight;
using namespace keepsight::test;

namespace {

struct Form {
    int bits = 4, groups = 1, tokens = 1; // of a side: groups of a row, tokens that share them
};
enum Parts { Mixed, CodesOnly, FirstOnly, TailOnly, ExactOnly, NoTail, NoFirst };

struct Case : PackedCall {
    at::Tensor denseKeys, denseValues; // [Hkv, C, D] fp32: what the entries are; NaN behind the last
};

// A tensor that is part of a greater one, as the cache has them: heads lie apart.
at::Tensor within(const at::Tensor& t) {
    at::Tensor room = at::zeros({t.size(0), t.size(1) + 3, t.size(2)}, t.options());
    room.narrow(1, 0, t.size(1)).copy_(t);
    return room.narrow(1, 0, t.size(1));
}

ops::PackedSide makeSide(const std::vector<int>& lengths, int dim, const Form& form, Parts parts, bool ofKeys, at::ScalarType type, unsigned seed,
                         at::Tensor& dense) {
    const auto heads = static_cast<int64_t>(lengths.size());
    at::Tensor counts = at::zeros({3, heads}, at::kInt);
    int most[3] = {};
    for (int h = 0; h < static_cast<int>(lengths.size()); ++h) { // keys and values part at places of their own
        const int n = lengths[static_cast<size_t>(h)];
        int first = ofKeys ? 4 + h : 1 + 2 * h, tail = ofKeys ? 7 + 3 * h : 20 + h;
        if (parts == CodesOnly || parts == TailOnly || parts == NoFirst) first = 0;
        if (parts == CodesOnly || parts == FirstOnly || parts == NoTail) tail = 0;
        if (parts == FirstOnly) first = n;
        if (parts == TailOnly) tail = n;
        if (parts == ExactOnly) tail = n;
        first = std::min(first, n), tail = std::min(tail, n - first);
        const int split[3] = {first, n - first - tail, tail};
        for (int i = 0; i < 3; ++i) counts[i][h] = split[i], most[i] = std::max(most[i], split[i]);
    }
    const int rows = (most[1] + form.tokens - 1) / form.tokens + 1; // one more than there are codes for
    at::Tensor first = random({heads, most[0] + 2, dim}, seed, type), tail = random({heads, most[2] + 2, dim}, seed + 1, type);
    std::mt19937 generator(seed);
    at::Tensor codes = at::empty({heads, most[1] + 2, dim}, at::kByte);
    for (int64_t i = 0; i < codes.numel(); ++i) codes.data_ptr<uint8_t>()[i] = static_cast<uint8_t>(generator() % (1u << form.bits));
    at::Tensor scale = (random({heads, rows, form.groups}, seed + 2).abs() * (2.0 / (1 << form.bits))).to(at::kHalf),
               zero = random({heads, rows, form.groups}, seed + 3, at::kHalf);

    const int capacity = *std::max_element(lengths.begin(), lengths.end()) + 5;
    dense = at::full({heads, capacity, dim}, NAN);
    const at::Tensor row = at::arange(codes.size(1)).floor_divide(form.tokens).clamp_max(rows - 1);
    const auto each = [&](const at::Tensor& t) { return t.to(at::kFloat).index_select(1, row).repeat_interleave(dim / form.groups, 2); };
    const at::Tensor decoded = codes.to(at::kFloat) * each(scale) + each(zero);
    for (int64_t h = 0; h < heads; ++h) {
        int64_t at = 0, part = 0;
        for (at::Tensor t : {first.to(at::kFloat), decoded, tail.to(at::kFloat)}) {
            const int64_t n = counts[part++][h].item<int>();
            dense[h].narrow(0, at, n).copy_(t[h].narrow(0, 0, n));
            at += n;
        }
        first[h].slice(0, counts[0][h].item<int>()).fill_(NAN), tail[h].slice(0, counts[2][h].item<int>()).fill_(NAN); // must never be read
        const int64_t used = (counts[1][h].item<int>() + form.tokens - 1) / form.tokens;
        scale[h].slice(0, used).fill_(NAN), zero[h].slice(0, used).fill_(NAN);
    }
    ops::PackedSide side;
    if (most[0]) side.first = within(first);
    if (most[2]) side.tail = within(tail);
    if (most[1]) {
        side.codes = within(ops::pack_codes(codes, form.bits)), side.scale = within(scale), side.zero = within(zero);
        side.bits = form.bits, side.groupTokens = form.tokens;
    }
    side.counts = counts;
    return side;
}

// Ragged: heads hold fewer and fewer, every third nothing; positions have gaps.
Case makeCase(int queryHeads, int kvHeads, int held, int dim, const Form& keys, const Form& values, Parts parts, at::ScalarType type, bool ragged,
              unsigned seed) {
    Case c;
    std::vector<int> lengths;
    for (int h = 0; h < kvHeads; ++h) lengths.push_back(!ragged ? held : h % 3 == 1 ? 0 : held - h * held / (2 * kvHeads));
    c.q = random({1, queryHeads, dim}, seed, type).transpose(0, 1); // as the model has it
    c.keys = makeSide(lengths, dim, keys, parts, true, type, seed + 10, c.denseKeys);
    c.values = makeSide(lengths, dim, values, parts, false, type, seed + 20, c.denseValues);
    c.lengths = at::tensor(lengths, at::kInt);
    c.positions = (at::arange(c.denseKeys.size(1), at::kInt) * (ragged ? 2 : 1)).expand({kvHeads, c.denseKeys.size(1)}).contiguous();
    c.queryPosition = at::full({1}, held * 2, at::kInt);
    return c;
}

struct Reference {
    std::vector<double> out, weights; // [Hq · D], [Hq, C]
};
Reference reference(const Case& c) {
    const int64_t heads = c.q.size(0), dim = c.q.size(2), capacity = c.positions.size(1), group = heads / c.lengths.size(0);
    const std::vector<double> q = doubles(c.q), k = doubles(c.denseKeys), v = doubles(c.denseValues);
    Reference r{std::vector<double>(static_cast<size_t>(heads * dim)), std::vector<double>(static_cast<size_t>(heads * capacity))};
    for (int64_t head = 0; head < heads; ++head) {
        const int64_t h = head / group, n = c.lengths.const_data_ptr<int32_t>()[h];
        double *weights = r.weights.data() + head * capacity, *out = r.out.data() + head * dim, top = -INFINITY, all = 0;
        for (int64_t t = 0; t < n; ++t) {
            for (int64_t d = 0; d < dim; ++d) weights[t] += c.scale * q[static_cast<size_t>(head * dim + d)] * k[static_cast<size_t>((h * capacity + t) * dim + d)];
            top = std::max(top, weights[t]);
        }
        for (int64_t t = 0; t < n; ++t) all += weights[t] = std::exp(weights[t] - top);
        for (int64_t t = 0; t < n; ++t) {
            weights[t] /= all;
            for (int64_t d = 0; d < dim; ++d) out[d] += weights[t] * v[static_cast<size_t>((h * capacity + t) * dim + d)];
        }
    }
    return r;
}

struct Refusal {
    const char *name, *says;
    std::function<void(Case&, ops::PackedSide&, ops::AttentionStats&)> change; // the side: keys or values
};
at::Tensor elsewhere(const at::Tensor& t) { return at::empty(t.sizes(), t.options().device(at::kMeta)); }

// Of a side of [2, …, 64] with 4 bits, 2 groups of a row and one token.
const std::vector<Refusal>& sideRefusals() {
    static const std::vector<Refusal> all = {
        {"counts of two parts", "counts", [](Case&, ops::PackedSide& s, auto&) { s.counts = s.counts.narrow(0, 0, 2); }},
        {"no counts", "counts", [](Case&, ops::PackedSide& s, auto&) { s.counts = at::Tensor(); }},
        {"counts int64", "counts", [](Case&, ops::PackedSide& s, auto&) { s.counts = s.counts.to(at::kLong); }},
        {"counts elsewhere", "counts", [](Case&, ops::PackedSide& s, auto&) { s.counts = elsewhere(s.counts); }},
        {"first narrower", "first entries", [](Case&, ops::PackedSide& s, auto&) { s.first = s.first.narrow(2, 0, 32); }},
        {"first of one head", "first entries", [](Case&, ops::PackedSide& s, auto&) { s.first = s.first.narrow(0, 0, 1); }},
        {"first in bf16", "first entries", [](Case&, ops::PackedSide& s, auto&) { s.first = s.first.to(at::kBFloat16); }},
        {"first elsewhere", "first entries", [](Case&, ops::PackedSide& s, auto&) { s.first = elsewhere(s.first); }},
        {"tail narrower", "last entries", [](Case&, ops::PackedSide& s, auto&) { s.tail = s.tail.narrow(2, 0, 32); }},
        {"tail in bf16", "last entries", [](Case&, ops::PackedSide& s, auto&) { s.tail = s.tail.to(at::kBFloat16); }},
        {"5 bits", "bits", [](Case&, ops::PackedSide& s, auto&) { s.bits = 5; }},
        {"rows of 8 bits", "codes", [](Case&, ops::PackedSide& s, auto&) { s.bits = 8; }},
        {"signed codes", "codes", [](Case&, ops::PackedSide& s, auto&) { s.codes = s.codes.to(at::kChar); }},
        {"codes elsewhere", "codes", [](Case&, ops::PackedSide& s, auto&) { s.codes = elsewhere(s.codes); }},
        {"no tokens in a group", "tokens of a group", [](Case&, ops::PackedSide& s, auto&) { s.groupTokens = 0; }},
        {"no scale", "scale", [](Case&, ops::PackedSide& s, auto&) { s.scale = at::Tensor(); }},
        {"scale fp32", "scale", [](Case&, ops::PackedSide& s, auto&) { s.scale = s.scale.to(at::kFloat); }},
        {"fewer zeros", "zero", [](Case&, ops::PackedSide& s, auto&) { s.zero = s.zero.narrow(1, 1, s.zero.size(1) - 1); }},
        {"zero fp32", "zero", [](Case&, ops::PackedSide& s, auto&) { s.zero = s.zero.to(at::kFloat); }},
        {"three groups of a row", "groups of a row", [](Case&, ops::PackedSide& s, auto&) { s.scale = s.zero = at::zeros({2, s.scale.size(1), 3}, at::kHalf); }},
        {"no group of a row", "groups of a row", [](Case&, ops::PackedSide& s, auto&) { s.scale = s.zero = at::zeros({2, s.scale.size(1), 0}, at::kHalf); }},
        {"no row of scale", "rows of scale", [](Case&, ops::PackedSide& s, auto&) { s.scale = s.zero = s.scale.narrow(1, 0, 0); }},
        {"a row of scale too few", "rows of scale",
         [](Case&, ops::PackedSide& s, auto&) { s.scale = s.scale.narrow(1, 0, s.counts[1].max().template item<int>() - 1), s.zero = s.scale; }},
        {"more codes than there are", "count", [](Case&, ops::PackedSide& s, auto&) { s.codes = s.codes.narrow(1, 0, s.counts[1].max().template item<int>() - 1); }},
        {"more first ones than there are", "count", [](Case&, ops::PackedSide& s, auto&) { s.first = s.first.narrow(1, 0, 1); }},
        {"more last ones than there are", "count", [](Case&, ops::PackedSide& s, auto&) { s.tail = at::Tensor(); }},
        {"a negative count", "count", [](Case&, ops::PackedSide& s, auto&) { s.counts = s.counts.clone(), s.counts[0][1] = -1; }},
        {"another sum than the length", "counts", [](Case&, ops::PackedSide& s, auto&) { s.counts = s.counts.clone(), s.counts[1][1] -= 1; }},
    };
    return all;
}
const std::vector<Refusal>& refusals() {
    static const std::vector<Refusal> all = {
        {"two queries", "query", [](Case& c, auto&, auto&) { c.q = random({4, 2, 64}, 1); }},
        {"a query without heads", "query", [](Case& c, auto&, auto&) { c.q = random({1, 64}, 1); }},
        {"a query of integers", "query", [](Case& c, auto&, auto&) { c.q = c.q.to(at::kInt); }},
        {"three query heads", "query heads", [](Case& c, auto&, auto&) { c.q = random({3, 1, 64}, 1); }},
        {"no query head", "query heads", [](Case& c, auto&, auto&) { c.q = random({0, 1, 64}, 1); }},
        {"no channel", "head size", [](Case& c, auto&, auto&) { c.q = random({4, 1, 0}, 1); }},
        {"flat positions", "positions", [](Case& c, auto&, auto&) { c.positions = c.positions.flatten(); }},
        {"positions int64", "positions", [](Case& c, auto&, auto&) { c.positions = c.positions.to(at::kLong); }},
        {"positions elsewhere", "positions", [](Case& c, auto&, auto&) { c.positions = elsewhere(c.positions); }},
        {"three lengths", "lengths", [](Case& c, auto&, auto&) { c.lengths = at::zeros({3}, at::kInt); }},
        {"lengths int64", "lengths", [](Case& c, auto&, auto&) { c.lengths = c.lengths.to(at::kLong); }},
        {"a length beyond the capacity", "length", [](Case& c, auto&, auto&) { c.positions = c.positions.narrow(1, 0, 39); }},
        {"two query positions", "query position", [](Case& c, auto&, auto&) { c.queryPosition = at::zeros({2}, at::kInt); }},
        {"query position int64", "positions", [](Case& c, auto&, auto&) { c.queryPosition = c.queryPosition.to(at::kLong); }},
        {"column sums of KV heads", "column sums", [](Case& c, auto&, auto& s) { s.columnSum = at::zeros({2, c.positions.size(1)}); }},
        {"column sums not dense", "column sums", [](Case& c, auto&, auto& s) { s.columnSum = at::zeros({c.positions.size(1), 4}).t(); }},
        {"column sums bf16", "column sums", [](Case& c, auto&, auto& s) { s.columnSum = at::zeros({4, c.positions.size(1)}, at::kBFloat16); }},
        {"two last rows", "last rows", [](Case& c, auto&, auto& s) { s.lastRows = at::zeros({4, 2, c.positions.size(1)}); }},
        {"a map of three heads", "map heads", [](Case&, auto&, auto& s) { s.map = at::zeros({3, 4, 4}); }},
        {"a map of empty bins", "map bins", [](Case&, auto&, auto& s) { s.map = at::zeros({2, 4, 4}), s.colBin = 0; }},
    };
    return all;
}

} // namespace

class PackedAttentionTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cleanup() { QVERIFY(useCpuKernels("avx512") || useCpuKernels("avx2") || useCpuKernels("baseline")); }

    void matchesTheDefinition_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<QList<int>>("shape"); // query heads, KV heads, held, dim, parts
        QTest::addColumn<QList<int>>("keys");  // bits, groups of a row, tokens of a group
        QTest::addColumn<QList<int>>("values");
        QTest::addColumn<bool>("bf16");
        QTest::addColumn<bool>("ragged");
        const auto add = [](const QList<int>& shape, const QList<int>& keys, const QList<int>& values) {
            for (const char* name : implementations)
                for (int variant = 0; variant < 4; variant += shape[2] > 1000 ? 3 : 1)
                    QTest::addRow("%s %d/%d heads, %d × %d, parts %d, keys %d bits %d/%d, values %d bits %d/%d%s%s", name, shape[0], shape[1], shape[2],
                                  shape[3], shape[4], keys[0], keys[1], keys[2], values[0], values[1], values[2], variant & 1 ? " bf16" : "",
                                  variant & 2 ? " ragged" : "")
                        << QString(name) << shape << keys << values << bool(variant & 1) << bool(variant & 2);
        };
        for (int bits : {2, 4, 8}) {
            for (int held : {1, 31, 33, 129, 4097}) {
                add({9, 3, held, 64, Mixed}, {bits, 64, 32}, {bits, 2, 1}); // keys by channel, values by token
                add({9, 3, held, 64, Mixed}, {bits, 1, 1}, {bits, 64, 32}); // keys by token, values by channel
            }
            for (int dim : {64, 80, 96, 128, 256}) { // heads of a KV head: 1, 4, 8, 5, 2
                const int group = dim == 64 ? 1 : dim == 80 ? 4 : dim == 96 ? 8 : dim == 128 ? 5 : 2;
                add({2 * group, 2, 300, dim, Mixed}, {bits, dim, 64}, {bits, 1, 1});
                add({2 * group, 2, 300, dim, Mixed}, {bits, dim / 16, 1}, {bits, dim / 16, 1});
                add({2 * group, 2, 300, dim, Mixed}, {bits, dim / 32, 1}, {bits, dim, 17}); // 80: groups of 40 channels
            }
            for (int parts : {CodesOnly, FirstOnly, TailOnly, ExactOnly, NoTail, NoFirst}) add({6, 2, 140, 64, parts}, {bits, 64, 32}, {bits, 2, 1});
            add({4, 2, 150, 33, Mixed}, {bits, 33, 8}, {bits, 3, 1}); // groups that vectors do not fit
            add({3, 1, 150, 20, Mixed}, {bits, 20, 1}, {bits, 5, 3});
            add({1, 1, 70, 5, Mixed}, {bits, 1, 1}, {bits, 1, 1});
            add({1, 1, 70, 1, Mixed}, {bits, 1, 4}, {bits, 1, 1});
        }
        add({9, 3, 700, 64, Mixed}, {2, 64, 32}, {8, 1, 1}); // sides of their own
        add({9, 3, 700, 64, Mixed}, {8, 4, 1}, {4, 64, 128});
    }
    void matchesTheDefinition() {
        QFETCH(QString, implementation);
        QFETCH(QList<int>, shape);
        QFETCH(QList<int>, keys);
        QFETCH(QList<int>, values);
        QFETCH(bool, bf16);
        QFETCH(bool, ragged);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        const Case c = makeCase(shape[0], shape[1], shape[2], shape[3], {keys[0], keys[1], keys[2]}, {values[0], values[1], values[2]},
                                static_cast<Parts>(shape[4]), bf16 ? at::kBFloat16 : at::kFloat, ragged, 17);
        const Reference expected = reference(c);
        ops::AttentionStats stats = c.emptyStats(shape[3] != 80), dense = c.emptyStats(shape[3] != 80);
        const at::Tensor out = c.attentionBy(implementation, &stats);
        QCOMPARE(out.scalar_type(), c.q.scalar_type());
        QVERIFY(out.sizes() == at::IntArrayRef({1, int64_t{shape[0]} * shape[3]}));
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(out), expected.out, bf16 ? 0.01 : 4e-6);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.lastRows), expected.weights, 3e-6);
        QVERIFY(sameBits(out, c.attentionBy(implementation, nullptr)));

        ops::attention(c.q.to(at::kFloat), c.denseKeys, c.denseValues, c.positions, c.lengths, c.queryPosition, c.scale, &dense);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.columnSum), doubles(dense.columnSum), 1e-5);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.map), doubles(dense.map), 1e-5);
    }

    void runsAndThreadsAreBitEqual_data() {
        QTest::addColumn<bool>("channels");
        QTest::addRow("keys by channel, values by token") << true;
        QTest::addRow("keys by token, values by channel") << false;
    }
    void runsAndThreadsAreBitEqual() {
        QFETCH(bool, channels);
        const Form channel{4, 64, 32}, token{2, 2, 1};
        const Case c = makeCase(9, 3, 3000, 64, channels ? channel : token, channels ? token : channel, Mixed, at::kFloat, true, 8);
        at::Tensor outs[3];
        ops::AttentionStats stats[3];
        for (int run = 0; run < 3; ++run) {
            at::set_num_threads(run == 2 ? 1 : 2);
            stats[run] = c.emptyStats(true);
            outs[run] = c.attentionBy("", &stats[run]);
        }
        at::set_num_threads(2);
        for (int run = 1; run < 3; ++run)
            QVERIFY(sameBits(outs[0], outs[run]) && sameBits(stats[0].columnSum, stats[run].columnSum) && sameBits(stats[0].lastRows, stats[run].lastRows) &&
                    sameBits(stats[0].map, stats[run].map));
    }

    void layoutsDoNotMatter() {
        const Case c = makeCase(4, 2, 100, 64, {4, 64, 32}, {4, 2, 1}, Mixed, at::kFloat, false, 5);
        const auto apart = [](const at::Tensor& t) { // the same values, rows with room between them
            const at::Tensor room = at::ones({t.size(0), t.size(1), t.size(2) + 1}, t.options());
            room.narrow(2, 0, t.size(2)).copy_(t);
            return room.narrow(2, 0, t.size(2));
        };
        Case other = c;
        for (ops::PackedSide* side : {&other.keys, &other.values}) {
            side->first = apart(side->first), side->codes = apart(side->codes), side->tail = apart(side->tail);
            side->zero = apart(side->zero); // scale stays: the two lie differently
            side->counts = side->counts.t().contiguous().t();
        }
        other.q = apart(c.q);
        other.positions = c.positions.t().contiguous().t();
        for (const char* name : {"", "composite"}) QVERIFY(sameBits(c.attentionBy(name, nullptr), other.attentionBy(name, nullptr)));
    }

    void largeScoresStayFinite() {
        const Case c = makeCase(2, 1, 200, 64, {4, 64, 32}, {4, 1, 1}, Mixed, at::kFloat, false, 5);
        c.q.mul_(100);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(c.attentionBy("", nullptr)), reference(c).out, 1e-3);
    }

    void nothingHeldGivesZeros_data() {
        QTest::addColumn<QString>("implementation");
        for (const char* name : implementations) QTest::addRow("%s", name) << QString(name);
    }
    void nothingHeldGivesZeros() {
        QFETCH(QString, implementation);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        Case c = makeCase(4, 2, 0, 64, {}, {}, Mixed, at::kFloat, false, 5);
        QVERIFY(!c.keys.first.defined() && !c.keys.codes.defined() && !c.keys.tail.defined());
        ops::AttentionStats stats = c.emptyStats(true);
        QVERIFY(sameBits(c.attentionBy(implementation, &stats), at::zeros({1, 256})));
        QVERIFY(sameBits(stats.columnSum, at::ones_like(stats.columnSum)) && sameBits(stats.lastRows, at::zeros_like(stats.lastRows)));
    }

    void badArgumentsAreRefused_data() {
        QTest::addColumn<bool>("ofSide");
        QTest::addColumn<bool>("values");
        QTest::addColumn<int>("index");
        for (int i = 0; i < static_cast<int>(sideRefusals().size()); ++i)
            for (bool values : {false, true})
                QTest::addRow("%s: %s", values ? "values" : "keys", sideRefusals()[static_cast<size_t>(i)].name) << true << values << i;
        for (int i = 0; i < static_cast<int>(refusals().size()); ++i) QTest::addRow("%s", refusals()[static_cast<size_t>(i)].name) << false << false << i;
    }
    void badArgumentsAreRefused() {
        QFETCH(bool, ofSide);
        QFETCH(bool, values);
        QFETCH(int, index);
        const Refusal& refusal = (ofSide ? sideRefusals() : refusals())[static_cast<size_t>(index)];
        Case c = makeCase(4, 2, 40, 64, {4, 2, 1}, {4, 2, 1}, Mixed, at::kFloat, false, 5);
        ops::AttentionStats stats;
        c.attentionBy("", &stats); // as it is nothing is refused
        refusal.change(c, values ? c.values : c.keys, stats);
        const std::string start = std::string("packed_attention: ") + (ofSide ? values ? "value " : "key " : "");
        try {
            c.attentionBy("", &stats);
        } catch (const EngineError& error) {
            const std::string what = error.what();
            QVERIFY2(what.starts_with(start) && what.substr(0, what.find(" should be")).find(refusal.says) != std::string::npos, what.c_str());
            return;
        }
        QFAIL("not refused");
    }
};

QTEST_APPLESS_MAIN(PackedAttentionTest)
#include "packed_attention_test.moc"
