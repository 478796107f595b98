// The plug-in's part for plain passes: decoded tokens (tensors → argument structs), prompts (torch's attention), and graphs. Arguments were checked by bind/decode.cpp.
#include "kernels/bind/device_graph.h"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/plugin.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/library.h>
#include <atomic>

namespace keepsight::cuda {
namespace {

at::Tensor matvec(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& norm, const OptionalTensor& residual, double eps,
                  bool gated) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = input.contiguous();
    const std::int64_t rows = gated ? weight.size(0) / 2 : weight.size(0);
    at::Tensor y = at::empty({1, rows}, x.options());
    MatvecArgs a;
    const auto data = [](const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; };
    const bool dense = weight.is_contiguous() && (!bias || bias->is_contiguous()) && (!norm || norm->is_contiguous()) && (!residual || residual->is_contiguous());
    a.x = x.const_data_ptr();
    a.norm = norm ? norm->const_data_ptr<float>() : nullptr;
    a.eps = static_cast<float>(eps);
    a.weight = weight.const_data_ptr();
    a.bias = data(bias);
    a.residual = data(residual);
    a.y = y.mutable_data_ptr();
    a.rows = rows;
    a.width = x.size(1);
    a.gated = gated;
    const CudaDevice& device = deviceOf(x);
    if (dense && takesMatvec(a, elementOf(x), device)) {
        check(launchMatvec(a, elementOf(x), device, stream()), "matvec");
        return y;
    }
    return composite<decltype(matvec)>("matvec", x, weight, bias, norm, residual, eps, gated);
}

at::Tensor ropeAppend(const at::Tensor& input, const at::Tensor& position, const at::Tensor& inverseFrequencies, at::Tensor& keys, at::Tensor& values, at::Tensor& positions,
                      at::Tensor& lengths) {
    const c10::cuda::CUDAGuard guard(keys.device());
    const at::Tensor qkv = input.contiguous(), inverse = inverseFrequencies.contiguous();
    TORCH_CHECK(keys.stride(2) == 1 && keys.stride(1) == keys.size(2) && values.stride(2) == 1 && values.stride(1) == keys.size(2) && positions.stride(1) == 1 &&
                    lengths.is_contiguous(),
                "keepsight::rope_append: expected entries that lie dense within a head");
    RopeAppendArgs a;
    a.dim = keys.size(2);
    a.kvHeads = keys.size(0);
    a.queryHeads = qkv.size(1) / a.dim - 2 * a.kvHeads;
    at::Tensor q = at::empty({a.queryHeads, 1, a.dim}, qkv.options());
    a.qkv = qkv.const_data_ptr();
    a.q = q.mutable_data_ptr();
    a.keys = keys.mutable_data_ptr();
    a.values = values.mutable_data_ptr();
    a.keysHead = keys.stride(0);
    a.valuesHead = values.stride(0);
    a.positions = positions.mutable_data_ptr<std::int32_t>();
    a.positionsHead = positions.stride(0);
    a.lengths = lengths.mutable_data_ptr<std::int32_t>();
    a.position = position.const_data_ptr<std::int32_t>();
    a.inverseFrequencies = inverse.const_data_ptr<float>();
    check(launchRopeAppend(a, elementOf(qkv), stream()), "rope_append");
    return q;
}

// Out [1, Hq, S, D] and log-sum-exp [1, Hq, S] fp32 of torch's fused attention: cuDNN's where it takes the shape, else FlashAttention's.
std::pair<at::Tensor, at::Tensor> fused(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal, double scale) {
    static std::atomic<bool> cudnn{true}, grouped{true};
    if (q.size(2) > 256) { // a plan for every shape is not worth it for few queries
        const auto form = [&](std::atomic<bool>& works, std::int64_t copies) -> std::optional<std::pair<at::Tensor, at::Tensor>> {
            const auto copied = [&](const at::Tensor& x) { return copies > 1 ? x.repeat_interleave(copies, 1) : x; };
            try {
                const auto out = at::_scaled_dot_product_cudnn_attention(q, copied(k), copied(v), {}, true, 0.0, causal, false, scale);
                return std::pair(std::get<0>(out), std::get<1>(out).reshape({1, q.size(1), q.size(2)}));
            } catch (const c10::OutOfMemoryError&) {
                throw;
            } catch (const c10::Error&) { // an older GPU, or a head size it has no plan for
                works = false;
                return std::nullopt;
            }
        };
        const std::int64_t group = q.size(1) / k.size(1);
        if (cudnn && group > 1 && grouped)
            if (auto out = form(grouped, 1)) return *out;
        if (cudnn)
            if (auto out = form(cudnn, group)) return *out;
    }
    const auto out = at::_scaled_dot_product_flash_attention(q, k, v, 0.0, causal, false, scale);
    return {std::get<0>(out), std::get<1>(out)};
}

// Heads of rows as rows of heads: [1, Hq, S, D] of a 16-bit type, D in whole fours → [S, Hq·D]; a copy, where it takes one, in words of 8 bytes.
at::Tensor inRows(const at::Tensor& heads) {
    return heads.squeeze(0).view(at::kDouble).transpose(0, 1).reshape({heads.size(2), -1}).view(heads.scalar_type());
}

} // namespace

