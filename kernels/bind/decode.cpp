// Operators for plain passes on devices (a decoded token, over all entries or chosen ones; a prompt): schemas, checks, and their form in the operators they replace.
#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace keepsight::ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Matvec = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, double, bool);
using StoredMatvec = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, double, bool);
using Causal = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, double, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
                          int64_t, int64_t);
using Sparse = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double,
                          const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t, int64_t, int64_t);
using RopeAppend = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&);

at::Tensor finished(const at::Tensor& product, bool gated, const OptionalTensor& residual) {
    const at::Tensor out = gated ? silu_mul(product) : product;
    return residual ? out + *residual : out;
}

at::Tensor matvecComposite(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& norm, const OptionalTensor& residual,
                           double eps, bool gated) {
    return finished(at::linear(norm ? rms_norm(x, *norm, eps) : x, weight, bias), gated, residual);
}

at::Tensor storedMatvecComposite(const at::Tensor& x, const at::Tensor& packed, int64_t weightType, int64_t columns, const OptionalTensor& bias, const OptionalTensor& norm,
                                 const OptionalTensor& residual, double eps, bool gated) {
    return finished(linear(norm ? rms_norm(x, *norm, eps) : x, packed, weightType, columns, bias), gated, residual);
}

std::tuple<at::Tensor, at::Tensor> causalAttentionComposite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t held, double scale,
                                                            const OptionalTensor& columnSum, const OptionalTensor& lastRows, const OptionalTensor& map, int64_t rowBegin,
                                                            int64_t rowBin, int64_t colBin) {
    const auto ints = q.options().dtype(at::kInt);
    const at::Tensor positions = at::arange(k.size(1), ints).expand({k.size(0), k.size(1)}).contiguous(), lengths = at::full({k.size(0)}, held, ints);
    const auto orNone = [](const OptionalTensor& t) { return t ? *t : at::Tensor(); };
    AttentionStats stats{orNone(columnSum), orNone(lastRows), orNone(map), rowBegin, rowBin, colBin};
    return {attention(q, k, v, positions, lengths, at::arange(held - q.size(1), held, ints), scale, &stats), at::Tensor()};
}

at::Tensor ropeAppendComposite(const at::Tensor& qkv, const at::Tensor& position, const at::Tensor& inverseFrequencies, at::Tensor& keys, at::Tensor& values,
                               at::Tensor& positions, at::Tensor& lengths) {
    const int64_t kvHeads = keys.size(0), dim = keys.size(2), heads = qkv.size(1) / dim;
    const at::Tensor each = qkv.view({heads, 1, dim}), turned = rope(each.narrow(0, 0, heads - kvHeads), position, inverseFrequencies);
    append_entries(keys, turned.narrow(0, heads - 2 * kvHeads, kvHeads), lengths);
    append_entries(values, each.narrow(0, heads - kvHeads, kvHeads), lengths);
    append_entries(positions, position.unsqueeze(0).expand({kvHeads, 1}).contiguous(), lengths);
    lengths.add_(1);
    return turned.narrow(0, 0, heads - 2 * kvHeads);
}

at::Tensor sparseAttentionComposite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& chosen,
                                    const at::Tensor& inverseFrequencies, const at::Tensor& queryPosition, double scale, const OptionalTensor& columnSum,
                                    const OptionalTensor& lastRows, const OptionalTensor& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    const int64_t size = chosen.size(0);
    const at::Tensor index = chosen.expand({k.size(0), size}).contiguous(), counts = at::full({k.size(0)}, size, chosen.options());
    const auto ofSet = [&](const at::Tensor& x) { return gather_entries(x, index, counts, size); };
    const auto orNone = [](const OptionalTensor& t) { return t ? *t : at::Tensor(); };
    AttentionStats stats{orNone(columnSum), orNone(lastRows), orNone(map), rowBegin, rowBin, colBin};
    return attention(rope(q, at::full({1}, size - 1, chosen.options()), inverseFrequencies), rope(ofSet(k), at::arange(size, chosen.options()), inverseFrequencies), ofSet(v),
                     ofSet(positions), counts, queryPosition, scale, &stats);
}

// What comes before and after a product of x with a matrix of `rows` rows, checked; undefined tensors become none.
MatvecOptions checkOptions(const char* op, const MatvecOptions& o, const at::Tensor& x, int64_t rows) {
    if (o.gated && rows % 2 != 0) refuse(op, "gated weight rows", "an even number", std::to_string(rows));
    const auto given = [](const OptionalTensor& t) { return t && t->defined() ? t : OptionalTensor(); };
    const MatvecOptions out{given(o.bias), given(o.norm), given(o.residual), o.eps, o.gated};
    if (out.bias) checkShape(op, "bias", *out.bias, {rows});
    if (out.norm) checkShape(op, "norm", *out.norm, {x.size(1)});
    if (out.norm) checkType(op, "norm", *out.norm, at::kFloat);
    if (out.residual) checkShape(op, "residual", *out.residual, {1, o.gated ? rows / 2 : rows});
    if (out.residual) checkType(op, "residual", *out.residual, x.scalar_type());
    for (const OptionalTensor* t : {&out.bias, &out.norm, &out.residual})
        if (*t) checkSameDevice(op, "bias, norm and residual", **t, x);
    return out;
}

} // namespace

