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

// Rows of one head lie behind each other.
at::Tensor gatherStatistic(const at::Tensor& statistic, const Selection& selection, std::int64_t capacity) {
    const auto forRows = [&](const at::Tensor& perHead) { return repeatHeads(perHead, statistic.size(0) / perHead.size(0)); };
    return ops::gather_entries(statistic, forRows(onDevice(selection.keep, statistic.device())), forRows(onDevice(sizesOf(selection.keep), statistic.device())), capacity);
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
    const bool settled = m_policy->kind() == PolicyKind::evict && m_policy->schedule().everySteps == 0 && !m_needs.decodeSums && !m_needs.decodeRows;
    m_cache = m_snapshot->cache().branch(choice.selections, m_policy->rope(), options.headroom, m_snapshot->inverseFrequencies(), m_options.quantizer, settled);
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
    if (m_policy->schedule().everySteps > 0 && DecodeGraph::serves(m_model)) m_cache.nextStep(true); // so that the first eviction changes no other step's kind
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
    m_planned.clear();
    m_idle = false;
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
    const at::Tensor logits = m_model.forward(ids, first, m_cache, this, rows, stop);
    return logits.defined() ? logits.to(at::kCPU) : logits;
}

// Settles what the next token's pass will do, so that the device needs no host between its layers. Passes with equal keys launch the same work;
// nullopt: the host must choose.
std::optional<std::string> Branch::planStep() {
    if (m_policy->kind() == PolicyKind::attend) {
        if (!m_options.explain.empty()) return std::nullopt;
        const std::optional<std::string> work = m_policy->workKey(place(LayerIndex{0}, m_cache.layer(LayerIndex{0}).maxHeld() + 1, 1), {});
        const std::optional<std::string> stored = work ? m_cache.nextStep(false) : std::nullopt;
        return stored ? std::optional(*stored + *work) : std::nullopt;
    }
    const bool statistics = m_evict && (m_policy->schedule().everySteps > 0 || m_needs.decodeSums || m_needs.decodeRows); // they go on
    std::string key = statistics ? "sums" : "plain";
    std::vector<LayerStep> steps;
    if (due()) {
        steps.resize(static_cast<std::size_t>(m_cache.layers()));
        key = "evict";
        for (int l = 0; l < m_cache.layers(); ++l) {
            const std::optional<std::string> work = planLayer(LayerIndex{l}, steps[static_cast<std::size_t>(l)]);
            if (!work) return std::nullopt;
            key += ";" + *work;
        }
    }
    m_idle = std::ranges::none_of(steps, &LayerStep::chooses);
    const std::optional<std::string> stored = m_cache.nextStep(!m_idle);
    if (!stored) return std::nullopt;
    bring(std::move(steps));
    return key + ";" + *stored;
}

// One layer's part of that: what it will launch.
std::optional<std::string> Branch::planLayer(LayerIndex layer, LayerStep& step) const {
    const CacheLayer& entries = m_cache.layer(layer);
    const Place here = place(layer, entries.maxHeld() + 1, 1);
    const LayerMemory* memory = m_memories[static_cast<std::size_t>(layer.value)].get();
    const std::int64_t heads = m_cache.config().kvHeads;
    step.plan = m_policy->planFor(here);
    step.chooses = !m_policy->skips(layer) && m_policy->decides(here, step.plan, entries.total() + heads, static_cast<int>(heads), memory);
    if (!step.chooses) return "-";
    if (!m_options.explain.empty()) return std::nullopt;
    if (memory) {
        step.told = true;
        step.choice.drops = 1;
        return m_policy->stepsOnDevice() && even(entries.held) ? std::optional("by memory") : std::nullopt;
    }
    const std::optional<std::string> work = m_policy->workKey(here, step.plan);
    Counts held = entries.held;
    for (std::int32_t& n : held) ++n;
    const std::optional<DeviceChoice> choice = work ? deviceChoice(step.plan, held) : std::nullopt;
    if (!choice) return std::nullopt;
    step.choice = *choice;
    step.told = choice->shared || m_cache.quantized();
    if (choice->one()) return work;
    return *work + ", " + std::to_string(choice->drops) + (choice->shared ? " of all, sure of " + std::to_string(choice->sure) : " each");
}

