// Admission by key length under a quota: against the plain reference, and the rules one by one.
#include "tests/support/policy_rig.h"

using namespace keepsight;
using namespace keepsight::testing;

class TSkipTest : public QObject {
    Q_OBJECT

    static constexpr RigShape Small{.layers = 4, .queryHeads = 4, .kvHeads = 2, .prompt = 100, .steps = 40, .dim = 8};
    static PolicyRig rig(const std::string& policy, Budget budget = {}, RigShape shape = Small, std::uint64_t seed = 1) { return {policyOf(policy, budget), shape, seed}; }

private Q_SLOTS:
    void keepsWhatTheReferenceKeeps_data() { referenceRows("tskip"); }
    void keepsWhatTheReferenceKeeps() {
        QFETCH(QJsonObject, reference);
        QCOMPARE(differenceFrom(reference), QString());
    }
    void aPromptKeepsItsShareOfEachLayer() {
        PolicyRig r = rig("tskip:start=0.75,end=0.5");
        r.prefill();
        for (int l = 0; l < 4; ++l) QCOMPARE(r.held(l), roundHalfEven((0.75 - 0.25 * l / 3) * 100));
        PolicyRig few = rig("tskip:anchors=30", Budget::removed(0.9));
        few.prefill();
        for (int l = 0; l < 4; ++l) QCOMPARE(few.held(l), 30); // anchors are never fewer
        PolicyRig tokens = rig("tskip", Budget::kept(37));
        tokens.prefill();
        for (int l = 0; l < 4; ++l) QCOMPARE(tokens.held(l), 37);
    }
    void keepsTheLongestKeysInOneSetForAllHeads() {
        PolicyRig r = rig("tskip", Budget::removed(0.8));
        r.prefill();
        const at::Tensor norms = r.keys(0).norm(2, -1).mean(0);
        const PolicyRig::Kept kept = r.kept(0);
        QCOMPARE(kept[0], kept[1]);
        double shortestKept = INFINITY, longestDropped = 0;
        for (int p = 8; p < 100; ++p) {
            const double n = norms[p].item<double>();
            if (std::ranges::binary_search(kept[0], p)) shortestKept = std::min(shortestKept, n);
            else longestDropped = std::max(longestDropped, n);
        }
        QVERIFY(shortestKept > longestDropped);
        PolicyRig low = rig("tskip:norm=low,anchors=0", Budget::kept(1));
        low.prefill();
        QCOMPARE(low.kept(0)[0][0], norms.narrow(0, 0, 100).argmin().item<int>());
    }
    void pureDecodingStaysUnderItsQuota_data() {
        QTest::addColumn<double>("ratio");
        for (const double c : {0.0, 0.1, 0.3, 0.5, 0.75, 0.97}) QTest::addRow("removes %g", c) << c;
    }
    void pureDecodingStaysUnderItsQuota() { // every token by itself, from an empty cache
        QFETCH(double, ratio);
        const auto explicitly = [&](double f) { return "tskip:anchors=4,reservoir=16,start=" + std::to_string(f) + ",end=" + std::to_string(f); };
        RigShape shape = Small;
        shape.prompt = 1;
        shape.steps = 200;
        shape.layers = 1;
        const double f = 1 - ratio;
        PolicyRig r = rig(explicitly(f), {}, shape);
        r.prefill();
        for (int processed = 1; processed <= 200; ++processed) {
            const PolicyRig::Kept kept = r.kept(0);
            const auto others = static_cast<std::int64_t>(std::ranges::count_if(kept[0], [](Position p) { return p >= 4; }));
            QVERIFY2(others <= std::max<std::int64_t>(0, roundHalfEven(f * (processed - 4))), qPrintable(QString("%1 of %2").arg(others).arg(processed)));
            for (Position p = 0; p < std::min(4, processed); ++p) QCOMPARE(kept[0][static_cast<std::size_t>(p)], p);
            r.step();
        }
        if (ratio == 0.0) QVERIFY(r.held(0) < 201); // a quota of everything still asks for the sample's shortest
    }
    void laterLayersStoreNoMore() {
        PolicyRig r = rig("tskip:start=0.9,end=0.2");
        r.prefill();
        for (int l = 1; l < 4; ++l) QVERIFY(r.held(l) <= r.held(l - 1));
    }
    void nothingStoredIsDroppedLater() {
        PolicyRig r = rig("tskip", Budget::removed(0.5));
        r.prefill();
        for (int i = 0; i < 40; ++i) {
            const PolicyRig::Kept before = r.kept(2);
            r.step();
            const PolicyRig::Kept after = r.kept(2);
            QVERIFY(std::ranges::equal(before[0], std::span(after[0]).first(before[0].size())));
            QVERIFY(after[0].size() <= before[0].size() + 1);
        }
        QVERIFY(r.held(2) > 50 && r.held(2) <= 70 + 1);
    }
    void withRoomForAllEveryTokenIsStored() {
        for (const Budget budget : {Budget::removed(0), Budget::kept(500)}) {
            PolicyRig r = rig("tskip", budget);
            r.prefill();
            for (int i = 0; i < 40; ++i) r.step();
            QCOMPARE(r.held(3), 140);
        }
        PolicyRig full = rig("tskip:start=1,end=1");
        full.prefill();
        QCOMPARE(full.held(0), 100); // a block
        for (int i = 0; i < 40; ++i) full.step();
        QVERIFY(full.held(0) <= 140);
    }
    void forcedRecentTokensAreJudgedWhenTheyLeaveTheWindow() {
        PolicyRig r = rig("tskip:force_recent=10", Budget::removed(0.9));
        r.prefill();
        QCOMPARE(r.held(0), 9 + 10); // 10% of the 90 judged, and the window
        for (int i = 0; i < 40; ++i) {
            r.step();
            const PolicyRig::Kept kept = r.kept(0);
            for (int k = 0; k < 10; ++k) QVERIFY(std::ranges::binary_search(kept[0], 100 + i - k));
        }
        QVERIFY(r.held(0) <= 14 + 10);
    }
    void theSeedDecidesWhatTheSampleHolds() {
        const auto run = [&](const std::string& policy) {
            PolicyRig r = rig(policy, Budget::removed(0.4), {.layers = 2, .queryHeads = 4, .kvHeads = 2, .prompt = 200, .steps = 300, .dim = 8});
            r.prefill();
            for (int i = 0; i < 300; ++i) r.step();
            return r.kept(1);
        };
        QCOMPARE(run("tskip:reservoir=8"), run("tskip:reservoir=8,seed=0"));
        QVERIFY(run("tskip:reservoir=8,seed=1") != run("tskip:reservoir=8,seed=2"));
    }
    void actsOnEveryTokenOfABranch() {
        const auto model = tinyModel(3);
        const auto policy = policyOf("tskip:start=0.8,end=0.4", {});
        Branch branch(*model, prefillFor(*model, tinyIds(100), policy), policy, {.headroom = 30});
        QCOMPARE(branch.cache().layer(LayerIndex{0}).held, (std::vector<std::int32_t>{80, 80}));
        QCOMPARE(branch.cache().layer(LayerIndex{1}).held, (std::vector<std::int32_t>{60, 60}));
        QCOMPARE(branch.cache().layer(LayerIndex{2}).held, (std::vector<std::int32_t>{40, 40}));
        branch.takeEvictions();
        int dropped = 0;
        for (const TokenId id : tinyIds(30, 4)) {
            branch.feed(std::span(&id, 1), LogitRows::none, true, {});
            for (const Branch::Eviction& e : branch.takeEvictions())
                for (const Position p : e.positions) {
                    QCOMPARE(p, branch.seen() - 1); // only ever the token that came
                    ++dropped;
                }
        }
        QVERIFY(dropped > 0);
        QVERIFY(branch.cache().layer(LayerIndex{2}).held[0] <= 40 + 30);
    }
};

QTEST_APPLESS_MAIN(TSkipTest)
#include "tskip_test.moc"
