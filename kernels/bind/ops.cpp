// Schemas, argument checks and the calls through the dispatcher.
#include "kernels/bind/ops.h"

#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"

#include <ATen/core/dispatch/Dispatcher.h>

TORCH_LIBRARY(keepsight, m) {
    keepsight::ops::defineOperators(m);
    keepsight::ops::defineDecodeOperators(m);
    keepsight::ops::registerCpu(m);
    keepsight::ops::registerComposite(m);
    keepsight::ops::registerOutputChange(m);
    keepsight::ops::registerDecodeComposite(m);
    keepsight::ops::registerSelect(m);
}

namespace keepsight::ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

template <class Signature>
c10::TypedOperatorHandle<Signature> handle(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// What queries over the entries of `heads` KV heads have in common, however these lie.
void checkQueries(const char* op, const at::Tensor& q, const at::Tensor& k, int64_t heads, const at::Tensor& positions, const at::Tensor& lengths,
                  const at::Tensor& queryPositions) {
    checkShape(op, "queries", q, {Any, Any, Any});
    checkFloat(op, "queries", q);
    checkType(op, "keys", k, q.scalar_type());
    if (heads == 0 || q.size(0) == 0 || q.size(0) % heads != 0)
        refuse(op, "query heads", "a positive multiple of the " + std::to_string(heads) + " KV heads", std::to_string(q.size(0)));
    if (q.size(2) == 0) refuse(op, "head size", "positive", "0");
    checkShape(op, "lengths", lengths, {heads});
    checkShape(op, "query positions", queryPositions, {q.size(1)});
    for (const at::Tensor* t : {&positions, &lengths, &queryPositions}) {
        checkType(op, "positions and lengths", *t, at::kInt);
        checkSameDevice(op, "positions and lengths", *t, q);
    }
    checkSameDevice(op, "keys", k, q);
}

void checkEntries(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                  const at::Tensor& queryPositions) {
    checkShape(op, "keys", k, {Any, Any, Any});
    checkQueries(op, q, k, k.size(0), positions, lengths, queryPositions);
    checkShape(op, "keys", k, {Any, Any, q.size(2)});
    checkShape(op, "positions", positions, {k.size(0), k.size(1)});
}

void checkIndex(const char* op, const at::Tensor& x, const at::Tensor& index, const at::Tensor& counts) {
    if (!x.defined() || x.dim() < 2) refuse(op, "entries", "[heads, capacity, ...]", x.defined() ? shapeText(x.sizes()) : "no tensor");
    checkShape(op, "index", index, {x.size(0), Any});
    checkShape(op, "counts", counts, {x.size(0)});
    checkType(op, "index", index, at::kInt);
    checkType(op, "counts", counts, at::kInt);
    checkSameDevice(op, "index", index, x);
    checkSameDevice(op, "counts", counts, x);
}

// Tensors whose entries an eviction moves, [a multiple of the heads, C, …], and the heads' lengths.
void checkMoved(const char* op, const at::Tensor& lengths, at::ArrayRef<at::Tensor> moved) {
    if (moved.empty()) refuse(op, "entries", "at least one tensor of them", "none");
    checkShape(op, "lengths", lengths, {Any});
    checkType(op, "lengths", lengths, at::kInt);
    const int64_t heads = lengths.size(0), capacity = moved[0].dim() >= 2 ? moved[0].size(1) : Any;
    for (const at::Tensor& t : moved) {
        if (t.dim() < 2 || t.size(1) != capacity || heads == 0 || t.size(0) % heads != 0)
            refuse(op, "entries", "[a multiple of " + std::to_string(heads) + " heads, " + std::to_string(capacity) + ", ...]", shapeText(t.sizes()));
        checkSameDevice(op, "entries", t, lengths);
    }
}

} // namespace

