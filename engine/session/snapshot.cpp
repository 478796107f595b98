#include "engine/session/snapshot.h"

#include "engine/data/error.h"
#include "engine/policy/in_parallel.h"

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
        if (needs.columnSums && needs.sum == RowSum::attention) out.columnSums = true;
        if (needs.columnSums && needs.sum != RowSum::attention) out.sums.insert(needs.sum);
        out.queryMoments = std::max(out.queryMoments, needs.queryMoments);
    }
    return out;
}

// Collects queries, column sums and maps while the prompt runs through the model.
class PrefillObserver final : public LayerObserver {
public:
    explicit PrefillObserver(Snapshot& s) : m_s(s) {}

    ops::AttentionStats* wanted(LayerIndex layer, KvCache& cache, std::int64_t) override {
        const auto i = static_cast<std::size_t>(layer.value);
        if (!m_s.m_options.columnSums && m_s.m_options.mapBin == 0 && m_s.m_options.sums.empty()) return nullptr; // output changes start from the log-sum-exps
        m_stats = {};
        const auto options = at::TensorOptions().dtype(at::kFloat).device(m_s.m_inverse.device());
        if (m_s.m_options.columnSums) {
            at::Tensor& sums = m_s.m_sums.at(RowSum::attention)[i];
            if (!sums.defined()) sums = at::zeros({m_s.m_config->queryHeads, cache.layer(layer).capacity()}, options);
            m_stats.columnSum = sums;
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
        const auto i = static_cast<std::size_t>(view.layer.value);
        for (const RowSum sum : m_s.m_options.sums) {
            at::Tensor& sums = m_s.m_sums.at(sum)[i];
            const at::Tensor more = view.lastChanges(changeOf(sum), fresh);
            sums = sums.defined() ? sums.add_(more) : more;
        }
        if (m_s.m_options.queryMoments >= 0) addMoments(view, m_s.m_moments[i]);
        if (rows == 0) return;
        keepLast(m_s.m_queries[i], view.queries, rows);
        if (view.known.logSumExp.defined())
            keepLast(m_s.m_logSumExps[i], view.known.logSumExp, rows);
        else
            m_s.m_logSumExps[i].reset();
    }

private:
    // kept becomes the last `rows` of what it was and of what is new, along the second dimension.
    static void keepLast(at::Tensor& kept, const at::Tensor& more, std::int64_t rows) {
        const at::Tensor all = kept.defined() && more.size(1) < rows ? at::cat({kept, more}, 1) : more;
        const std::int64_t n = std::min(rows, all.size(1));
        kept = all.narrow(1, all.size(1) - n, n).clone();
    }
    void addMoments(const LayerView& view, QueryMoments& moments) const {
        const std::int64_t fresh = view.plainQueries.size(1), before = view.entries.held.front() - fresh, skipped = std::clamp<std::int64_t>(m_s.m_options.queryMoments - before, 0, fresh);
        const at::Tensor counted = view.plainQueries.narrow(1, skipped, fresh - skipped);
        constexpr std::int64_t Rows = 1024;
        const std::int64_t whole = counted.size(1) / Rows * Rows;
        if (whole > 0) addBlocks(counted.narrow(1, 0, whole).unflatten(1, {-1, Rows}), moments);
        if (whole < counted.size(1)) addBlocks(counted.narrow(1, whole, counted.size(1) - whole).unsqueeze(1), moments);
    }
    // x [heads, blocks, rows, D]. On a device products of 16-bit numbers, exact in fp32, are summed in it within a block, by the matrix units; all else in fp64.
    static void addBlocks(const at::Tensor& x, QueryMoments& moments) {
        const bool narrow = !x.is_cpu() && x.element_size() == 2;
        const at::Tensor rows = (narrow ? x : x.to(at::kDouble)).flatten(0, 1), ones = at::ones({rows.size(0), 1, rows.size(1)}, rows.options());
        const auto times = [&](const at::Tensor& left) { // [heads, …, D] fp64
            return (narrow ? at::bmm(left, rows, at::kFloat) : at::bmm(left, rows)).unflatten(0, {x.size(0), -1}).sum(1, false, at::kDouble);
        };
        const at::Tensor sum = times(ones).squeeze(1), products = times(rows.transpose(1, 2));
        moments.sum = moments.count ? moments.sum + sum : sum;
        moments.products = moments.count ? moments.products + products : products;
        moments.count += x.size(1) * x.size(2);
    }

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
    s->m_wideConfig = model.config();
    s->m_wideConfig.kvHeads = s->m_wideConfig.queryHeads;
    s->m_options = options;
    s->m_ids.assign(ids.begin(), ids.end());
    s->m_length = static_cast<std::int64_t>(ids.size());
    s->m_options.lastRows = static_cast<int>(std::min<std::int64_t>(options.lastRows, s->m_length));
    s->m_inverse = model.inverseFrequencies();
    s->m_queries.resize(layers);
    s->m_logSumExps.resize(layers);
    if (options.columnSums) s->m_sums[RowSum::attention].resize(layers);
    for (const RowSum sum : options.sums) s->m_sums[sum].resize(layers);
    s->m_moments.resize(layers);
    s->m_maps.resize(layers);
    for (int l = 0; l < model.config().layers; ++l) s->m_cache.reserve(LayerIndex{l}, std::max(s->m_length, options.reserve));

    PrefillObserver observer(*s);
    at::Tensor logits;
    for (std::int64_t done = 0; done < s->m_length;) {
        const std::int64_t count = std::min(blockOf(model), s->m_length - done);
        const bool last = done + count == s->m_length;
        logits = model.forward(ids.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)), static_cast<Position>(done), s->m_cache, &observer,
                               last ? LogitRows::last : LogitRows::none, stop);
        done += count;
        if (onTokens) onTokens(done);
    }
    s->m_lastLogits = logits.reshape({-1}).to(at::kCPU);
    for (int l = 0; l < model.config().layers && model.device().is_cpu() && s->m_options.lastRows > 0; ++l)
        s->m_lastSums.push_back(std::make_unique<LastSums>(s->m_options.lastRows));
    const auto first = static_cast<std::int64_t>(s->m_length - s->m_options.lastRows);
    s->m_queryPositions = at::arange(first, s->m_length, at::kInt).to(model.device());
    s->m_milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    return s;
}

