#include "engine/session/branch.h"

#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <chrono>

namespace keepsight {
namespace {

constexpr const char* Statistic = "statistic"; // the policy's memory of each entry

double millisecondsSince(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

// Positions of the entries that a selection leaves out.
std::vector<Branch::Eviction> leftOut(LayerIndex layer, const CacheLayer& entries, const Selection& selection) {
    std::vector<Branch::Eviction> out;
    const at::Tensor positions = entries.positions.to(at::kCPU).contiguous();
    for (std::size_t h = 0; h < selection.keep.size(); ++h) {
        const std::vector<std::int32_t>& keep = selection.keep[h];
        if (static_cast<std::int32_t>(keep.size()) == entries.held[h]) continue;
        const std::int32_t* row = positions.data_ptr<std::int32_t>() + static_cast<std::int64_t>(h) * positions.size(1);
        Branch::Eviction& e = out.emplace_back(Branch::Eviction{layer, HeadIndex{static_cast<std::int32_t>(h)}, {}});
        std::size_t next = 0;
        for (std::int32_t i = 0; i < entries.held[h]; ++i) {
            if (next < keep.size() && keep[next] == i)
                ++next;
            else
                e.positions.push_back(row[i]);
        }
    }
    return out;
}

at::Tensor gatherStatistic(const at::Tensor& statistic, const Selection& selection, std::int64_t capacity) {
    const std::int64_t rows = statistic.size(0), group = rows / static_cast<std::int64_t>(selection.keep.size());
    at::Tensor out = at::zeros({rows, capacity}, statistic.options());
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::vector<std::int32_t>& keep = selection.keep[static_cast<std::size_t>(r / group)];
        const at::Tensor index = at::tensor(at::IntArrayRef(std::vector<std::int64_t>(keep.begin(), keep.end())), at::kLong).to(statistic.device());
        out[r].narrow(0, 0, static_cast<std::int64_t>(keep.size())).copy_(statistic[r].index_select(0, index));
    }
    return out;
}

} // namespace

Branch::Branch(const Model& model, std::shared_ptr<const Snapshot> snapshot, std::shared_ptr<const Policy> policy, const BranchOptions& options)
    : m_model(model), m_snapshot(std::move(snapshot)), m_policy(std::move(policy)), m_options(options),
      m_cache(model.config(), model.dtype(), model.device(), m_policy->rope()), m_seen(static_cast<Position>(m_snapshot->length())) {
    const auto begin = std::chrono::steady_clock::now();
    m_needs = m_policy->needs(m_snapshot->length());
    Snapshot::Choice choice = m_snapshot->choose(*m_policy);
    m_notice = choice.notice;
    m_keptEverything = choice.everything;
    if (options.recordEvictions && !choice.everything)
        for (int l = 0; l < m_cache.layers(); ++l) {
            auto gone = leftOut(LayerIndex{l}, m_snapshot->cache().layer(LayerIndex{l}), choice.selections[static_cast<std::size_t>(l)]);
            std::move(gone.begin(), gone.end(), std::back_inserter(m_evictions));
        }
    m_cache = m_snapshot->cache().branch(choice.selections, m_policy->rope(), options.headroom, m_snapshot->inverseFrequencies());
    if (m_needs.decodeSums)
        for (int l = 0; l < m_cache.layers(); ++l) {
            const auto i = static_cast<std::size_t>(l);
            CacheLayer& layer = m_cache.layer(LayerIndex{l});
            layer.memory[Statistic] = gatherStatistic(choice.statistics[i], choice.selections[i], layer.capacity());
        }
    m_maps.resize(static_cast<std::size_t>(m_cache.layers()));
    m_selectMilliseconds = millisecondsSince(begin);
}

at::Tensor Branch::feed(std::span<const TokenId> ids, LogitRows rows, bool evict, std::stop_token stop) {
    m_evict = evict;
    m_policyMilliseconds = 0;
    if (evict) ++m_steps;
    const Position first = m_seen;
    m_seen += static_cast<Position>(ids.size());
    const at::Tensor logits = m_model.forward(ids, first, m_cache, this, rows, stop);
    return logits.defined() ? logits.to(at::kCPU) : logits;
}

at::Tensor Branch::losses(std::span<const TokenId> ids, std::span<const TokenId> targets, std::stop_token stop) {
    m_evict = false;
    const Position first = m_seen;
    m_seen += static_cast<Position>(ids.size());
    return m_model.losses(ids, targets, first, m_cache, this, stop).to(at::kCPU);
}

ops::AttentionStats* Branch::wanted(LayerIndex index, KvCache& cache, std::int64_t) {
    const auto options = at::TensorOptions().dtype(at::kFloat).device(m_model.device());
    const CacheLayer& layer = cache.layer(index);
    m_stats = {};
    bool any = false;
    if (m_evict && m_needs.decodeSums) {
        m_stats.columnSum = layer.memory.at(Statistic);
        any = true;
    }
    if (m_evict && m_needs.decodeRows) {
        m_stats.lastRows = at::empty({m_model.config().queryHeads, 1, layer.capacity()}, options);
        any = true;
    }
    if (m_options.mapBin > 0) {
        at::Tensor& map = m_maps[static_cast<std::size_t>(index.value)];
        if (!map.defined()) map = at::zeros({m_model.config().kvHeads, m_options.mapRows, m_options.mapCols}, options);
        m_stats.map = map;
        m_stats.mapRowBegin = m_snapshot->length();
        m_stats.rowBin = m_stats.colBin = m_options.mapBin;
        any = true;
    }
    return any ? &m_stats : nullptr;
}

// view → score → select → compact, once per layer, right after its attention.
void Branch::afterAttention(const LayerView& view, KvCache& cache) {
    const Schedule schedule = m_policy->schedule();
    if (!m_evict || schedule.everySteps == 0 || m_steps % schedule.everySteps != 0 || m_policy->skips(view.layer)) return;
    const auto begin = std::chrono::steady_clock::now();
    const CacheLayer& layer = cache.layer(view.layer);
    const Plan plan = m_policy->plan(layer.maxHeld(), m_policy->budget(m_seen));
    if (layer.maxHeld() > plan.keep) {
        const at::Tensor statistic = m_needs.decodeSums ? layer.memory.at(Statistic) : at::Tensor();
        const at::Tensor scores = m_policy->score(view, plan, statistic);
        const Selection selection = select(scores, layer.held, plan);
        if (m_options.recordEvictions) { // recorded before it is applied
            auto gone = leftOut(view.layer, layer, selection);
            std::move(gone.begin(), gone.end(), std::back_inserter(m_evictions));
        }
        cache.compact(view.layer, selection);
    }
    m_policyMilliseconds += millisecondsSince(begin);
}

} // namespace keepsight
