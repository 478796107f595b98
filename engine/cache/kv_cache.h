// The KV cache: what every layer and KV head holds, with original positions, ragged lengths and named per-entry memory.
#pragma once

#include "engine/data/ids.h"
#include "engine/data/model_config.h"

#include <ATen/core/Tensor.h>
#include <map>
#include <string>
#include <vector>

namespace keepsight {

// original: keys are stored rotated at their own position. cacheRelative: keys are stored before RoPE and rotated at their slot when read.
enum class RopeMode { original, cacheRelative };

struct Selection {
    std::vector<std::vector<std::int32_t>> keep; // per KV head: entry indices, ascending, unique
    static Selection all(const std::vector<std::int32_t>& lengths);
};

// One layer's entries. C = capacity; entries [0, lengths[h]) of head h are real, in ascending original position.
struct CacheLayer {
    at::Tensor keys, values;            // [kvHeads, C, headDim]
    at::Tensor positions;               // [kvHeads, C] int32, original absolute positions
    at::Tensor lengths;                 // [kvHeads] int32, on the device
    std::vector<std::int32_t> held;     // [kvHeads] the same on the host
    std::map<std::string, at::Tensor> memory; // named [kvHeads, C] or [queryHeads, C] fp32 statistics; move with the entries
    std::int32_t maxHeld() const;
    std::int64_t capacity() const { return keys.defined() ? keys.size(1) : 0; }
};

struct CacheStats {
    std::int64_t storedBytes = 0;       // Σ held · headDim · 2 · itemsize
    std::int64_t allocatedBytes = 0;    // keys, values, positions, memory tensors, as allocated
    std::int64_t peakBytes = 0;         // highest allocatedBytes plus temporary copies during compaction
};

class KvCache {
public:
    KvCache(const ModelConfig& config, at::ScalarType dtype, at::Device device, RopeMode rope);

    // keys, values [kvHeads, S, headDim] (keys rotated or not as rope() says); positions [S] ascending, above all held ones.
    void append(LayerIndex layer, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& positions);
    void compact(LayerIndex layer, const Selection& selection); // ragged results allowed; frees memory if a quarter or more is unused
    void reserve(LayerIndex layer, std::int64_t entries);       // capacity for that many per head

    // A copy holding only the selected entries (the branch after a shared prefill), without the memory tensors; room for `headroom`
    // more. A cacheRelative branch of an original prefill turns the keys back by their position.
    KvCache branch(const std::vector<Selection>& selections, RopeMode rope, std::int64_t headroom, const at::Tensor& inverseFrequencies) const;

    const CacheLayer& layer(LayerIndex index) const { return m_layers[static_cast<std::size_t>(index.value)]; }
    CacheLayer& layer(LayerIndex index) { return m_layers[static_cast<std::size_t>(index.value)]; }
    int layers() const { return static_cast<int>(m_layers.size()); }
    RopeMode rope() const { return m_rope; }
    CacheStats stats() const;

private:
    ModelConfig m_config;
    at::ScalarType m_dtype;
    at::Device m_device;
    RopeMode m_rope;
    std::vector<CacheLayer> m_layers;
    mutable std::int64_t m_peak = 0;
};

} // namespace keepsight
