// Drives a policy over random queries, keys and values as Branch does, without a model; and compares with golden/policies_reference.json.
#pragma once

#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QFile>
#include <QJsonArray>
#include <QJsonDocument>
#include <QJsonObject>
#include <QtTest>
#include <cmath>
#include <set>

namespace keepsight::testing {

// SplitMix64 made nearly normal: the numbers of make_policies_reference.py.
inline at::Tensor streamOf(std::uint64_t seed, at::IntArrayRef shape) {
    at::Tensor out = at::empty(shape, at::kFloat);
    std::uint64_t state = seed;
    const auto next = [&state] {
        std::uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return static_cast<double>((z ^ (z >> 31)) >> 40) / (1 << 24);
    };
    for (float *x = out.data_ptr<float>(), *end = x + out.numel(); x != end; ++x) {
        double sum = 0;
        for (int i = 0; i < 4; ++i) sum += next();
        *x = static_cast<float>((sum - 2) * std::sqrt(3.0));
    }
    return out;
}

struct RigShape {
    int layers = 4, queryHeads = 8, kvHeads = 2, prompt = 300, steps = 24, dim = 32;
};

class PolicyRig {
public:
    using Kept = std::vector<std::vector<Position>>; // per KV head

    PolicyRig(std::shared_ptr<const Policy> policy, RigShape shape, std::uint64_t seed) : m_policy(std::move(policy)), m_shape(shape) {
        m_config.layers = shape.layers;
        m_config.queryHeads = shape.queryHeads;
        m_config.kvHeads = shape.kvHeads;
        m_config.headDim = shape.dim;
        m_needs = m_policy->needs(shape.prompt);
        const std::int64_t total = shape.prompt + shape.steps;
        for (int l = 0; l < shape.layers; ++l) {
            Layer& layer = m_layers.emplace_back();
            const std::uint64_t base = 1000 * seed + 10 * static_cast<std::uint64_t>(l);
            layer.q = 2 * streamOf(base, {shape.queryHeads, total, shape.dim});
            layer.k = streamOf(base + 1, {shape.kvHeads, total, shape.dim});
            layer.v = streamOf(base + 2, {shape.kvHeads, total, shape.dim});
            layer.memory = m_policy->remember();
        }
    }

    // The prompt as one call; afterwards every step() is one token.
    void prefill() {
        m_seen = m_shape.prompt;
        for (int l = 0; l < m_shape.layers; ++l) {
            Layer& layer = at(l);
            append(layer, 0, m_seen);
            const LayerView all = view(l, 0);
            const at::Tensor sums = m_needs.columnSums ? summed(all) : at::Tensor();
            const LayerView last = view(l, m_seen - m_needs.lastRows);
            const Place here{LayerIndex{l}, m_shape.layers, layer.entries.maxHeld(), m_seen, m_seen, m_shape.prompt};
            const Plan plan = m_policy->planFor(here);
            layer.statistic = m_policy->statistic(last, plan, sums);
            if (m_policy->schedule().afterPrefill) choose(l, last, here, plan);
        }
    }
    void step() {
        ++m_seen;
        ++m_steps;
        for (int l = 0; l < m_shape.layers; ++l) {
            Layer& layer = at(l);
            append(layer, m_seen - 1, 1);
            const LayerView now = view(l, m_seen - 1);
            if (layer.statistic.defined()) layer.statistic = at::constant_pad_nd(layer.statistic, {0, 1});
            if (m_needs.decodeSums) layer.statistic = layer.statistic + summed(now);
            const int every = m_policy->schedule().everySteps;
            if (every == 0 || m_steps % every != 0) continue;
            const Place here{LayerIndex{l}, m_shape.layers, layer.entries.maxHeld(), m_seen, 1, m_shape.prompt};
            choose(l, now, here, m_policy->planFor(here));
        }
    }
    Kept kept(int layer) const {
        const CacheLayer& entries = m_layers[static_cast<std::size_t>(layer)].entries;
        Kept out;
        for (std::int64_t h = 0; h < m_shape.kvHeads; ++h) {
            const std::int32_t* row = entries.positions.const_data_ptr<std::int32_t>() + h * entries.capacity();
            out.emplace_back(row, row + entries.held[static_cast<std::size_t>(h)]);
        }
        return out;
    }
    std::int64_t held(int layer) const { return m_layers[static_cast<std::size_t>(layer)].entries.maxHeld(); }
    const at::Tensor& keys(int layer) const { return m_layers[static_cast<std::size_t>(layer)].k; }   // of all tokens, to be changed before prefill()
    const at::Tensor& values(int layer) const { return m_layers[static_cast<std::size_t>(layer)].v; }
    const at::Tensor& statistic(int layer) const { return m_layers[static_cast<std::size_t>(layer)].statistic; }
    // Of the entries now held, for the newest token's query.
    LayerView newest(int layer) const { return view(layer, m_seen - 1); }

private:
    struct Layer {
        at::Tensor q, k, v;       // of all tokens
        CacheLayer entries;       // capacity = held
        at::Tensor statistic;
        std::unique_ptr<LayerMemory> memory;
    };
    Layer& at(int l) { return m_layers[static_cast<std::size_t>(l)]; }

