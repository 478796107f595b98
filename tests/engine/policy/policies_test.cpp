// Properties every policy must have (policies.md §0.7), over the whole registry: a new policy is tested by being registered.
#include "engine/trace/recorder.h"
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>
#include <cmath>

using namespace keepsight;
using namespace keepsight::testing;

namespace {

constexpr int Prompt = 150;
constexpr int Steps = 12;

// Reference: full attention in plain loops over what a head held when each token came.
// Runs the model's own arithmetic on an uncompressed cache whose evicted entries are hidden by length-0 gathering.
at::Tensor replayMasked(const Model& model, const std::vector<TokenId>& ids, const std::vector<std::vector<std::vector<Position>>>& kept,
                        TokenId next) {
    KvCache cache(model.config(), at::kFloat, at::kCPU, RopeMode::original);
    model.forward(ids, 0, cache, nullptr, LogitRows::none);
    for (int l = 0; l < cache.layers(); ++l) {
        CacheLayer& layer = cache.layer(LayerIndex{l});
        // Hide an entry by moving it beyond the future: no query may see it, and the order of positions stays ascending by sorting it last.
        for (std::size_t h = 0; h < layer.held.size(); ++h) {
            const auto& keep = kept[static_cast<std::size_t>(l)][h];
            const at::Tensor index = at::tensor(std::vector<std::int64_t>(keep.begin(), keep.end()), at::kLong);
            const auto n = static_cast<std::int64_t>(keep.size());
            for (at::Tensor* t : {&layer.keys, &layer.values, &layer.positions}) {
                const at::Tensor row = (*t)[static_cast<std::int64_t>(h)];
                row.narrow(0, 0, n).copy_(row.index_select(0, index).clone());
            }
            layer.held[h] = static_cast<std::int32_t>(n);
            layer.lengths[static_cast<std::int64_t>(h)].fill_(static_cast<std::int32_t>(n));
        }
    }
    return model.forward(std::span(&next, 1), static_cast<Position>(ids.size()), cache, nullptr, LogitRows::last).reshape({-1});
}

} // namespace

class PoliciesTest : public QObject {
    Q_OBJECT

private:
    std::unique_ptr<Model> m_model = tinyModel();
    std::vector<TokenId> m_ids = tinyIds(Prompt);

    static void rows() {
        QTest::addColumn<QString>("policy");
        QTest::addColumn<double>("ratio");
        for (const PolicyEntry& entry : policyRegistry())
            for (const double ratio : {0.1, 0.5, 0.9, 0.97})
                if (ratio == 0.5 || !entry.info.id.starts_with("kvc") || entry.info.id == "kvcVK") // the family differs in its scores only
                    QTest::newRow(qPrintable(QString("%1 removes %2").arg(entry.info.id.c_str()).arg(ratio)))
                        << QString::fromStdString(entry.info.id) << ratio;
        // Variants beside the defaults.
        for (const char* text :
             {"knorm:heads=ada", "snapkv:window=16,heads=ada,ada_floor=0.5", "knorm:chunk=40,sinks=4,recent=8", "h2o:layers=0.2/0.8",
              "snapkv:window=16,timing=every:4", "knorm:timing=decode:3", "snapkv:window=8,timing=each_step,heads=ada",
              "h2o:heads=ada,sinks=2", "knorm:keep=high,timing=each_step", "snapkv:pool=max,kernel=7,window=16,agg=max", "h2o:history=last",
              "h2o:heavy=10,recent=20", "streaming_llm:rope=original,sinks=2", "window:window=33", "tova:timing=every:3",
              "knorm:rope=cache_relative"})
            QTest::newRow(text) << QString(text) << 0.5;
    }

private Q_SLOTS:
    void keepsAscendingUniquePositionsAndMeetsTheBudget_data() { rows(); }
    void keepsAscendingUniquePositionsAndMeetsTheBudget() {
        QFETCH(QString, policy);
        QFETCH(double, ratio);
        const auto p = policyOf(policy.toStdString(), Budget::removed(ratio));
        const auto snapshot = prefillFor(*m_model, m_ids, p);
        Branch branch(*m_model, snapshot, p, {.headroom = Steps});
        const KeptSets sets = keptSets(branch.cache());
        const int layers = m_model->config().layers, heads = m_model->config().kvHeads;
        for (std::size_t l = 0; l < sets.kept.size(); ++l) {
            const Plan plan = p->planFor(Place::afterPrompt(Prompt, LayerIndex{static_cast<std::int32_t>(l)}, layers));
            const int budget = p->schedule().afterPrefill ? std::min(plan.keep, Prompt) : Prompt;
            int total = 0;
            for (const auto& kept : sets.kept[l])
                total += static_cast<int>(kept.size());
            if (p->kind() != PolicyKind::admit && plan.chunk == 0) QCOMPARE(total, budget * heads);
            for (const std::vector<Position>& kept : sets.kept[l]) {
                if (p->kind() != PolicyKind::admit && plan.chunk == 0 && !plan.adaptive) QCOMPARE(static_cast<int>(kept.size()), budget);
                for (std::size_t i = 0; i < kept.size(); ++i) {
                    QVERIFY(kept[i] >= 0 && kept[i] < Prompt);
                    if (i) QVERIFY(kept[i] > kept[i - 1]);
                }
                const int sinks = std::min(plan.protect.sinks, budget), recent = std::min(plan.protect.recent, budget - sinks);
                for (int s = 0; s < sinks; ++s)
                    QVERIFY(std::binary_search(kept.begin(), kept.end(), s));
                for (int r = 0; r < recent; ++r)
                    QVERIFY(std::binary_search(kept.begin(), kept.end(), Prompt - 1 - r));
            }
        }
    }

