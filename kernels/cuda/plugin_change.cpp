// The plug-in's part for the kvc policies' sums. Arguments were checked by ops.cpp. A decoded token's are worked out from ragged heads without the
// host; a prompt's streamed, where it lies as a prompt does; the rest runs in ATen calls (bind/output_change.cpp).
#include "kernels/cuda/launch_change.h"
#include "kernels/cuda/plugin.h"

#include <torch/library.h>
#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr std::int64_t ValueOnly = 0; // of ops::OutputChange

at::Tensor changeOfOne(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                       const at::Tensor& queryPositions, double scale, int64_t kind) {
    const at::Tensor query = inTiles(q), keys = inTiles(k), values = inTiles(v), places = positions.contiguous(), held = lengths.contiguous();
    at::Tensor change = at::empty({q.size(0), k.size(1)}, q.options().dtype(at::kFloat));
    OutputChangeArgs args;
    args.kind = static_cast<int>(kind);
    args.change = change.mutable_data_ptr<float>();
    AttentionArgs& a = args.attention;
    describeQuery(a, query, k.size(0), k.size(1), queryPositions, scale);
    a.k = {keys.const_data_ptr(), keys.stride(0), keys.stride(1)};
    a.v = {values.const_data_ptr(), values.stride(0), values.stride(1)};
    a.positions = places.const_data_ptr<std::int32_t>();
    a.lengths = held.const_data_ptr<std::int32_t>();
    DecodeScratch s;
    float* out = nullptr;
    Scratch scratch;
    addDecodeScratch(scratch, s, a, q, true);
    scratch.add(out, a.queryHeads * a.dim);
    scratch.allocate(q);
    a.out = out;
    check(launchOutputChange(args, elementOf(q), s, deviceOf(q), stream()), "output_change");
    return change;
}

// How many entries every head holds, where each lies at its own position and the queries are the newest of them; else −1. Asks the device, once.
std::int64_t heldByAll(const at::Tensor& positions, const at::Tensor& lengths, const at::Tensor& queryPositions) {
    const at::Tensor places = positions.stride(1) == 1 ? positions : positions.contiguous();
    const at::Tensor held = lengths.contiguous(), newest = queryPositions.contiguous();
    const at::Tensor found = at::zeros({2}, positions.options());
    PromptCheckArgs a;
    a.positions = places.const_data_ptr<std::int32_t>(), a.positionsHead = places.stride(0);
    a.lengths = held.const_data_ptr<std::int32_t>();
    a.queryPositions = newest.const_data_ptr<std::int32_t>();
    a.kvHeads = places.size(0), a.capacity = places.size(1), a.queries = newest.size(0);
    a.found = found.mutable_data_ptr<std::int32_t>();
    check(launchPromptCheck(a, stream()), "output_change");
    const at::Tensor here = found.cpu();
    const std::int32_t* told = here.const_data_ptr<std::int32_t>();
    return told[0] != 0 ? -1 : told[1];
}

// [heads, rows] fp32 of 16-bit x [heads, rows, 64 or 128] in tiles.
at::Tensor squaredNorms(const at::Tensor& x) {
    at::Tensor norms = at::empty({x.size(0), x.size(1)}, x.options().dtype(at::kFloat));
    SquaredNormsArgs a;
    a.x = x.const_data_ptr();
    a.head = x.stride(0), a.row = x.stride(1);
    a.heads = x.size(0), a.rows = x.size(1), a.dim = x.size(2);
    a.norms = norms.mutable_data_ptr<float>();
    check(launchSquaredNorms(a, elementOf(x), stream()), "output_change");
    return norms;
}