LayerView Snapshot::view(LayerIndex layer) const {
    const auto i = static_cast<std::size_t>(layer.value);
    const CacheLayer& entries = m_cache.layer(layer);
    const at::Tensor lastKnown = m_logSumExps[i].defined() && m_logSumExps[i].size(1) == m_options.lastRows ? m_logSumExps[i] : at::Tensor();
    return {layer, *m_config, entries, m_queries[i], m_queryPositions, entries.keys, entries.values, 1.0 / std::sqrt(static_cast<double>(m_config->headDim)), {}, m_inverse,
            m_options.queryMoments >= 0 ? &m_moments[i] : nullptr, {}, true, {{}, lastKnown}, m_lastSums.empty() ? nullptr : m_lastSums[i].get()};
}

Snapshot::Sight::Sight(const Snapshot& s, const Policy& policy, LayerIndex layer, Purpose purpose)
    : m_wide(policy.perQueryHead() ? s.m_cache.layer(layer).perQueryHead(s.m_config->groupSize(), purpose == Purpose::score) : CacheLayer()),
      view([&]() -> LayerView {
          const LayerView plain = s.view(layer);
          if (!policy.perQueryHead()) return plain;
          return {layer, s.m_wideConfig, m_wide, plain.queries, plain.queryPositions, m_wide.keys, m_wide.values, plain.scale, {}, plain.inverseFrequencies, plain.moments, {}, true, plain.known, plain.remembered};
      }()) {}

Place Snapshot::place(LayerIndex layer, const Quantizer* quantizer) const {
    Place place = Place::afterPrompt(m_length, layer, m_cache.layers());
    place.quantizer = quantizer;
    place.config = m_config;
    return place;
}

bool Snapshot::serves(const Policy& policy) const {
    const Needs needs = policy.needs(m_length);
    const bool sums = !needs.columnSums || (needs.sum == RowSum::attention ? m_options.columnSums : m_options.sums.contains(needs.sum));
    return needs.lastRows <= m_options.lastRows && sums && (needs.queryMoments < 0 || needs.queryMoments == m_options.queryMoments);
}

std::shared_ptr<const Snapshot::Scored> Snapshot::scored(const Policy& policy, const Plan& plan, LayerIndex layer) const {
    const std::string of = std::to_string(layer.value) + "#" + policy.spec().text(), key = policy.scoreKey(plan);
    const auto remembered = [&]() -> std::shared_ptr<const Scored> {
        const auto& all = m_scored[of];
        const auto found = std::ranges::find(all, key, &std::pair<std::string, std::shared_ptr<const Scored>>::first);
        return found != all.end() ? found->second : nullptr;
    };
    {
        const std::lock_guard lock(m_mutex);
        if (const auto known = remembered()) return known;
    }
    if (!serves(policy)) throw EngineError("policy " + policy.spec().id + ": the prefill did not collect the attention statistics it needs");
    const Needs needs = policy.needs(m_length);
    const Sight sight(*this, policy, layer, Purpose::score);
    const auto fresh = std::make_shared<Scored>();
    const at::Tensor sums = needs.columnSums ? m_sums.at(needs.sum)[static_cast<std::size_t>(layer.value)] : at::Tensor();
    fresh->statistic = policy.statistic(sight.view, plan, sums);
    const at::Tensor score = policy.score(sight.view, plan, fresh->statistic);
    fresh->scores = score.defined() ? score.to(at::kFloat).contiguous() : score;
    const std::lock_guard lock(m_mutex);
    if (const auto known = remembered()) return known; // another thread was faster
    auto& all = m_scored[of];
    all.emplace_back(key, fresh);
    if (all.size() > Remembered) all.pop_front();
    return fresh;
}

