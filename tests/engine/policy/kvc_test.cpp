// The kvc (OBCache) family: against the plain reference, names, counts, and what single variants must reduce to.
#include "tests/support/policy_rig.h"

using namespace keepsight;
using namespace keepsight::testing;

class KvcTest : public QObject {
    Q_OBJECT

    static at::Tensor random(at::IntArrayRef shape, std::uint64_t seed) { return streamOf(seed, shape); }
    static Plan planOf(const std::string& policy, Budget budget, int tokens) { return policyOf(policy, budget)->planFor(Place::afterPrompt(tokens)); }

private Q_SLOTS:
    void keepsWhatTheReferenceKeeps_data() { referenceRows("kvc"); }
    void keepsWhatTheReferenceKeeps() {
        QFETCH(QJsonObject, reference);
        QCOMPARE(differenceFrom(reference), QString());
    }
    void theReferenceCoversEveryName() {
        std::set<QString> covered;
        for (const QJsonValue& c : referenceCases("kvc")) covered.insert(c["policy"].toString().section(':', 0, 0));
        int names = 0;
        for (const PolicyEntry& entry : policyRegistry()) {
            if (!entry.info.id.starts_with("kvc")) continue;
            ++names;
            QVERIFY2(covered.contains(QString::fromStdString(entry.info.id)), entry.info.id.c_str());
            QCOMPARE(policyEntry("obc" + entry.info.id.substr(3)).info.id, entry.info.id);
        }
        QCOMPARE(names, 25);
    }
    void onlyValidNamesExist() {
        for (const char* name : {"kvcV_no_cross", "kvcK_p1", "kvcVK_p1", "kvcK_no_cross", "kvcV+tova_fullhist", "kvc"}) QVERIFY_THROWS_EXCEPTION(UsageError, policyEntry(name));
    }
    void sharesOutWhatIsKept_data() {
        QTest::addColumn<QString>("policy");
        QTest::addColumn<int>("budget");
        QTest::addColumn<int>("recent");
        QTest::addColumn<int>("keep");
        QTest::newRow("budget") << "kvcV" << 200 << 10 << 200;
        QTest::newRow("small budget") << "kvcV" << 7 << 1 << 7;
        QTest::newRow("tokens") << "kvcV:num_recent=16,num_heavy=112" << 200 << 16 << 128;
        QTest::newRow("recent only") << "kvcV:num_recent=16" << 200 << 16 << 200;
        QTest::newRow("heavy only") << "kvcV:num_heavy=50" << 200 << 10 << 60;
        QTest::newRow("ratios") << "kvcV:recent_ratio=0.1,heavy_ratio=0.2" << 200 << 40 << 120;
        QTest::newRow("cache ratio") << "kvcV:cache_ratio=0.5" << 400 << 10 << 200;
        QTest::newRow("fixed recent") << "kvcV:cache_ratio=0.05,fix_recent=on" << 400 << 16 << 20;
        QTest::newRow("tova") << "kvcV+tova:num_recent=16,num_heavy=112" << 200 << 0 << 128;
    }
    void sharesOutWhatIsKept() {
        QFETCH(QString, policy);
        QFETCH(int, budget);
        const Plan plan = planOf(policy.toStdString(), Budget::kept(budget), 400);
        QTEST(plan.protect.recent, "recent");
        QTEST(plan.keep, "keep");
        QVERIFY(policyOf(policy.toStdString(), Budget::kept(budget))->needs(400).lastRows >= std::max(1, plan.protect.recent));
    }
    void sharedLayersReachTheShares() {
        const auto policy = policyOf("kvcV:layers=0.2/0.8", Budget::kept(10));
        QCOMPARE(policy->planFor(Place::afterPrompt(400, LayerIndex{0}, 3)).keep, 320);
        QCOMPARE(policy->planFor(Place::afterPrompt(400, LayerIndex{2}, 3)).protect.recent, 3); // of 79: 400 · (1 − 0.8) is a little less than 80
        QVERIFY(policy->needs(400).lastRows >= 16);
    }
    void constantValuesAndOneRowRankAsTova() {
        const at::Tensor keys = random({2, 80, 8}, 1), queries = random({4, 1, 8}, 2);
        at::Tensor values = random({2, 80, 8}, 3);
        values = values / values.norm(2, -1, true); // ‖v‖ = 1
        const LayerFixture f(keys, values, queries);
        const auto kvc = policyOf("kvcV+tova", Budget::kept(20));
        const at::Tensor rows = f.view().lastRows(1).squeeze(1).square(); // a² ranks as a, head by head
        const at::Tensor scores = kvc->score(f.view(), kvc->planFor(f.place()), {});
        QVERIFY(at::allclose(scores, reduceGroup(rows, 2, "mean"), 1e-4, 1e-8));
        const LayerFixture one(keys, values, queries.narrow(0, 0, 2));
        const Selection s = one.selection(*kvc);
        const at::Tensor a = one.view().lastRows(1).squeeze(1);
        for (std::int64_t h = 0; h < 2; ++h) {
            const at::Tensor top = std::get<0>(std::get<1>(a[h].topk(20)).sort());
            for (std::int64_t i = 0; i < 20; ++i) QCOMPARE(s.keep[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)], top[i].item<int>());
        }
    }
    void equalValuesLeaveNothingToKeys() { // v = o: taking a key away changes nothing
        const LayerFixture f(random({1, 50, 8}, 4), random({1, 1, 8}, 5).expand({1, 50, 8}).contiguous(), random({2, 10, 8}, 6));
        const auto key = policyOf("kvcK:num_recent=10,num_heavy=10", {}), value = policyOf("kvcV:num_recent=10,num_heavy=10", {}),
                   joint = policyOf("kvcVK:num_recent=10,num_heavy=10", {});
        const Plan plan = key->planFor(f.place());
        const at::Tensor sK = key->statistic(f.view(), plan, {}), sV = value->statistic(f.view(), plan, {}), sVK = joint->statistic(f.view(), plan, {});
        QVERIFY(sK.max().item<double>() < 1e-5 * sV.max().item<double>());
        QVERIFY(at::allclose(sV, sVK, 1e-3, 1e-6));
    }
    void theWindowVariantOfAllRowsIsTheFullHistory() {
        const at::Tensor keys = random({2, 40, 8}, 7), values = random({2, 40, 8}, 8), queries = random({4, 40, 8}, 9);
        const LayerFixture f(keys, values, queries);
        for (const char* base : {"V", "K", "VK", "VK_no_cross", "V_p1"}) {
            const auto window = policyOf("kvc" + std::string(base) + ":num_recent=40,num_heavy=1", {});
            const at::Tensor rows = window->statistic(f.view(), window->planFor(f.place()), {});
            const auto full = policyOf("kvc" + std::string(base) + "_fullhist:num_recent=40,num_heavy=1", {});
            QVERIFY(full->needs(40).columnSums && full->needs(40).sum == window->needs(40).sum && !window->needs(40).columnSums);
            QVERIFY(at::equal(full->statistic(f.view(), full->planFor(f.place()), rows), rows));
            QCOMPARE(rows.size(0), 4);
        }
    }
    void windowsOfAnySizeAddUpFromWhatIsRemembered() {
        const auto model = tinyModel();
        const auto policy = policyOf("kvcVK:num_recent=100,num_heavy=20", Budget::kept(120));
        const auto snapshot = prefillFor(*model, tinyIds(150), policy);
        const LayerView view = snapshot->view(LayerIndex{1});
        LayerView plain = view;
        plain.remembered = nullptr;
        QVERIFY(view.remembered);
        for (const int rows : {33, 1, 16, 100, 15, 17, 33, 32})
            for (const auto kind : {ops::OutputChange::value, ops::OutputChange::joint}) {
                const at::Tensor changes = view.lastChanges(kind, rows), weights = view.lastSums(rows);
                const double rounding = 1e-5 * changes.max().item<double>(); // changes are differences of outputs, most of which are much larger
                QVERIFY2(at::allclose(changes, plain.lastChanges(kind, rows), 1e-4, rounding), qPrintable(QString::number(rows)));
                QVERIFY2(at::allclose(weights, plain.lastSums(rows), 1e-4, 1e-6), qPrintable(QString::number(rows)));
                const at::Tensor before = changes.clone(), weightsBefore = weights.clone();
                changes.fill_(7), weights.fill_(7); // of the caller alone
                QVERIFY(at::equal(view.lastChanges(kind, rows), before) && at::equal(view.lastSums(rows), weightsBefore));
            }
    }
    void poolingSpreadsToNeighboursButNotIntoTheWindow() {
        const LayerFixture f(random({1, 40, 8}, 10), random({1, 40, 8}, 11), random({2, 5, 8}, 12));
        at::Tensor sums = at::zeros({2, 40});
        sums.select(1, 20).fill_(7);
        sums.select(1, 36).fill_(100); // recent: no candidate
        const auto best = policyOf("kvcV+maxpool:num_recent=5,num_heavy=7", {}), mean = policyOf("kvcV+avgpool:num_recent=5,num_heavy=7", {});
        const Plan plan = best->planFor(f.place());
        const at::Tensor a = best->score(f.view(), plan, sums)[0], b = mean->score(f.view(), plan, sums)[0];
        for (int t = 0; t < 35; ++t) {
            QCOMPARE(a[t].item<float>(), t >= 17 && t <= 23 ? 7.0f : 0.0f);
            QVERIFY(std::abs(b[t].item<float>() - (t >= 17 && t <= 23 ? 1.0f : 0.0f)) < 1e-6f);
        }
    }
    void decodesAsItsScheduleSays() {
        const auto model = tinyModel();
        const auto ids = tinyIds(120);
        for (const char* on : {"kvcVK", "kvcK+avgpool", "kvcV+tova", "kvcV_p1_fullhist", "kvcVK_no_cross_fullhist"}) {
            const auto p = policyOf(std::string(on) + ":num_recent=6,num_heavy=30", {}), off = policyOf(std::string(on) + ":num_recent=6,num_heavy=30,decode_evict=off", {});
            Branch a(*model, prefillFor(*model, ids, p), p, {.headroom = 20}), b(*model, prefillFor(*model, ids, off), off, {.headroom = 20});
            for (const TokenId id : tinyIds(20, 5)) {
                a.feed(std::span(&id, 1), LogitRows::none, true, {});
                b.feed(std::span(&id, 1), LogitRows::none, true, {});
                QCOMPARE(a.cache().layer(LayerIndex{1}).maxHeld(), 36);
            }
            QCOMPARE(b.cache().layer(LayerIndex{1}).maxHeld(), 56);
        }
    }
    void aBranchSumsWhatEachStepWouldChange() { // the running statistic, without eviction, is the one of all rows so far
        const auto model = tinyModel();
        const auto ids = tinyIds(60);
        const auto p = policyOf("kvcVK_fullhist", Budget::removed(0));
        Branch branch(*model, prefillFor(*model, ids, p), p, {.headroom = 10});
        const std::vector<TokenId> next = tinyIds(10, 8);
        for (const TokenId id : next) branch.feed(std::span(&id, 1), LogitRows::none, true, {});
        std::vector<TokenId> all = ids;
        all.insert(all.end(), next.begin(), next.end());
        Branch whole(*model, prefillFor(*model, all, p), p, {.headroom = 1});
        for (int l = 0; l < 2; ++l) {
            const at::Tensor a = branch.cache().layer(LayerIndex{l}).memory.begin()->second.narrow(1, 0, 70),
                             b = whole.cache().layer(LayerIndex{l}).memory.begin()->second.narrow(1, 0, 70);
            QVERIFY(at::allclose(a, b, 1e-3, 1e-6));
        }
    }
    void refusesWhatContradictsItself_data() {
        QTest::addColumn<QString>("policy");
        for (const char* p : {"kvcV:fix_recent=on", "kvcV:cache_ratio=0.5,recent_ratio=0.1", "kvcV:cache_ratio=0.5,num_heavy=9", "kvcV:cache_ratio=0.5,num_recent=9",
                              "kvcV:num_recent=9,heavy_ratio=0.1", "kvcV:layers=0.5,num_heavy=9", "kvcV:kernel=7", "kvcV+maxpool:kernel=6"})
            QTest::newRow(p) << QString(p);
    }
    void refusesWhatContradictsItself() {
        QFETCH(QString, policy);
        QVERIFY_THROWS_EXCEPTION(UsageError, policyOf(policy.toStdString(), {}));
    }
};

QTEST_APPLESS_MAIN(KvcTest)
#include "kvc_test.moc"