    void recordsExactlyWhatItEvicts_data() { rows(); }
    void recordsExactlyWhatItEvicts() {
        QFETCH(QString, policy);
        QFETCH(double, ratio);
        const auto p = policyOf(policy.toStdString(), Budget::removed(ratio));
        Branch branch(*m_model, prefillFor(*m_model, m_ids, p), p, {.headroom = Steps});
        const ModelConfig& c = m_model->config();
        Retention retention(c.layers, c.kvHeads);
        retention.append(Step{0}, Prompt);
        const auto record = [&](Step step) {
            for (Branch::Eviction& e : branch.takeEvictions())
                retention.evict({LaneIndex{0}, step, e.layer, e.head, std::move(e.positions)});
        };
        record(Step{1});
        const std::vector<TokenId> next = tinyIds(Steps, 99);
        for (int n = 0; n < Steps; ++n) {
            branch.feed(std::span(next).subspan(static_cast<std::size_t>(n), 1), LogitRows::none, true, {});
            retention.append(Step{n + 2}, 1);
            record(Step{n + 2});
            const KeptSets sets = keptSets(branch.cache());
            for (int l = 0; l < c.layers; ++l)
                for (int h = 0; h < c.kvHeads; ++h)
                    QCOMPARE(retention.keptAt(Step{n + 2}, LayerIndex{l}, HeadIndex{h}),
                             sets.kept[static_cast<std::size_t>(l)][static_cast<std::size_t>(h)]);
        }
        if (p->schedule().everySteps == 1 && p->kind() == PolicyKind::evict) {
            Place place = Place::afterPrompt(Prompt + Steps, LayerIndex{0}, c.layers);
            place.fresh = 1;
            const std::int64_t most = static_cast<std::int64_t>(std::min(p->planFor(place).keep, Prompt + Steps)) * c.kvHeads;
            QVERIFY(branch.cache().layer(LayerIndex{0}).total() <= most && branch.cache().layer(LayerIndex{0}).total() + c.kvHeads >= most);
        }
    }

    void withRoomForAllGivesTheLogitsOfFull_data() {
        QTest::addColumn<QString>("policy");
        for (const PolicyEntry& entry : policyRegistry())
            QTest::newRow(entry.info.id.c_str()) << QString::fromStdString(entry.info.id);
    }
    void withRoomForAllGivesTheLogitsOfFull() {
        QFETCH(QString, policy);
        const auto p = policyOf(policy.toStdString(), Budget::kept(Prompt + Steps)), full = policyOf("full", {});
        Branch a(*m_model, prefillFor(*m_model, m_ids, p), p, {.headroom = Steps}),
            b(*m_model, prefillFor(*m_model, m_ids, full), full, {.headroom = Steps});
        const int steps = p->kind() == PolicyKind::admit ? 1 : Steps; // admission goes on choosing while decoding, whatever the budget
        for (const TokenId id : tinyIds(steps, 5)) {
            const at::Tensor x = a.feed(std::span(&id, 1), LogitRows::last, true, {}),
                             y = b.feed(std::span(&id, 1), LogitRows::last, true, {});
            if (p->rope() == RopeMode::original)
                QVERIFY(at::equal(x, y));
            else // rotated back and forth again
                QVERIFY(at::allclose(x, y, 1e-4, 1e-4));
        }
    }

    void decodesAsMaskedFullAttentionOverTheKeptSet_data() { rows(); }
    void decodesAsMaskedFullAttentionOverTheKeptSet() {
        QFETCH(QString, policy);
        QFETCH(double, ratio);
        const auto p = policyOf(policy.toStdString(), Budget::removed(ratio));
        if (p->rope() != RopeMode::original) return; // renumbered positions: see RopeTest
        Branch branch(*m_model, prefillFor(*m_model, m_ids, p), p, {.headroom = Steps});
        const TokenId next = 11;
        const at::Tensor expected = replayMasked(*m_model, m_ids, keptSets(branch.cache()).kept, next);
        const at::Tensor got = branch.feed(std::span(&next, 1), LogitRows::last, true, {}).reshape({-1});
        const double error = (expected - got).abs().max().item<double>(), scale = expected.abs().max().item<double>();
        QVERIFY2(error <= 1e-5 * std::max(1.0, scale), qPrintable(QString("max error %1 at scale %2").arg(error).arg(scale)));
    }

