// Decoding on a device as one recorded graph a step: nothing but the token and its position goes there, nothing but the logits comes back.
#pragma once

#include "engine/model/model.h"
#include "kernels/bind/device_graph.h"

namespace keepsight {

class DecodeGraph {
public:
    static bool serves(const Model& model); // where it runs
    // Appends `id` at `position`, where KvCache::nextStep() made room, and gives its logits [vocab] fp32 on the CPU. Steps with the same key launch the same work: the first one runs as it
    // is and the second is recorded; after the cache has moved (it grew) the next one is recorded anew. observer: called when a step runs or is
    // recorded; of a replay it is told. Its tensors are filled at every one.
    at::Tensor step(const Model& model, KvCache& cache, TokenId id, Position position, LayerObserver* observer, const std::string& key);

    std::int64_t replays() const { return m_replays; } // steps that were not launched by the host

private:
    struct Recorded {
        std::string key;
        std::unique_ptr<ops::DeviceGraph> graph; // null: it ran once
        std::uint64_t layout = 0;                // of the cache when it was recorded
        at::Tensor logits;                       // [1, vocab] fp32
    };
    Recorded& recorded(const std::string& key);

    at::Tensor m_id, m_position, m_host; // [1] int64, [1] int32, logits in pinned memory
    std::vector<Recorded> m_recorded;    // the latest last
    std::int64_t m_replays = 0;
};

} // namespace keepsight
