// Decoding on a device as one recorded graph a step: nothing but the token and its position goes there, nothing but the logits comes back.
#pragma once

#include "engine/model/model.h"
#include "kernels/bind/device_graph.h"

namespace keepsight {

class DecodeGraph {
public:
    // Does such a cache decode without the host between its layers? (Quantized and renumbered ones do not, nor does the CPU.)
    static bool serves(const Model& model, const KvCache& cache);
    // Appends `id` at `position` and gives its logits [vocab] fp32 on the CPU. The first step runs as it is and the second is recorded; after the
    // cache has moved (it grew, or something was evicted) the next one is recorded anew. observer: asked for statistics when a step is recorded, and
    // its tensors are filled at every one; nullptr: none.
    at::Tensor step(const Model& model, KvCache& cache, TokenId id, Position position, LayerObserver* observer);

private:
    at::Tensor m_id, m_position, m_logits, m_host; // [1] int64, [1] int32, [1, vocab], its copy in pinned memory
    std::unique_ptr<ops::DeviceGraph> m_graph;
    std::uint64_t m_layout = 0; // of the cache when it was recorded
    bool m_warm = false;
};

} // namespace keepsight
