#include "engine/session/decode_graph.h"

#include <ATen/ATen.h>

namespace keepsight {

bool DecodeGraph::serves(const Model& model, const KvCache& cache) {
    if (!model.device().is_cuda() || cache.config().kvHeads != model.config().kvHeads) return false;
    for (int l = 0; l < cache.layers(); ++l)
        if (!cache.fusesAppend(LayerIndex{l})) return false;
    return true;
}

at::Tensor DecodeGraph::step(const Model& model, KvCache& cache, TokenId id, Position position, LayerObserver* observer) {
    const auto options = at::TensorOptions().device(model.device());
    if (!m_id.defined()) {
        m_id = at::empty({1}, options.dtype(at::kLong));
        m_position = at::empty({1}, options.dtype(at::kInt));
        m_host = at::empty({model.config().vocab}, at::TensorOptions().dtype(at::kFloat).pinned_memory(true));
    }
    m_id.fill_(id);
    m_position.fill_(position);
    for (int l = 0; l < cache.layers(); ++l) {
        const CacheLayer& layer = cache.layer(LayerIndex{l});
        if (layer.maxHeld() >= layer.capacity()) cache.reserve(LayerIndex{l}, layer.maxHeld() + 64 + layer.maxHeld() / 8);
    }
    if (!m_warm) {
        m_logits = model.step(m_id, m_position, cache, observer);
        m_warm = true;
    } else {
        if (m_graph && m_layout == cache.layout()) {
            cache.countReplayed(1);
        } else {
            m_graph.reset();
            m_graph = ops::recordGraph([&] { m_logits = model.step(m_id, m_position, cache, observer); }); // counts this token on the host
            m_layout = cache.layout();
        }
        if (m_graph) m_graph->replay();
    }
    m_host.copy_(m_logits.view({-1})); // waits
    return m_host.clone();
}

} // namespace keepsight
