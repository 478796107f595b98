// The operators on the CPU: tensors become pointers, sizes and strides for kernels/cpu.
#include "kernels/bind/cpu.h"

#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <algorithm>
#include <cstring>

namespace keepsight::ops {
namespace {

constexpr int64_t DirectRows = 24, DirectRowsBf16 = 16; // up to this many rows of x the weights are used as stored; bf16: with units for it
constexpr int64_t ChunkBytes = 8 << 20; // of weights written out at a time for a matrix product: stays in the last-level cache

StoredMatrix matrixOf(const at::Tensor& packed, int64_t weightType, int64_t columns) {
    return {packed.const_data_ptr<uint8_t>(), static_cast<Stored>(weightType), packed.size(0), columns, packed.size(1)};
}

at::Tensor floats(const at::Tensor& tensor) { return tensor.scalar_type() == at::kFloat && tensor.is_contiguous() ? tensor : tensor.to(at::kFloat).contiguous(); }

// oneDNN is twice as fast as torch's own fp32 product, but has no public call; its operator is looked up by name.
at::Tensor product(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) {
    using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                                 c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
    static const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!op || x.scalar_type() != at::kFloat) return at::linear(x, w, bias);
    static const auto typed = op->typed<Signature>();
    return typed.call(x, w, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

at::Tensor weightRows(const at::Tensor& packed, int64_t weightType, int64_t columns, int64_t first, int64_t count, at::ScalarType dtype) {
    const auto type = static_cast<Stored>(weightType);
    const bool asIs = (type == Stored::f32 && dtype == at::kFloat) || (type == Stored::bf16 && dtype == at::kBFloat16);
    const uint8_t* data = packed.const_data_ptr<uint8_t>() + first * packed.size(1);
    if (asIs && reinterpret_cast<uintptr_t>(data) % 4 == 0)
        return at::from_blob(const_cast<uint8_t*>(data), {count, columns}, at::TensorOptions(dtype));
    at::Tensor out = at::empty({count, columns}, dtype);
    onCpu("linear", [&](const CpuKernels& kernels) {
        kernels.dequantize({matrixOf(packed, weightType, columns), nullptr, first, count, out.data_ptr(), elementOf(out)});
    });
    return out;
}

at::Tensor linearCpu(const at::Tensor& xIn, const at::Tensor& packedIn, int64_t weightType, int64_t columns,
                     const std::optional<at::Tensor>& bias) {
    static const bool bf16Units = multipliesBf16(); // without them products of bf16 are several times slower than those of fp32
    const at::Tensor x = xIn.contiguous(), packed = packedIn.contiguous();
    const int64_t count = x.size(0), rows = packed.size(0);
    if (count == 0 || rows == 0) return at::empty({count, rows}, x.options());
    const bool bf16 = x.scalar_type() != at::kFloat;
    if (count <= (bf16 && bf16Units ? DirectRowsBf16 : DirectRows)) {
        at::Tensor y = at::empty({count, rows}, x.options()), biasFloats = bias ? floats(*bias) : at::Tensor();
        onCpu("linear", [&](const CpuKernels& kernels) {
            kernels.linear({matrixOf(packed, weightType, columns), x.const_data_ptr(), y.data_ptr(), elementOf(x), count,
                            bias ? biasFloats.const_data_ptr<float>() : nullptr});
        });
        return y;
    }
    if (bf16 && !bf16Units) return linearCpu(x.to(at::kFloat), packed, weightType, columns, bias).to(x.scalar_type());
    const std::optional<at::Tensor> b = bias ? std::optional<at::Tensor>(bias->to(x.scalar_type())) : std::nullopt;
    const int64_t chunk = std::max<int64_t>(64, ChunkBytes / (columns * x.element_size()));
    if (rows <= chunk) return product(x, weightRows(packed, weightType, columns, 0, rows, x.scalar_type()), b);
    at::Tensor y = at::empty({count, rows}, x.options());
    for (int64_t first = 0; first < rows; first += chunk) {
        const int64_t n = std::min(chunk, rows - first);
        const auto part = b ? std::optional<at::Tensor>(b->narrow(0, first, n)) : std::nullopt;
        y.narrow(1, first, n).copy_(product(x, weightRows(packed, weightType, columns, first, n, x.scalar_type()), part));
    }
    return y;
}

at::Tensor fresh(c10::IntArrayRef sizes, at::ScalarType type) { return at::detail::empty_cpu(sizes, type, false, std::nullopt); } // at::empty without its way there

// Both dense and of one type; each sum is rounded once.
void addRow(at::Tensor& to, const at::Tensor& from) {
    const auto addAs = [&]<class T>(const T*) {
        T* sum = to.mutable_data_ptr<T>();
        const T* more = from.const_data_ptr<T>();
        for (int64_t i = 0; i < to.numel(); ++i) sum[i] = sum[i] + more[i];
    };
    if (to.scalar_type() == at::kFloat)
        addAs(static_cast<const float*>(nullptr));
    else
        addAs(static_cast<const at::BFloat16*>(nullptr));
}

// One row: the kernels of the separate operators one after the other, in one call. Between short products a call's own cost counts.
at::Tensor storedMatvecCpu(const at::Tensor& xIn, const at::Tensor& packedIn, int64_t weightType, int64_t columns, const std::optional<at::Tensor>& bias,
                           const std::optional<at::Tensor>& norm, const std::optional<at::Tensor>& residual, double eps, bool gated) {
    const at::Tensor x = xIn.contiguous(), packed = packedIn.contiguous();
    const int64_t rows = packed.size(0), outputs = gated ? rows / 2 : rows;
    const at::Tensor biasFloats = bias ? floats(*bias) : at::Tensor(), normFloats = norm ? floats(*norm) : at::Tensor();
    at::Tensor out = fresh({1, outputs}, x.scalar_type());
    const Element element = elementOf(x);
    const auto size = static_cast<int64_t>(x.element_size());
    onCpu("stored_matvec", [&](const CpuKernels& kernels) {
        const Scratch normed(norm ? columns * size : 0), product(gated ? rows * size : 0);
        void* y = gated ? product.data() : out.mutable_data_ptr();
        if (norm) kernels.rmsNorm({x.const_data_ptr(), normFloats.const_data_ptr<float>(), normed.data(), 1, columns, static_cast<float>(eps), element});
        kernels.linear({matrixOf(packed, weightType, columns), norm ? normed.data() : x.const_data_ptr(), y, element, 1, bias ? biasFloats.const_data_ptr<float>() : nullptr});
        if (gated) kernels.siluMul({y, out.mutable_data_ptr(), 1, outputs, element});
    });
    if (residual) addRow(out, residual->contiguous());
    return out;
}

at::Tensor decoded(const at::Tensor& packed, int64_t weightType, int64_t columns, const int64_t* ids, int64_t count, at::ScalarType dtype) {
    const auto direct = dtype == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
    at::Tensor out = at::empty({count, columns}, direct);
    onCpu("dequantize", [&](const CpuKernels& kernels) {
        kernels.dequantize({matrixOf(packed, weightType, columns), ids, 0, count, out.data_ptr(), elementOf(out)});
    });
    return out.to(dtype);
}

at::Tensor embeddingCpu(const at::Tensor& idsIn, const at::Tensor& packed, int64_t weightType, int64_t columns, at::ScalarType dtype) {
    const at::Tensor ids = idsIn.contiguous();
    const int64_t* id = ids.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < ids.numel(); ++i)
        if (id[i] < 0 || id[i] >= packed.size(0))
            refuse("embedding", "token id", "in 0 … " + std::to_string(packed.size(0) - 1),
                   std::to_string(id[i]) + " at place " + std::to_string(i));
    return decoded(packed.contiguous(), weightType, columns, id, ids.numel(), dtype);
}

at::Tensor dequantizeCpu(const at::Tensor& packed, int64_t weightType, int64_t columns, at::ScalarType dtype) {
    return decoded(packed.contiguous(), weightType, columns, nullptr, packed.size(0), dtype);
}

at::Tensor rmsNormCpu(const at::Tensor& xIn, const at::Tensor& weight, double eps) {
    const at::Tensor x = xIn.contiguous(), w = floats(weight);
    at::Tensor y = at::empty(x.sizes(), x.options());
    if (x.numel() == 0) return y;
    onCpu("rms_norm", [&](const CpuKernels& kernels) {
        kernels.rmsNorm({x.const_data_ptr(), w.const_data_ptr<float>(), y.data_ptr(), x.numel() / x.size(-1), x.size(-1),
                         static_cast<float>(eps), elementOf(x)});
    });
    return y;
}

at::Tensor siluMulCpu(const at::Tensor& xIn) {
    const at::Tensor x = xIn.contiguous();
    at::Tensor y = at::empty({x.size(0), x.size(1) / 2}, x.options());
    onCpu("silu_mul", [&](const CpuKernels& kernels) {
        kernels.siluMul({x.const_data_ptr(), y.data_ptr(), x.size(0), x.size(1) / 2, elementOf(x)});
    });
    return y;
}

at::Tensor ropeCpu(const at::Tensor& xIn, const at::Tensor& positionsIn, const at::Tensor& inverseFrequencies, double sign) {
    const at::Tensor x = rowsDense(xIn), positions = positionsIn.contiguous(), frequencies = inverseFrequencies.contiguous();
    at::Tensor y = at::empty(x.sizes(), x.options());
    if (x.numel() == 0) return y;
    onCpu("rope", [&](const CpuKernels& kernels) {
        kernels.rope({x.const_data_ptr(), x.stride(0), x.stride(1), y.data_ptr(), x.size(0), x.size(1), x.size(2),
                      positions.const_data_ptr<int32_t>(), positions.dim() == 2 ? x.size(1) : 0, frequencies.const_data_ptr<float>(),
                      static_cast<float>(sign), elementOf(x)});
    });
    return y;
}

void checkLengths(const char* op, const at::Tensor& lengths, int64_t added, int64_t capacity) {
    const int32_t* length = lengths.const_data_ptr<int32_t>();
    for (int64_t h = 0; h < lengths.numel(); ++h)
        if (length[h] < 0 || length[h] + added > capacity)
            refuse(op, "length", "in 0 … " + std::to_string(capacity - added), std::to_string(length[h]) + " at head " + std::to_string(h));
}

struct AttentionInput { // owns dense copies where a layout is not usable as it is
    at::Tensor q, k, v, positions, lengths, queryPositions;
    AttentionArgs args;
    AttentionInput(const char* op, const at::Tensor& queries, const at::Tensor& keys, const at::Tensor* values,
                   const at::Tensor& entryPositions, const at::Tensor& entryLengths, const at::Tensor& rowPositions, double scale)
        : q(rowsDense(queries)), k(rowsDense(keys)), v(values ? rowsDense(*values) : at::Tensor()), positions(entryPositions.contiguous()),
          lengths(entryLengths.contiguous()), queryPositions(rowPositions.contiguous()) {
        checkLengths(op, lengths, 0, k.size(1));
        const int32_t* p = queryPositions.const_data_ptr<int32_t>();
        if (!std::is_sorted(p, p + queryPositions.numel())) refuse(op, "query positions", "ascending", "a smaller one after a greater one");
        args.element = elementOf(q);
        args.q = {q.const_data_ptr(), q.stride(0), q.stride(1)};
        args.k = {k.const_data_ptr(), k.stride(0), k.stride(1)};
        if (values) args.v = {v.const_data_ptr(), v.stride(0), v.stride(1)};
        args.queryHeads = q.size(0), args.kvHeads = k.size(0), args.queries = q.size(1), args.capacity = k.size(1), args.dim = q.size(2);
        args.positions = positions.const_data_ptr<int32_t>();
        args.lengths = lengths.const_data_ptr<int32_t>();
        args.queryPositions = p;
        args.scale = static_cast<float>(scale);
    }
};

// The output of what `args` describe, [S, Hq·D], and on the way what is to be collected.
at::Tensor attend(const char* op, AttentionArgs& args, const at::Tensor& q, const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                  const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin, float* logSumExp = nullptr) {
    at::Tensor out = fresh({q.size(1), q.size(0) * q.size(2)}, q.scalar_type());
    args.out = out.data_ptr();
    collect(args, columnSum, lastRows, map, rowBegin, rowBin, colBin);
    onCpu(op, [&](const CpuKernels& kernels) { kernels.attention(args, logSumExp); });
    return out;
}

at::Tensor attentionCpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions,
                        const at::Tensor& lengths, const at::Tensor& queryPositions, double scale,
                        const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                        const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    AttentionInput input("attention", q, k, &v, positions, lengths, queryPositions, scale);
    return attend("attention", input.args, q, columnSum, lastRows, map, rowBegin, rowBin, colBin);
}

at::Tensor raggedAttentionCpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& startsIn,
                              const at::Tensor& lengths, int64_t capacity, const at::Tensor& queryPositions, double scale,
                              const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                              const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const at::Tensor starts = startsIn.contiguous(), keys = shownToHeads(k, starts.size(0)), values = shownToHeads(v, starts.size(0));
    const int32_t *start = starts.const_data_ptr<int32_t>(), *length = lengths.const_data_ptr<int32_t>();
    for (int64_t h = 0; h < starts.numel(); ++h)
        if (start[h] < 0 || start[h] + length[h] > k.size(0) || length[h] > capacity)
            refuse("ragged_attention", "start and length", "within the " + std::to_string(k.size(0)) + " entries and a capacity of " + std::to_string(capacity),
                   std::to_string(start[h]) + " and " + std::to_string(length[h]) + " at head " + std::to_string(h));
    AttentionInput input("ragged_attention", q, keys, &values, positions, lengths, queryPositions, scale);
    AttentionArgs& args = input.args;
    args.k.starts = args.v.starts = start;
    args.capacity = capacity;
    return attend("ragged_attention", args, q, columnSum, lastRows, map, rowBegin, rowBin, colBin);
}

