#include "engine/policy/snap_votes.h"

namespace keepsight {

at::Tensor pooledBefore(const at::Tensor& scores, const at::Tensor& lengths, std::int64_t newest, std::int64_t kernel, const std::string& pool) {
    return ops::pooled_votes(scores, lengths, 1, newest, kernel, pool == "max", ops::GroupVote::mean);
}

at::Tensor snapVotes(const LayerView& view, int window, int kernel, const std::string& pool, const std::string& agg) {
    LayerView once = view;
    once.remembered = nullptr; // the window stays as it is while budgets move: no blocks to be put together again
    return ops::pooled_votes(once.lastSums(window), view.entries.lengths, window, window, kernel, pool == "max", groupVote(agg));
}

} // namespace keepsight
