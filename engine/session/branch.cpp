#include "engine/session/branch.h"

#include "engine/cache/stored_rows.h"
#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <chrono>
#include <limits>

namespace keepsight {
namespace {

constexpr const char* Statistic = "statistic"; // the policy's memory of each entry

double millisecondsSince(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

// Positions of the entries that a selection leaves out; with more sets than `entries` has heads, several share one.
std::vector<Branch::Eviction> leftOut(LayerIndex layer, const CacheLayer& entries, const Selection& selection) {
    std::vector<Branch::Eviction> out;
    const at::Tensor positions = entries.positions.to(at::kCPU).contiguous();
    const std::size_t group = selection.keep.size() / entries.held.size();
    for (std::size_t h = 0; h < selection.keep.size(); ++h) {
        const std::vector<std::int32_t>& keep = selection.keep[h];
        const std::int32_t held = entries.held[h / group];
        if (static_cast<std::int32_t>(keep.size()) == held) continue;
        const std::int32_t* row = positions.data_ptr<std::int32_t>() + static_cast<std::int64_t>(h / group) * positions.size(1);
        Branch::Eviction& e = out.emplace_back(Branch::Eviction{layer, HeadIndex{static_cast<std::int32_t>(h)}, {}});
        std::size_t next = 0;
        for (std::int32_t i = 0; i < held; ++i) {
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
    Snapshot::Choice choice = m_snapshot->choose(*m_policy, m_options.quantizer.get());
    m_memories = std::move(choice.memories);
    m_windowed = m_needs.lastRows > 1 && !m_needs.decodeSums && m_policy->schedule().everySteps > 0;
    m_window.resize(m_memories.size());
    m_notice = choice.notice;
    m_keptEverything = choice.everything;
    if (options.recordEvictions && !choice.everything)
        for (int l = 0; l < m_cache.layers(); ++l) {
            auto gone = leftOut(LayerIndex{l}, m_snapshot->cache().layer(LayerIndex{l}), choice.selections[static_cast<std::size_t>(l)]);
            std::move(gone.begin(), gone.end(), std::back_inserter(m_evictions));
        }
    for (const Position position : m_options.explain)
        for (int l = 0; l < m_cache.layers(); ++l)
            for (std::size_t h = 0; h < choice.selections.front().keep.size(); ++h)
                if (position < m_snapshot->length())
                    m_explanations.push_back(m_snapshot->explain(*m_policy, m_options.quantizer.get(), LayerIndex{l}, HeadIndex{static_cast<std::int32_t>(h)}, position));
    m_cache = m_snapshot->cache().branch(choice.selections, m_policy->rope(), options.headroom, m_snapshot->inverseFrequencies(), m_options.quantizer);
    if (m_windowed)
        for (int l = 0; l < m_cache.layers(); ++l) {
            const at::Tensor& queries = m_snapshot->view(LayerIndex{l}).queries;
            const std::int64_t rows = std::min<std::int64_t>(m_needs.lastRows, queries.size(1));
            m_window[static_cast<std::size_t>(l)] = queries.narrow(1, queries.size(1) - rows, rows).clone(); // rolled in place
        }
    if (m_needs.decodeSums)
        for (int l = 0; l < m_cache.layers(); ++l) {
            const auto i = static_cast<std::size_t>(l);
            CacheLayer& layer = m_cache.layer(LayerIndex{l});
            layer.memory[Statistic] = gatherStatistic(choice.statistics[i], choice.selections[i], layer.capacity());
        }
    m_maps.resize(static_cast<std::size_t>(m_cache.layers()));
    m_firstLogits = m_snapshot->lastLogits();
    if (m_policy->ownsPrefill()) passPrompt(options.stop);
    m_selectMilliseconds = millisecondsSince(begin);
}

// The policy acts inside the prompt's pass: the shared prefill is replaced by the lane's own, block by block.
void Branch::passPrompt(std::stop_token stop) {
    const std::span<const TokenId> ids = m_snapshot->ids();
    m_cache = KvCache(m_model.config(), m_model.dtype(), m_model.device(), m_policy->rope(), m_options.quantizer);
    for (int l = 0; l < m_cache.layers(); ++l) m_cache.reserve(LayerIndex{l}, m_snapshot->length() + m_options.headroom);
    m_seen = 0;
    at::Tensor logits;
    for (std::size_t done = 0; done < ids.size();) {
        const std::size_t count = std::min<std::size_t>(static_cast<std::size_t>(Snapshot::Block), ids.size() - done);
        logits = feed(ids.subspan(done, count), done + count == ids.size() ? LogitRows::last : LogitRows::none, false, stop);
        done += count;
    }
    m_firstLogits = logits.reshape({-1});
}

at::Tensor Branch::feed(std::span<const TokenId> ids, LogitRows rows, bool evict, std::stop_token stop) {
    m_evict = evict;
    m_policyMilliseconds = 0;
    if (evict) ++m_steps;
    const Position first = m_seen;
    m_seen += static_cast<Position>(ids.size());
    if (ids.size() == 1 && rows == LogitRows::last && DecodeGraph::serves(m_model))
        if (const std::optional<std::string> key = planStep()) {
            if (stop.stop_requested()) throw Cancelled{};
            const at::Tensor logits = m_graph.step(m_model, m_cache, ids.front(), first, this, *key);
            takeGone();
            return logits;
        }
    m_planned.clear();
    const at::Tensor logits = m_model.forward(ids, first, m_cache, this, rows, stop);
    return logits.defined() ? logits.to(at::kCPU) : logits;
}

// Settles what the next token's pass will do, so that the device needs no host between its layers. Passes with equal keys launch the same work;
// nullopt: the host must choose.
std::optional<std::string> Branch::planStep() {
    constexpr std::int32_t Everything = std::numeric_limits<std::int32_t>::max();
    m_planned.clear();
    const std::optional<std::string> stored = m_cache.nextStep();
    if (!stored) return std::nullopt;
    const auto next = [&](LayerIndex l) { return place(l, m_cache.layer(l).maxHeld() + 1, 1); };
    if (m_policy->kind() == PolicyKind::attend) return m_options.explain.empty() ? m_policy->workKey(next(LayerIndex{0}), {}) : std::nullopt;
    const int every = m_policy->schedule().everySteps;
    if (!m_evict || (every == 0 && !m_needs.decodeSums && !m_needs.decodeRows)) return "plain;" + *stored;
    if (every == 0 || m_steps % every != 0) return readsEntries() && m_cache.quantized() ? std::nullopt : std::optional("sums;" + *stored); // statistics go on
    if (m_cache.quantized() || !m_options.explain.empty() || m_policy->remember()) return std::nullopt;
    const auto options = at::TensorOptions().dtype(at::kInt);
    if (!m_limits.defined()) {
        m_limitsHost = at::empty({m_cache.layers(), 3}, options.pinned_memory(true));
        m_limits = at::empty({m_cache.layers(), 3}, options.device(m_model.device()));
        m_gone = at::full({m_cache.layers(), m_cache.config().kvHeads}, -1, m_limits.options());
    }
    std::string key = "evict";
    for (int l = 0; l < m_cache.layers(); ++l) {
        const LayerIndex layer{l};
        std::int32_t* limits = m_limitsHost.data_ptr<std::int32_t>() + 3 * l;
        Plan plan{.keep = Everything, .protect = {}, .window = 0, .notice = {}};
        if (!m_policy->skips(layer)) {
            const Place here = next(layer);
            plan = m_policy->planFor(here);
            const std::optional<std::string> work = m_policy->workKey(here, plan);
            // One entry a head at most, and all heads alike.
            if (!work || plan.adaptive || plan.chunk > 0 || here.held > plan.keep + 1 || !even(m_cache.layer(layer).held)) return m_planned.clear(), std::nullopt;
            plan.protect.sinks = std::min(plan.protect.sinks, plan.keep); // what has to give way, as in select()
            plan.protect.recent = std::min(plan.protect.recent, plan.keep - plan.protect.sinks);
            key += ";" + *work;
        }
        limits[0] = plan.keep, limits[1] = plan.protect.sinks, limits[2] = plan.protect.recent;
        m_planned.push_back(plan);
    }
    m_limits.copy_(m_limitsHost, true);
    return key;
}

bool Branch::readsEntries() const {
    return m_evict && (m_policy->schedule().everySteps > 0 || (m_needs.decodeSums && m_needs.sum != RowSum::attention));
}

void Branch::replayed(KvCache& cache) {
    for (std::size_t l = 0; l < m_planned.size(); ++l) cache.countDropped(LayerIndex{static_cast<std::int32_t>(l)}, m_planned[l].keep);
}

void Branch::takeGone() {
    if (m_planned.empty() || !m_options.recordEvictions) return;
    const at::Tensor gone = m_gone.to(at::kCPU);
    const auto rows = gone.accessor<std::int32_t, 2>();
    for (std::int32_t l = 0; l < rows.size(0); ++l)
        for (std::int32_t h = 0; h < rows.size(1); ++h)
            if (rows[l][h] >= 0) m_evictions.push_back({LayerIndex{l}, HeadIndex{h}, {rows[l][h]}});
}

at::Tensor Branch::losses(std::span<const std::unique_ptr<Branch>> branches, std::span<const TokenId> ids, std::span<const TokenId> targets,
                          std::stop_token stop) {
    std::vector<PassLane> lanes;
    const Position first = branches.front()->m_seen;
    for (const auto& branch : branches) {
        branch->m_evict = false;
        branch->m_seen += static_cast<Position>(ids.size());
        lanes.push_back({branch->m_cache, branch.get()});
    }
    return branches.front()->m_model.losses(ids, targets, first, lanes, stop).to(at::kCPU);
}

ops::AttentionStats* Branch::wanted(LayerIndex index, KvCache& cache, std::int64_t) {
    const auto options = at::TensorOptions().dtype(at::kFloat).device(m_model.device());
    const CacheLayer& layer = cache.layer(index);
    m_stats = {};
    bool any = false;
    if (m_evict && m_needs.decodeSums && m_needs.sum == RowSum::attention) {
        m_stats.columnSum = layer.memory.at(Statistic);
        any = true;
    }
    if (m_evict && m_needs.decodeRows) {
        m_stats.lastRows = at::empty({m_model.config().queryHeads, 1, layer.capacity()}, options);
        any = true;
    }
    if (m_options.mapBin > 0) {
        at::Tensor& map = m_maps[static_cast<std::size_t>(index.value)];
        if (!map.defined()) map = at::zeros({m_cache.config().kvHeads, m_options.mapRows, m_options.mapCols}, options);
        m_stats.map = map;
        m_stats.mapRowBegin = m_snapshot->length();
        m_stats.rowBin = m_stats.colBin = m_options.mapBin;
        any = true;
    }
    return any ? &m_stats : nullptr;
}

at::Tensor Branch::map(LayerIndex layer) const {
    const at::Tensor& sums = m_maps[static_cast<std::size_t>(layer.value)];
    const std::int64_t heads = m_model.config().kvHeads;
    return !sums.defined() || sums.size(0) == heads ? sums : sums.view({heads, -1, sums.size(1), sums.size(2)}).mean(1);
}

Place Branch::place(LayerIndex layer, std::int64_t held, std::int64_t fresh) const {
    return {layer, m_cache.layers(), held, m_seen, fresh, m_snapshot->length(), m_options.quantizer.get(), &m_model.config()};
}

std::optional<at::Tensor> Branch::attend(const LayerView& view) {
    const Place here = place(view.layer, view.entries.maxHeld(), view.queries.size(1));
    std::optional<Attended> attended = m_policy->attend(view, here, m_memories[static_cast<std::size_t>(view.layer.value)].get());
    if (!attended) return std::nullopt;
    if (m_evict && !m_options.explain.empty()) explain(view, here, *attended);
    return std::move(attended->entries);
}

// The set is one for all heads, and so are the votes.
void Branch::explain(const LayerView& view, const Place& here, const Attended& attended) {
    const auto heads = static_cast<std::int64_t>(view.entries.held.size());
    at::Tensor votes = attended.votes.narrow(0, 0, here.held).to(at::kCPU).clone();
    votes.narrow(0, 0, attended.sure.sinks).fill_(-std::numeric_limits<float>::infinity());
    votes.narrow(0, here.held - attended.sure.recent, attended.sure.recent).fill_(-std::numeric_limits<float>::infinity());
    const at::Tensor scores = votes.expand({heads, here.held}).contiguous(), chosen = attended.entries.to(at::kCPU).contiguous();
    const std::vector<std::int32_t> entries(chosen.const_data_ptr<std::int32_t>(), chosen.const_data_ptr<std::int32_t>() + chosen.size(0));
    const Plan plan{.keep = static_cast<int>(entries.size()), .protect = attended.sure, .window = 0, .notice = {}};
    const Selection selection{std::vector<std::vector<std::int32_t>>(static_cast<std::size_t>(heads), entries)};
    const int age = attended.age.item<std::int32_t>();
    const at::Tensor positions = view.entries.positions[0].to(at::kCPU).contiguous(); // nothing is ever dropped
    const std::int32_t *row = positions.const_data_ptr<std::int32_t>(), *end = row + here.held;
    for (const Position position : m_options.explain) {
        const std::int32_t* found = std::lower_bound(row, end, position);
        if (found == end || *found != position) continue; // still to come
        const auto index = static_cast<std::int32_t>(found - row);
        for (std::int32_t h = 0; h < heads; ++h) {
            Explanation e = explainEntry(scores, view.entries, plan, selection, HeadIndex{h}, index);
            if (h == 0)
                e.budgetNeeded = budgetThatKeeps(*m_policy, here, plan, e.kept, static_cast<int>(here.held), [&](const Policy& other, const Plan&) {
                    const std::unique_ptr<LayerMemory> fresh = other.remember();
                    const std::optional<Attended> wider = other.attend(view, here, fresh.get());
                    return !wider || (wider->entries == index).any().item<bool>();
                });
            else
                e.budgetNeeded = m_explanations.back().budgetNeeded;
            e.stored = true;
            e.layer = view.layer;
            e.step = Step{static_cast<std::int32_t>(m_steps + 1)};
            e.note = age == 0 ? "Nothing is dropped: kept means that this step attended to the token."
                              : "The choice of " + std::to_string(age) + " tokens before was used again: the query had hardly changed.";
            m_explanations.push_back(std::move(e));
        }
    }
}

// The view with the newest lastRows queries instead of this call's alone.
LayerView Branch::withWindow(const LayerView& view) {
    if (!m_windowed) return view;
    at::Tensor& window = m_window[static_cast<std::size_t>(view.layer.value)];
    const at::Tensor all = at::cat({window, view.queries}, 1);
    const std::int64_t rows = std::min<std::int64_t>(m_needs.lastRows, all.size(1));
    if (window.size(1) == rows)
        window.copy_(all.narrow(1, all.size(1) - rows, rows)); // the same tensor: recorded steps find it again
    else
        window = all.narrow(1, all.size(1) - rows, rows).clone();
    const at::Tensor newest = view.queryPositions.narrow(0, view.queryPositions.size(0) - 1, 1);
    LayerView out{view.layer,  view.config, view.entries, window,
                  newest + at::arange(1 - rows, 1, view.queryPositions.options()),
                  view.keys,   view.values, view.scale,   {},
                  view.inverseFrequencies, nullptr, {}};
    return out;
}

void Branch::explain(const LayerView& view, const Plan& plan, const Place& here, const at::Tensor& scores, const Selection& selection) {
    for (const Position position : m_options.explain) {
        const at::Tensor positions = view.entries.positions.to(at::kCPU).contiguous();
        for (std::size_t h = 0; h < view.entries.held.size(); ++h) {
            const std::int32_t* row = positions.data_ptr<std::int32_t>() + static_cast<std::int64_t>(h) * positions.size(1);
            const std::int32_t* found = std::lower_bound(row, row + view.entries.held[h], position);
            if (found == row + view.entries.held[h] || *found != position) continue; // evicted earlier, or still to come
            const HeadIndex head{static_cast<std::int32_t>(h)};
            const auto index = static_cast<std::int32_t>(found - row);
            Explanation e = explainEntry(scores, view.entries, plan, selection, head, index);
            if (!m_memories[static_cast<std::size_t>(view.layer.value)]) { // a memory would be changed by asking
                const at::Tensor statistic = m_needs.decodeSums ? view.entries.memory.at(Statistic) : at::Tensor();
                e.budgetNeeded = budgetThatKeeps(*m_policy, here, plan, e.kept, static_cast<int>(here.held), [&](const Policy& other, const Plan& p) {
                    if (!other.decides(here, p, view.entries.total(), m_cache.config().kvHeads)) return true;
                    const std::vector<std::int32_t> keep = other.choose(view, here, p, other.score(view, p, statistic), nullptr, nullptr).keep[h];
                    return std::binary_search(keep.begin(), keep.end(), index);
                });
            }
            e.layer = view.layer;
            e.step = Step{static_cast<std::int32_t>(m_steps + 1)};
            m_policy->amend(e, view, here, plan);
            m_explanations.push_back(std::move(e));
        }
    }
}

// view → score → select → compact, once per layer, right after its attention.
void Branch::afterAttention(const LayerView& given, KvCache& cache) {
    const Schedule schedule = m_policy->schedule();
    if (!m_evict || m_policy->skips(given.layer)) return;
    const auto begin = std::chrono::steady_clock::now();
    CacheLayer& layer = cache.layer(given.layer);
    if (m_needs.decodeSums && m_needs.sum != RowSum::attention) {
        at::Tensor& statistic = layer.memory.at(Statistic);
        statistic.add_(outputChange(given, m_needs.sum, given.queries.size(1)));
    }
    const LayerView view = withWindow(given);
    if (!m_planned.empty()) {
        const auto l = static_cast<std::size_t>(given.layer.value);
        const at::Tensor scores = m_policy->score(view, m_planned[l], m_needs.decodeSums ? layer.memory.at(Statistic) : at::Tensor());
        m_gone[given.layer.value].copy_(cache.dropLowest(given.layer, scores, m_limits[given.layer.value], m_planned[l].keep));
        return;
    }
    if (schedule.everySteps > 0 && m_steps % schedule.everySteps == 0) {
        const Place here = place(view.layer, layer.maxHeld(), given.queries.size(1));
        const Plan plan = m_policy->planFor(here);
        if (m_policy->decides(here, plan, layer.total(), m_cache.config().kvHeads)) {
            const at::Tensor scores = m_policy->score(view, plan, m_needs.decodeSums ? layer.memory.at(Statistic) : at::Tensor());
            const Selection selection = m_policy->choose(view, here, plan, scores, m_memories[static_cast<std::size_t>(view.layer.value)].get(), nullptr);
            explain(view, plan, here, scores, selection);
            if (m_options.recordEvictions) { // recorded before it is applied
                auto gone = leftOut(view.layer, layer, selection);
                std::move(gone.begin(), gone.end(), std::back_inserter(m_evictions));
            }
            cache.compact(view.layer, selection);
        }
    }
    m_policyMilliseconds += millisecondsSince(begin);
}

} // namespace keepsight