at::Tensor outputChange(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                        const at::Tensor& queryPositions, double scale, int64_t kind, const OptionalTensor& output, const OptionalTensor& logSumExp) {
    const c10::cuda::CUDAGuard guard(q.device());
    const auto rowsInAtenCalls = [&](std::int64_t begin, std::int64_t rows, std::int64_t entries) { // of the first entries
        return composite<decltype(outputChange)>("output_change", q.narrow(1, begin, rows), k.narrow(1, 0, entries), v.narrow(1, 0, entries), positions.narrow(1, 0, entries), lengths,
                                                 queryPositions.narrow(0, begin, rows), scale, kind, OptionalTensor(), OptionalTensor());
    };
    const std::int64_t count = q.size(1), capacity = k.size(1), dim = q.size(2);
    const auto inAtenCalls = [&] { return rowsInAtenCalls(0, count, capacity); };
    if (count == 1 && capacity > 0 && hasHeadSize(dim)) return changeOfOne(q, k, v, positions, lengths, queryPositions, scale, kind);
    ChangeSumsArgs args;
    AttentionSumsArgs& a = args.sums;
    a.qHead = q.stride(0), a.qRow = q.stride(1);
    a.k = k.const_data_ptr(), a.kHead = k.stride(0), a.kRow = k.stride(1);
    a.queryHeads = q.size(0);
    a.kvHeads = k.size(0);
    a.dim = dim;
    a.scale = static_cast<float>(scale);
    args.kind = static_cast<int>(kind);
    args.v = v.const_data_ptr(), args.vHead = v.stride(0), args.vRow = v.stride(1);
    constexpr std::int64_t FewRows = 32; // ATen's calls are as fast
    const bool dense = q.stride(2) == 1 && k.stride(2) == 1 && v.stride(2) == 1;
    if (!dense || count < FewRows || count > capacity || (dim != 64 && dim != 128) || q.scalar_type() == at::kFloat) return inAtenCalls();
    const std::int64_t held = heldByAll(positions, lengths, queryPositions);
    if (held < count) return inAtenCalls();

    // Where little is seen, the rounding of a fused attention's weights shows in differences from its output.
    constexpr std::int64_t MuchSeen = 256;
    const std::int64_t exact = kind == ValueOnly ? 0 : std::clamp<std::int64_t>(MuchSeen - (held - count), 0, count);
    if (exact == count) return inAtenCalls();
    const at::Tensor queries = q.narrow(1, exact, count - exact), values = inTiles(v.narrow(1, 0, held));
    at::Tensor outputs, logSums; // [Hq, S, D], [Hq, S], of these queries
    if (logSumExp) { // with it the output, where the changes hang on it
        if (kind != ValueOnly) outputs = output->reshape({count, q.size(0), dim}).transpose(0, 1).narrow(1, exact, count - exact);
        logSums = logSumExp->narrow(1, exact, count - exact).contiguous();
    } else {
        const auto [attended, norms] = fusedCausal(queries, k, v, held, scale);
        outputs = attended.squeeze(0), logSums = norms;
    }
    const at::Tensor valueNorms = squaredNorms(values);
    at::Tensor change = at::zeros({q.size(0), capacity}, logSums.options()), o, outputNorms;
    a.q = queries.const_data_ptr();
    a.queries = count - exact;
    a.held = held;
    a.logSumExp = logSums.const_data_ptr<float>();
    a.columnSum = change.mutable_data_ptr<float>(), a.columnSumHead = capacity;
    if (kind != ValueOnly) {
        o = inTiles(outputs), outputNorms = squaredNorms(o);
        args.o = o.const_data_ptr(), args.oHead = o.stride(0), args.oRow = o.stride(1);
        args.valueNorms = valueNorms.const_data_ptr<float>(), args.outputNorms = outputNorms.const_data_ptr<float>();
    }
    if (!takesChangeSums(args, elementOf(q))) return inAtenCalls();
    check(launchChangeSums(args, elementOf(q), stream()), "output_change");
    constexpr std::int64_t Block = 128; // rows: the host then has nothing to wait for
    for (std::int64_t begin = 0; begin < exact; begin += Block) {
        const std::int64_t rows = std::min(Block, exact - begin), seen = held - count + begin + rows;
        change.narrow(1, 0, seen).add_(rowsInAtenCalls(begin, rows, seen));
    }
    if (kind == ValueOnly) change.view({k.size(0), -1, capacity}).narrow(2, 0, held).mul_(valueNorms.unsqueeze(1));
    return change;
}

} // namespace

TORCH_LIBRARY_IMPL(keepsight, CUDA, m) {
    m.impl("output_change", outputChange);
}

} // namespace keepsight::cuda