CheckedStats checkStats(const char* op, const AttentionStats* stats, const at::Tensor& q, int64_t kvHeads, int64_t entries) {
    if (!stats) return {};
    const auto given = [&](const char* name, const at::Tensor& t) {
        if (!t.defined()) return OptionalTensor();
        checkType(op, name, t, at::kFloat);
        checkSameDevice(op, name, t, q);
        if (!t.is_contiguous()) refuse(op, name, "dense in memory", "strides " + shapeText(t.strides()));
        return OptionalTensor(t);
    };
    CheckedStats out{given("column sums", stats->columnSum), given("last rows", stats->lastRows), given("map", stats->map), 0, 1, 1};
    if (out.columnSum) checkShape(op, "column sums", *out.columnSum, {q.size(0), entries});
    if (out.lastRows) {
        checkShape(op, "last rows", *out.lastRows, {q.size(0), Any, entries});
        if (out.lastRows->size(1) > q.size(1))
            refuse(op, "last rows", "at most the " + std::to_string(q.size(1)) + " queries", std::to_string(out.lastRows->size(1)));
    }
    if (out.map) {
        checkShape(op, "map", *out.map, {Any, Any, Any});
        if (out.map->size(0) != kvHeads && out.map->size(0) != q.size(0))
            refuse(op, "map heads", std::to_string(kvHeads) + " or " + std::to_string(q.size(0)), std::to_string(out.map->size(0)));
        out.rowBegin = stats->mapRowBegin, out.rowBin = stats->rowBin, out.colBin = stats->colBin;
        if (out.rowBin < 1 || out.colBin < 1) refuse(op, "map bins", "at least 1 token", std::to_string(std::min(out.rowBin, out.colBin)));
    }
    return out;
}

void defineOperators(torch::Library& m) {
    m.def("linear(Tensor x, Tensor packed, int weight_type, int in_features, Tensor? bias) -> Tensor");
    m.def("embedding(Tensor ids, Tensor packed, int weight_type, int in_features, ScalarType dtype) -> Tensor");
    m.def("dequantize(Tensor packed, int weight_type, int in_features, ScalarType dtype) -> Tensor");
    m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
    m.def("silu_mul(Tensor gate_up) -> Tensor");
    m.def("rope(Tensor x, Tensor positions, Tensor inverse_frequencies, float sign) -> Tensor");
    m.def("attention(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor lengths, Tensor query_positions, float scale, "
          "Tensor(a!)? column_sum, Tensor(b!)? last_rows, Tensor(c!)? map, int map_row_begin, int row_bin, int col_bin) -> Tensor");
    m.def("ragged_attention(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor starts, Tensor lengths, int capacity, Tensor query_positions, float scale, "
          "Tensor(a!)? column_sum, Tensor(b!)? last_rows, Tensor(c!)? map, int map_row_begin, int row_bin, int col_bin) -> Tensor");
    m.def("attention_rows(Tensor queries, Tensor k, Tensor positions, Tensor lengths, Tensor query_positions, float scale) -> Tensor");
    m.def("attention_sums(Tensor queries, Tensor k, Tensor positions, Tensor lengths, Tensor query_positions, float scale) -> Tensor");
    m.def("output_change(Tensor queries, Tensor k, Tensor v, Tensor positions, Tensor lengths, Tensor query_positions, float scale, int kind, Tensor? output, "
          "Tensor? log_sum_exp) -> Tensor");
    m.def("gather_entries(Tensor src, Tensor index, Tensor counts, int capacity) -> Tensor");
    m.def("compact_entries(Tensor(a!) x, Tensor index, Tensor counts) -> ()");
    m.def("append_entries(Tensor(a!) dst, Tensor src, Tensor lengths) -> ()");
    m.def("top_k(Tensor scores, Tensor counts, int k) -> Tensor");
    m.def("soft_vote(Tensor queries, Tensor keys, Tensor lengths, int begin, int newest, float scale) -> Tensor");
    m.def("drop_lowest(Tensor? scores, Tensor(a!) lengths, Tensor limits, Tensor(b!)[] moved) -> Tensor");
    m.def("drop_entries(Tensor entries, Tensor(a!) lengths, Tensor(b!)[] moved) -> ()");
    defineQuantOperators(m);
    definePackedOperators(m);
    defineScoreOperators(m);
    defineVoteOperators(m);
    defineBesideOperators(m);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed, int64_t weightType, int64_t inFeatures, const OptionalTensor& bias) {
    checkStored("linear", packed, weightType, inFeatures);
    checkShape("linear", "x", x, {Any, inFeatures});
    checkFloat("linear", "x", x);
    checkSameDevice("linear", "packed weights", packed, x);
    const bool hasBias = bias && bias->defined();
    if (hasBias) {
        checkShape("linear", "bias", *bias, {packed.size(0)});
        checkSameDevice("linear", "bias", *bias, x);
    }
    static const auto op =
        handle<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, const OptionalTensor&)>("keepsight::linear");
    return op.call(x, packed, weightType, inFeatures, hasBias ? bias : OptionalTensor());
}

