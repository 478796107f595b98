// tokenselect chooses by soft vote, reuses its choice while queries stay alike, and attends to ascending entries at any time.
#include "engine/eval/evaluation.h"
#include "engine/trace/recorder.h"
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

namespace {

at::Tensor random(at::IntArrayRef shape, std::uint64_t seed) {
    at::manual_seed(seed);
    return at::randn(shape);
}

std::vector<std::int32_t> attended(const Policy& policy, const LayerFixture& f, LayerMemory* memory, std::int64_t seen = 0) {
    Place place = f.place();
    place.fresh = f.queries.size(1);
    LayerView view = f.view();
    if (seen) {
        place.seen = seen;
        view.queryPositions = at::arange(seen - place.fresh, seen, at::kInt);
    }
    const at::Tensor entries = policy.attend(view, place, memory).value().entries.contiguous();
    return {entries.const_data_ptr<std::int32_t>(), entries.const_data_ptr<std::int32_t>() + entries.size(0)};
}

} // namespace

class TokenSelectTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void attendsToEverythingWhereItFits() {
        const LayerFixture f(random({2, 60, 8}, 1), random({2, 60, 8}, 2), random({4, 1, 8}, 3));
        const auto policy = policyOf("tokenselect:init=4,top_k=40,local=16", {});
        const auto memory = policy->remember();
        Place place = f.place();
        place.fresh = 1;
        QVERIFY(!policy->attend(f.view(), place, memory.get()));
    }

    // Softmax by head before the sum: one head that is sure outweighs heads with larger but flat logits.
    void aPlantedKeyWinsAgainstLouderHeads() {
        at::Tensor keys = 0.05 * random({2, 200, 8}, 4), queries = random({4, 1, 8}, 5);
        // Query head 0 reads KV head 0: one entry matches it as rotated `local` behind.
        const auto policy = policyOf("tokenselect:init=4,top_k=1,local=16,theta=2", {});
        LayerFixture f(keys, keys, queries);
        const at::Tensor turned = ops::rope(queries, at::full({1}, 16, at::kInt), ropeInverseFrequencies(f.config));
        keys[0][77] = 4 * turned[0][0];
        keys[1] += 3 * turned[2][0]; // head 2 is loud everywhere, and so decides nothing
        const auto memory = policy->remember();
        const auto chosen = attended(*policy, f, memory.get());
        QCOMPARE(static_cast<int>(chosen.size()), 4 + 1 + 16);
        QVERIFY(std::ranges::binary_search(chosen, 77));
    }

    // A plain loop: the vote as the file's head gives it.
    void equalsAPlainReference() {
        const LayerFixture f(random({2, 150, 8}, 6), random({2, 150, 8}, 7), random({6, 3, 8}, 8));
        const auto policy = policyOf("tokenselect:init=5,top_k=20,local=30,theta=2,kernel=3,scale=sqrt_d", {});
        const at::Tensor q = ops::rope(f.queries, at::arange(30, 33, at::kInt), ropeInverseFrequencies(f.config)).mean(1);
        std::vector<double> vote(150, 0);
        for (int h = 0; h < 6; ++h) {
            double sum = 0;
            std::vector<double> e(150, 0);
            for (int t = 5; t < 120; ++t)
                sum += e[static_cast<std::size_t>(t)] = std::exp(at::dot(q[h], f.entries.keys[h / 3][t]).item<double>() / std::sqrt(8.0));
            for (int t = 5; t < 120; ++t)
                vote[static_cast<std::size_t>(t)] += e[static_cast<std::size_t>(t)] / sum;
        }
        std::vector<std::pair<double, int>> pooled;
        for (int t = 5; t < 120; ++t) {
            double best = 0;
            for (int k = std::max(5, t - 1); k <= std::min(119, t + 1); ++k)
                best = std::max(best, vote[static_cast<std::size_t>(k)]);
            pooled.emplace_back(best, t);
        }
        std::ranges::sort(pooled, std::greater<>()); // ties to the larger position
        std::vector<std::int32_t> expected;
        for (int i = 0; i < 5; ++i)
            expected.push_back(i);
        for (int i = 0; i < 20; ++i)
            expected.push_back(pooled[static_cast<std::size_t>(i)].second);
        for (int i = 120; i < 150; ++i)
            expected.push_back(i);
        std::ranges::sort(expected);
        const auto memory = policy->remember();
        QCOMPARE(attended(*policy, f, memory.get()), expected);
    }

    void reusesItsChoiceWhileQueriesStayAlike() {
        const at::Tensor keys = random({2, 200, 8}, 9);
        LayerFixture first(keys, keys, random({4, 1, 8}, 10)), other(keys, keys, random({4, 1, 8}, 11));
        const auto always = policyOf("tokenselect:init=4,top_k=20,local=16,theta=-1", {}),
                   never = policyOf("tokenselect:init=4,top_k=20,local=16,theta=2", {});
        const auto memory = always->remember(), fresh = never->remember();
        const auto chosen = attended(*always, first, memory.get(), 200);
        QCOMPARE(attended(*always, other, memory.get(), 201), chosen); // whatever the query
        QCOMPARE(attended(*never, first, fresh.get(), 200), chosen);
        const auto anew = attended(*never, other, fresh.get(), 201);
        QVERIFY(anew != chosen);
        QCOMPARE(attended(*always, other, memory.get(), 200 + 16), anew); // after `local` tokens the choice is made anew in any case
    }

    void explainsWhatAStepAttendedTo() {
        const auto model = tinyModel();
        const auto policy = policyOf("tokenselect:init=4,top_k=20,local=16,theta=2", {});
        const std::vector<Position> asked = {1, 30, 95, 96, 300};
        Branch branch(*model, prefillFor(*model, tinyIds(96), policy), policy, {.headroom = 4, .explain = asked});
        branch.takeExplanations(); // nothing is chosen after the prefill
        const TokenId next = 5;
        branch.feed(std::span(&next, 1), LogitRows::last, true, {});
        const std::vector<Explanation> why = branch.takeExplanations();
        QCOMPARE(static_cast<int>(why.size()), 2 * 2 * 4); // layers × heads × positions that are there
        int kept = 0;
        for (const Explanation& e : why) {
            QVERIFY(e.found && e.stored);
            QCOMPARE(e.step, Step{2});
            QCOMPARE(e.budget, 4 + 20 + 16);
            if (e.position == 1) QCOMPARE(e.protectedBy, std::string("sink"));
            if (e.position >= 95) QCOMPARE(e.protectedBy, std::string("recent"));
            if (e.position != 30) continue;
            QCOMPARE(e.candidates, 97 - 4 - 16);
            QCOMPARE(e.slots, 20);
            QCOMPARE(e.kept, e.rank <= 20);
            QVERIFY(e.kept == (e.score >= e.cutoff) && e.lastKept >= 4 && e.lastKept < 97 - 16);
            kept += e.kept;
        }
        QVERIFY(kept % 2 == 0); // one set for both heads of a layer
        // What a budget would have changed, where the budget decides.
        const auto budgeted = policyOf("tokenselect:theta=2", Budget::kept(40));
        Branch other(*model, prefillFor(*model, tinyIds(96), budgeted), budgeted, {.headroom = 4, .explain = {30}});
        other.takeExplanations();
        other.feed(std::span(&next, 1), LogitRows::last, true, {});
        for (const Explanation& e : other.takeExplanations()) {
            QVERIFY(e.budgetNeeded > 0 && e.budgetNeeded <= 97);
            QCOMPARE(e.budgetNeeded <= 40, e.kept);
        }
    }

    void readsThePromptBySelection() {
        const auto model = tinyModel();
        const std::vector<TokenId> ids = tinyIds(1300); // three blocks
        const auto roomy = policyOf("tokenselect:init=8,top_k=2000,local=600,prefill=select", {}),
                   shared = policyOf("tokenselect:init=8,top_k=2000,local=600", {});
        Branch a(*model, prefillFor(*model, ids, roomy), roomy, {.headroom = 4}),
            b(*model, prefillFor(*model, ids, shared), shared, {.headroom = 4});
        QVERIFY(at::allclose(a.firstLogits(), b.firstLogits(), 1e-3, 1e-3)); // everything fits: the same pass
        QCOMPARE(a.seen(), 1300);
        QCOMPARE(keptSets(a.cache()).kept, keptSets(b.cache()).kept);
        const auto tight = policyOf("tokenselect:init=8,top_k=64,local=512,prefill=select,theta=2", {});
        Branch c(*model, prefillFor(*model, ids, tight), tight, {.headroom = 4});
        QVERIFY(!at::allclose(c.firstLogits(), b.firstLogits(), 1e-3, 1e-3));
        const TokenId next = 5;
        QVERIFY(at::isfinite(c.feed(std::span(&next, 1), LogitRows::last, true, {})).all().item<bool>());
        QCOMPARE(c.cache().layer(LayerIndex{1}).maxHeld(), 1301);
    }

    void readsPromptsLongerThanTheContext() {
        ModelConfig config;
        config.maxPositions = 1000;
        const std::vector<std::shared_ptr<const Policy>> select = {policyOf("tokenselect:prefill=select", {})},
                                                         mixed = {select[0], policyOf("tokenselect", {})};
        checkContext(config, 5000, "the text", select);
        QVERIFY_THROWS_EXCEPTION(EngineError, checkContext(config, 5000, "the text", mixed));
        QVERIFY_THROWS_EXCEPTION(EngineError, checkContext(config, 5000, "the text"));
    }

    void sharesOfARatioAreThePrompts() {
        const auto model = tinyModel();
        for (const char* text : {"tokenselect:theta=-1", "tokenselect:theta=0.5"}) {
            const auto policy = policyOf(text, Budget::removed(0.3));
            Branch branch(*model, prefillFor(*model, tinyIds(600), policy), policy, {.headroom = 80});
            for (const TokenId id : tinyIds(80, 3)) // the operators refuse entries that are not ascending
                QVERIFY(at::isfinite(branch.feed(std::span(&id, 1), LogitRows::last, true, {})).all().item<bool>());
            // As many are attended to at the end as with the number of tokens that the ratio leaves of the prompt.
            const auto inTokens = policyOf(text, Budget::kept(420));
            Branch other(*model, prefillFor(*model, tinyIds(600), inTokens), inTokens, {.headroom = 80});
            for (const TokenId id : tinyIds(80, 3)) other.feed(std::span(&id, 1), LogitRows::last, true, {});
            const TokenId next = 5;
            QVERIFY(at::equal(branch.feed(std::span(&next, 1), LogitRows::last, true, {}), other.feed(std::span(&next, 1), LogitRows::last, true, {})));
            QCOMPARE(branch.cache().layer(LayerIndex{0}).maxHeld(), 681); // nothing is freed
        }
    }
};

QTEST_APPLESS_MAIN(TokenSelectTest)
#include "tokenselect_test.moc"
