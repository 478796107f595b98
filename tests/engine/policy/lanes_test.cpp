// Any quantizer with any policy (policies.md §0.7 and "Pruning × quantization"): registering one is being tested.
#include "engine/session/calibration.h"
#include "engine/session/lane_check.h"
#include "engine/trace/recorder.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

namespace {

constexpr int Prompt = 96;
constexpr int Steps = 12;

// Small groups and residuals, so that a short prompt reaches every rule; 8 bits unless the text says otherwise.
const char* const Quantizers[] = {"kvquant:bits=8",
                                  "kivi:bits=8,group=4,residual=8",
                                  "kivi:bits=4,group=8,residual=16",
                                  "hqq_rtn:bits=8,group=8,residual=4",
                                  "hqq_rtn:bits=8,group=8,axis_key=0,axis_value=0,residual=4",
                                  "outlier_rtn:bits=8,group=8,threshold=1,residual=4",
                                  "layerquant:bits=8,range_bits=8,group=8"};

} // namespace

class LanesTest : public QObject {
    Q_OBJECT
    std::unique_ptr<Model> m_model = tinyModel();
    std::vector<TokenId> m_ids = tinyIds(Prompt);
    std::map<std::string, std::shared_ptr<const Quantizer>> m_quantizers;

    std::shared_ptr<const Quantizer> quantizer(const std::string& text) {
        auto& made = m_quantizers[text];
        if (!made) {
            std::shared_ptr<Quantizer> fresh = makeQuantizer(parseQuantSpec(text));
            if (fresh->wantsCalibration()) fresh->calibrate(sample());
            made = fresh;
        }
        return made;
    }
    CalibrationSample sample() const {
        KvCache cache(m_model->config(), at::kFloat, at::kCPU, RopeMode::cacheRelative);
        m_model->forward(tinyIds(256, 31), 0, cache, nullptr, LogitRows::none);
        CalibrationSample out;
        for (int l = 0; l < cache.layers(); ++l) {
            out.keys.push_back(cache.layer(LayerIndex{l}).keys.narrow(1, 0, 256));
            out.values.push_back(cache.layer(LayerIndex{l}).values.narrow(1, 0, 256));
        }
        return out;
    }
    static void rows() {
        QTest::addColumn<QString>("policy");
        QTest::addColumn<QString>("quant");
        for (const PolicyEntry& entry : policyRegistry())
            for (const char* quant : Quantizers)
                if (!entry.info.id.starts_with("kvc") || entry.info.id == "kvcVK" ||
                    entry.info.id == "kvcV+tova") // the family differs in its scores only
                    QTest::newRow(qPrintable(QString("%1, %2").arg(entry.info.id.c_str(), quant)))
                        << QString::fromStdString(entry.info.id) << QString(quant);
        for (const char* text : {"snapkv:window=8,heads=ada", "h2o:heads=ada", "knorm:timing=each_step,heads=ada",
                                 "knorm:rope=cache_relative,timing=each_step", "snapkv:window=8,granularity=query_head",
                                 "h2o:granularity=query_head"})
            for (const char* quant : Quantizers)
                QTest::newRow(qPrintable(QString("%1, %2").arg(text, quant))) << QString(text) << QString(quant);
    }
    std::unique_ptr<Branch> branch(const std::shared_ptr<const Policy>& policy, const std::string& quant) {
        BranchOptions options;
        options.headroom = Steps;
        if (!quant.empty()) options.quantizer = quantizer(quant);
        return std::make_unique<Branch>(*m_model, prefillFor(*m_model, m_ids, policy), policy, options);
    }

private Q_SLOTS:
    void choosesBeforeItPacks_data() { rows(); }
    void choosesBeforeItPacks() {
        QFETCH(QString, policy);
        QFETCH(QString, quant);
        const auto p = policyOf(policy.toStdString(), Budget::removed(0.5));
        const auto plain = branch(p, {}), packed = branch(p, quant.toStdString());
        QCOMPARE(keptSets(packed->cache()).kept, keptSets(plain->cache()).kept);
        // 8 bits are close: each stored value is within a step of its group's range of what it was.
        for (int l = 0; l < m_model->config().layers; ++l) {
            const at::Tensor& inverse = m_model->inverseFrequencies();
            const KvCache::Dense a = plain->cache().attended(LayerIndex{l}, inverse), b = packed->cache().attended(LayerIndex{l}, inverse);
            const CacheLayer& layer = plain->cache().layer(LayerIndex{l});
            for (std::size_t h = 0; h < layer.held.size(); ++h) {
                const auto head = static_cast<std::int64_t>(h);
                const double limit = quant.contains("bits=8") ? 0.06 : 0.5;
                for (const auto& [x, y] : {std::pair(a.keys, b.keys), std::pair(a.values, b.values)}) {
                    const at::Tensor whole = layer.ragged() ? x.narrow(0, layer.begins[h], layer.held[h]) : x[head].narrow(0, 0, layer.held[h]);
                    const double error = (whole - y[head].narrow(0, 0, layer.held[h])).abs().max().item<double>(), scale = whole.abs().max().item<double>();
                    QVERIFY2(error <= limit * scale,
                             qPrintable(QString("layer %1 head %2: error %3 at scale %4").arg(l).arg(h).arg(error).arg(scale)));
                }
            }
        }
    }

