#include "engine/session/decode_graph.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {

bool DecodeGraph::serves(const Model& model) {
    return model.device().is_cuda();
}

DecodeGraph::Recorded& DecodeGraph::recorded(const std::string& key) {
    constexpr std::size_t Most = 3; // a lane alternates between few kinds of step; each graph holds its activations
    const auto found = std::ranges::find(m_recorded, key, &Recorded::key);
    if (found != m_recorded.end()) {
        std::rotate(found, found + 1, m_recorded.end());
    } else {
        if (m_recorded.size() == Most) m_recorded.erase(m_recorded.begin());
        m_recorded.push_back({key, nullptr, 0, {}});
    }
    return m_recorded.back();
}

at::Tensor DecodeGraph::step(const Model& model, KvCache& cache, TokenId id, Position position, LayerObserver* observer, const std::string& key) {
    const auto options = at::TensorOptions().device(model.device());
    if (!m_id.defined()) {
        m_id = at::empty({1}, options.dtype(at::kLong));
        m_position = at::empty({1}, options.dtype(at::kInt));
        m_host = at::empty({model.config().vocab}, at::TensorOptions().dtype(at::kFloat).pinned_memory(true));
    }
    m_id.fill_(id);
    m_position.fill_(position);
    Recorded& r = recorded(key);
    if (!r.logits.defined()) { // never ran
        r.logits = model.step(m_id, m_position, cache, observer);
    } else if (r.graph && r.layout == cache.layout()) {
        cache.countReplayed();
        if (observer) observer->replayed(cache);
        r.graph->replay();
        ++m_replays;
    } else {
        r.graph.reset();
        r.graph = ops::recordGraph([&] { r.logits = model.step(m_id, m_position, cache, observer); }); // counts on the host, too
        r.layout = cache.layout();
        if (r.graph) r.graph->replay();
    }
    m_host.copy_(r.logits.view({-1})); // waits
    return m_host.clone();
}

} // namespace keepsight