at::Tensor attentionRowsCpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                            const at::Tensor& queryPositions, double scale) {
    AttentionInput input("attention_rows", q, k, nullptr, positions, lengths, queryPositions, scale);
    at::Tensor out = at::empty({q.size(0), q.size(1), k.size(1)}, q.options().dtype(at::kFloat));
    input.args.lastRows = out.data_ptr<float>();
    input.args.lastCount = q.size(1);
    onCpu("attention_rows", [&](const CpuKernels& kernels) { kernels.attention(input.args, nullptr); });
    return out;
}

at::Tensor attentionSumsCpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                            const at::Tensor& queryPositions, double scale) {
    AttentionInput input("attention_sums", q, k, nullptr, positions, lengths, queryPositions, scale);
    at::Tensor sums = at::zeros({q.size(0), k.size(1)}, q.options().dtype(at::kFloat));
    input.args.columnSum = sums.data_ptr<float>();
    onCpu("attention_sums", [&](const CpuKernels& kernels) { kernels.attention(input.args, nullptr); });
    return sums;
}

// Attention without statistics where the processor multiplies bf16, but not in tiles: torch's fused attention then uses units that our kernels know nothing of. Entries
// before the queries are attended to apart, and both put together by their log-sum-exps.
std::tuple<at::Tensor, at::Tensor> fusedCausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t held, double scale) {
    const int64_t count = q.size(1), past = held - count;
    const auto attended = [&](int64_t begin, int64_t entries, bool causal) { // [Hq, S, D], [Hq, S]
        const auto shown = [&](const at::Tensor& x) { return x.narrow(1, begin, entries).repeat_interleave(q.size(0) / x.size(0), 0).unsqueeze(0); };
        const auto [output, logSums] = at::_scaled_dot_product_flash_attention_for_cpu(q.unsqueeze(0), shown(k), shown(v), 0.0, causal, std::nullopt, scale);
        return std::pair(output.squeeze(0), logSums.squeeze(0));
    };
    auto [output, logSums] = attended(past, count, true);
    if (past > 0) {
        const auto [before, sumsBefore] = attended(0, past, false);
        const at::Tensor all = at::logaddexp(logSums, sumsBefore);
        const auto part = [&](const at::Tensor& of, const at::Tensor& sums) { return of.to(at::kFloat) * (sums - all).exp_().unsqueeze(2); };
        output = part(output, logSums).add_(part(before, sumsBefore)).to(q.scalar_type()), logSums = all;
    }
    return {output.transpose(0, 1).reshape({count, -1}), logSums.contiguous()};
}

