#include "engine/policy/snap_votes.h"

#include <ATen/ATen.h>

namespace keepsight {

at::Tensor pooledBefore(const at::Tensor& scores, const at::Tensor& lengths, std::int64_t newest, std::int64_t kernel, const std::string& pool) {
    // Heads may hold different numbers of entries: the newest ones begin elsewhere in each, and must not leak into the pooling.
    const at::Tensor others = at::arange(scores.size(1), lengths.options()).unsqueeze(0) >= (lengths - newest).unsqueeze(1); // [kvHeads, C]
    const at::Tensor rows = scores.masked_fill(others, 0).unsqueeze(1);
    const at::Tensor pooled = pool == "max" ? at::max_pool1d(rows, kernel, 1, kernel / 2) : at::avg_pool1d(rows, kernel, 1, kernel / 2);
    return pooled.squeeze(1).masked_fill(others, 0);
}

at::Tensor snapVotes(const LayerView& view, int window, int kernel, const std::string& pool, const std::string& agg) {
    LayerView once = view;
    once.remembered = nullptr; // the window stays as it is while budgets move: no blocks to be put together again
    return pooledBefore(reduceGroup(once.lastSums(window).div_(window), view.config.kvHeads, agg), view.entries.lengths, window, kernel, pool);
}

} // namespace keepsight
