// Attention summed and shared out by layer: against the plain reference, and what the method promises.
#include "tests/support/policy_rig.h"

using namespace keepsight;
using namespace keepsight::testing;

class AttnTest : public QObject {
    Q_OBJECT

    static std::vector<std::int64_t> heldAfter(const std::string& policy, Budget budget, int prompt, int steps, int layers = 4) {
        PolicyRig rig(policyOf(policy, budget), {.layers = layers, .queryHeads = 4, .kvHeads = 2, .prompt = prompt, .steps = steps, .dim = 8}, 1);
        rig.prefill();
        for (int i = 0; i < steps; ++i) rig.step();
        std::vector<std::int64_t> out;
        for (int l = 0; l < layers; ++l) out.push_back(rig.held(l));
        return out;
    }

private Q_SLOTS:
    void keepsWhatTheReferenceKeeps_data() { referenceRows("attn"); }
    void keepsWhatTheReferenceKeeps() {
        QFETCH(QJsonObject, reference);
        QCOMPARE(differenceFrom(reference), QString());
    }
    void sharesRefersToTheTokensSeen() { // no geometric decay
        // 120 seen: f = 0.75 … 0.5
        QCOMPARE(heldAfter("attn:start=0.75,end=0.5", {}, 100, 20), (std::vector<std::int64_t>{90, 80, 70, 60}));
        QCOMPARE(heldAfter("attn:start=0.75,end=0.5", {}, 100, 20, 1), (std::vector<std::int64_t>{90}));
    }
    void aBudgetIsTheMeanOverLayers_data() {
        QTest::addColumn<int>("tokens");
        for (const int tokens : {20, 50, 61, 77, 95, 99}) QTest::addRow("%d", tokens) << tokens;
    }
    void aBudgetIsTheMeanOverLayers() {
        QFETCH(int, tokens);
        const std::vector<std::int64_t> held = heldAfter("attn", Budget::kept(tokens), 100, 0);
        QCOMPARE(held[0] + held[1] + held[2] + held[3], 4 * tokens);
        QVERIFY(std::ranges::is_sorted(held, std::greater<>()));
        QVERIFY(held[0] <= 100 && held[0] > held[3]);
    }
    void layersReplaceTheSlope() {
        QCOMPARE(heldAfter("attn:layers=0.1/0.7", {}, 100, 0), (std::vector<std::int64_t>{90, 70, 50, 30}));
    }
    void keepsAnchorsAndTheNewest() {
        PolicyRig rig(policyOf("attn", Budget::kept(3)), {.layers = 1, .queryHeads = 4, .kvHeads = 2, .prompt = 60, .steps = 5, .dim = 8}, 3);
        rig.prefill();
        for (int i = 0; i < 5; ++i) rig.step();
        for (const std::vector<Position>& head : rig.kept(0)) QCOMPARE(head, (std::vector<Position>{0, 1, 2, 3, 4, 5, 6, 7, 64}));
        const Plan plan = policyOf("attn", Budget::kept(3))->planFor(Place::afterPrompt(60));
        QVERIFY(plan.notice.find("9 tokens") != std::string::npos);
    }
    void withRoomForAllNothingGoes() {
        QCOMPARE(heldAfter("attn:start=1,end=1", {}, 50, 10), (std::vector<std::int64_t>(4, 60)));
        QCOMPARE(heldAfter("attn", {}, 50, 10), (std::vector<std::int64_t>(4, 60)));
    }
    void sumsOverKeptColumnsAreTheRowsRecorded() {
        PolicyRig rig(policyOf("attn", Budget::removed(0.5)), {.layers = 1, .queryHeads = 4, .kvHeads = 2, .prompt = 40, .steps = 10, .dim = 8}, 5);
        rig.prefill();
        for (int i = 0; i < 10; ++i) {
            const PolicyRig::Kept before = rig.kept(0);
            const at::Tensor acc = rig.statistic(0).clone();
            rig.step();
            const PolicyRig::Kept after = rig.kept(0);
            const at::Tensor now = rig.statistic(0);
            // Weights of the step's row over what was held when it was computed: recover them as the growth of each surviving column.
            for (int h = 0; h < 4; ++h) {
                double grown = 0;
                for (std::size_t i2 = 0; i2 < after[static_cast<std::size_t>(h / 2)].size(); ++i2) {
                    const auto& old = before[static_cast<std::size_t>(h / 2)];
                    const auto was = std::ranges::find(old, after[static_cast<std::size_t>(h / 2)][i2]);
                    const double earlier = was == old.end() ? 0 : acc[h][was - old.begin()].item<double>();
                    const double growth = now[h][static_cast<std::int64_t>(i2)].item<double>() - earlier;
                    QVERIFY(growth > 0);
                    grown += growth;
                }
                QVERIFY(grown <= 1 + 1e-4);
            }
        }
    }
    void everyQueryIsCountedOnceThroughABranch() {
        const auto model = tinyModel();
        const auto policy = policyOf("attn:start=1,end=1", {});
        Branch branch(*model, prefillFor(*model, tinyIds(90), policy), policy, {.headroom = 12});
        for (const TokenId id : tinyIds(12, 3)) branch.feed(std::span(&id, 1), LogitRows::none, true, {});
        for (int l = 0; l < 2; ++l) {
            const CacheLayer& layer = branch.cache().layer(LayerIndex{l});
            const at::Tensor sums = layer.memory.begin()->second.narrow(1, 0, layer.maxHeld()).sum(1);
            QVERIFY(at::allclose(sums, at::full({4}, 102.0f), 1e-4, 1e-2));
        }
    }
    void sharedHeadsKeepOneSet() {
        PolicyRig rig(policyOf("attn:shared_heads=on", Budget::removed(0.6)), {.layers = 1, .queryHeads = 8, .kvHeads = 4, .prompt = 60, .steps = 6, .dim = 8}, 6);
        rig.prefill();
        for (int i = 0; i < 6; ++i) rig.step();
        const PolicyRig::Kept kept = rig.kept(0);
        for (const auto& head : kept) QCOMPARE(head, kept[0]);
    }
    void theSeedFormCompounds() { // the demonstration
        QCOMPARE(heldAfter("attn:form=seed,start=0.75,end=0.75", {}, 4096, 0, 1), (std::vector<std::int64_t>{4096})); // the prefill drops nothing
        QCOMPARE(heldAfter("attn:form=seed,start=0.75,end=0.75", {}, 4096, 23, 1), (std::vector<std::int64_t>{8}));
        QVERIFY(heldAfter("attn:form=seed,start=0.75,end=0.75", {}, 4096, 22, 1)[0] > 8);
        QCOMPARE(heldAfter("attn:form=seed,start=0.9,end=0.9", {}, 400, 60, 1), (std::vector<std::int64_t>{14}));
        QCOMPARE(heldAfter("attn:form=seed", {}, 40, 5, 1), (std::vector<std::int64_t>{45})); // no budget: nothing goes
    }
    void refusesWhatContradictsItself_data() {
        QTest::addColumn<QString>("policy");
        for (const char* p : {"attn:start=0.5,layers=0.1", "attn:heads=ada,shared_heads=on", "attn:form=seed,heads=ada", "attn:form=seed,timing=prefill_end", "attn:start=1.5"})
            QTest::newRow(p) << QString(p);
    }
    void refusesWhatContradictsItself() {
        QFETCH(QString, policy);
        QVERIFY_THROWS_EXCEPTION(UsageError, policyOf(policy.toStdString(), {}));
    }
};

QTEST_APPLESS_MAIN(AttnTest)
#include "attn_test.moc"