at::Tensor embedding(const at::Tensor& ids, const at::Tensor& packed, int64_t weightType, int64_t inFeatures, at::ScalarType dtype) {
    checkStored("embedding", packed, weightType, inFeatures);
    checkShape("embedding", "ids", ids, {Any});
    checkType("embedding", "ids", ids, at::kLong);
    checkSameDevice("embedding", "ids", ids, packed);
    if (!at::isFloatingType(dtype)) refuse("embedding", "dtype", "a floating-point type", c10::toString(dtype));
    static const auto op =
        handle<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, at::ScalarType)>("keepsight::embedding");
    return op.call(ids, packed, weightType, inFeatures, dtype);
}

at::Tensor dequantize(const at::Tensor& packed, int64_t weightType, int64_t inFeatures, at::ScalarType dtype) {
    checkStored("dequantize", packed, weightType, inFeatures);
    if (!at::isFloatingType(dtype)) refuse("dequantize", "dtype", "a floating-point type", c10::toString(dtype));
    static const auto op = handle<at::Tensor(const at::Tensor&, int64_t, int64_t, at::ScalarType)>("keepsight::dequantize");
    return op.call(packed, weightType, inFeatures, dtype);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
    if (!x.defined() || x.dim() < 1) refuse("rms_norm", "x", "[rows, width]", "no such tensor");
    checkFloat("rms_norm", "x", x);
    checkShape("rms_norm", "weight", weight, {x.size(-1)});
    checkSameDevice("rms_norm", "weight", weight, x);
    static const auto op = handle<at::Tensor(const at::Tensor&, const at::Tensor&, double)>("keepsight::rms_norm");
    return op.call(x, weight, eps);
}

at::Tensor silu_mul(const at::Tensor& gateUp) {
    checkShape("silu_mul", "gate and up", gateUp, {Any, Any});
    checkFloat("silu_mul", "gate and up", gateUp);
    if (gateUp.size(1) % 2 != 0) refuse("silu_mul", "row length", "even", std::to_string(gateUp.size(1)));
    static const auto op = handle<at::Tensor(const at::Tensor&)>("keepsight::silu_mul");
    return op.call(gateUp);
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& inverseFrequencies, double sign) {
    checkShape("rope", "x", x, {Any, Any, Any});
    checkFloat("rope", "x", x);
    if (x.size(2) % 2 != 0) refuse("rope", "head size", "even", std::to_string(x.size(2)));
    if (positions.defined() && positions.dim() == 2)
        checkShape("rope", "positions", positions, {x.size(0), x.size(1)});
    else
        checkShape("rope", "positions", positions, {x.size(1)});
    checkType("rope", "positions", positions, at::kInt);
    checkShape("rope", "inverse frequencies", inverseFrequencies, {x.size(2) / 2});
    checkType("rope", "inverse frequencies", inverseFrequencies, at::kFloat);
    checkSameDevice("rope", "positions", positions, x);
    checkSameDevice("rope", "inverse frequencies", inverseFrequencies, x);
    static const auto op = handle<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, double)>("keepsight::rope");
    return op.call(x, positions, inverseFrequencies, sign);
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                     const at::Tensor& queryPositions, double scale, AttentionStats* stats) {
    checkEntries("attention", q, k, positions, lengths, queryPositions);
    checkShape("attention", "values", v, {k.size(0), k.size(1), k.size(2)});
    checkType("attention", "values", v, q.scalar_type());
    checkSameDevice("attention", "values", v, q);
    const CheckedStats s = checkStats("attention", stats, q, k.size(0), k.size(1));
    static const auto op =
        handle<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                          double, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t, int64_t, int64_t)>(
            "keepsight::attention");
    return op.call(q, k, v, positions, lengths, queryPositions, scale, s.columnSum, s.lastRows, s.map, s.rowBegin, s.rowBin, s.colBin);
}