// Heads hold `held` entries each, one a position; the queries are the newest.
std::tuple<at::Tensor, at::Tensor> causalAttentionCpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t held, double scale,
                                                      const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                                                      const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    constexpr int64_t Many = 64; // queries
    if (q.scalar_type() == at::kBFloat16 && q.size(1) >= Many && !columnSum && !lastRows && !map && multipliesBf16() && !cpuKernels().bf16Attention) return fusedCausalAttention(q, k, v, held, scale);
    const at::Tensor positions = at::arange(k.size(1), at::kInt).expand({k.size(0), k.size(1)}), lengths = at::full({k.size(0)}, held, at::kInt);
    AttentionInput input("causal_attention", q, k, &v, positions, lengths, at::arange(held - q.size(1), held, at::kInt), scale);
    at::Tensor logSumExp;
    if (q.size(1) > 1) logSumExp = at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
    return {attend("causal_attention", input.args, q, columnSum, lastRows, map, rowBegin, rowBin, colBin, logSumExp.defined() ? logSumExp.data_ptr<float>() : nullptr), logSumExp};
}

at::Tensor outputChangeCpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                           const at::Tensor& queryPositions, double scale, int64_t kind, const std::optional<at::Tensor>& output, const std::optional<at::Tensor>& logSumExp) {
    at::Tensor out = at::empty({q.size(0), k.size(1)}, q.options().dtype(at::kFloat));
    if (q.size(1) == 0) return out.zero_();
    const bool known = logSumExp.has_value(), one = q.size(1) == 1 && !known;
    const auto asNeeded = [&](const at::Tensor& x) { return one || known ? x : x.to(at::kFloat); }; // outputs are not to be rounded on the way
    const at::Tensor values = asNeeded(v);
    AttentionInput input("output_change", asNeeded(q), asNeeded(k), &values, positions, lengths, queryPositions, scale);
    const OutputChangeArgs args{input.args, static_cast<int>(kind), out.data_ptr<float>()};
    onCpu("output_change", [&](const CpuKernels& kernels) {
        if (one) return kernels.outputChangeOne(args);
        const bool valueOnly = kind == static_cast<int64_t>(OutputChange::value); // then outputs play no part
        const at::Tensor outputs = valueOnly ? at::Tensor() : known ? output->contiguous() : at::empty({q.size(1), q.size(0) * q.size(2)}, values.options());
        const at::Tensor norms = known ? logSumExp->contiguous() : at::empty({q.size(0), q.size(1)}, out.options());
        if (!known) {
            AttentionArgs forward = input.args;
            if (!valueOnly) forward.out = outputs.data_ptr();
            kernels.attention(forward, norms.data_ptr<float>());
        }
        kernels.outputChange(args, valueOnly ? nullptr : outputs.const_data_ptr(), norms.const_data_ptr<float>());
    });
    return out;
}