// The queries' own entries causally, those before them fully; the two are joined by their log-sum-exps.
std::pair<at::Tensor, at::Tensor> fusedCausal(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t held, double scale) {
    const std::int64_t count = q.size(1), past = held - count;
    const at::Tensor query = q.unsqueeze(0);
    const auto part = [&](std::int64_t begin, std::int64_t n, bool causal) {
        return fused(query, k.narrow(1, begin, n).unsqueeze(0), v.narrow(1, begin, n).unsqueeze(0), causal, scale);
    };
    auto [out, own] = part(past, count, true);
    if (past > 0) {
        const auto [before, other] = part(0, past, false);
        const at::Tensor share = at::sigmoid(own - other).unsqueeze(-1); // of the own entries
        own = at::logaddexp(own, other);
        out = at::lerp(before.to(at::kFloat), out.to(at::kFloat), share).to(q.scalar_type());
    }
    return {out, own.to(at::kFloat).contiguous()};
}

namespace {

std::tuple<at::Tensor, at::Tensor> causalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t held, double scale, const OptionalTensor& columnSum,
                                                   const OptionalTensor& lastRows, const OptionalTensor& map, int64_t mapRowBegin, int64_t rowBin, int64_t colBin) {
    const c10::cuda::CUDAGuard guard(q.device());
    const std::int64_t count = q.size(1), dim = q.size(2);
    AttentionSumsArgs a;
    a.q = q.const_data_ptr();
    a.k = k.const_data_ptr();
    a.qHead = q.stride(0);
    a.qRow = q.stride(1);
    a.kHead = k.stride(0);
    a.kRow = k.stride(1);
    a.queryHeads = q.size(0);
    a.kvHeads = k.size(0);
    a.queries = count;
    a.held = held;
    a.dim = dim;
    a.scale = static_cast<float>(scale);
    const bool sums = columnSum || map, dense = q.stride(2) == 1 && k.stride(2) == 1;
    if (q.scalar_type() == at::kFloat || dim % 8 != 0 || dim > 256 || count == 0 || (sums && (!dense || !takesAttentionSums(a, elementOf(q))))) {
        return composite<decltype(causalAttention)>("causal_attention", q, k, v, held, scale, columnSum, lastRows, map, mapRowBegin, rowBin, colBin);
    }
    const auto [out, norms] = fusedCausal(q, k, v, held, scale);
    if (sums) {
        at::Tensor cells;
        a.logSumExp = norms.const_data_ptr<float>();
        if (columnSum) a.columnSum = columnSum->mutable_data_ptr<float>(), a.columnSumHead = columnSum->size(1);
        if (map) {
            cells = at::zeros(map->sizes(), map->options().dtype(at::kLong));
            a.map = reinterpret_cast<unsigned long long*>(cells.mutable_data_ptr<std::int64_t>());
            a.mapHeads = map->size(0), a.mapRows = map->size(1), a.mapColumns = map->size(2);
            a.mapRowBegin = mapRowBegin, a.rowBin = rowBin, a.columnBin = colBin;
        }
        check(launchAttentionSums(a, elementOf(q), stream()), "causal_attention");
        if (map) map->add_((cells.to(at::kDouble) * mapUnit()).to(at::kFloat));
    }
    if (lastRows) {
        const auto ints = q.options().dtype(at::kInt);
        const std::int64_t rows = lastRows->size(1);
        const at::Tensor positions = at::arange(k.size(1), ints).expand({k.size(0), k.size(1)}).contiguous(), lengths = at::full({k.size(0)}, held, ints);
        using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double);
        static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::attention_rows", "").typed<Signature>();
        lastRows->copy_(op.call(q.narrow(1, count - rows, rows), k, positions, lengths, at::arange(held - rows, held, ints), scale));
    }
    return {inRows(out), norms.squeeze(0)};
}

