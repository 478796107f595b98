// compose: the second policy sees nothing but what the first one left.
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class ComposeTest : public QObject {
    Q_OBJECT

    static LayerFixture fixture(int n = 200) {
        at::manual_seed(11);
        return {at::randn({2, n, 8}), at::randn({2, n, 8}), at::randn({4, 64, 8})};
    }
    // The survivors of `left` as a layer of their own, in reading order.
    static LayerFixture survivors(const LayerFixture& f, const Selection& left) {
        std::vector<at::Tensor> keys, values, positions;
        for (std::int64_t h = 0; h < 2; ++h) {
            const auto& keep = left.keep[static_cast<std::size_t>(h)];
            const at::Tensor index = at::tensor(std::vector<std::int64_t>(keep.begin(), keep.end()), at::kLong);
            keys.push_back(f.entries.keys[h].index_select(0, index));
            values.push_back(f.entries.values[h].index_select(0, index));
            positions.push_back(f.entries.positions[h].index_select(0, index));
        }
        LayerFixture out(at::stack(keys), at::stack(values), f.queries);
        out.entries.positions = at::stack(positions);
        out.queryPositions = f.queryPositions;
        return out;
    }

private Q_SLOTS:
    void inTextOrderItIsOneAfterTheOther_data() {
        QTest::addColumn<QString>("first");
        QTest::addColumn<QString>("second");
        for (const char* pair : {"knorm snapkv", "knorm keydiff", "keydiff knorm", "snapkv knorm", "tova snapkv", "streaming_llm knorm", "knorm tova", "knorm lagkv", "knorm streaming_llm"})
            QTest::newRow(pair) << QString(pair).section(' ', 0, 0) << QString(pair).section(' ', 1, 1);
    }
    void inTextOrderItIsOneAfterTheOther() {
        QFETCH(QString, first);
        QFETCH(QString, second);
        const LayerFixture f = fixture();
        const int between = static_cast<int>(200 * std::sqrt(0.45)); // of 200, 90 stay
        const Selection got = f.selection(*policyOf("compose:order=text,first=" + first.toStdString() + ",second=" + second.toStdString(), Budget::kept(90)));
        const Selection left = f.selection(*policyOf(first.toStdString(), Budget::kept(between)));
        const Selection last = survivors(f, left).selection(*policyOf(second.toStdString(), Budget::kept(90)));
        for (std::size_t h = 0; h < 2; ++h) {
            std::vector<std::int32_t> expected;
            for (const std::int32_t i : last.keep[h]) expected.push_back(left.keep[h][static_cast<std::size_t>(i)]);
            QCOMPARE(got.keep[h], expected);
            QCOMPARE(got.keep[h].size(), std::size_t{90});
        }
    }
    void orderDoesNotMatterToPoliciesThatJudgeEachEntryAlone() {
        const LayerFixture f = fixture();
        for (const char* pair : {"first=keydiff,second=knorm", "first=snapkv,second=keydiff", "first=tova,second=knorm"})
            QCOMPARE(f.selection(*policyOf(std::string("compose:") + pair, Budget::kept(80))).keep, f.selection(*policyOf(std::string("compose:order=text,") + pair, Budget::kept(80))).keep);
    }
    void inScoreOrderTheWindowIsWhatTheFirstLikedLeast() {
        // kvpress: snapkv always keeps the last 64 of the list it is handed, here the survivors with the longest keys.
        const LayerFixture f = fixture();
        const Selection got = f.selection(*policyOf("compose", Budget::kept(90)));
        const Selection left = f.selection(*policyOf("knorm", Budget::kept(134)));
        for (std::size_t h = 0; h < 2; ++h) {
            std::vector<std::int32_t> byNorm = left.keep[h];
            const at::Tensor norm = f.entries.keys[static_cast<std::int64_t>(h)].norm(2, {1});
            std::ranges::sort(byNorm, [&](int a, int b) { return norm[a].item<float>() > norm[b].item<float>(); });
            for (std::size_t i = 0; i < 64; ++i) QVERIFY(std::binary_search(got.keep[h].begin(), got.keep[h].end(), byNorm[i]));
        }
    }
    void theShareMovesTheWork() {
        const LayerFixture f = fixture();
        QCOMPARE(f.selection(*policyOf("compose:share=1", Budget::kept(90))).keep, f.selection(*policyOf("knorm", Budget::kept(90))).keep);
        QCOMPARE(f.selection(*policyOf("compose:share=0,order=text", Budget::kept(90))).keep, f.selection(*policyOf("snapkv", Budget::kept(90))).keep);
    }
    void firstsCountIsKvpressesForEqualRatios() {
        for (const double c : {0.1, 0.3, 0.5, 0.7, 0.9})
            for (const int tokens : {512, 1500}) {
                const auto policy = policyOf("compose:first=knorm,second=knorm", Budget::removed(c));
                const Place place = Place::afterPrompt(tokens);
                Explanation e;
                const LayerFixture f = fixture();
                policy->amend(e, f.view(), place, policy->planFor(place));
                const int expected = static_cast<int>(tokens * (1 - (1 - std::sqrt(1 - c)))); // c₁ = 1 − √(1 − c)
                QVERIFY2(e.note.find("keeps " + std::to_string(expected) + ";") != std::string::npos, e.note.c_str());
            }
    }
    void noticesNameWhoGaveWay() {
        const Plan plan = policyOf("compose", Budget::kept(40))->planFor(Place::afterPrompt(300));
        QVERIFY2(plan.notice.starts_with("snapkv: window shrunk"), plan.notice.c_str());
    }
    void needsAreThoseOfBoth() {
        const Needs needs = policyOf("compose:first=expected_attention", Budget::removed(0.5))->needs(500);
        QCOMPARE(needs.lastRows, 64);
        QCOMPARE(needs.queryMoments, 4);
        QVERIFY(policyOf("compose:first=h2o", Budget::removed(0.5))->needs(500).columnSums);
    }
    void refusesWhatCannotBeNested() {
        for (const char* spec : {"compose:first=full", "compose:first=compose", "compose:second=h2o", "compose:second=pyramidkv", "compose:first=tokenselect", "compose:first=tskip"})
            QVERIFY_EXCEPTION_THROWN(parsePolicySpec(spec), UsageError);
    }
    void nestedPoliciesTakeTheirParameters() {
        const LayerFixture f = fixture();
        QCOMPARE(f.selection(*policyOf("compose:share=1,first_with=keep=high", Budget::kept(90))).keep, f.selection(*policyOf("knorm:keep=high", Budget::kept(90))).keep);
        QCOMPARE(f.selection(*policyOf("compose:share=0,order=text,second_with=window=16;kernel=7", Budget::kept(90))).keep,
                 f.selection(*policyOf("snapkv:window=16,kernel=7", Budget::kept(90))).keep);
        QCOMPARE(policyOf("compose:second_with=window=16", Budget::removed(0.5))->needs(500).lastRows, 16);
        for (const char* spec : {"compose:first_with=windw=3", "compose:second_with=kernel=4", "compose:first_with=timing=each_step", "compose:second_with=granularity=query_head",
                                 "compose:first_with=layers=0.2/0.8", "compose:first=kvcV,first_with=num_heavy=3", "compose:first_with=rope=cache_relative", "compose:first_with=high"})
            QVERIFY_EXCEPTION_THROWN(makePolicy(parsePolicySpec(spec)), UsageError);
    }
    void runsWhileDecoding() {
        const auto model = tinyModel();
        for (const char* spec : {"compose:timing=each_step", "compose:first=h2o,second=tova,timing=each_step", "compose:first=random,second=expected_attention,timing=every:4"}) {
            const auto policy = policyOf(spec, Budget::kept(70));
            Branch branch(*model, prefillFor(*model, tinyIds(150), policy), policy, {.headroom = 12});
            for (const TokenId id : tinyIds(12, 3)) branch.feed(std::span(&id, 1), LogitRows::none, true, {});
            QCOMPARE(branch.cache().layer(LayerIndex{1}).maxHeld(), 70);
        }
    }
};

QTEST_APPLESS_MAIN(ComposeTest)
#include "compose_test.moc"