void checkKept(const char* op, const at::Tensor& index, const at::Tensor& counts, int64_t entries, int64_t capacity) {
    for (int64_t h = 0; h < counts.numel(); ++h) {
        const int32_t count = counts.const_data_ptr<int32_t>()[h], *kept = index.const_data_ptr<int32_t>() + h * index.size(1);
        const int64_t most = std::min(index.size(1), capacity);
        if (count < 0 || count > most)
            refuse(op, "count", "in 0 … " + std::to_string(most), std::to_string(count) + " at head " + std::to_string(h));
        for (int32_t i = 0; i < count; ++i)
            if (kept[i] >= entries || kept[i] <= (i ? kept[i - 1] : -1))
                refuse(op, "index", "ascending in 0 … " + std::to_string(entries - 1),
                       std::to_string(kept[i]) + " at head " + std::to_string(h) + ", place " + std::to_string(i));
    }
}

// Bytes of an entry if the rows of each head lie one behind the other, else 0.
int64_t entryBytes(const at::Tensor& x) {
    int64_t values = 1;
    for (int64_t d = x.dim() - 1; d >= 2; --d) {
        if (x.size(d) != 1 && x.stride(d) != values) return 0;
        values *= x.size(d);
    }
    return x.size(1) <= 1 || x.stride(1) == values ? values * x.element_size() : 0;
}