Snapshot::Choice Snapshot::choose(const Policy& policy, const Quantizer* quantizer) const {
    struct Part { // a layer's
        Selection selection;
        at::Tensor statistic;
        std::unique_ptr<LayerMemory> memory;
        std::string notice;
    };
    const int layers = m_cache.layers();
    std::vector<Part> parts(static_cast<std::size_t>(layers));
    const bool carries = policy.needs(m_length).decodeSums;
    inParallel(layers, m_queryPositions.is_cpu(), [&](std::int64_t l) { // so the small steps of a policy are shared, too
        const LayerIndex layer{static_cast<std::int32_t>(l)};
        Part& part = parts[static_cast<std::size_t>(l)];
        const Sight sight(*this, policy, layer, Purpose::choose);
        const CacheLayer& entries = sight.view.entries;
        const Place here = place(layer, quantizer);
        const Plan plan = policy.planFor(here);
        part.memory = policy.remember();
        const bool chooses = policy.schedule().afterPrefill && !policy.skips(layer) && policy.decides(here, plan, entries.total(), sight.view.config.kvHeads, part.memory.get());
        // A policy that goes on evicting while decoding carries its statistic from here, even if nothing has to go yet.
        const std::shared_ptr<const Scored> all = chooses || carries ? scored(policy, plan, layer) : nullptr;
        part.selection = chooses ? policy.choose(sight.view, here, plan, all->scores, part.memory.get(), &part.notice) : Selection::all(entries.held);
        if (all) part.statistic = all->statistic;
        if (chooses && !plan.notice.empty()) part.notice = plan.notice;
    });
    Choice choice;
    for (int l = 0; l < layers; ++l) {
        Part& part = parts[static_cast<std::size_t>(l)];
        choice.everything &= std::ranges::all_of(part.selection.keep, [&](const auto& keep) { return static_cast<std::int64_t>(keep.size()) == m_length; });
        choice.selections.push_back(std::move(part.selection));
        choice.statistics.push_back(std::move(part.statistic));
        choice.memories.push_back(std::move(part.memory));
        if (!part.notice.empty()) choice.notice = std::move(part.notice);
    }
    return choice;
}

Explanation Snapshot::explain(const Policy& policy, const Quantizer* quantizer, LayerIndex layer, HeadIndex head, Position position) const {
    Explanation out;
    out.position = position;
    out.layer = layer;
    out.head = head;
    out.step = Step{1};
    const Sight sight(*this, policy, layer, Purpose::choose);
    const CacheLayer& entries = sight.view.entries;
    const int heads = sight.view.config.kvHeads;
    const Place here = place(layer, quantizer);
    const Plan plan = policy.planFor(here);
    if (position < 0 || position >= m_length || head.value < 0 || head.value >= heads) return out;
    if (!policy.schedule().afterPrefill || policy.skips(layer) || !policy.decides(here, plan, entries.total(), heads, nullptr)) {
        out.found = out.kept = true;
        out.budget = entries.held[static_cast<std::size_t>(head.value)];
        out.note = "Nothing had to go in this layer after the prefill.";
        return out;
    }
    const auto chosen = [&](const Policy& with) {
        const Plan p = with.planFor(here);
        const std::unique_ptr<LayerMemory> memory = with.remember();
        const auto all = scored(with, p, layer);
        return std::pair(all, with.choose(sight.view, here, p, all->scores, memory.get(), nullptr));
    };
    const auto [all, selection] = chosen(policy);
    out = explainEntry(all->scores, entries, plan, selection, head, position); // before any eviction, entry = position
    out.layer = layer;
    out.step = Step{1};
    policy.amend(out, sight.view, here, plan);

    out.budgetNeeded = budgetThatKeeps(policy, here, plan, out.kept, static_cast<int>(m_length), [&](const Policy& other, const Plan& p) {
        if (!other.decides(here, p, entries.total(), heads, nullptr)) return true;
        const Selection wider = chosen(other).second;
        const std::vector<std::int32_t>& keep = wider.keep[static_cast<std::size_t>(head.value)];
        return std::binary_search(keep.begin(), keep.end(), position);
    });
    return out;
}

} // namespace keepsight
