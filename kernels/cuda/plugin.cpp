// The plug-in: tensors → argument structs for the CUDA kernels, registered with the dispatcher when the library is loaded.
// Arguments were checked by ops.cpp. What has no kernel here runs in ATen calls (bind/composite.cpp).
#include "kernels/cuda/launch.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>
#include <algorithm>

namespace keepsight::cuda {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check(cudaError_t error, const char* operation) {
    TORCH_CHECK(error == cudaSuccess, "keepsight::", operation, ": the CUDA launch failed: ", cudaGetErrorString(error));
}

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

CudaElement elementOf(const at::Tensor& t) {
    switch (t.scalar_type()) {
    case at::kFloat:
        return CudaElement::f32;
    case at::kBFloat16:
        return CudaElement::bf16;
    case at::kHalf:
        return CudaElement::f16;
    default:
        TORCH_CHECK(false, "keepsight: expected fp32, bf16 or fp16 on the device, found ", t.scalar_type());
    }
}

std::int64_t entryBytes(const at::Tensor& t) {
    std::int64_t n = static_cast<std::int64_t>(t.element_size());
    for (std::int64_t d = 2; d < t.dim(); ++d) n *= t.size(d);
    return n;
}

at::Tensor gatherEntries(const at::Tensor& source, const at::Tensor& index, const at::Tensor& counts, int64_t capacity) {
    const c10::cuda::CUDAGuard guard(source.device());
    const at::Tensor src = source.contiguous(), rows = index.contiguous(), kept = counts.contiguous();
    std::vector<int64_t> sizes = src.sizes().vec();
    sizes[1] = capacity;
    at::Tensor out = at::empty(sizes, src.options());
    MoveEntriesArgs a;
    a.entry = entryBytes(src);
    a.from = static_cast<const std::uint8_t*>(src.const_data_ptr());
    a.to = static_cast<std::uint8_t*>(out.mutable_data_ptr());
    a.fromHead = src.size(1) * a.entry;
    a.toHead = capacity * a.entry;
    a.index = rows.const_data_ptr<std::int32_t>();
    a.indexHead = rows.size(1);
    a.counts = kept.const_data_ptr<std::int32_t>();
    a.heads = src.size(0);
    a.zeroTo = capacity;
    check(launchMoveEntries(a, std::min(capacity, rows.size(1)), stream()), "gather_entries");
    return out;
}

// In place a block could overwrite what another still reads, so the kept entries go through a copy.
void compactEntries(at::Tensor& x, const at::Tensor& index, const at::Tensor& counts) {
    const int64_t places = std::min(x.size(1), index.size(1));
    if (places == 0 || x.numel() == 0) return;
    const at::Tensor kept = gatherEntries(x, index, counts, places);
    x.narrow(1, 0, places).copy_(kept);
}

void appendEntries(at::Tensor& dst, const at::Tensor& source, const at::Tensor& lengths) {
    const c10::cuda::CUDAGuard guard(dst.device());
    const at::Tensor src = source.contiguous(), held = lengths.contiguous();
    AppendEntriesArgs a;
    a.entry = entryBytes(dst);
    a.from = static_cast<const std::uint8_t*>(src.const_data_ptr());
    a.to = static_cast<std::uint8_t*>(dst.mutable_data_ptr());
    a.fromRow = a.entry;
    a.fromHead = src.size(1) * a.entry;
    a.toHead = dst.stride(0) * static_cast<std::int64_t>(dst.element_size());
    a.lengths = held.const_data_ptr<std::int32_t>();
    a.heads = dst.size(0);
    a.rows = src.size(1);
    check(launchAppendEntries(a, stream()), "append_entries");
}

at::Tensor rmsNorm(const at::Tensor& input, const at::Tensor& weight, double eps) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = input.contiguous(), w = weight.to(at::kFloat).contiguous();
    at::Tensor y = at::empty_like(x);
    RmsNormArgs a;
    a.x = x.const_data_ptr();
    a.weight = w.const_data_ptr<float>();
    a.y = y.mutable_data_ptr();
    a.width = x.size(-1);
    a.rows = a.width ? x.numel() / a.width : 0;
    a.eps = static_cast<float>(eps);
    check(launchRmsNorm(a, elementOf(x), stream()), "rms_norm");
    return y;
}

