// ops::packed_attention over every form entries are stored in, against fp64 over what they stand for; packed_attention_test.cpp has the usual forms.
#include "tests/kernels/packed_calls.h"
#include "tests/kernels/packed_forms.h"

#include <ATen/Parallel.h>
#include <functional>

using namespace keepsight;
using namespace keepsight::test;

namespace {

enum Turn { None, ByPosition, ByRank };

struct Case : PackedCall {
    MadeSide madeKeys, madeValues;
    at::Tensor attendedKeys; // turned
};

// Ragged: heads hold fewer and fewer, every third nothing; positions have gaps and are large.
Case makeCase(int queryHeads, int kvHeads, int64_t held, int dim, const PackedForm& keys, const PackedForm& values, Turn turn, at::ScalarType type, bool ragged,
              int64_t exactEnds = 1) {
    at::manual_seed(static_cast<uint64_t>(held + dim));
    Case c;
    std::vector<int64_t> lengths;
    for (int h = 0; h < kvHeads; ++h) lengths.push_back(!ragged ? held : h % 3 == 1 ? 0 : held - h * held / (2 * kvHeads));
    c.q = at::randn({1, queryHeads, dim}).to(type).transpose(0, 1);
    c.madeKeys = makePackedSide(lengths, dim, keys, exactEnds, ragged ? 7 : 0, type);
    c.madeValues = makePackedSide(lengths, dim, values, exactEnds, ragged ? 19 : 0, type);
    c.keys = c.madeKeys.side, c.values = c.madeValues.side;
    c.lengths = at::tensor(lengths, at::kInt);
    const int64_t capacity = c.madeKeys.dense.size(1);
    c.positions = (at::arange(capacity, at::kInt) * (ragged ? 21 : 1)).expand({kvHeads, capacity}).contiguous();
    c.queryPosition = at::full({1}, held * 21, at::kInt);
    c.attendedKeys = c.madeKeys.dense;
    if (turn != None) {
        c.turn = {at::pow(at::Scalar(10000.0), -at::arange(0, dim, 2, at::kFloat) / dim), turn == ByRank};
        c.attendedKeys = turnedKeys(c.madeKeys.dense, turn == ByRank ? at::arange(capacity, at::kInt) : c.positions, c.turn.inverseFrequencies);
    }
    return c;
}

struct Form {
    const char* name;
    PackedForm keys, values;
    Turn turn;
};
// Of a head size and a number of bits.
std::vector<Form> formsOf(int dim, int bits) {
    const PackedForm token{bits, 2, 1}, channel{bits, dim, 32};
    std::vector<Form> all{{"usual, turned by position", token, token, ByPosition}, {"usual, turned by rank", channel, token, ByRank}};
    const auto add = [&](const char* name, Turn turn, const std::function<void(PackedForm&, PackedForm&)>& change) {
        Form f{name, channel, token, turn};
        change(f.keys, f.values);
        all.push_back(f);
    };
    add("levels", None, [](PackedForm& k, PackedForm& v) { k.levels = v.levels = true; });
    add("groups that lost entries", None, [&](PackedForm& k, PackedForm& v) { k.ends = true, v = {bits, dim / 2, 5}, v.ends = true; });
    add("exact values", None, [](PackedForm& k, PackedForm& v) { k.exact = 0.03, v.exact = 0.2, v.exactType = at::kBFloat16; });
    add("exact values, keys turned", ByRank, [](PackedForm& k, PackedForm&) { k.exact = 0.2; });
    add("exact values of each code", None, [](PackedForm& k, PackedForm& v) { k.rowExact = 3, v.rowExact = 2, k.exactType = at::kBFloat16; });
    add("exact values of each code, keys turned", ByPosition, [](PackedForm& k, PackedForm& v) { k.rowExact = 5, v.rowExact = 1; });
    add("kvquant", ByPosition, [&](PackedForm& k, PackedForm& v) {
        k = {bits, dim, 1 << 30}, k.levels = true, k.exact = 0.01;
        v = {bits, 1, 1}, v.levels = true, v.rowExact = 2;
    });
    add("across heads", None, [](PackedForm& k, PackedForm& v) { k.across = 64, v.across = 16, v.levels = true; });
    add("across heads, keys turned", ByPosition, [](PackedForm& k, PackedForm& v) { k.across = 7, k.exact = 0.02, v.across = 64; });
    return all;
}

struct Refusal {
    const char *name, *says;
    std::function<void(ops::PackedSide&)> change;
};
const std::vector<Refusal>& refusals() { // of a side of [2, …, 64] with levels, ends, exact values of both kinds
    static const std::vector<Refusal> all = {
        {"5 bits", "bits", [](ops::PackedSide& s) { s.bits = 5; }},
        {"ends of one head", "group ends", [](ops::PackedSide& s) { s.ends = s.ends.narrow(0, 0, 1); }},
        {"ends int64", "group ends", [](ops::PackedSide& s) { s.ends = s.ends.to(at::kLong); }},
        {"more groups than rows", "rows of scale", [](ops::PackedSide& s) { s.ends = at::cat({s.ends, s.ends}, 1); }},
        {"no group", "rows of scale", [](ops::PackedSide& s) { s.ends = s.ends.narrow(1, 0, 0); }},
        {"levels of another width", "levels", [](ops::PackedSide& s) { s.levels = at::zeros({8}); }},
        {"levels fp16", "levels", [](ops::PackedSide& s) { s.levels = s.levels.to(at::kHalf); }},
        {"exact values fp32", "exact values", [](ops::PackedSide& s) { s.exact = s.exact.to(at::kFloat); }},
        {"no places", "places", [](ops::PackedSide& s) { s.places = at::Tensor(); }},
        {"fewer places", "places", [](ops::PackedSide& s) { s.places = s.places.narrow(1, 0, 1); }},
        {"no exact counts", "exact counts", [](ops::PackedSide& s) { s.exactCounts = at::Tensor(); }},
        {"more exact values than there are", "exact count", [](ops::PackedSide& s) { s.exactCounts = s.exactCounts + 1000; }},
        {"places behind the codes", "places", [](ops::PackedSide& s) { s.places = s.places + 100000; }},
        {"rows of exact values fp32", "exact values of a code", [](ops::PackedSide& s) { s.rowExact = s.rowExact.to(at::kFloat); }},
        {"fewer rows of exact values", "rows of exact values", [](ops::PackedSide& s) { s.rowExact = s.rowExact.narrow(1, 0, 3), s.rowChannels = s.rowChannels.narrow(1, 0, 3); }},
        {"channels int32", "channels", [](ops::PackedSide& s) { s.rowChannels = s.rowChannels.to(at::kInt); }},
        {"fewer channels", "channels", [](ops::PackedSide& s) { s.rowChannels = s.rowChannels.narrow(2, 0, 1); }},
        {"groups across heads of one", "scale", [](ops::PackedSide& s) { s.across = true; }},
    };
    return all;
}

} // namespace

class CodedAttentionTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cleanup() { QVERIFY(useCpuKernels("avx512") || useCpuKernels("avx2") || useCpuKernels("baseline")); }

    void everyFormMatchesTheDefinition_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<QList<int>>("shape"); // query heads, KV heads, held, dim, bits, form
        QTest::addColumn<bool>("bf16");
        QTest::addColumn<bool>("ragged");
        const auto add = [](const QList<int>& shape, bool bf16, bool ragged) {
            for (const char* name : implementations)
                QTest::addRow("%s %d/%d heads, %d × %d, %d bits, %s%s%s", name, shape[0], shape[1], shape[2], shape[3], shape[4],
                              formsOf(shape[3], shape[4])[static_cast<size_t>(shape[5])].name, bf16 ? " bf16" : "", ragged ? " ragged" : "")
                    << QString(name) << shape << bf16 << ragged;
        };
        const int forms = static_cast<int>(formsOf(64, 4).size());
        for (int form = 0; form < forms; ++form) {
            for (const int bits : {2, 3, 4, 8}) add({6, 3, 131, 64, bits, form}, bits == 2, true);
            for (const int held : {1, 31, 33}) add({4, 1, held, 64, 3, form}, false, false);
            add({6, 2, 300, 80, 3, form}, false, true), add({16, 2, 150, 128, 4, form}, true, false), add({1, 1, 90, 22, 3, form}, false, false);
        }
        for (const int form : {5, 8, 9}) add({9, 3, 4097, 128, 4, form}, false, true); // exact and turned; kvquant; across
    }
    void everyFormMatchesTheDefinition() {
        QFETCH(QString, implementation);
        QFETCH(QList<int>, shape);
        QFETCH(bool, bf16);
        QFETCH(bool, ragged);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        const Form form = formsOf(shape[3], shape[4])[static_cast<size_t>(shape[5])];
        const Case c = makeCase(shape[0], shape[1], shape[2], shape[3], form.keys, form.values, form.turn, bf16 ? at::kBFloat16 : at::kFloat, ragged);
        ops::AttentionStats stats = c.emptyStats(true), dense = c.emptyStats(true);
        const at::Tensor out = c.attentionBy(implementation, &stats);
        const at::Tensor expected = ops::attention(c.q.to(at::kFloat), c.attendedKeys, c.madeValues.dense, c.positions, c.lengths, c.queryPosition, c.scale, &dense);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(out), doubles(expected), bf16 ? 0.01 : 1e-5); // attention() itself is held against fp64 by its own test
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.lastRows), doubles(dense.lastRows), 1e-5);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.columnSum), doubles(dense.columnSum), 1e-5);
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(stats.map), doubles(dense.map), 1e-5);
        QVERIFY(sameBits(out, c.attentionBy(implementation, nullptr)));
    }

    void unpackingGivesTheEntries_data() {
        QTest::addColumn<int>("form");
        for (int form = 0; form < static_cast<int>(formsOf(64, 3).size()); ++form) QTest::addRow("%s", formsOf(64, 3)[static_cast<size_t>(form)].name) << form;
    }
    void unpackingGivesTheEntries() {
        QFETCH(int, form);
        const Form f = formsOf(64, 3)[static_cast<size_t>(form)];
        const Case c = makeCase(3, 3, 70, 64, f.keys, f.values, f.turn, at::kFloat, true);
        for (const MadeSide* made : {&c.madeKeys, &c.madeValues})
            KEEPSIGHT_VERIFY_DIFFERENCE(doubles(ops::denseEntries(made->side, made->dense.size(1), at::kFloat)), doubles(made->dense.nan_to_num(0)), 1e-6);
    }

    void runsAndThreadsAreBitEqual() {
        const Form form = formsOf(64, 4)[8];
        const Case c = makeCase(9, 3, 3000, 64, form.keys, form.values, form.turn, at::kFloat, true);
        at::Tensor outs[3];
        ops::AttentionStats stats[3];
        for (int run = 0; run < 3; ++run) {
            at::set_num_threads(run == 2 ? 1 : 2);
            stats[run] = c.emptyStats(true);
            outs[run] = c.attentionBy("", &stats[run]);
        }
        at::set_num_threads(2);
        for (int run = 1; run < 3; ++run)
            QVERIFY(sameBits(outs[0], outs[run]) && sameBits(stats[0].columnSum, stats[run].columnSum) && sameBits(stats[0].lastRows, stats[run].lastRows));
    }

    void badArgumentsAreRefused_data() {
        QTest::addColumn<bool>("values");
        QTest::addColumn<int>("index");
        for (int i = 0; i < static_cast<int>(refusals().size()); ++i)
            for (bool values : {false, true}) QTest::addRow("%s: %s", values ? "values" : "keys", refusals()[static_cast<size_t>(i)].name) << values << i;
    }
    void badArgumentsAreRefused() {
        QFETCH(bool, values);
        QFETCH(int, index);
        const Refusal& refusal = refusals()[static_cast<size_t>(index)];
        PackedForm form{4, 2, 3};
        form.levels = form.ends = true, form.exact = 0.1, form.rowExact = 2;
        Case c = makeCase(4, 2, 40, 64, form, form, None, at::kFloat, false);
        c.attentionBy("", nullptr); // as it is nothing is refused
        refusal.change(values ? c.values : c.keys);
        const std::string start = std::string("packed_attention: ") + (values ? "value " : "key ");
        try {
            c.attentionBy("", nullptr);
        } catch (const EngineError& error) {
            const std::string what = error.what();
            QVERIFY2(what.starts_with(start) && what.substr(0, what.find(" should be")).find(refusal.says) != std::string::npos, what.c_str());
            return;
        }
        QFAIL("not refused");
    }

    void badTurnsAreRefused() {
        Case c = makeCase(4, 2, 40, 64, {4, 2, 1}, {4, 2, 1}, ByRank, at::kFloat, false);
        const at::Tensor good = c.turn.inverseFrequencies;
        for (const at::Tensor& bad : {good.narrow(0, 0, 31), good.to(at::kHalf), at::empty({32}, good.options().device(at::kMeta))}) {
            c.turn.inverseFrequencies = bad;
            QVERIFY_THROWS_EXCEPTION(EngineError, c.attentionBy("", nullptr));
        }
    }
};

QTEST_APPLESS_MAIN(CodedAttentionTest)
#include "coded_attention_test.moc"
