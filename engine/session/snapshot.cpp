#include "engine/session/snapshot.h"

#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <chrono>
#include <cmath>

namespace keepsight {

PrefillOptions prefillOptionsFor(std::span<const std::shared_ptr<const Policy>> policies, std::int64_t promptTokens) {
    PrefillOptions out;
    for (const auto& policy : policies) {
        const Needs needs = policy->needs(promptTokens);
        out.lastRows = std::max(out.lastRows, needs.lastRows);
        out.columnSums |= needs.columnSums;
    }
    return out;
}

// Collects queries, column sums and maps while the prompt runs through the model.
class PrefillObserver final : public LayerObserver {
public:
    explicit PrefillObserver(Snapshot& s) : m_s(s) {}

    ops::AttentionStats* wanted(LayerIndex layer, KvCache& cache, std::int64_t) override {
        const auto i = static_cast<std::size_t>(layer.value);
        if (!m_s.m_options.columnSums && m_s.m_options.mapBin == 0) return nullptr;
        m_stats = {};
        const auto options = at::TensorOptions().dtype(at::kFloat).device(m_s.m_inverse.device());
        if (m_s.m_options.columnSums) {
            if (!m_s.m_columnSums[i].defined()) m_s.m_columnSums[i] = at::zeros({m_s.m_config->queryHeads, cache.layer(layer).capacity()}, options);
            m_stats.columnSum = m_s.m_columnSums[i];
        }
        if (m_s.m_options.mapBin > 0) {
            const std::int64_t bins = (m_s.m_length + m_s.m_options.mapBin - 1) / m_s.m_options.mapBin;
            if (!m_s.m_maps[i].defined()) m_s.m_maps[i] = at::zeros({m_s.m_config->kvHeads, bins, bins}, options);
            m_stats.map = m_s.m_maps[i];
            m_stats.rowBin = m_stats.colBin = m_s.m_options.mapBin;
        }
        return &m_stats;
    }

    void afterAttention(const LayerView& view, KvCache&) override {
        const std::int64_t rows = m_s.m_options.lastRows, fresh = view.queries.size(1);
        if (rows == 0) return;
        at::Tensor& kept = m_s.m_queries[static_cast<std::size_t>(view.layer.value)];
        if (fresh >= rows) {
            kept = view.queries.narrow(1, fresh - rows, rows).clone();
        } else {
            const at::Tensor all = kept.defined() ? at::cat({kept, view.queries}, 1) : view.queries;
            const std::int64_t n = std::min(rows, all.size(1));
            kept = all.narrow(1, all.size(1) - n, n).clone();
        }
    }

private:
    Snapshot& m_s;
    ops::AttentionStats m_stats;
};

std::shared_ptr<const Snapshot> Snapshot::prefill(const Model& model, std::span<const TokenId> ids, const PrefillOptions& options, std::stop_token stop,
                                                  const std::function<void(std::int64_t)>& onTokens) {
    if (ids.empty()) throw EngineError("prefill: expected at least one token, found none");
    const auto begin = std::chrono::steady_clock::now();
    std::shared_ptr<Snapshot> s(new Snapshot(KvCache(model.config(), model.dtype(), model.device(), RopeMode::original)));
    const auto layers = static_cast<std::size_t>(model.config().layers);
    s->m_config = &model.config();
    s->m_options = options;
    s->m_length = static_cast<std::int64_t>(ids.size());
    s->m_options.lastRows = static_cast<int>(std::min<std::int64_t>(options.lastRows, s->m_length));
    s->m_inverse = model.inverseFrequencies();
    s->m_queries.resize(layers);
    s->m_columnSums.resize(layers);
    s->m_maps.resize(layers);
    for (int l = 0; l < model.config().layers; ++l) s->m_cache.reserve(LayerIndex{l}, std::max(s->m_length, options.reserve));

    PrefillObserver observer(*s);
    at::Tensor logits;
    for (std::int64_t done = 0; done < s->m_length;) {
        const std::int64_t count = std::min(Block, s->m_length - done);
        const bool last = done + count == s->m_length;
        logits = model.forward(ids.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)), static_cast<Position>(done), s->m_cache, &observer,
                               last ? LogitRows::last : LogitRows::none, stop);
        done += count;
        if (onTokens) onTokens(done);
    }
    s->m_lastLogits = logits.reshape({-1}).to(at::kCPU);
    const auto first = static_cast<std::int64_t>(s->m_length - s->m_options.lastRows);
    s->m_queryPositions = at::arange(first, s->m_length, at::kInt).to(model.device());
    s->m_milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    return s;
}

LayerView Snapshot::view(LayerIndex layer) const {
    const CacheLayer& entries = m_cache.layer(layer);
    return {layer, *m_config, entries, m_queries[static_cast<std::size_t>(layer.value)], m_queryPositions, entries.keys,
            1.0 / std::sqrt(static_cast<double>(m_config->headDim)), {}};
}

bool Snapshot::serves(const Policy& policy) const {
    const Needs needs = policy.needs(m_length);
    return needs.lastRows <= m_options.lastRows && (!needs.columnSums || m_options.columnSums);
}

std::shared_ptr<const Snapshot::Scored> Snapshot::scored(const Policy& policy, const Plan& plan) const {
    const std::string key = policy.spec().text() + "#" + policy.scoreKey(plan);
    {
        const std::lock_guard lock(m_mutex);
        if (const auto found = m_scored.find(key); found != m_scored.end()) return found->second;
    }
    if (!serves(policy)) throw EngineError("policy " + policy.spec().id + ": the prefill did not collect the attention statistics it needs");
    const auto fresh = std::make_shared<Scored>();
    for (int l = 0; l < m_cache.layers(); ++l) {
        const LayerView layerView = view(LayerIndex{l});
        const at::Tensor statistic = policy.statistic(layerView, plan, m_columnSums[static_cast<std::size_t>(l)]);
        const at::Tensor score = policy.score(layerView, plan, statistic);
        fresh->statistics.push_back(statistic);
        fresh->scores.push_back(score.defined() ? score.to(at::kCPU, at::kFloat).contiguous() : score);
    }
    const std::lock_guard lock(m_mutex);
    return m_scored.try_emplace(key, fresh).first->second;
}

Snapshot::Choice Snapshot::choose(const Policy& policy) const {
    Choice choice;
    const int layers = m_cache.layers();
    const int budget = policy.budget(m_length);
    const Plan plan = policy.plan(m_length, budget);
    // A policy that goes on evicting while decoding carries its statistic from here, even if nothing has to go yet.
    const bool evicts = policy.schedule().afterPrefill && plan.keep < m_length;
    const std::shared_ptr<const Scored> all = evicts || policy.needs(m_length).decodeSums ? scored(policy, plan) : nullptr;
    for (int l = 0; l < layers; ++l) {
        const std::vector<std::int32_t>& held = m_cache.layer(LayerIndex{l}).held;
        const bool whole = !evicts || policy.skips(LayerIndex{l});
        choice.selections.push_back(whole ? Selection::all(held) : select(all->scores[static_cast<std::size_t>(l)], held, plan, &choice.notice));
        choice.statistics.push_back(all ? all->statistics[static_cast<std::size_t>(l)] : at::Tensor());
        choice.everything &= whole;
    }
    if (evicts && !plan.notice.empty()) choice.notice = plan.notice;
    return choice;
}

} // namespace keepsight