// Takes the step's numbers to the device.
void Branch::bring(std::vector<LayerStep> steps) {
    m_planned = std::move(steps);
    if (m_idle) return;
    m_most = 1;
    for (int l = 0; l < m_cache.layers(); ++l) {
        const LayerStep& step = m_planned[static_cast<std::size_t>(l)];
        if (!step.chooses) continue;
        m_most = std::max(m_most, step.choice.drops);
        if (m_policy->brings()) m_policy->beforeStep(m_cache.layer(LayerIndex{l}), m_cache.layer(LayerIndex{l}).maxHeld() + 1);
        const std::vector<std::int32_t> numbers = numbersOf(LayerIndex{l}, step.plan);
        const auto width = static_cast<std::int64_t>(numbers.size());
        if (!m_numbers.defined()) {
            const auto options = at::TensorOptions().dtype(at::kInt);
            m_numbersHost = at::zeros({m_cache.layers(), width}, options.pinned_memory(true));
            m_numbers = at::zeros({m_cache.layers(), width}, options.device(m_model.device()));
        }
        std::ranges::copy(numbers, m_numbersHost.data_ptr<std::int32_t>() + l * width);
    }
    at::Tensor& gone = m_gone[m_most];
    if (!gone.defined()) gone = at::full({m_cache.layers(), 2, m_cache.config().kvHeads, m_most}, -1, m_numbers.options());
    m_numbers.copy_(m_numbersHost, true);
}

std::vector<std::int32_t> Branch::numbersOf(LayerIndex layer, const Plan& plan) {
    if (LayerMemory* memory = m_memories[static_cast<std::size_t>(layer.value)].get())
        return m_policy->stepNumbers(place(layer, m_cache.layer(layer).maxHeld() + 1, 1), *memory, m_model.device());
    const std::int32_t keep = std::max(1, plan.keep);
    const Protect safe = affordable(plan.protect, keep);
    return {keep, safe.sinks, safe.recent};
}

// Is this token's pass one in which the host has the layer's entries looked at?
bool Branch::readsEntries() const { return (due() && !m_idle && m_needs.entries) || (m_evict && m_needs.decodeSums && m_needs.sum != RowSum::attention); }

void Branch::replayed(KvCache& cache) {
    for (std::size_t l = 0; l < m_planned.size(); ++l)
        if (m_planned[l].chooses && !m_planned[l].told) cache.countKept(LayerIndex{static_cast<std::int32_t>(l)}, std::max(1, m_planned[l].plan.keep));
}

