// The KV cache: what every layer and KV head holds, with original positions, ragged lengths and named per-entry memory.
#pragma once

#include "engine/cache/quantizer.h"
#include "engine/cache/selection.h"
#include "engine/data/ids.h"
#include "engine/data/model_config.h"

#include <ATen/core/Tensor.h>
#include <map>
#include <string>
#include <vector>

namespace keepsight {

// original: keys are stored rotated at their own position. cacheRelative: keys are stored before RoPE and rotated at their slot when read.
enum class RopeMode { original, cacheRelative };

// One layer's entries. C = capacity; entries [0, lengths[h]) of head h are real, in ascending original position. A ragged layer, from which nothing is
// evicted any more, holds its heads behind each other instead: keys, values [N, headDim] and positions [N], head h in the rows from starts[h] on, so that
// heads of different lengths take no more room than they need.
struct CacheLayer {
    at::Tensor keys, values;            // [kvHeads, C, headDim]; undefined where a quantizer stores them:
    std::unique_ptr<StoredSide> storedKeys, storedValues;
    at::Tensor positions;               // [kvHeads, C] int32, original absolute positions
    at::Tensor lengths;                 // [kvHeads] int32, on the device
    at::Tensor starts, ends;            // of a ragged layer, else undefined: [kvHeads] int32 there; ends = starts + lengths
    std::vector<std::int32_t> begins;   // [kvHeads + 1] starts on the host, and N
    std::vector<std::int32_t> held;     // [kvHeads] the same on the host
    std::map<std::string, at::Tensor> memory; // named [kvHeads, C] or [queryHeads, C] fp32 statistics; move with the entries
    std::int32_t maxHeld() const;
    std::int64_t total() const;         // entries of all heads
    // A copy in which each of `group` query heads has the entries of its KV head; without memory; keys and values, not packed, if they are wanted.
    CacheLayer perQueryHead(std::int64_t group, bool keysAndValues = true) const;
    bool ragged() const { return starts.defined(); }
    std::int64_t capacity() const;      // of the head with most room
    bool hasRoom() const;               // for one more entry of every head
    std::vector<std::vector<std::int32_t>> heldPositions() const; // [kvHeads], on the host
};

struct CacheStats {
    std::int64_t storedBytes = 0;       // keys and values of what is held: Σ held · headDim · 2 · itemsize, or as the quantizer packs them
    std::int64_t allocatedBytes = 0;    // keys, values, positions, memory tensors, as allocated
    std::int64_t peakBytes = 0;         // highest allocatedBytes plus temporary copies during compaction
};

class KvCache {
public:
    KvCache(const ModelConfig& config, at::ScalarType dtype, at::Device device, RopeMode rope, std::shared_ptr<const Quantizer> quantizer = nullptr);

    // keys, values [kvHeads, S, headDim] (keys before RoPE if plainKeys()); positions [S] ascending, above all held ones.
    void append(LayerIndex layer, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& positions);
    // The same for one token as it comes out of the projection, qkv [1, (queryHeads + 2·kvHeads)·headDim] before RoPE: returns its queries
    // [queryHeads, 1, headDim] after RoPE. Frequencies of 0 leave both as they are (plainKeys()). Not for quantized caches.
    at::Tensor ropeAppend(LayerIndex layer, const at::Tensor& qkv, const at::Tensor& position, const at::Tensor& inverseFrequencies);
    void countReplayed();                                       // a recorded pass appended an entry to every layer: only the device knows so far
    // Without the host: every head above limits[0] loses its lowest scored entry, see ops::drop_lowest; at most one, so no head may be further above.
    // limits [3] int32 on the device. Returns the positions and the entries that went, [2, kvHeads] int32, −1: none. Uncounted on the host.
    at::Tensor dropLowest(LayerIndex layer, const at::Tensor& scores, const at::Tensor& limits);
    // Without the host: entries [kvHeads, n] int32 go, see ops::drop_entries. Uncounted on the host.
    void dropEntries(LayerIndex layer, const at::Tensor& entries);
    void countKept(LayerIndex layer, std::int32_t keep); // such a step left every head that many at most
    void countDropped(LayerIndex layer, const std::vector<std::vector<std::int32_t>>& entries); // or all but these, [kvHeads]
    bool whole() const { return m_whole; }                      // nothing was ever dropped: entries lie at their position
    std::uint64_t layout() const;                               // changes whenever a tensor of a layer is replaced, so that recorded passes are void
    // What storing one entry a head will do, with room made for it: recorded passes serve where it is the same. nullopt: it cannot be recorded. drops:
    // dropLowest() or dropEntries() may be called meanwhile; then countDropped() must be called after the pass, for packed entries, of every layer.
    std::optional<std::string> nextStep(bool drops);
    void compact(LayerIndex layer, const Selection& selection); // ragged results allowed; frees memory if a quarter or more is unused
    void settle(LayerIndex layer);                              // after attention: a quantizer packs what it may
    void reserve(LayerIndex layer, std::int64_t entries);       // capacity for that many per head

