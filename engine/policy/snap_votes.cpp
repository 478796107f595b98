#include "engine/policy/snap_votes.h"

#include <ATen/ATen.h>

namespace keepsight {

at::Tensor snapVotes(const LayerView& view, int window, int kernel, const std::string& pool, const std::string& agg) {
    const at::Tensor& lengths = view.entries.lengths;
    // Heads may hold different numbers of entries: each one's window begins elsewhere, and must not leak into the pooling. Weights are never negative,
    // so zeros there are what the edges are.
    const at::Tensor own = at::arange(view.entries.capacity(), lengths.options()).unsqueeze(0) >= (lengths - window).unsqueeze(1); // [kvHeads, C]
    const at::Tensor votes = reduceGroup(view.lastSums(window).div_(window), view.config.kvHeads, agg).masked_fill_(own, 0).unsqueeze(1);
    const at::Tensor pooled = pool == "max" ? at::max_pool1d(votes, kernel, 1, kernel / 2) : at::avg_pool1d(votes, kernel, 1, kernel / 2);
    return pooled.squeeze(1).masked_fill(own, 0);
}

} // namespace keepsight
