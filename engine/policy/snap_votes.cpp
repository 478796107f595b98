#include "engine/policy/snap_votes.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {

at::Tensor snapVotes(const LayerView& view, int window, int kernel, const std::string& pool, const std::string& agg) {
    const CacheLayer& entries = view.entries;
    const std::int64_t before = std::max<std::int64_t>(0, entries.maxHeld() - window);
    at::Tensor scores = at::zeros({view.config.kvHeads, entries.capacity()}, view.keys.options().dtype(at::kFloat));
    if (before == 0) return scores;
    at::Tensor votes = reduceGroup(view.lastSums(window).div_(window), view.config.kvHeads, agg).narrow(1, 0, before); // [kvHeads, before]
    // Heads may hold different numbers of entries: each one's window begins elsewhere, and must not leak into the pooling.
    const bool ragged = std::ranges::any_of(entries.held, [&](std::int32_t n) { return n != entries.held.front(); });
    const at::Tensor own = at::arange(before, entries.lengths.options()).unsqueeze(0) < (entries.lengths - window).unsqueeze(1); // [kvHeads, before]
    if (ragged) votes = votes * own;
    votes = votes.unsqueeze(1);
    votes = (pool == "max" ? at::max_pool1d(votes, kernel, 1, kernel / 2) : at::avg_pool1d(votes, kernel, 1, kernel / 2)).squeeze(1);
    scores.narrow(1, 0, before).copy_(ragged ? votes * own : votes);
    return scores;
}

} // namespace keepsight