at::Tensor matvec(const at::Tensor& x, const at::Tensor& weight, const MatvecOptions& options) {
    constexpr auto op = "matvec";
    checkShape(op, "x", x, {1, Any});
    checkFloat(op, "x", x);
    checkShape(op, "weight", weight, {Any, x.size(1)});
    checkType(op, "weight", weight, x.scalar_type());
    checkSameDevice(op, "weight", weight, x);
    const MatvecOptions o = checkOptions(op, options, x, weight.size(0));
    if (o.bias) checkType(op, "bias", *o.bias, x.scalar_type());
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::matvec", "").typed<Matvec>();
    return typed.call(x, weight, o.bias, o.norm, o.residual, o.eps, o.gated);
}

at::Tensor stored_matvec(const at::Tensor& x, const at::Tensor& packed, int64_t weightType, int64_t inFeatures, const MatvecOptions& options) {
    constexpr auto op = "stored_matvec";
    checkStored(op, packed, weightType, inFeatures);
    checkShape(op, "x", x, {1, inFeatures});
    checkFloat(op, "x", x);
    checkSameDevice(op, "packed weights", packed, x);
    const MatvecOptions o = checkOptions(op, options, x, packed.size(0));
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::stored_matvec", "").typed<StoredMatvec>();
    return typed.call(x, packed, weightType, inFeatures, o.bias, o.norm, o.residual, o.eps, o.gated);
}

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t held, double scale, AttentionStats* stats) {
    constexpr auto op = "causal_attention";
    checkShape(op, "queries", q, {Any, Any, Any});
    checkFloat(op, "queries", q);
    checkShape(op, "keys", k, {Any, Any, q.size(2)});
    checkShape(op, "values", v, {k.size(0), k.size(1), k.size(2)});
    for (const at::Tensor* t : {&k, &v}) {
        checkType(op, "keys and values", *t, q.scalar_type());
        checkSameDevice(op, "keys and values", *t, q);
    }
    if (k.size(0) == 0 || q.size(0) == 0 || q.size(0) % k.size(0) != 0)
        refuse(op, "query heads", "a positive multiple of the " + std::to_string(k.size(0)) + " KV heads", std::to_string(q.size(0)));
    if (held < q.size(1) || held > k.size(1))
        refuse(op, "held entries", "from the " + std::to_string(q.size(1)) + " queries' own to the capacity of " + std::to_string(k.size(1)), std::to_string(held));
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::causal_attention", "").typed<Causal>();
    const CheckedStats s = checkStats(op, stats, q, k.size(0), k.size(1));
    auto [out, logSumExp] = typed.call(q, k, v, held, scale, s.columnSum, s.lastRows, s.map, s.rowBegin, s.rowBin, s.colBin);
    if (stats) stats->logSumExp = std::move(logSumExp);
    return out;
}

at::Tensor rope_append(const at::Tensor& qkv, const at::Tensor& position, const at::Tensor& inverseFrequencies, at::Tensor& keys, at::Tensor& values,
                       at::Tensor& positions, at::Tensor& lengths) {
    constexpr auto op = "rope_append";
    checkShape(op, "keys", keys, {Any, Any, Any});
    checkFloat(op, "keys", keys);
    const int64_t kvHeads = keys.size(0), dim = keys.size(2);
    checkShape(op, "values", values, {kvHeads, keys.size(1), dim});
    checkShape(op, "qkv", qkv, {1, Any});
    const int64_t heads = dim > 0 ? qkv.size(1) / dim : 0;
    if (dim == 0 || dim % 2 != 0 || qkv.size(1) % dim != 0 || heads <= 2 * kvHeads || (heads - 2 * kvHeads) % kvHeads != 0)
        refuse(op, "qkv", "query heads, a multiple of the " + std::to_string(kvHeads) + " KV heads, and twice these, of " + std::to_string(dim), std::to_string(qkv.size(1)));
    for (const at::Tensor* t : {&static_cast<const at::Tensor&>(values), &qkv}) checkType(op, "values and qkv", *t, keys.scalar_type());
    checkShape(op, "position", position, {1});
    checkShape(op, "inverse frequencies", inverseFrequencies, {dim / 2});
    checkType(op, "inverse frequencies", inverseFrequencies, at::kFloat);
    checkShape(op, "positions", positions, {kvHeads, keys.size(1)});
    checkShape(op, "lengths", lengths, {kvHeads});
    for (const at::Tensor* t : {&position, &static_cast<const at::Tensor&>(positions), &static_cast<const at::Tensor&>(lengths)}) checkType(op, "positions and lengths", *t, at::kInt);
    for (const at::Tensor* t : {&position, &inverseFrequencies, &qkv, &static_cast<const at::Tensor&>(values), &static_cast<const at::Tensor&>(positions),
                                &static_cast<const at::Tensor&>(lengths)})
        checkSameDevice(op, "arguments", *t, keys);
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::rope_append", "").typed<RopeAppend>();
    return typed.call(qkv, position, inverseFrequencies, keys, values, positions, lengths);
}