at::Tensor entriesDense(const at::Tensor& x) { return entryBytes(x) ? x : x.contiguous(); }

at::Tensor gatherEntriesCpu(const at::Tensor& srcIn, const at::Tensor& indexIn, const at::Tensor& countsIn, int64_t capacity) {
    const at::Tensor src = entriesDense(srcIn), index = indexIn.contiguous(), counts = countsIn.contiguous();
    checkKept("gather_entries", index, counts, src.size(1), capacity);
    std::vector<int64_t> sizes = src.sizes().vec();
    sizes[1] = capacity;
    at::Tensor out = at::empty(sizes, src.options());
    if (out.numel() == 0) return out;
    const int64_t entry = entryBytes(out);
    onCpu("gather_entries", [&](const CpuKernels& kernels) {
        kernels.moveEntries({static_cast<const uint8_t*>(src.const_data_ptr()), static_cast<uint8_t*>(out.data_ptr()),
                             src.stride(0) * src.element_size(), out.stride(0) * out.element_size(), entry, index.const_data_ptr<int32_t>(),
                             index.size(1), counts.const_data_ptr<int32_t>(), src.size(0), capacity});
    });
    return out;
}

void compactEntriesCpu(at::Tensor& x, const at::Tensor& indexIn, const at::Tensor& countsIn) {
    const at::Tensor index = indexIn.contiguous(), counts = countsIn.contiguous();
    checkKept("compact_entries", index, counts, x.size(1), x.size(1));
    if (x.numel() == 0) return;
    const at::Tensor dense = entriesDense(x);
    auto* data = static_cast<uint8_t*>(dense.data_ptr());
    const int64_t head = dense.stride(0) * dense.element_size();
    onCpu("compact_entries", [&](const CpuKernels& kernels) {
        kernels.moveEntries({data, data, head, head, entryBytes(dense), index.const_data_ptr<int32_t>(), index.size(1),
                             counts.const_data_ptr<int32_t>(), x.size(0), 0});
    });
    if (!dense.is_same(x)) x.copy_(dense);
}