    void repeatsBitForBit_data() { rows(); }
    void repeatsBitForBit() {
        QFETCH(QString, policy);
        QFETCH(double, ratio);
        std::vector<at::Tensor> last;
        for (int round = 0; round < 2; ++round) {
            const auto p = policyOf(policy.toStdString(), Budget::removed(ratio));
            Branch branch(*m_model, prefillFor(*m_model, m_ids, p), p, {.headroom = Steps});
            at::Tensor logits;
            for (const TokenId id : tinyIds(Steps, 3))
                logits = branch.feed(std::span(&id, 1), LogitRows::last, true, {});
            last.push_back(logits);
        }
        QVERIFY(at::equal(last[0], last[1]));
    }

    void previewEqualsTheRun_data() { rows(); }
    void previewEqualsTheRun() {
        QFETCH(QString, policy);
        QFETCH(double, ratio);
        const auto p = policyOf(policy.toStdString(), Budget::removed(ratio));
        const auto snapshot = prefillFor(*m_model, m_ids, p);
        const Snapshot::Choice once = snapshot->choose(*p), again = snapshot->choose(*p); // the second from remembered scores
        Branch branch(*m_model, snapshot, p, {});
        const KeptSets sets = keptSets(branch.cache());
        for (std::size_t l = 0; l < sets.kept.size(); ++l)
            for (std::size_t h = 0; h < sets.kept[l].size(); ++h) {
                QCOMPARE(once.selections[l].keep[h], sets.kept[l][h]);
                QCOMPARE(again.selections[l].keep[h], sets.kept[l][h]);
            }
    }

    // (g) of §0.7: a head's set depends on what the head holds, not on its number.
    void permutedHeadsGivePermutedSets_data() {
        QTest::addColumn<QString>("policy");
        for (const PolicyEntry& entry : policyRegistry())
            if (entry.info.kind != PolicyKind::attend && entry.info.id != "random")
                QTest::newRow(entry.info.id.c_str()) << QString::fromStdString(entry.info.id);
        for (const char* text : {"snapkv:window=16,agg=max,pool=max,kernel=7", "h2o:heads=ada", "knorm:chunk=50"})
            QTest::newRow(text) << QString(text);
    }
    void permutedHeadsGivePermutedSets() {
        QFETCH(QString, policy);
        const int n = 160, w = 64, kvHeads = 3, group = 2, dim = 8;
        at::manual_seed(11);
        const at::Tensor keys = at::randn({kvHeads, n, dim}), values = at::randn({kvHeads, n, dim}),
                         queries = at::randn({kvHeads * group, w, dim}), sums = at::rand({kvHeads * group, n}),
                         moments = at::randn({kvHeads * group, 40, dim}, at::kDouble);
        const std::vector<std::int64_t> order = {2, 0, 1};
        const at::Tensor kv = at::tensor(order, at::kLong);
        const at::Tensor q = (kv.unsqueeze(1) * group + at::arange(group)).reshape({-1});
        const auto selected = [&](const at::Tensor& k, const at::Tensor& v, const at::Tensor& newest, const at::Tensor& s,
                                  const at::Tensor& m) {
            const auto p = policyOf(policy.toStdString(), Budget::removed(0.5));
            const LayerFixture f(k, v, newest);
            LayerView view = f.view();
            const QueryMoments collected{m.sum(1), at::matmul(m.transpose(1, 2), m), m.size(1)};
            view.moments = &collected;
            const Plan plan = p->planFor(f.place());
            const auto memory = p->remember();
            return p->choose(view, f.place(), plan, p->score(view, plan, p->statistic(view, plan, s)), memory.get(), nullptr).keep;
        };
        const auto straight = selected(keys, values, queries, sums, moments);
        const auto permuted = selected(keys.index_select(0, kv).contiguous(), values.index_select(0, kv).contiguous(),
                                       queries.index_select(0, q).contiguous(), sums.index_select(0, q).contiguous(),
                                       moments.index_select(0, q).contiguous());
        for (std::size_t h = 0; h < order.size(); ++h)
            QCOMPARE(permuted[h], straight[static_cast<std::size_t>(order[h])]);
    }

    void freesMemory() {
        const auto p = policyOf("knorm", Budget::removed(0.75));
        const auto snapshot = prefillFor(*m_model, tinyIds(1000), p);
        Branch branch(*m_model, snapshot, p, {.headroom = 1});
        const CacheStats whole = snapshot->cache().stats(), kept = branch.cache().stats();
        const ModelConfig& c = m_model->config();
        QCOMPARE(whole.storedBytes, std::int64_t{1000} * c.layers * c.kvHeads * c.headDim * 2 * 4);
        QCOMPARE(kept.storedBytes, std::int64_t{250} * c.layers * c.kvHeads * c.headDim * 2 * 4);
        QVERIFY(kept.allocatedBytes * 3 < whole.allocatedBytes);
    }
};

QTEST_APPLESS_MAIN(PoliciesTest)
#include "policies_test.moc"
