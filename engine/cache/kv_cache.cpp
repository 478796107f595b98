#include "engine/cache/kv_cache.h"

#include "engine/cache/stored_rows.h"
#include "engine/data/error.h"
#include "kernels/bind/packed.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>
#include <numeric>

namespace keepsight {
namespace {

constexpr std::int64_t CapacityStep = 64; // entries; keeps reallocation rare without holding much more than is stored

std::int64_t roundedCapacity(std::int64_t entries) { return (entries + CapacityStep - 1) / CapacityStep * CapacityStep; }

at::Tensor grown(const at::Tensor& old, std::int64_t capacity) {
    auto sizes = old.sizes().vec();
    sizes[1] = capacity;
    at::Tensor bigger = at::zeros(sizes, old.options());
    bigger.narrow(1, 0, old.size(1)).copy_(old);
    return bigger;
}

// [heads, longest] int32 entry indices and [heads] counts of a selection, on `device`.
struct IndexTensors {
    at::Tensor index, counts;
    std::int32_t longest = 0;
};

IndexTensors indexTensors(const Selection& selection, const Counts& held, at::Device device) {
    const Counts counts = sizesOf(selection.keep);
    if (counts == held && even(held)) { // all of them: nothing has to be brought
        const at::Tensor each = at::arange(std::max(held.front(), 1), at::TensorOptions().dtype(at::kInt).device(device));
        return {each.expand({static_cast<std::int64_t>(held.size()), -1}).contiguous(), onDevice(counts, device), held.front()};
    }
    return {onDevice(selection.keep, device), onDevice(counts, device), longest(counts)};
}

// A statistic may be kept per query head: its rows move with the KV head they read.
at::Tensor forRows(const at::Tensor& perKvHead, std::int64_t rows) { return repeatHeads(perKvHead, rows / perKvHead.size(0)); }

// Statistics of a new entry start at zero, also in a slot that an evicted one left.
void startAtZero(CacheLayer& layer, std::int64_t count) {
    for (auto& [name, t] : layer.memory)
        ops::append_entries(t, at::zeros({t.size(0), count}, t.options()), forRows(layer.lengths, t.size(0)));
}

// Room that each head of a ragged layer has for coming entries: what is known to come, within reason, or a fiftieth of what is held. Each time it is used up
// the layer is copied, and recorded steps are made anew.
std::int64_t raggedRoom(std::int64_t total, std::int64_t headroom, std::size_t heads) {
    return std::max({std::int64_t{16}, std::min<std::int64_t>(headroom, 128), total / static_cast<std::int64_t>(heads) / 50});
}

// Calls f with every tensor that has something of each entry, the positions first.
template <class F>
void eachOfEntries(CacheLayer& layer, const F& f) {
    for (at::Tensor* t : {&layer.positions, &layer.keys, &layer.values})
        if (t->defined()) f(*t);
    for (auto& [name, t] : layer.memory) f(t);
}

std::vector<at::Tensor> tensorsOfEntries(CacheLayer& layer) {
    std::vector<at::Tensor> out;
    eachOfEntries(layer, [&](const at::Tensor& t) { out.push_back(t); });
    return out;
}

void dropStored(CacheLayer& layer, const at::Tensor& entries) {
    for (StoredSide* side : {layer.storedKeys.get(), layer.storedValues.get()})
        if (side) side->dropEntries(entries);
}

void checkEvictable(const CacheLayer& layer) {
    if (layer.ragged()) throw EngineError("cache: a branch that was made for no further evictions was asked to evict");
}

// Where new entries go, as operators on [heads, entries, …] take it: behind the first behind[h] rows that head h is shown; all rows, of a ragged layer.
struct Target {
    at::Tensor keys, values, positions, behind;
};

Target targetOf(const CacheLayer& l) {
    if (!l.ragged()) return {l.keys, l.values, l.positions, l.lengths};
    const auto heads = static_cast<std::int64_t>(l.held.size());
    return {l.keys.expand({heads, -1, -1}), l.values.expand({heads, -1, -1}), l.positions.expand({heads, -1}), l.ends};
}

// counts += more; on the host without a call, of which a decoded token has few to spare.
void add(at::Tensor& counts, std::int32_t more) {
    if (!counts.is_cpu() || !counts.is_contiguous()) {
        counts.add_(more);
        return;
    }
    auto* count = counts.mutable_data_ptr<std::int32_t>();
    for (std::int64_t i = 0; i < counts.numel(); ++i) count[i] += more;
}

// Entries that every head has room for.
std::int64_t roomOf(const CacheLayer& l) {
    if (!l.ragged()) return l.capacity() - l.maxHeld();
    std::int32_t least = std::numeric_limits<std::int32_t>::max();
    for (std::size_t h = 0; h < l.held.size(); ++h) least = std::min(least, l.begins[h + 1] - l.begins[h] - l.held[h]);
    return least;
}

std::int64_t bytesOf(const CacheLayer& layer) {
    std::int64_t total = 0;
    for (const StoredSide* side : {layer.storedKeys.get(), layer.storedValues.get()})
        if (side) total += side->allocatedBytes();
    for (const at::Tensor* t : {&layer.keys, &layer.values, &layer.positions})
        if (t->defined()) total += static_cast<std::int64_t>(t->nbytes());
    for (const auto& [name, t] : layer.memory) total += static_cast<std::int64_t>(t.nbytes());
    return total;
}

} // namespace

at::Tensor repeatHeads(const at::Tensor& x, std::int64_t group) {
    if (group == 1) return x;
    std::vector<std::int64_t> sizes = x.sizes().vec();
    sizes.insert(sizes.begin() + 1, group);
    return x.unsqueeze(1).expand(sizes).flatten(0, 1);
}

Selection Selection::all(const std::vector<std::int32_t>& lengths) {
    Selection out;
    for (const std::int32_t n : lengths) {
        out.keep.emplace_back(static_cast<std::size_t>(n));
        std::iota(out.keep.back().begin(), out.keep.back().end(), 0);
    }
    return out;
}

std::int32_t CacheLayer::maxHeld() const { return held.empty() ? 0 : *std::max_element(held.begin(), held.end()); }
CacheLayer CacheLayer::perQueryHead(std::int64_t group, bool keysAndValues) const {
    CacheLayer out;
    if (keysAndValues) {
        out.keys = repeatHeads(keys, group);
        out.values = repeatHeads(values, group);
    }
    out.positions = repeatHeads(positions, group);
    out.lengths = repeatHeads(lengths, group);
    for (const std::int32_t n : held) out.held.insert(out.held.end(), static_cast<std::size_t>(group), n);
    return out;
}

std::int64_t CacheLayer::total() const { return std::accumulate(held.begin(), held.end(), std::int64_t{0}); }

KvCache::KvCache(const ModelConfig& config, at::ScalarType dtype, at::Device device, RopeMode rope, std::shared_ptr<const Quantizer> quantizer)
    : m_config(config), m_dtype(dtype), m_device(device), m_rope(rope), m_quantizer(std::move(quantizer)),
      m_layers(static_cast<std::size_t>(config.layers)) {
    for (std::size_t i = 0; i < m_layers.size(); ++i) {
        CacheLayer& layer = m_layers[i];
        const auto options = at::TensorOptions().device(device);
        if (m_quantizer) {
            const SideShape shape{config.kvHeads, config.headDim, dtype, device};
            const LayerIndex index{static_cast<std::int32_t>(i)};
            layer.storedKeys = m_quantizer->make(Side::keys, index, shape);
            layer.storedValues = m_quantizer->make(Side::values, index, shape);
        } else {
            layer.keys = at::empty({config.kvHeads, 0, config.headDim}, options.dtype(dtype));
            layer.values = at::empty({config.kvHeads, 0, config.headDim}, options.dtype(dtype));
        }
        layer.positions = at::empty({config.kvHeads, 0}, options.dtype(at::kInt));
        layer.lengths = at::zeros({config.kvHeads}, options.dtype(at::kInt));
        layer.held.assign(static_cast<std::size_t>(config.kvHeads), 0);
    }
}

std::int64_t CacheLayer::capacity() const {
    if (!ragged()) return positions.defined() ? positions.size(1) : 0;
    std::int32_t most = 0;
    for (std::size_t h = 0; h < held.size(); ++h) most = std::max(most, begins[h + 1] - begins[h]);
    return most;
}

bool CacheLayer::hasRoom() const { return roomOf(*this) > 0; }

std::vector<std::vector<std::int32_t>> CacheLayer::heldPositions() const {
    const at::Tensor all = positions.to(at::kCPU).contiguous();
    std::vector<std::vector<std::int32_t>> out;
    for (std::size_t h = 0; h < held.size(); ++h) {
        const std::int32_t* row = all.const_data_ptr<std::int32_t>() + (ragged() ? begins[h] : static_cast<std::int64_t>(h) * all.size(1));
        out.emplace_back(row, row + held[h]);
    }
    return out;
}

// `to` becomes ragged: head h holds the entries kept[h] of `from` (null: all it holds), with `room` for as many more.
void KvCache::layOut(CacheLayer& to, const CacheLayer& from, const std::vector<std::vector<std::int32_t>>* kept, std::int64_t room) const {
    const std::size_t heads = from.held.size();
    std::vector<std::int32_t> begins{0}, starts, held;
    std::vector<std::int64_t> rows; // of `from`, its heads behind each other
    for (std::size_t h = 0; h < heads; ++h) {
        const std::int64_t first = from.ragged() ? from.begins[h] : static_cast<std::int64_t>(h) * from.capacity();
        held.push_back(kept ? static_cast<std::int32_t>((*kept)[h].size()) : from.held[h]);
        for (std::int32_t i = 0; i < held.back(); ++i) rows.push_back(first + (kept ? (*kept)[h][static_cast<std::size_t>(i)] : i));
        rows.resize(rows.size() + static_cast<std::size_t>(room), first); // anything
        starts.push_back(begins.back());
        begins.push_back(static_cast<std::int32_t>(rows.size()));
    }
    const at::Tensor index = at::tensor(at::IntArrayRef(rows), at::kLong).to(m_device);
    const auto moved = [&](const at::Tensor& x) { return (from.ragged() ? x : x.flatten(0, 1)).index_select(0, index); };
    CacheLayer out;
    out.keys = moved(from.keys);
    out.values = moved(from.values);
    out.positions = moved(from.positions);
    out.lengths = at::tensor(held, at::kInt).to(m_device);
    out.starts = at::tensor(starts, at::kInt).to(m_device);
    out.ends = out.starts + out.lengths;
    out.begins = std::move(begins);
    out.held = std::move(held);
    to = std::move(out);
}

void KvCache::reserve(LayerIndex index, std::int64_t entries) {
    CacheLayer& l = layer(index);
    if (l.ragged()) {
        const std::int64_t more = entries - l.maxHeld();
        if (more <= roomOf(l)) return;
        ++m_layout;
        m_peak = std::max(m_peak, stats().allocatedBytes + bytesOf(l)); // for a while it is there twice
        layOut(l, l, nullptr, std::max(more, raggedRoom(l.total(), m_headroom, l.held.size())));
        return;
    }
    if (entries <= l.capacity()) return;
    const std::int64_t capacity = roundedCapacity(entries);
    ++m_layout;
    eachOfEntries(l, [&](at::Tensor& t) { t = grown(t, capacity); });
}

void KvCache::append(LayerIndex index, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& positions) {
    CacheLayer& l = layer(index);
    const std::int64_t count = keys.size(1), needed = l.maxHeld() + count;
    if (l.ragged())
        reserve(index, needed);
    else if (needed > l.capacity())
        reserve(index, needed + needed / 8); // amortised growth
    Target to = targetOf(l);
    if (m_quantizer) {
        l.storedKeys->append(keys);
        l.storedValues->append(values);
    } else {
        ops::append_entries(to.keys, keys, to.behind);
        ops::append_entries(to.values, values, to.behind);
    }
    ops::append_entries(to.positions, positions.unsqueeze(0).expand({m_config.kvHeads, count}).contiguous(), to.behind);
    startAtZero(l, count);
    add(l.lengths, static_cast<std::int32_t>(count));
    if (l.ragged()) add(l.ends, static_cast<std::int32_t>(count));
    for (std::int32_t& n : l.held) n += static_cast<std::int32_t>(count);
}

at::Tensor KvCache::ropeAppend(LayerIndex index, const at::Tensor& qkv, const at::Tensor& position, const at::Tensor& inverseFrequencies) {
    CacheLayer& l = layer(index);
    if (!l.hasRoom()) reserve(index, l.maxHeld() + 1 + (l.ragged() ? 0 : l.maxHeld() / 8));
    startAtZero(l, 1);
    Target to = targetOf(l);
    const at::Tensor q = ops::rope_append(qkv, position, inverseFrequencies, to.keys, to.values, to.positions, to.behind);
    if (l.ragged()) add(l.lengths, 1);
    for (std::int32_t& n : l.held) ++n;
    return q;
}

void KvCache::countReplayed() {
    for (CacheLayer& l : m_layers) {
        for (std::int32_t& n : l.held) ++n;
        for (StoredSide* side : {l.storedKeys.get(), l.storedValues.get()})
            if (side) side->countReplayed();
    }
}

std::uint64_t KvCache::layout() const {
    std::uint64_t sum = m_layout;
    for (const CacheLayer& l : m_layers)
        for (const StoredSide* side : {l.storedKeys.get(), l.storedValues.get()})
            if (side) sum += side->layout(); // counters never fall, so that the sum tells
    return sum;
}

std::optional<std::string> KvCache::nextStep(bool drops) {
    std::string all;
    for (std::size_t l = 0; l < m_layers.size(); ++l) {
        CacheLayer& layer = m_layers[l];
        if (!layer.hasRoom()) reserve(LayerIndex{static_cast<std::int32_t>(l)}, layer.maxHeld() + (layer.ragged() ? 1 : 64 + layer.maxHeld() / 8));
        for (StoredSide* side : {layer.storedKeys.get(), layer.storedValues.get()}) {
            if (!side) continue;
            const std::optional<std::string> step = side->nextStep(drops);
            if (!step && drops) nextStep(false); // no side is to wait for countDropped()
            if (!step) return std::nullopt;
            all += *step + ";";
        }
    }
    return all;
}

std::optional<KvCache::Packed> KvCache::packed(LayerIndex index, const at::Tensor& inverseFrequencies) const {
    const CacheLayer& l = layer(index);
    if (!m_quantizer) return std::nullopt;
    const StoredSide &keys = *l.storedKeys, &values = *l.storedValues;
    if (m_device.is_cpu() && (keys.acrossHeads() || values.acrossHeads())) return std::nullopt; // there it is faster to unpack such arrays as a whole
    return Packed{keys.packedView(), values.packedView(), {plainKeys() ? inverseFrequencies : at::Tensor(), m_rope == RopeMode::cacheRelative}};
}

at::Tensor KvCache::dropLowest(LayerIndex index, const at::Tensor& scores, const at::Tensor& limits) {
    CacheLayer& l = layer(index);
    checkEvictable(l);
    m_whole = false;
    const at::Tensor gone = ops::drop_lowest(scores.defined() ? std::optional(scores) : std::nullopt, l.lengths, limits, tensorsOfEntries(l));
    dropStored(l, gone[1].unsqueeze(1));
    return gone;
}

void KvCache::dropEntries(LayerIndex index, const at::Tensor& entries) {
    CacheLayer& l = layer(index);
    checkEvictable(l);
    m_whole = false;
    ops::drop_entries(entries, l.lengths, tensorsOfEntries(l));
    dropStored(l, entries);
}

void KvCache::countKept(LayerIndex index, std::int32_t keep) {
    for (std::int32_t& n : layer(index).held) n = std::min(n, keep);
}

void KvCache::countDropped(LayerIndex index, const std::vector<std::vector<std::int32_t>>& entries) {
    CacheLayer& l = layer(index);
    for (std::size_t h = 0; h < l.held.size(); ++h) l.held[h] -= static_cast<std::int32_t>(entries[h].size());
    for (StoredSide* side : {l.storedKeys.get(), l.storedValues.get()})
        if (side) side->countDropped(entries);
}

void KvCache::compact(LayerIndex index, const Selection& selection) {
    CacheLayer& l = layer(index);
    checkEvictable(l);
    ++m_layout;
    m_whole = false;
    const IndexTensors kept = indexTensors(selection, l.held, m_device);
    const std::int64_t tight = roundedCapacity(kept.longest + CapacityStep);
    if (m_quantizer) {
        l.storedKeys->keep(selection);
        l.storedValues->keep(selection);
    }
    if (tight * 4 <= l.capacity() * 3) { // worth a smaller allocation: eviction must free memory, not only forget
        const std::int64_t before = stats().allocatedBytes;
        eachOfEntries(l, [&](at::Tensor& t) { t = ops::gather_entries(t, forRows(kept.index, t.size(0)), forRows(kept.counts, t.size(0)), tight); });
        m_peak = std::max(m_peak, before + bytesOf(l));
    } else {
        eachOfEntries(l, [&](at::Tensor& t) { ops::compact_entries(t, forRows(kept.index, t.size(0)), forRows(kept.counts, t.size(0))); });
    }
    l.lengths = kept.counts;
    for (std::size_t h = 0; h < l.held.size(); ++h) l.held[h] = static_cast<std::int32_t>(selection.keep[h].size());
}

void KvCache::settle(LayerIndex index) {
    if (!m_quantizer) return;
    layer(index).storedKeys->settle(false);
    layer(index).storedValues->settle(false);
}

KvCache::Dense KvCache::plain(LayerIndex index, bool recordable) const {
    const CacheLayer& l = layer(index);
    if (!m_quantizer) return {l.keys, l.values};
    const auto unpacked = [&](const StoredSide& side) { return recordable ? ops::denseEntries(side.packedView(), l.capacity(), m_dtype) : side.dense(l.capacity()); };
    return {unpacked(*l.storedKeys), unpacked(*l.storedValues)};
}

KvCache::Dense KvCache::attended(LayerIndex index, const at::Tensor& inverseFrequencies, bool recordable) const {
    Dense out = plain(index, recordable);
    const CacheLayer& l = layer(index);
    if (m_rope == RopeMode::cacheRelative) // kept tokens are renumbered 0 … T−1 when they are read
        out.keys = ops::rope(out.keys, at::arange(l.capacity(), l.positions.options()), inverseFrequencies);
    else if (plainKeys())
        out.keys = ops::rope(out.keys, l.positions, inverseFrequencies);
    return out;
}

KvCache KvCache::branch(const std::vector<Selection>& selections, RopeMode rope, std::int64_t headroom, const at::Tensor& inverseFrequencies,
                        std::shared_ptr<const Quantizer> quantizer, bool settled) const {
    if (m_rope == RopeMode::cacheRelative && rope == RopeMode::original)
        throw EngineError("cache: a branch with rope=original was asked of a prefill stored with rope=cache_relative");
    ModelConfig config = m_config;
    if (!selections.empty()) config.kvHeads = static_cast<int>(selections.front().keep.size());
    const int group = config.kvHeads / m_config.kvHeads;
    KvCache out(config, m_dtype, m_device, rope, std::move(quantizer));
    out.m_headroom = headroom;
    for (std::size_t i = 0; i < m_layers.size(); ++i) {
        const CacheLayer wide = group > 1 ? m_layers[i].perQueryHead(group) : CacheLayer();
        const CacheLayer& from = group > 1 ? wide : m_layers[i];
        CacheLayer& to = out.m_layers[i];
        std::int64_t total = 0, longest = 0;
        for (const auto& keep : selections[i].keep) total += static_cast<std::int64_t>(keep.size()), longest = std::max(longest, static_cast<std::int64_t>(keep.size()));
        const std::int64_t more = raggedRoom(total, headroom, selections[i].keep.size()), heads = config.kvHeads;
        if (settled && !out.m_quantizer && !out.plainKeys() && !plainKeys() && (total + heads * more) * 100 < heads * roundedCapacity(longest + headroom) * 95) {
            layOut(to, from, &selections[i].keep, more);
            continue;
        }
        const IndexTensors kept = indexTensors(selections[i], from.held, m_device);
        const std::int64_t capacity = roundedCapacity(kept.longest + headroom);
        const std::int64_t room = out.m_quantizer ? std::max(kept.longest, 1) : capacity; // packed at once, or where it stays
        at::Tensor keys = ops::gather_entries(from.keys, kept.index, kept.counts, room);
        at::Tensor values = ops::gather_entries(from.values, kept.index, kept.counts, room);
        to.positions = ops::gather_entries(from.positions, kept.index, kept.counts, capacity);
        if (out.plainKeys() && !plainKeys())
            keys = ops::rope(keys, to.positions.narrow(1, 0, room).contiguous(), inverseFrequencies, -1.0);
        to.lengths = kept.counts;
        for (std::size_t h = 0; h < to.held.size(); ++h) to.held[h] = static_cast<std::int32_t>(selections[i].keep[h].size());
        if (out.m_quantizer) {
            to.storedKeys->append(keys, to.held);
            to.storedValues->append(values, to.held);
            to.storedKeys->settle(true);
            to.storedValues->settle(true);
        } else {
            to.keys = std::move(keys);
            to.values = std::move(values);
        }
    }
    out.m_whole = false; // as far as is known here
    out.m_peak = out.stats().allocatedBytes;
    return out;
}

CacheStats KvCache::stats() const {
    CacheStats s;
    const auto perEntry = static_cast<std::int64_t>(m_config.headDim) * 2 * static_cast<std::int64_t>(c10::elementSize(m_dtype));
    for (const CacheLayer& l : m_layers) {
        s.storedBytes += m_quantizer ? l.storedKeys->storedBytes() + l.storedValues->storedBytes() : l.total() * perEntry;
        s.allocatedBytes += bytesOf(l);
    }
    m_peak = std::max(m_peak, s.allocatedBytes);
    s.peakBytes = m_peak;
    return s;
}

} // namespace keepsight
