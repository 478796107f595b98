// Layer budgets of the three forms, and scores that are snapkv's.
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class PyramidKvTest : public QObject {
    Q_OBJECT

    static std::vector<int> budgets(const std::string& spec, Budget budget, int tokens, int layers) {
        const auto policy = policyOf(spec, budget);
        std::vector<int> out;
        for (int l = 0; l < layers; ++l) out.push_back(policy->planFor(Place::afterPrompt(tokens, LayerIndex{l}, layers)).keep);
        return out;
    }
    static int sum(const std::vector<int>& v) { return std::accumulate(v.begin(), v.end(), 0); }

private Q_SLOTS:
    void exactBudgetsAddUpAndFall_data() {
        QTest::addColumn<QString>("spec");
        QTest::addColumn<int>("tokens");
        QTest::addColumn<int>("budget");
        QTest::addColumn<int>("layers");
        for (const char* spec : {"pyramidkv:form=exact", "pyramidkv:form=exact,window=8,beta=7", "pyramidkv:form=exact,beta=1.5", "pyramidkv:form=exact,window=8,beta=20"})
            for (const int tokens : {300, 1000, 4096})
                for (const int budget : {1, 40, 128, 250, 299})
                    for (const int layers : {1, 2, 7, 30, 32}) QTest::newRow(qPrintable(QString("%1 %2 %3 %4").arg(spec).arg(tokens).arg(budget).arg(layers))) << QString(spec) << tokens << budget << layers;
    }
    void exactBudgetsAddUpAndFall() {
        QFETCH(QString, spec);
        QFETCH(int, tokens);
        QFETCH(int, budget);
        QFETCH(int, layers);
        const std::vector<int> b = budgets(spec.toStdString(), Budget::kept(budget), tokens, layers);
        QCOMPARE(sum(b), budget * layers);
        for (std::size_t l = 1; l < b.size(); ++l) QVERIFY(b[l] <= b[l - 1]);
        QVERIFY(b.back() >= 1 && b.front() <= tokens);
    }
    void betaOneIsSnapkv() {
        at::manual_seed(3);
        const at::Tensor keys = at::randn({2, 300, 8});
        const LayerFixture f(keys, keys, at::randn({4, 64, 8}));
        for (const int b : budgets("pyramidkv:form=exact,beta=1", Budget::kept(150), 300, 12)) QCOMPARE(b, 150);
        QCOMPARE(f.selection(*policyOf("pyramidkv:form=exact,beta=1", Budget::kept(150))).keep, f.selection(*policyOf("snapkv", Budget::kept(150))).keep);
    }
    void originalFloorsItsSteps() {
        // C 128, w 8, N 4096, L 32: min 6, max 234, step 7; the mean stored is 133.5.
        const std::vector<int> b = budgets("pyramidkv:form=original,window=8", Budget::kept(128), 4096, 32);
        QCOMPARE(b.front(), 242);
        QCOMPARE(b.back(), 242 - 31 * 7);
        QCOMPARE(sum(b), static_cast<int>(133.5 * 32));
        const std::vector<int> thirty = budgets("pyramidkv:form=original,window=8", Budget::kept(128), 4096, 30);
        QCOMPARE(sum(thirty), static_cast<int>(140.5 * 30));
        const Plan plan = policyOf("pyramidkv:form=original,window=8", Budget::kept(128))->planFor(Place::afterPrompt(4096, LayerIndex{0}, 32));
        QVERIFY2(plan.notice.find("133.5") != std::string::npos, plan.notice.c_str());
    }
    void originalIsUniformForShortPrompts() {
        for (const int b : budgets("pyramidkv:form=original,window=8", Budget::kept(128), 200, 30)) QCOMPARE(b, 128);
    }
    void kvpressRoundsTheLineWithoutTheWindow() {
        // N 4096, c 0.5: mean 2048, max would be 3993.6 ≤ 4032, min 102.4 ≥ 64.
        const std::vector<int> b = budgets("pyramidkv", Budget::removed(0.5), 4096, 30);
        QCOMPARE(b.front(), 3994);
        QCOMPARE(b.back(), 102);
        QVERIFY(std::abs(sum(b) - 2048 * 30) <= 15);
    }
    void kvpressFallsBackToOneBudget() {
        const auto policy = policyOf("pyramidkv", Budget::removed(0.7));
        const Plan plan = policy->planFor(Place::afterPrompt(4096, LayerIndex{20}, 30));
        QCOMPARE(plan.keep, 1229); // round(1228.8), where plain snapkv floors
        QVERIFY(!plan.notice.empty());
    }
    void kvpressClampsTheBottomLayerToThePrompt() {
        // N 512, c 0.3: 2·358.4 − 17.92 > 448, so the bottom layer keeps 448 and the top 268.8.
        const std::vector<int> b = budgets("pyramidkv", Budget::removed(0.3), 512, 30);
        QCOMPARE(b.front(), 448);
        QCOMPARE(b.back(), 269);
    }
    void withRoomForAllNothingGoes() {
        for (const char* spec : {"pyramidkv", "pyramidkv:form=exact", "pyramidkv:form=original"}) {
            const auto policy = policyOf(spec, Budget::kept(500));
            for (int l = 0; l < 8; ++l) {
                const Place place = Place::afterPrompt(500, LayerIndex{l}, 8);
                QVERIFY(!policy->decides(place, policy->planFor(place), 1000, 2, nullptr));
            }
        }
    }
    void theWindowAlwaysFits() {
        for (const char* spec : {"pyramidkv", "pyramidkv:form=exact", "pyramidkv:form=original"})
            for (const int budget : {1, 2, 30, 64, 65, 90, 400})
                for (int l = 0; l < 30; ++l) {
                    const Plan plan = policyOf(spec, Budget::kept(budget))->planFor(Place::afterPrompt(2000, LayerIndex{l}, 30));
                    QVERIFY(plan.window >= 1 && plan.window <= plan.keep);
                    QCOMPARE(plan.protect.recent, plan.window);
                }
    }
};

QTEST_APPLESS_MAIN(PyramidKvTest)
#include "pyramidkv_test.moc"