at::Tensor siluMul(const at::Tensor& input) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = input.contiguous();
    at::Tensor y = at::empty({x.size(0), x.size(1) / 2}, x.options());
    SiluMulArgs a;
    a.x = x.const_data_ptr();
    a.y = y.mutable_data_ptr();
    a.rows = x.size(0);
    a.width = x.size(1) / 2;
    check(launchSiluMul(a, elementOf(x), stream()), "silu_mul");
    return y;
}

at::Tensor rope(const at::Tensor& input, const at::Tensor& positions, const at::Tensor& inverseFrequencies, double sign) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = input.stride(2) == 1 ? input : input.contiguous(), where = positions.contiguous(), inverse = inverseFrequencies.contiguous();
    at::Tensor y = at::empty(x.sizes(), x.options());
    RopeArgs a;
    a.x = x.const_data_ptr();
    a.xHead = x.stride(0);
    a.xRow = x.stride(1);
    a.y = y.mutable_data_ptr();
    a.heads = x.size(0);
    a.rows = x.size(1);
    a.dim = x.size(2);
    a.positions = where.const_data_ptr<std::int32_t>();
    a.positionHead = where.dim() == 2 ? where.size(1) : 0;
    a.inverseFrequencies = inverse.const_data_ptr<float>();
    a.sign = static_cast<float>(sign);
    check(launchRope(a, elementOf(x), stream()), "rope");
    return y;
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                     const at::Tensor& queryPositions, double scale, const OptionalTensor& columnSum, const OptionalTensor& lastRows, const OptionalTensor& map,
                     int64_t mapRowBegin, int64_t rowBin, int64_t colBin) {
    const bool plainDecode = q.size(1) == 1 && !columnSum && !lastRows && !map && decodesHeadSize(q.size(2)) && k.scalar_type() == q.scalar_type() &&
                             v.scalar_type() == q.scalar_type() && k.stride(2) == 1 && v.stride(2) == 1;
    if (!plainDecode) {
        using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double,
                                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t, int64_t, int64_t);
        static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::attention", "").typed<Signature>();
        return op.redispatch(c10::DispatchKeySet(c10::DispatchKey::CompositeExplicitAutograd), q, k, v, positions, lengths, queryPositions, scale, columnSum,
                             lastRows, map, mapRowBegin, rowBin, colBin);
    }
    const c10::cuda::CUDAGuard guard(q.device());
    const at::Tensor query = q.stride(2) == 1 ? q : q.contiguous(), places = positions.contiguous(), held = lengths.contiguous();
    at::Tensor out = at::empty({1, q.size(0) * q.size(2)}, q.options());
    AttentionArgs a;
    a.q = {query.const_data_ptr(), query.stride(0), query.stride(1)};
    a.k = {k.const_data_ptr(), k.stride(0), k.stride(1)};
    a.v = {v.const_data_ptr(), v.stride(0), v.stride(1)};
    a.queryHeads = q.size(0);
    a.kvHeads = k.size(0);
    a.queries = 1;
    a.capacity = k.size(1);
    a.dim = q.size(2);
    a.positions = places.const_data_ptr<std::int32_t>();
    a.lengths = held.const_data_ptr<std::int32_t>();
    a.queryPositions = queryPositions.const_data_ptr<std::int32_t>();
    a.scale = static_cast<float>(scale);
    a.out = out.mutable_data_ptr();
    int multiprocessors = 1;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, q.get_device()), "attention");
    const std::int64_t splits = decodeSplits(a.queryHeads, a.capacity, multiprocessors);
    const at::Tensor partial = at::empty({a.queryHeads, splits, a.dim + 2}, q.options().dtype(at::kFloat));
    check(launchDecodeAttention(a, elementOf(q), partial.mutable_data_ptr<float>(), splits, stream()), "attention");
    return out;
}

} // namespace

TORCH_LIBRARY_IMPL(keepsight, CUDA, m) {
    m.impl("gather_entries", gatherEntries);
    m.impl("compact_entries", compactEntries);
    m.impl("append_entries", appendEntries);
    m.impl("rms_norm", rmsNorm);
    m.impl("silu_mul", siluMul);
    m.impl("rope", rope);
    m.impl("attention", attention);
}

} // namespace keepsight::cuda