void appendEntriesCpu(at::Tensor& dst, const at::Tensor& srcIn, const at::Tensor& lengthsIn) {
    const at::Tensor lengths = lengthsIn.contiguous();
    checkLengths("append_entries", lengths, srcIn.size(1), dst.size(1));
    if (srcIn.numel() == 0) return;
    const at::Tensor dense = entriesDense(dst);
    int64_t values = 1;
    bool rows = true; // each entry of src in one piece
    for (int64_t d = srcIn.dim() - 1; d >= 2; --d) {
        rows = rows && (srcIn.size(d) == 1 || srcIn.stride(d) == values);
        values *= srcIn.size(d);
    }
    const at::Tensor src = rows ? srcIn : srcIn.contiguous();
    const int64_t size = dst.element_size();
    onCpu("append_entries", [&](const CpuKernels& kernels) {
        kernels.appendEntries({static_cast<const uint8_t*>(src.const_data_ptr()), static_cast<uint8_t*>(dense.data_ptr()),
                               src.stride(0) * size, src.stride(1) * size, dense.stride(0) * size, values * size,
                               lengths.const_data_ptr<int32_t>(), dst.size(0), src.size(1)});
    });
    if (!dense.is_same(dst)) dst.copy_(dense);
}

at::Tensor ropeAppendCpu(const at::Tensor& qkvIn, const at::Tensor& position, const at::Tensor& inverseFrequencies, at::Tensor& keys, at::Tensor& values, at::Tensor& positions,
                         at::Tensor& lengths) {
    const int64_t kvHeads = keys.size(0), capacity = keys.size(1), dim = keys.size(2), heads = qkvIn.size(1) / dim, queryHeads = heads - 2 * kvHeads;
    checkLengths("rope_append", lengths, 1, capacity);
    const at::Tensor qkv = qkvIn.contiguous(), frequencies = inverseFrequencies.contiguous(), turned = fresh({queryHeads + kvHeads, 1, dim}, qkv.scalar_type());
    onCpu("rope_append", [&](const CpuKernels& kernels) {
        kernels.rope({qkv.const_data_ptr(), dim, dim, turned.mutable_data_ptr(), queryHeads + kvHeads, 1, dim, position.const_data_ptr<int32_t>(), 0,
                      frequencies.const_data_ptr<float>(), 1, elementOf(qkv)});
    });
    const auto bytes = static_cast<int64_t>(qkv.element_size()), row = dim * bytes;
    const auto* fresh = static_cast<const uint8_t*>(turned.const_data_ptr()) + queryHeads * row;
    const auto* value = static_cast<const uint8_t*>(qkv.const_data_ptr()) + (queryHeads + kvHeads) * row;
    const auto place = [&](const at::Tensor& of, int64_t head, int64_t entry) { return static_cast<uint8_t*>(of.mutable_data_ptr()) + (head * of.stride(0) + entry * of.stride(1)) * bytes; };
    const int64_t step = lengths.stride(0);
    auto* length = lengths.mutable_data_ptr<int32_t>();
    for (int64_t h = 0; h < kvHeads; ++h) {
        int32_t& behind = length[h * step];
        std::memcpy(place(keys, h, behind), fresh + h * row, static_cast<std::size_t>(row));
        std::memcpy(place(values, h, behind), value + h * row, static_cast<std::size_t>(row));
        positions.mutable_data_ptr<int32_t>()[h * positions.stride(0) + behind * positions.stride(1)] = *position.const_data_ptr<int32_t>();
        ++behind;
    }
    return turned.narrow(0, 0, queryHeads);
}

} // namespace

void registerCpu(torch::Library& library) {
    const auto add = [&](const char* name, auto* function) { library.impl(name, torch::dispatch(c10::DispatchKey::CPU, function)); };
    add("linear", linearCpu);
    add("stored_matvec", storedMatvecCpu);
    add("rope_append", ropeAppendCpu);
    add("embedding", embeddingCpu);
    add("dequantize", dequantizeCpu);
    add("rms_norm", rmsNormCpu);
    add("silu_mul", siluMulCpu);
    add("rope", ropeCpu);
    add("attention", attentionCpu);
    add("ragged_attention", raggedAttentionCpu);
    add("attention_rows", attentionRowsCpu);
    add("attention_sums", attentionSumsCpu);
    add("causal_attention", causalAttentionCpu);
    add("output_change", outputChangeCpu);
    add("gather_entries", gatherEntriesCpu);
    add("compact_entries", compactEntriesCpu);
    add("append_entries", appendEntriesCpu);
    registerQuantCpu(library);
    registerPackedCpu(library);
    registerScoreCpu(library);
}

} // namespace keepsight::ops