    void append(Layer& layer, std::int64_t first, std::int64_t count) const {
        CacheLayer& e = layer.entries;
        const at::Tensor k = layer.k.narrow(1, first, count), v = layer.v.narrow(1, first, count);
        const at::Tensor p = at::arange(first, first + count, at::kInt).expand({m_shape.kvHeads, count});
        const bool empty = !e.keys.defined();
        e.keys = empty ? k.clone() : at::cat({e.keys, k}, 1);
        e.values = empty ? v.clone() : at::cat({e.values, v}, 1);
        e.positions = empty ? p.contiguous() : at::cat({e.positions, p}, 1);
        size(e);
    }
    void size(CacheLayer& e) const {
        e.held.assign(static_cast<std::size_t>(m_shape.kvHeads), static_cast<std::int32_t>(e.positions.size(1)));
        e.lengths = at::full({m_shape.kvHeads}, static_cast<std::int32_t>(e.positions.size(1)), at::kInt);
    }
    // With the queries of the tokens from `first` on.
    LayerView view(int l, std::int64_t first) const {
        const Layer& layer = m_layers[static_cast<std::size_t>(l)];
        return {LayerIndex{l}, m_config, layer.entries, layer.q.narrow(1, first, m_seen - first), at::arange(first, m_seen, at::kInt), layer.entries.keys,
                layer.entries.values, scale(), {}, ropeInverseFrequencies(m_config), nullptr, {}};
    }
    double scale() const { return 1.0 / std::sqrt(static_cast<double>(m_shape.dim)); }
    at::Tensor summed(const LayerView& v) const {
        if (m_needs.sum == RowSum::attention)
            return ops::attention_rows(v.queries, v.keys, v.entries.positions, v.entries.lengths, v.queryPositions, v.scale).sum(1);
        const std::map<RowSum, ops::OutputChange> kinds = {{RowSum::value, ops::OutputChange::value},
                                                           {RowSum::key, ops::OutputChange::key},
                                                           {RowSum::joint, ops::OutputChange::joint},
                                                           {RowSum::independent, ops::OutputChange::independent}};
        return ops::output_change(v.queries, v.keys, v.values, v.entries.positions, v.entries.lengths, v.queryPositions, v.scale, kinds.at(m_needs.sum));
    }
    void choose(int l, const LayerView& v, const Place& here, const Plan& plan) {
        Layer& layer = at(l);
        CacheLayer& e = layer.entries;
        if (!m_policy->decides(here, plan, e.total(), m_shape.kvHeads, layer.memory.get())) return;
        const at::Tensor scores = m_policy->score(v, plan, layer.statistic);
        const Selection selection = m_policy->choose(v, here, plan, scores, layer.memory.get(), nullptr);
        const auto gather = [&](at::Tensor& x) {
            if (!x.defined()) return;
            std::vector<at::Tensor> rows;
            for (std::int64_t r = 0; r < x.size(0); ++r) {
                const std::vector<std::int32_t>& keep = selection.keep[static_cast<std::size_t>(r * m_shape.kvHeads / x.size(0))];
                rows.push_back(x[r].index_select(0, at::tensor(std::vector<std::int64_t>(keep.begin(), keep.end()), at::kLong)));
            }
            x = at::stack(rows);
        };
        gather(e.keys);
        gather(e.values);
        gather(e.positions);
        gather(layer.statistic);
        size(e);
    }