at::Tensor ragged_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& starts,
                            const at::Tensor& lengths, int64_t capacity, const at::Tensor& queryPositions, double scale, AttentionStats* stats) {
    const char* op = "ragged_attention";
    checkShape(op, "keys", k, {Any, Any});
    checkShape(op, "positions", positions, {k.size(0)});
    checkShape(op, "values", v, {k.size(0), k.size(1)});
    checkType(op, "values", v, q.scalar_type());
    checkSameDevice(op, "values", v, q);
    checkShape(op, "starts", starts, {Any});
    checkType(op, "starts", starts, at::kInt);
    checkSameDevice(op, "starts", starts, q);
    if (capacity < 0 || capacity > k.size(0)) refuse(op, "capacity", "in 0 … " + std::to_string(k.size(0)), std::to_string(capacity));
    checkQueries(op, q, k, starts.size(0), positions, lengths, queryPositions);
    checkShape(op, "keys", k, {Any, q.size(2)});
    const CheckedStats s = checkStats(op, stats, q, starts.size(0), capacity);
    static const auto typed =
        handle<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                          const at::Tensor&, double, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t, int64_t, int64_t)>(
            "keepsight::ragged_attention");
    return typed.call(q, k, v, positions, starts, lengths, capacity, queryPositions, scale, s.columnSum, s.lastRows, s.map, s.rowBegin, s.rowBin, s.colBin);
}

using OverKeys = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double);

at::Tensor attention_rows(const at::Tensor& queries, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                          const at::Tensor& queryPositions, double scale) {
    checkEntries("attention_rows", queries, k, positions, lengths, queryPositions);
    static const auto op = handle<OverKeys>("keepsight::attention_rows");
    return op.call(queries, k, positions, lengths, queryPositions, scale);
}

at::Tensor attention_sums(const at::Tensor& queries, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                          const at::Tensor& queryPositions, double scale) {
    checkEntries("attention_sums", queries, k, positions, lengths, queryPositions);
    static const auto op = handle<OverKeys>("keepsight::attention_sums");
    return op.call(queries, k, positions, lengths, queryPositions, scale);
}

at::Tensor output_change(const at::Tensor& queries, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                         const at::Tensor& queryPositions, double scale, OutputChange kind, const KnownAttention* known) {
    checkEntries("output_change", queries, k, positions, lengths, queryPositions);
    checkShape("output_change", "values", v, {k.size(0), k.size(1), k.size(2)});
    checkType("output_change", "values", v, queries.scalar_type());
    checkSameDevice("output_change", "values", v, queries);
    OptionalTensor output, logSumExp;
    if (known && known->logSumExp.defined() && (known->output.defined() || kind == OutputChange::value)) {
        logSumExp = known->logSumExp;
        checkShape("output_change", "known log-sum-exp", *logSumExp, {queries.size(0), queries.size(1)});
        checkType("output_change", "known log-sum-exp", *logSumExp, at::kFloat);
        checkSameDevice("output_change", "known log-sum-exp", *logSumExp, queries);
        if (known->output.defined()) {
            output = known->output;
            checkShape("output_change", "known output", *output, {queries.size(1), queries.size(0) * queries.size(2)});
            checkType("output_change", "known output", *output, queries.scalar_type());
            checkSameDevice("output_change", "known output", *output, queries);
        }
    }
    static const auto op = handle<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double, int64_t,
                                             const OptionalTensor&, const OptionalTensor&)>("keepsight::output_change");
    return op.call(queries, k, v, positions, lengths, queryPositions, scale, static_cast<int64_t>(kind), output, logSumExp);
}

at::Tensor top_k(const at::Tensor& scores, const at::Tensor& counts, int64_t k) {
    checkShape("top_k", "scores", scores, {Any, Any});
    checkType("top_k", "scores", scores, at::kFloat);
    checkShape("top_k", "counts", counts, {scores.size(0)});
    checkType("top_k", "counts", counts, at::kInt);
    checkSameDevice("top_k", "counts", counts, scores);
    if (k < 0) refuse("top_k", "k", "0 or more", std::to_string(k));
    static const auto op = handle<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t)>("keepsight::top_k");
    return op.call(scores, counts, k);
}

at::Tensor soft_vote(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& lengths, int64_t begin, int64_t newest, double scale) {
    checkShape("soft_vote", "keys", keys, {Any, Any, Any});
    checkFloat("soft_vote", "keys", keys);
    checkShape("soft_vote", "queries", queries, {Any, keys.size(2)});
    if (queries.scalar_type() != at::kFloat) checkType("soft_vote", "queries", queries, keys.scalar_type());
    const int64_t heads = keys.size(0);
    if (heads == 0 || queries.size(0) == 0 || queries.size(0) % heads != 0)
        refuse("soft_vote", "query heads", "a positive multiple of the " + std::to_string(heads) + " KV heads", std::to_string(queries.size(0)));
    checkShape("soft_vote", "lengths", lengths, {heads});
    checkType("soft_vote", "lengths", lengths, at::kInt);
    checkSameDevice("soft_vote", "queries", queries, keys);
    checkSameDevice("soft_vote", "lengths", lengths, keys);
    if (begin < 0 || newest < 0 || begin > keys.size(1))
        refuse("soft_vote", "first candidate and newest entries", "0 or more, the first within the " + std::to_string(keys.size(1)) + " entries",
               std::to_string(begin) + " and " + std::to_string(newest));
    static const auto op =
        handle<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t, double)>("keepsight::soft_vote");
    return op.call(queries, keys, lengths, begin, newest, scale);
}