at::Tensor sparseAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& chosen,
                           const at::Tensor& inverseFrequencies, const at::Tensor& queryPosition, double scale, const OptionalTensor& columnSum,
                           const OptionalTensor& lastRows, const OptionalTensor& map, int64_t mapRowBegin, int64_t rowBin, int64_t colBin) {
    const c10::cuda::CUDAGuard guard(q.device());
    const at::Tensor entries = chosen.contiguous(), inverse = inverseFrequencies.contiguous();
    SparseAttentionArgs args;
    AttentionArgs& a = args.attention;
    describeQuery(a, q, k.size(0), entries.size(0), queryPosition, scale);
    a.k = {k.const_data_ptr(), k.stride(0), k.stride(1)};
    a.v = {v.const_data_ptr(), v.stride(0), v.stride(1)};
    args.chosen = entries.const_data_ptr<std::int32_t>();
    args.positions = positions.const_data_ptr<std::int32_t>();
    args.positionsHead = positions.stride(0);
    args.inverseFrequencies = inverse.const_data_ptr<float>();
    const bool dense = q.stride(2) == 1 && k.stride(2) == 1 && v.stride(2) == 1 && positions.stride(1) == 1;
    if (!dense || !takesSparseAttention(args, elementOf(q)))
        return composite<decltype(sparseAttention)>("sparse_attention", q, k, v, positions, chosen, inverseFrequencies, queryPosition, scale, columnSum, lastRows, map,
                                                    mapRowBegin, rowBin, colBin);
    at::Tensor out = at::empty({1, q.size(0) * q.size(2)}, q.options()), own, lengths;
    a.out = out.mutable_data_ptr();
    if (map) {
        own = positions.index_select(1, entries), lengths = at::full({k.size(0)}, a.capacity, positions.options());
        a.positions = own.const_data_ptr<std::int32_t>();
        a.lengths = lengths.const_data_ptr<std::int32_t>();
    }
    decodeOne("sparse_attention", a, q, columnSum, lastRows, map, {mapRowBegin, rowBin, colBin},
              [&](const DecodeScratch& s, const CudaDevice& device) { return launchSparseAttention(args, elementOf(q), s, device, stream()); });
    return out;
}

class Graph final : public ops::DeviceGraph {
public:
    explicit Graph(const std::function<void()>& work) {
        const c10::cuda::CUDAStream before = c10::cuda::getCurrentCUDAStream(), own = c10::cuda::getStreamFromPool();
        check(cudaStreamSynchronize(before.stream()), "graph"); // what work reads was made there
        const c10::cuda::CUDAStreamGuard guard(own);
        m_graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
        try {
            work();
        } catch (...) {
            try {
                m_graph.capture_end();
            } catch (...) { // the first error is the one to tell
            }
            throw;
        }
        m_graph.capture_end();
    }
    void replay() override { m_graph.replay(); }

private:
    at::cuda::CUDAGraph m_graph;
};

} // namespace

TORCH_LIBRARY_IMPL(keepsight, CUDA, m) {
    m.impl("matvec", matvec);
    m.impl("rope_append", ropeAppend);
    m.impl("causal_attention", causalAttention);
    m.impl("sparse_attention", sparseAttention);
}

} // namespace keepsight::cuda

extern "C" __attribute__((visibility("default"))) std::int64_t keepsightFreeMemory(int device) {
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
    std::size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return -1;
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return static_cast<std::int64_t>(free) + stats.reserved_bytes[all].current - stats.allocated_bytes[all].current;
}

extern "C" __attribute__((visibility("default"))) keepsight::ops::DeviceGraph* keepsightRecordGraph(const std::function<void()>& work) {
    return new keepsight::cuda::Graph(work);
}
