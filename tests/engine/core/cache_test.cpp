#include "engine/cache/kv_cache.h"
#include "engine/data/error.h"
#include "kernels/bind/ops.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class CacheTest : public QObject {
    Q_OBJECT

    static ModelConfig config() {
        ModelConfig c;
        c.layers = 1;
        c.kvHeads = 2;
        c.queryHeads = 4;
        c.headDim = 4;
        return c;
    }
    static void append(KvCache& cache, int first, int count) {
        at::Tensor keys = at::arange(first, first + count, at::kFloat).view({1, count, 1}).expand({2, count, 4}).contiguous();
        keys[1] += 1000;
        cache.append(LayerIndex{0}, keys, -keys, at::arange(first, first + count, at::kInt));
    }

private Q_SLOTS:
    void appendsBehindRaggedHeads() {
        KvCache cache(config(), at::kFloat, at::kCPU, RopeMode::original);
        append(cache, 0, 10);
        cache.compact(LayerIndex{0}, {{{0, 2, 4, 9}, {1, 9}}});
        append(cache, 10, 2);
        const CacheLayer& l = cache.layer(LayerIndex{0});
        QCOMPARE(l.held, (std::vector<std::int32_t>{6, 4}));
        const auto row = [&](int h) {
            std::vector<std::int32_t> out;
            for (int i = 0; i < l.held[static_cast<std::size_t>(h)]; ++i) out.push_back(l.positions[h][i].item<std::int32_t>());
            return out;
        };
        QCOMPARE(row(0), (std::vector<std::int32_t>{0, 2, 4, 9, 10, 11}));
        QCOMPARE(row(1), (std::vector<std::int32_t>{1, 9, 10, 11}));
        for (int i = 0; i < 6; ++i) QCOMPARE(l.keys[0][i][0].item<float>(), static_cast<float>(row(0)[static_cast<std::size_t>(i)]));
        for (int i = 0; i < 4; ++i) QCOMPARE(l.values[1][i][3].item<float>(), -1000.f - static_cast<float>(row(1)[static_cast<std::size_t>(i)]));
        QCOMPARE(l.lengths[1].item<std::int32_t>(), 4);
    }
    void movesMemoryWithItsEntries() {
        KvCache cache(config(), at::kFloat, at::kCPU, RopeMode::original);
        append(cache, 0, 8);
        CacheLayer& l = cache.layer(LayerIndex{0});
        l.memory["sum"] = at::arange(4 * l.capacity(), at::kFloat).view({4, l.capacity()}); // per query head
        const at::Tensor before = l.memory["sum"].clone();
        cache.compact(LayerIndex{0}, {{{1, 3, 5}, {0, 7}}});
        for (int q = 0; q < 4; ++q) {
            const std::vector<int> kept = q < 2 ? std::vector<int>{1, 3, 5} : std::vector<int>{0, 7};
            for (std::size_t i = 0; i < kept.size(); ++i)
                QCOMPARE(l.memory["sum"][q][static_cast<std::int64_t>(i)].item<float>(), before[q][kept[i]].item<float>());
        }
        append(cache, 8, 1); // a new entry starts at zero, also where an evicted one was
        QCOMPARE(l.memory["sum"][0][3].item<float>(), 0.f);
        QCOMPARE(l.memory["sum"][3][2].item<float>(), 0.f);
    }
    void dropsEntriesWithoutTheHostAsWithIt() {
        for (const char* quantizer : {"", "kivi:group=4,residual=4"}) {
            const std::shared_ptr<const Quantizer> packs = *quantizer ? makeQuantizer(parseQuantSpec(quantizer)) : nullptr;
            KvCache host(config(), at::kFloat, at::kCPU, RopeMode::original, packs), device(config(), at::kFloat, at::kCPU, RopeMode::original, packs);
            for (KvCache* cache : {&host, &device}) {
                append(*cache, 0, 20), cache->settle(LayerIndex{0});
                cache->layer(LayerIndex{0}).memory["sum"] = at::zeros({4, cache->layer(LayerIndex{0}).capacity()}); // per query head
            }
            for (int step = 20; step < 26; ++step) {
                QVERIFY(device.nextStep(true));
                for (KvCache* cache : {&host, &device}) append(*cache, step, 1), cache->layer(LayerIndex{0}).memory["sum"].add_(step);
                Selection kept = Selection::all(host.layer(LayerIndex{0}).held);
                kept.keep[0].erase(kept.keep[0].begin() + 2, kept.keep[0].begin() + 4), kept.keep[1].erase(kept.keep[1].begin());
                host.compact(LayerIndex{0}, kept);
                device.dropEntries(LayerIndex{0}, at::tensor({2, 3, -1, 0}, at::kInt).view({2, 2}));
                for (KvCache* cache : {&host, &device}) cache->settle(LayerIndex{0});
                device.countDropped(LayerIndex{0}, {{2, 3}, {0}});
                const CacheLayer &a = host.layer(LayerIndex{0}), &b = device.layer(LayerIndex{0});
                QCOMPARE(b.held, a.held);
                QVERIFY(at::equal(a.lengths, b.lengths));
                QCOMPARE(b.heldPositions(), a.heldPositions());
                QCOMPARE(device.stats().storedBytes, host.stats().storedBytes);
                for (const bool recordable : {false, true})
                    for (std::int64_t h = 0; h < 2; ++h) {
                        const std::int64_t n = a.held[static_cast<std::size_t>(h)];
                        const KvCache::Dense x = host.plain(LayerIndex{0}), y = device.plain(LayerIndex{0}, recordable);
                        QVERIFY(at::allclose(x.keys[h].narrow(0, 0, n), y.keys[h].narrow(0, 0, n)) && at::allclose(x.values[h].narrow(0, 0, n), y.values[h].narrow(0, 0, n)));
                        for (std::int64_t g = 0; g < 2; ++g) QVERIFY(at::equal(a.memory.at("sum")[2 * h + g].narrow(0, 0, n), b.memory.at("sum")[2 * h + g].narrow(0, 0, n)));
                    }
            }
        }
    }
    void countsBytesAsAllocated() {
        KvCache cache(config(), at::kFloat, at::kCPU, RopeMode::original);
        append(cache, 0, 1000);
        const CacheLayer& l = cache.layer(LayerIndex{0});
        CacheStats s = cache.stats();
        QCOMPARE(s.storedBytes, std::int64_t{1000} * 2 * 4 * 2 * 4);
        QCOMPARE(s.allocatedBytes, static_cast<std::int64_t>(l.keys.nbytes() + l.values.nbytes() + l.positions.nbytes()));
        std::vector<std::int32_t> few = {1, 2, 3};
        cache.compact(LayerIndex{0}, {{few, few}});
        s = cache.stats();
        QVERIFY(s.allocatedBytes < 20000);      // really given back
        QVERIFY(s.peakBytes > 1000 * 2 * 4 * 8); // the old one stood beside the new one
    }
    // A branch without further evictions holds heads of different lengths behind each other: the same numbers in no more memory than is kept.
    void raggedHeadsTakeNoMoreThanTheyHold() {
        const auto model = tinyModel(2, 4, 2, 8);
        const auto ids = tinyIds(600), next = tinyIds(70, 5);
        KvCache prefill(model->config(), at::kFloat, at::kCPU, RopeMode::original);
        model->forward(ids, 0, prefill, nullptr, LogitRows::none);
        std::vector<Selection> selections(2);
        for (std::size_t l = 0; l < 2; ++l)
            for (int h = 0; h < 2; ++h) {
                auto& keep = selections[l].keep.emplace_back();
                for (int i = 0; i < 600; i += h ? 2 : 20) keep.push_back(i);
            }
        const auto branch = [&](bool settled) { return prefill.branch(selections, RopeMode::original, 8, model->inverseFrequencies(), nullptr, settled); };
        KvCache padded = branch(false), ragged = branch(true);
        QVERIFY(!padded.layer(LayerIndex{0}).ragged());
        QVERIFY(ragged.layer(LayerIndex{0}).ragged());
        const CacheStats a = padded.stats(), b = ragged.stats();
        QCOMPARE(a.storedBytes, b.storedBytes);
        const std::int64_t kept = 2 * (300 + 30), entry = 2 * 8 * 4 + 4; // with its position
        QCOMPARE(b.allocatedBytes, (kept + 2 * 2 * 16) * entry);
        QVERIFY(b.allocatedBytes < a.allocatedBytes * 7 / 10);
        for (std::size_t i = 0; i < next.size();) { // more than there is room for: the layers grow; single tokens and a block
            const std::size_t n = i == 40 ? 9 : 1;
            const auto part = std::span(next).subspan(i, n);
            const auto first = static_cast<Position>(600 + i);
            const at::Tensor x = model->forward(part, first, padded, nullptr, LogitRows::all), y = model->forward(part, first, ragged, nullptr, LogitRows::all);
            QVERIFY2(at::equal(x, y), qPrintable(QString::number(i)));
            i += n;
        }
        for (int l = 0; l < 2; ++l) {
            QCOMPARE(ragged.layer(LayerIndex{l}).heldPositions(), padded.layer(LayerIndex{l}).heldPositions());
            QVERIFY(at::equal(ragged.layer(LayerIndex{l}).lengths, padded.layer(LayerIndex{l}).lengths));
        }
        QVERIFY(ragged.stats().peakBytes > ragged.stats().allocatedBytes); // a layer was copied
        QVERIFY_EXCEPTION_THROWN(ragged.compact(LayerIndex{0}, {{{0}, {0}}}), EngineError);
    }
    void forwardInBlocksEqualsOnePass() {
        const auto model = tinyModel();
        const auto ids = tinyIds(90);
        KvCache a(model->config(), at::kFloat, at::kCPU, RopeMode::original), b(model->config(), at::kFloat, at::kCPU, RopeMode::original);
        const at::Tensor whole = model->forward(ids, 0, a, nullptr, LogitRows::all);
        for (std::size_t i = 0; i < ids.size(); i += 7) {
            const std::size_t n = std::min<std::size_t>(7, ids.size() - i);
            const at::Tensor part = model->forward(std::span(ids).subspan(i, n), static_cast<Position>(i), b, nullptr, LogitRows::all);
            QVERIFY(at::allclose(part, whole.narrow(0, static_cast<std::int64_t>(i), static_cast<std::int64_t>(n)), 1e-4, 1e-4));
        }
    }
    void theFutureDoesNotReachThePast() {
        const auto model = tinyModel();
        auto ids = tinyIds(60);
        KvCache a(model->config(), at::kFloat, at::kCPU, RopeMode::original), b(model->config(), at::kFloat, at::kCPU, RopeMode::original);
        const at::Tensor x = model->forward(ids, 0, a, nullptr, LogitRows::all);
        for (std::size_t i = 40; i < ids.size(); ++i) ids[i] = (ids[i] + 13) % 64;
        const at::Tensor y = model->forward(ids, 0, b, nullptr, LogitRows::all);
        QVERIFY(at::equal(x.narrow(0, 0, 40), y.narrow(0, 0, 40)));
        QVERIFY(!at::allclose(x[45], y[45]));
    }
    void refusesIdsOutsideTheVocabulary() {
        const auto model = tinyModel();
        KvCache cache(model->config(), at::kFloat, at::kCPU, RopeMode::original);
        const TokenId wrong = 64;
        QVERIFY_EXCEPTION_THROWN(model->forward(std::span(&wrong, 1), 0, cache, nullptr, LogitRows::last), EngineError);
    }
    void stopsBetweenLayers() {
        const auto model = tinyModel();
        KvCache cache(model->config(), at::kFloat, at::kCPU, RopeMode::original);
        std::stop_source stop;
        stop.request_stop();
        QVERIFY_EXCEPTION_THROWN(model->forward(tinyIds(5), 0, cache, nullptr, LogitRows::last, stop.get_token()), Cancelled);
    }
};

QTEST_APPLESS_MAIN(CacheTest)
#include "cache_test.moc"