    // What attention reads: keys and values unpacked, keys as stored or (rotated) after RoPE. [kvHeads, C, headDim] each; of a ragged layer [N, headDim].
    struct Dense {
        at::Tensor keys, values;
    };
    Dense plain(LayerIndex layer, bool recordable = false) const; // as stored, unpacked; recordable: without the host's counts
    Dense attended(LayerIndex layer, const at::Tensor& inverseFrequencies, bool recordable = false) const;
    // Instead, for one query: keys and values as packed, and how keys are turned; nullopt: only dense ones can be read.
    struct Packed {
        ops::PackedSide keys, values;
        ops::KeyTurn turn;
    };
    std::optional<Packed> packed(LayerIndex layer, const at::Tensor& inverseFrequencies) const;

    // A copy holding only the selected entries (the branch after a shared prefill), without the memory tensors; room for `headroom`
    // more; packed if a quantizer is given; selections with a set for each query head give every query head entries of its own. A branch with plain keys of a prefill with rotated ones turns them back by their position.
    // settled: nothing will be evicted from the branch or read by its policy; layers become ragged where that saves memory.
    KvCache branch(const std::vector<Selection>& selections, RopeMode rope, std::int64_t headroom, const at::Tensor& inverseFrequencies,
                   std::shared_ptr<const Quantizer> quantizer = nullptr, bool settled = false) const;

    const CacheLayer& layer(LayerIndex index) const { return m_layers[static_cast<std::size_t>(index.value)]; }
    CacheLayer& layer(LayerIndex index) { return m_layers[static_cast<std::size_t>(index.value)]; }
    int layers() const { return static_cast<int>(m_layers.size()); }
    const ModelConfig& config() const { return m_config; } // as stored: kvHeads are the query heads where each has its own entries
    RopeMode rope() const { return m_rope; }
    bool quantized() const { return m_quantizer != nullptr; }
    bool plainKeys() const { return m_rope == RopeMode::cacheRelative || (m_quantizer && m_quantizer->plainKeys()); }
    CacheStats stats() const;

private:
    void layOut(CacheLayer& layer, const CacheLayer& from, const std::vector<std::vector<std::int32_t>>* kept, std::int64_t room) const; // makes it ragged
    ModelConfig m_config;
    at::ScalarType m_dtype;
    at::Device m_device;
    RopeMode m_rope;
    std::shared_ptr<const Quantizer> m_quantizer; // null: keys and values as they come
    std::vector<CacheLayer> m_layers;
    mutable std::int64_t m_peak = 0;
    std::uint64_t m_layout = 0;
    std::int64_t m_headroom = 0; // that a branch was made with
    bool m_whole = true;
};

// [heads, …] → [heads · group, …], each head `group` times; unlike repeat_interleave it never waits for a device.
at::Tensor repeatHeads(const at::Tensor& x, std::int64_t group);

} // namespace keepsight