    std::shared_ptr<const Policy> m_policy;
    RigShape m_shape;
    ModelConfig m_config;
    Needs m_needs;
    std::vector<Layer> m_layers;
    std::int64_t m_seen = 0, m_steps = 0;
};

inline QJsonArray referenceCases(const QString& prefix) {
    QFile file(KEEPSIGHT_GOLDEN "/policies_reference.json");
    if (!file.open(QIODevice::ReadOnly)) return {};
    QJsonArray out;
    for (const QJsonValue& c : QJsonDocument::fromJson(file.readAll()).object()["cases"].toArray())
        if (c["policy"].toString().startsWith(prefix)) out.append(c);
    return out;
}

// One row for each case of the policies that begin with `prefix`.
inline void referenceRows(const QString& prefix) {
    QTest::addColumn<QJsonObject>("reference");
    for (const QJsonValue& c : referenceCases(prefix)) QTest::newRow(qPrintable(c["policy"].toString())) << c.toObject();
}

inline std::vector<Position> positionsOf(const QString& ranges) { // "0-2 5"
    std::vector<Position> out;
    for (const QString& range : ranges.split(' ', Qt::SkipEmptyParts))
        for (int p = range.section('-', 0, 0).toInt(); p <= range.section('-', -1).toInt(); ++p) out.push_back(p);
    return out;
}

// Empty: the policy keeps what the reference keeps, after the prefill and after every step.
inline QString differenceFrom(const QJsonObject& reference) {
    const Budget budget = reference.contains("tokens") ? Budget::kept(reference["tokens"].toInt()) : Budget::removed(reference["ratio"].toDouble());
    const RigShape shape;
    PolicyRig rig(policyOf(reference["policy"].toString().toStdString(), budget), shape, static_cast<std::uint64_t>(reference["seed"].toInt()));
    rig.prefill();
    std::vector<PolicyRig::Kept> expected(static_cast<std::size_t>(shape.layers));
    for (int step = 0; step <= shape.steps; ++step) {
        if (step > 0) rig.step();
        for (int l = 0; l < shape.layers; ++l)
            for (int h = 0; h < shape.kvHeads; ++h) {
                auto& layer = expected[static_cast<std::size_t>(l)];
                if (step == 0) {
                    layer.push_back(positionsOf(reference["kept"][l][h].toString()));
                } else {
                    auto& head = layer[static_cast<std::size_t>(h)];
                    head.push_back(shape.prompt + step - 1);
                    const std::vector<Position> gone = positionsOf(reference["evicted"][step - 1][l][h].toString());
                    std::erase_if(head, [&](Position p) { return std::ranges::find(gone, p) != gone.end(); });
                }
                const std::vector<Position> found = rig.kept(l)[static_cast<std::size_t>(h)], &wanted = layer[static_cast<std::size_t>(h)];
                if (found == wanted) continue;
                const auto at = std::ranges::mismatch(found, wanted);
                return QString("step %1, layer %2, head %3: %4 entries, expected %5; first difference at index %6")
                    .arg(step).arg(l).arg(h).arg(found.size()).arg(wanted.size()).arg(at.in1 - found.begin());
            }
    }
    return {};
}

} // namespace keepsight::testing