    void recordsWhatItHoldsWhileDecoding_data() { rows(); }
    void recordsWhatItHoldsWhileDecoding() {
        QFETCH(QString, policy);
        QFETCH(QString, quant);
        const auto p = policyOf(policy.toStdString(), Budget::removed(0.5));
        std::vector<at::Tensor> last;
        for (int round = 0; round < 2; ++round) {
            const auto b = branch(p, quant.toStdString());
            const ModelConfig& c = b->cache().config();
            Retention retention(c.layers, c.kvHeads);
            retention.append(Step{0}, Prompt);
            const auto record = [&](Step step) {
                for (Branch::Eviction& e : b->takeEvictions())
                    retention.evict({LaneIndex{0}, step, e.layer, e.head, std::move(e.positions)});
            };
            record(Step{1});
            at::Tensor logits;
            const std::vector<TokenId> next = tinyIds(Steps, 99);
            for (int n = 0; n < Steps; ++n) {
                logits = b->feed(std::span(next).subspan(static_cast<std::size_t>(n), 1), LogitRows::last, true, {});
                retention.append(Step{n + 2}, 1);
                record(Step{n + 2});
            }
            const KeptSets sets = keptSets(b->cache());
            std::int64_t bytes = 0;
            for (int l = 0; l < c.layers; ++l) {
                for (int h = 0; h < c.kvHeads; ++h)
                    QCOMPARE(retention.keptAt(Step{Steps + 1}, LayerIndex{l}, HeadIndex{h}),
                             sets.kept[static_cast<std::size_t>(l)][static_cast<std::size_t>(h)]);
                const CacheLayer& layer = b->cache().layer(LayerIndex{l});
                QVERIFY(!layer.keys.defined() && layer.storedKeys && layer.storedValues);
                bytes += layer.storedKeys->storedBytes() + layer.storedValues->storedBytes();
            }
            QCOMPARE(b->cache().stats().storedBytes, bytes);
            QVERIFY(at::isfinite(logits).all().item<bool>());
            last.push_back(logits);
        }
        QVERIFY(at::equal(last[0], last[1]));
    }

    void refusesWhatDoesNotGoTogether() {
        PolicySpec spec = parsePolicySpec("layerquant");
        QVERIFY(laneConflict(spec).find("choose the quantizer layerquant") != std::string::npos);
        spec.quant = parseQuantSpec("kivi");
        QVERIFY(laneConflict(spec).find("not kivi") != std::string::npos);
        spec.quant = parseQuantSpec("layerquant:equal_memory=nominal");
        QCOMPARE(laneConflict(spec), std::string());
        PolicySpec full;
        full.quant = parseQuantSpec("kivi:equal_memory=on");
        QVERIFY(laneConflict(full).find("has no budget") != std::string::npos);
        QVERIFY_THROWS_EXCEPTION(UsageError, checkLane(full));
        PolicySpec window = parsePolicySpec("snapkv:timing=each_step,rope=cache_relative");
        QVERIFY(laneConflict(window).find("use rope=original") != std::string::npos);
        // A group that does not divide the head size is the model's to refuse.
        PolicySpec odd = parsePolicySpec("knorm");
        odd.quant = parseQuantSpec("kivi:group=32,residual=32");
        QVERIFY_THROWS_EXCEPTION(UsageError, checkLane(odd, &m_model->config()));
    }

    void equalMemoryKeepsMoreTokensInTheSameBytes() {
        for (const char* text : {"hqq_rtn:bits=8,group=8,equal_memory=on", "hqq_rtn:bits=4,group=8,equal_memory=on"}) {
            const auto p = policyOf("knorm", Budget::kept(20));
            const auto q = quantizer(text);
            BranchOptions options;
            options.quantizer = q;
            Branch b(*m_model, prefillFor(*m_model, m_ids, p), p, options);
            const ModelConfig& c = m_model->config();
            const int wanted = q->tokensFor(20, LayerIndex{0}, c);
            QVERIFY(wanted > 20);
            QCOMPARE(b.cache().layer(LayerIndex{0}).held.front(), std::min(wanted, Prompt));
            const std::int64_t limit = std::int64_t{20} * c.layers * c.kvHeads * c.headDim * 2 * 2; // 16 bits a value
            QVERIFY2(b.cache().stats().storedBytes <= limit, text);
        }
    }
};

QTEST_APPLESS_MAIN(LanesTest)
#include "lanes_test.moc"