// What a step on the device evicted.
void Branch::takeGone() {
    if (m_planned.empty() || m_idle || !(m_options.recordEvictions || std::ranges::any_of(m_planned, &LayerStep::told))) return;
    const at::Tensor gone = m_gone.at(m_most).to(at::kCPU);
    const auto at = gone.accessor<std::int32_t, 4>();
    for (std::int32_t l = 0; l < m_cache.layers(); ++l) {
        const LayerIndex layer{l};
        const LayerStep& step = m_planned[static_cast<std::size_t>(l)];
        std::vector<std::vector<std::int32_t>> entries(static_cast<std::size_t>(m_cache.config().kvHeads));
        for (std::size_t h = 0; step.chooses && h < entries.size(); ++h) {
            std::vector<Position> positions;
            for (std::int64_t i = 0, head = static_cast<std::int64_t>(h); i < step.choice.drops; ++i)
                if (at[l][1][head][i] >= 0) positions.push_back(at[l][0][head][i]), entries[h].push_back(at[l][1][head][i]);
            if (m_options.recordEvictions && !positions.empty()) m_evictions.push_back({layer, HeadIndex{static_cast<std::int32_t>(h)}, std::move(positions)});
        }
        if (step.told || m_cache.quantized()) m_cache.countDropped(layer, entries); // packed entries of every layer wait for it
    }
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

// The view as a policy knows it from the prefill: with the newest lastRows queries instead of this call's alone, and the prompt's moments.
LayerView Branch::withWindow(const LayerView& view) {
    LayerView out = view;
    if (m_needs.queryMoments >= 0) out.moments = m_snapshot->view(view.layer).moments;
    if (!m_windowed) return out;
    at::Tensor& window = m_window[static_cast<std::size_t>(view.layer.value)];
    const at::Tensor all = at::cat({window, view.queries}, 1);
    const std::int64_t rows = std::min<std::int64_t>(m_needs.lastRows, all.size(1));
    if (window.size(1) == rows)
        window.copy_(all.narrow(1, all.size(1) - rows, rows)); // the same tensor: recorded steps find it again
    else
        window = all.narrow(1, all.size(1) - rows, rows).clone();
    const at::Tensor newest = view.queryPositions.narrow(0, view.queryPositions.size(0) - 1, 1);
    out.queries = window;
    out.queryPositions = newest + at::arange(1 - rows, 1, view.queryPositions.options());
    out.rows = out.plainQueries = at::Tensor();
    out.known = {};
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
                    if (!other.decides(here, p, view.entries.total(), m_cache.config().kvHeads, nullptr)) return true;
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

// The same without the host. What it counts here is counted by replayed() when the step is.
void Branch::dropOnDevice(const LayerView& view, KvCache& cache, const at::Tensor& statistic) {
    const auto l = static_cast<std::size_t>(view.layer.value);
    const LayerStep& step = m_planned[l];
    const at::Tensor numbers = m_numbers[view.layer.value];
    at::Tensor gone;
    if (LayerMemory* memory = m_memories[l].get()) {
        gone = cache.dropLowest(view.layer, {}, m_policy->stepLimits(view, numbers, *memory));
    } else if (const at::Tensor scores = m_policy->score(view, step.plan, statistic); step.choice.one()) {
        gone = cache.dropLowest(view.layer, scores, numbers);
    } else {
        gone = selectOnDevice(scores, cache.layer(view.layer), numbers, step.choice);
        cache.dropEntries(view.layer, gone[1]);
    }
    if (!step.told) cache.countKept(view.layer, std::max(1, step.plan.keep));
    m_gone.at(m_most)[view.layer.value].narrow(2, 0, step.choice.drops).copy_(gone.view({2, -1, step.choice.drops}));
}

// view → score → select → compact, once per layer, right after its attention.
void Branch::afterAttention(const LayerView& given, KvCache& cache) {
    if (!m_evict || m_policy->skips(given.layer)) return;
    const auto begin = std::chrono::steady_clock::now();
    CacheLayer& layer = cache.layer(given.layer);
    if (m_needs.decodeSums && m_needs.sum != RowSum::attention) {
        at::Tensor& statistic = layer.memory.at(Statistic);
        statistic.add_(given.lastChanges(changeOf(m_needs.sum), given.queries.size(1)));
    }
    const LayerView view = withWindow(given);
    const at::Tensor statistic = m_needs.decodeSums ? layer.memory.at(Statistic) : at::Tensor();
    LayerMemory* memory = m_memories[static_cast<std::size_t>(view.layer.value)].get();
    if (!m_planned.empty()) {
        if (m_planned[static_cast<std::size_t>(view.layer.value)].chooses) dropOnDevice(view, cache, statistic);
        return;
    }
    if (due()) {
        const Place here = place(view.layer, layer.maxHeld(), given.queries.size(1));
        const Plan plan = m_policy->planFor(here);
        if (m_policy->decides(here, plan, layer.total(), m_cache.config().kvHeads, memory)) {
            const at::Tensor scores = m_policy->score(view, plan, statistic);
            const Selection selection = m_policy->choose(view, here, plan, scores, memory, nullptr);
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
