// pooled_votes: schema, checks, and its form in ATen calls, which the CPU runs. CUDA: cuda/pooled_votes.cu.
#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace keepsight::ops {

at::Tensor grouped(const at::Tensor& perQueryHead, int64_t kvHeads, GroupVote how) {
    const at::Tensor groups = perQueryHead.unflatten(0, {kvHeads, perQueryHead.size(0) / kvHeads});
    return how == GroupVote::largest ? groups.amax(1) : how == GroupVote::sum ? groups.sum(1) : groups.mean(1);
}

namespace {

at::Tensor pooledVotesComposite(const at::Tensor& sums, const at::Tensor& lengths, double rows, int64_t newest, int64_t kernel, bool largest, int64_t group) {
    const int64_t heads = lengths.size(0), capacity = sums.size(1);
    const at::Tensor votes = grouped(rows == 1 ? sums : sums / rows, heads, static_cast<GroupVote>(group));
    // Heads may hold different numbers of entries: the newest ones begin elsewhere in each, and must not leak into the pooling.
    const at::Tensor others = at::arange(capacity, lengths.options()).unsqueeze(0) >= (lengths - newest).unsqueeze(1); // [kvHeads, C]
    const at::Tensor own = votes.masked_fill(others, 0).unsqueeze(1);
    const at::Tensor pooled = largest ? at::max_pool1d(own, kernel, 1, kernel / 2) : at::avg_pool1d(own, kernel, 1, kernel / 2);
    return pooled.squeeze(1).masked_fill(others, 0);
}

} // namespace

void defineVoteOperators(torch::Library& m) { m.def("pooled_votes(Tensor sums, Tensor lengths, float rows, int newest, int kernel, bool largest, int group) -> Tensor"); }

void registerVoteComposite(torch::Library& m) { m.impl("pooled_votes", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, pooledVotesComposite)); }

at::Tensor pooled_votes(const at::Tensor& sums, const at::Tensor& lengths, double rows, int64_t newest, int64_t kernel, bool largest, GroupVote group) {
    checkShape("pooled_votes", "sums", sums, {Any, Any});
    checkType("pooled_votes", "sums", sums, at::kFloat);
    checkShape("pooled_votes", "lengths", lengths, {Any});
    checkType("pooled_votes", "lengths", lengths, at::kInt);
    checkSameDevice("pooled_votes", "lengths", lengths, sums);
    if (lengths.size(0) == 0 || sums.size(0) % lengths.size(0) != 0)
        refuse("pooled_votes", "sums", "rows for a multiple of the " + std::to_string(lengths.size(0)) + " KV heads", std::to_string(sums.size(0)));
    if (kernel < 1 || kernel % 2 == 0) refuse("pooled_votes", "kernel", "an odd number of neighbours", std::to_string(kernel));
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::pooled_votes", "").typed<decltype(pooledVotesComposite)>();
    return op.call(sums, lengths, rows, newest, kernel, largest, static_cast<int64_t>(group));
}

} // namespace keepsight::ops