at::Tensor drop_lowest(const std::optional<at::Tensor>& given, at::Tensor& lengths, const at::Tensor& limits, at::ArrayRef<at::Tensor> moved) {
    const char* op = "drop_lowest";
    checkMoved(op, lengths, moved);
    const int64_t heads = lengths.size(0), capacity = moved[0].dim() == 2 ? moved[0].size(1) : Any;
    checkShape(op, "positions", moved[0], {heads, capacity});
    checkType(op, "positions", moved[0], at::kInt);
    checkShape(op, "limits", limits, {3});
    checkType(op, "limits", limits, at::kInt);
    checkSameDevice(op, "limits", limits, lengths);
    const OptionalTensor scores = given && given->defined() ? given : OptionalTensor();
    if (scores) {
        checkShape(op, "scores", *scores, {heads, capacity});
        checkType(op, "scores", *scores, at::kFloat);
        checkSameDevice(op, "scores", *scores, lengths);
    }
    static const auto typed = handle<at::Tensor(const OptionalTensor&, at::Tensor&, const at::Tensor&, at::TensorList)>("keepsight::drop_lowest");
    return typed.call(scores, lengths, limits, moved);
}

void drop_entries(const at::Tensor& entries, at::Tensor& lengths, at::ArrayRef<at::Tensor> moved) {
    const char* op = "drop_entries";
    checkMoved(op, lengths, moved);
    if (const int64_t heads = lengths.size(0); entries.defined() && entries.dim() == 2)
        checkShape(op, "entries that go", entries, {heads, Any});
    else
        checkShape(op, "entries that go", entries, {heads});
    checkType(op, "entries that go", entries, at::kInt);
    checkSameDevice(op, "entries that go", entries, lengths);
    static const auto typed = handle<void(const at::Tensor&, at::Tensor&, at::TensorList)>("keepsight::drop_entries");
    typed.call(entries.reshape({lengths.size(0), -1}), lengths, moved);
}

at::Tensor gather_entries(const at::Tensor& src, const at::Tensor& index, const at::Tensor& counts, int64_t capacity) {
    checkIndex("gather_entries", src, index, counts);
    if (capacity < 0) refuse("gather_entries", "capacity", "0 or more", std::to_string(capacity));
    static const auto op =
        handle<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t)>("keepsight::gather_entries");
    return op.call(src, index, counts, capacity);
}

void compact_entries(at::Tensor& x, const at::Tensor& index, const at::Tensor& counts) {
    checkIndex("compact_entries", x, index, counts);
    static const auto op = handle<void(at::Tensor&, const at::Tensor&, const at::Tensor&)>("keepsight::compact_entries");
    op.call(x, index, counts);
}

void append_entries(at::Tensor& dst, const at::Tensor& src, const at::Tensor& lengths) {
    if (!dst.defined() || dst.dim() < 2)
        refuse("append_entries", "entries", "[heads, capacity, ...]", dst.defined() ? shapeText(dst.sizes()) : "no tensor");
    if (!src.defined() || src.dim() != dst.dim() || src.size(0) != dst.size(0) || src.sizes().slice(2) != dst.sizes().slice(2))
        refuse("append_entries", "new entries", "like " + shapeText(dst.sizes()) + " but for the number of entries",
               src.defined() ? shapeText(src.sizes()) : "no tensor");
    checkType("append_entries", "new entries", src, dst.scalar_type());
    checkShape("append_entries", "lengths", lengths, {dst.size(0)});
    checkType("append_entries", "lengths", lengths, at::kInt);
    checkSameDevice("append_entries", "new entries", src, dst);
    checkSameDevice("append_entries", "lengths", lengths, dst);
    static const auto op = handle<void(at::Tensor&, const at::Tensor&, const at::Tensor&)>("keepsight::append_entries");
    op.call(dst, src, lengths);
}

} // namespace keepsight::ops