at::Tensor sparse_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& chosen,
                            const at::Tensor& inverseFrequencies, const at::Tensor& queryPosition, double scale, AttentionStats* stats) {
    constexpr auto op = "sparse_attention";
    checkShape(op, "query", q, {Any, 1, Any});
    checkFloat(op, "query", q);
    const int64_t dim = q.size(2);
    if (dim == 0 || dim % 2 != 0) refuse(op, "head size", "positive and even", std::to_string(dim));
    checkShape(op, "keys", k, {Any, Any, dim});
    checkShape(op, "values", v, {k.size(0), k.size(1), dim});
    if (k.size(0) == 0 || q.size(0) == 0 || q.size(0) % k.size(0) != 0)
        refuse(op, "query heads", "a positive multiple of the " + std::to_string(k.size(0)) + " KV heads", std::to_string(q.size(0)));
    checkShape(op, "positions", positions, {k.size(0), k.size(1)});
    checkShape(op, "chosen entries", chosen, {Any});
    if (chosen.size(0) == 0 || chosen.size(0) > k.size(1))
        refuse(op, "chosen entries", "from the query's own to all " + std::to_string(k.size(1)), std::to_string(chosen.size(0)));
    checkShape(op, "inverse frequencies", inverseFrequencies, {dim / 2});
    checkType(op, "inverse frequencies", inverseFrequencies, at::kFloat);
    checkShape(op, "query position", queryPosition, {1});
    for (const at::Tensor* t : {&k, &v}) checkType(op, "keys and values", *t, q.scalar_type());
    for (const at::Tensor* t : {&positions, &chosen, &queryPosition}) checkType(op, "positions and chosen entries", *t, at::kInt);
    for (const at::Tensor* t : {&k, &v, &positions, &chosen, &inverseFrequencies, &queryPosition}) checkSameDevice(op, "arguments", *t, q);
    const CheckedStats s = checkStats(op, stats, q, k.size(0), chosen.size(0));
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::sparse_attention", "").typed<Sparse>();
    return typed.call(q, k, v, positions, chosen, inverseFrequencies, queryPosition, scale, s.columnSum, s.lastRows, s.map, s.rowBegin, s.rowBin, s.colBin);
}

void defineDecodeOperators(torch::Library& m) {
    m.def("matvec(Tensor x, Tensor weight, Tensor? bias, Tensor? norm, Tensor? residual, float eps, bool gated) -> Tensor");
    m.def("stored_matvec(Tensor x, Tensor packed, int weight_type, int in_features, Tensor? bias, Tensor? norm, Tensor? residual, float eps, bool gated) -> Tensor");
    m.def("causal_attention(Tensor q, Tensor k, Tensor v, int held, float scale, Tensor(a!)? column_sum, Tensor(b!)? last_rows, Tensor(c!)? map, int map_row_begin, "
          "int row_bin, int col_bin) -> (Tensor output, Tensor log_sum_exp)"); // [Hq, S] fp32; undefined where no kernel leaves it
    m.def("sparse_attention(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor chosen, Tensor inverse_frequencies, Tensor query_position, float scale, "
          "Tensor(a!)? column_sum, Tensor(b!)? last_rows, Tensor(c!)? map, int map_row_begin, int row_bin, int col_bin) -> Tensor");
    m.def("rope_append(Tensor qkv, Tensor position, Tensor inverse_frequencies, Tensor(a!) keys, Tensor(b!) values, Tensor(c!) positions, Tensor(d!) lengths) -> Tensor");
}

void registerDecodeComposite(torch::Library& m) {
    m.impl("matvec", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, matvecComposite));
    m.impl("stored_matvec", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, storedMatvecComposite));
    m.impl("causal_attention", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, causalAttentionComposite));
    m.impl("sparse_attention", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, sparseAttentionComposite));
    m.impl("rope_append", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, ropeAppendComposite));
}

} // namespace keepsight::ops
