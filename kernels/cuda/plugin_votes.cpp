// The plug-in's part for window policies: what a window of queries gives to each entry, and its votes. Arguments were checked by the operators.
#include "kernels/cuda/launch_votes.h"
#include "kernels/cuda/plugin.h"

#include <torch/library.h>

namespace keepsight::cuda {
namespace {

at::Tensor attentionSums(const at::Tensor& q, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths, const at::Tensor& queryPositions, double scale) {
    const c10::cuda::CUDAGuard guard(q.device());
    const at::Tensor queries = inTiles(q), keys = inTiles(k), places = positions.contiguous(), held = lengths.contiguous(), newest = queryPositions.contiguous();
    AttentionArgs a;
    describeQuery(a, queries, keys.size(0), keys.size(1), newest, scale);
    a.queries = queries.size(1);
    a.k = {keys.const_data_ptr(), keys.stride(0), keys.stride(1)};
    a.positions = places.const_data_ptr<std::int32_t>();
    a.lengths = held.const_data_ptr<std::int32_t>();
    const CudaDevice& device = deviceOf(q);
    if (takesWindowSums(a, elementOf(q))) {
        at::Tensor sums = at::empty({a.queryHeads, a.capacity}, q.options().dtype(at::kFloat));
        float2* parts = nullptr;
        Scratch scratch;
        scratch.add(parts, windowParts(a, device));
        scratch.allocate(q);
        const cudaError_t done = launchWindowSums(a, sums.mutable_data_ptr<float>(), parts, elementOf(q), device, stream());
        if (done != cudaErrorNotSupported) return check(done, "attention_sums"), sums;
    }
    return composite<decltype(attentionSums)>("attention_sums", q, k, positions, lengths, queryPositions, scale);
}

at::Tensor pooledVotes(const at::Tensor& sums, const at::Tensor& lengths, double rows, int64_t newest, int64_t kernel, bool largest, int64_t group) {
    const c10::cuda::CUDAGuard guard(sums.device());
    const at::Tensor given = sums.stride(1) == 1 ? sums : sums.contiguous(), held = lengths.contiguous();
    PooledVotesArgs a;
    a.sums = given.const_data_ptr<float>();
    a.row = given.stride(0);
    a.lengths = held.const_data_ptr<std::int32_t>();
    a.queryHeads = given.size(0), a.kvHeads = held.size(0), a.capacity = given.size(1);
    a.newest = newest, a.kernel = static_cast<int>(kernel), a.rows = static_cast<float>(rows);
    a.largest = largest, a.group = static_cast<int>(group);
    if (!takesPooledVotes(a)) return composite<decltype(pooledVotes)>("pooled_votes", sums, lengths, rows, newest, kernel, largest, group);
    at::Tensor votes = at::empty({a.kvHeads, a.capacity}, given.options());
    a.votes = votes.mutable_data_ptr<float>();
    check(launchPooledVotes(a, stream()), "pooled_votes");
    return votes;
}

} // namespace

TORCH_LIBRARY_IMPL(keepsight, CUDA, m) {
    m.impl("attention_sums", attentionSums);
    m.impl("pooled_votes", pooledVotes);
}

} // namespace keepsight::cuda
