// Llama-style decoder: RMSNorm, grouped-query attention with RoPE, SiLU-gated MLP, optional biases, tied or own output matrix.
// Weights stay as stored (mapped, quantized) on the CPU and are unpacked once to `dtype` on other devices.
#include "engine/data/error.h"
#include "engine/model/model.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

namespace keepsight {
namespace {

// A stored matrix [out, in]; several may be stacked by rows when one product serves them all.
class Matrix {
public:
    Matrix() = default;
    Matrix(at::Tensor packed, WeightType type, std::int64_t in) : m_packed(std::move(packed)), m_type(type), m_in(in) {}

    at::Tensor apply(const at::Tensor& x) const {
        if (m_dense.defined()) return m_bias ? at::linear(x, m_dense, *m_bias) : at::linear(x, m_dense);
        return ops::linear(x, m_packed, static_cast<int>(m_type), m_in, m_bias);
    }
    // With what comes before and after the product (the matrix's own bias included); one row takes one call.
    at::Tensor apply(const at::Tensor& x, ops::MatvecOptions with) const {
        if (x.size(0) == 1) {
            with.bias = m_bias;
            return m_dense.defined() ? ops::matvec(x, m_dense, with) : ops::stored_matvec(x, m_packed, static_cast<int>(m_type), m_in, with);
        }
        const at::Tensor y = apply(with.norm ? ops::rms_norm(x, *with.norm, with.eps) : x), out = with.gated ? ops::silu_mul(y) : y;
        return with.residual ? out.add_(*with.residual) : out;
    }
    at::Tensor rows(const at::Tensor& ids, at::ScalarType dtype) const {
        return m_dense.defined() ? m_dense.index_select(0, ids) : ops::embedding(ids, m_packed, static_cast<int>(m_type), m_in, dtype);
    }
    Matrix slice(std::int64_t first, std::int64_t rows) const { // of the output rows; the head has no bias
        Matrix part = *this;
        (m_dense.defined() ? part.m_dense : part.m_packed) = (m_dense.defined() ? m_dense : m_packed).narrow(0, first, rows);
        return part;
    }
    void setBias(at::Tensor bias) { m_bias = std::move(bias); }
    // Rows of `other` behind these, dense already.
    void stack(const Matrix& other) {
        m_dense = at::cat({m_dense, other.m_dense});
        if (m_bias) m_bias = at::cat({*m_bias, *other.m_bias});
    }
    void unpackTo(at::ScalarType dtype, at::Device device) {
        m_dense = ops::dequantize(m_packed, static_cast<int>(m_type), m_in, dtype).to(device);
        m_packed.reset();
        if (m_bias) m_bias = m_bias->to(device, dtype);
    }
    const at::Tensor& packed() const { return m_packed; }
    WeightType type() const { return m_type; }
    std::int64_t in() const { return m_in; }

private:
    at::Tensor m_packed; // uint8 [out, rowBytes]
    WeightType m_type = WeightType::f32;
    std::int64_t m_in = 0;
    at::Tensor m_dense; // [out, in] in the model's dtype; devices other than the CPU
    std::optional<at::Tensor> m_bias;
};

struct Layer {
    at::Tensor attentionNorm, mlpNorm; // [hidden] fp32
    Matrix qkv, output;                // [(queryHeads + 2·kvHeads)·headDim, hidden], [hidden, queryHeads·headDim]
    Matrix gateUp, gate, up, down;     // gate and up stacked where they lie side by side in the file, else apart
};

class Llama final : public Model {
public:
    Llama(std::shared_ptr<const WeightFile> file, at::ScalarType dtype, at::Device device)
        : m_file(std::move(file)), m_config(m_file->config()), m_dtype(dtype), m_device(device), m_gguf(m_file->format() == "gguf") {
        load();
    }

    const ModelConfig& config() const override { return m_config; }
    at::ScalarType dtype() const override { return m_dtype; }
    at::Device device() const override { return m_device; }
    const at::Tensor& inverseFrequencies() const override { return m_inverse; }

    at::Tensor forward(std::span<const TokenId> ids, Position first, KvCache& cache, LayerObserver* observer, LogitRows rows,
                       std::stop_token stop) const override;
    at::Tensor step(const at::Tensor& id, const at::Tensor& position, KvCache& cache, LayerObserver* observer) const override;
    at::Tensor losses(std::span<const TokenId> ids, std::span<const TokenId> targets, Position first, std::span<const PassLane> lanes,
                      std::stop_token stop) const override;

private:
    void load();
    at::Tensor layers(std::span<const TokenId> ids, Position first, std::span<const PassLane> lanes, std::stop_token stop) const; // [lanes · S, hidden]
    at::Tensor layers(const at::Tensor& ids, const at::Tensor& positions, std::span<const PassLane> lanes, std::stop_token stop) const; // both on the device
    at::Tensor attend(LayerIndex index, const at::Tensor& qkv, const at::Tensor& positions, const PassLane& lane) const;           // [S, queryHeads · D]
    at::Tensor attendTo(const at::Tensor& chosen, const at::Tensor& plainQueries, const KvCache::Dense& stored, const CacheLayer& held,
                        const at::Tensor& positions, double scale, ops::AttentionStats* stats) const;
    const Matrix& head() const { return m_config.tiedEmbeddings ? m_embedding : m_head; }
    std::string fileName(int layer, std::string_view gguf, std::string_view huggingFace) const;
    at::Tensor mapped(const WeightTensor& t) const;
    at::Tensor vector(const std::string& name, std::int64_t size, at::ScalarType dtype) const;
    Matrix matrix(const std::string& name, std::int64_t out, std::int64_t in) const;
    Matrix stacked(const std::vector<Matrix>& parts) const;
    Matrix ropeRows(Matrix m, int heads) const;
    std::optional<at::Tensor> bias(const std::string& weightName, std::int64_t size) const;

    std::shared_ptr<const WeightFile> m_file;
    ModelConfig m_config;
    at::ScalarType m_dtype;
    at::Device m_device;
    bool m_gguf;
    at::Tensor m_inverse, m_still, m_finalNorm; // still: frequencies of 0, which turn nothing
    Matrix m_embedding, m_head; // m_head unset when tied
    std::vector<Layer> m_layers;
};

std::string Llama::fileName(int layer, std::string_view gguf, std::string_view huggingFace) const {
    const std::string prefix = m_gguf ? "blk." : "model.layers.";
    return prefix + std::to_string(layer) + "." + std::string(m_gguf ? gguf : huggingFace) + ".weight";
}

bool random(const WeightTensor& t) { return t.bytes.empty(); } // made up where the model runs

at::Tensor Llama::mapped(const WeightTensor& t) const {
    const std::int64_t columns = t.shape.back(), width = rowBytes(t.type, columns);
    // The mapping is read-only; no operator writes to a weight.
    const at::Tensor rows = at::from_blob(const_cast<std::byte*>(t.bytes.data()), {static_cast<std::int64_t>(t.bytes.size()) / width, width}, at::kByte);
    const bool aligned = reinterpret_cast<std::uintptr_t>(t.bytes.data()) % alignof(float) == 0; // safetensors promises none
    return aligned ? rows : rows.clone();
}

at::Tensor Llama::vector(const std::string& name, std::int64_t size, at::ScalarType dtype) const {
    const WeightTensor& t = m_file->tensor(name, {size});
    if (random(t)) return (name.ends_with("bias") ? at::zeros({size}, at::kFloat) : at::ones({size}, at::kFloat)).to(m_device, dtype);
    return ops::dequantize(mapped(t), static_cast<int>(t.type), size, at::kFloat).reshape({size}).to(m_device, dtype).clone();
}

Matrix Llama::matrix(const std::string& name, std::int64_t out, std::int64_t in) const {
    const WeightTensor& t = m_file->tensor(name, {out, in});
    if (random(t)) {
        const at::Tensor values = at::empty({out, in}, at::TensorOptions().dtype(at::kBFloat16).device(m_device)).normal_(0, 0.5 / std::sqrt(static_cast<double>(in)));
        return Matrix(values.view(at::kByte), WeightType::bf16, in);
    }
    return Matrix(mapped(t), t.type, in);
}

// One matrix of several with the same row type: a view if they follow each other in memory, else a copy.
Matrix Llama::stacked(const std::vector<Matrix>& parts) const {
    std::vector<at::Tensor> rows;
    for (const Matrix& part : parts) rows.push_back(part.packed());
    return Matrix(at::cat(rows, 0), parts.front().type(), parts.front().in());
}

// GGUF's converter stores the rows of llama's q and k matrices interleaved (2j + s) for adjacent-pair RoPE; back to halves (s·D/2 + j).
Matrix Llama::ropeRows(Matrix m, int heads) const {
    if (!m_gguf) return m;
    const std::int64_t half = m_config.headDim / 2, width = m.packed().size(1);
    at::Tensor rows = m.packed().view({heads, half, 2, width}).transpose(1, 2).reshape({-1, width}).contiguous();
    return Matrix(rows, m.type(), m.in());
}

std::optional<at::Tensor> Llama::bias(const std::string& weightName, std::int64_t size) const {
    const std::string name = weightName.substr(0, weightName.size() - std::string_view("weight").size()) + "bias";
    if (!m_file->find(name)) return std::nullopt;
    return vector(name, size, m_dtype);
}

void Llama::load() {
    const ModelConfig& c = m_config;
    if (m_file->format() == "random") at::manual_seed(0);
    const std::int64_t qRows = static_cast<std::int64_t>(c.queryHeads) * c.headDim, kvRows = static_cast<std::int64_t>(c.kvHeads) * c.headDim;
    m_inverse = ropeInverseFrequencies(c).to(m_device);
    m_still = at::zeros_like(m_inverse);
    m_embedding = matrix(m_gguf ? "token_embd.weight" : "model.embed_tokens.weight", c.vocab, c.hidden);
    if (!c.tiedEmbeddings) m_head = matrix(m_gguf ? "output.weight" : "lm_head.weight", c.vocab, c.hidden);
    m_finalNorm = vector(m_gguf ? "output_norm.weight" : "model.norm.weight", c.hidden, at::kFloat);

    for (int i = 0; i < c.layers; ++i) {
        Layer& layer = m_layers.emplace_back();
        layer.attentionNorm = vector(fileName(i, "attn_norm", "input_layernorm"), c.hidden, at::kFloat);
        layer.mlpNorm = vector(fileName(i, "ffn_norm", "post_attention_layernorm"), c.hidden, at::kFloat);

        const std::string qName = fileName(i, "attn_q", "self_attn.q_proj"), kName = fileName(i, "attn_k", "self_attn.k_proj"),
                          vName = fileName(i, "attn_v", "self_attn.v_proj");
        const Matrix q = ropeRows(matrix(qName, qRows, c.hidden), c.queryHeads), k = ropeRows(matrix(kName, kvRows, c.hidden), c.kvHeads),
                     v = matrix(vName, kvRows, c.hidden);
        if (q.type() != k.type() || q.type() != v.type()) {
            // Mixed files (some quantizers keep v finer): one type is needed to stack; fp32 loses nothing.
            std::vector<at::Tensor> dense;
            for (const Matrix& m : {q, k, v}) dense.push_back(ops::dequantize(m.packed(), static_cast<int>(m.type()), m.in(), at::kFloat));
            at::Tensor all = at::cat(dense, 0).contiguous();
            layer.qkv = Matrix(all.view(at::kByte), WeightType::f32, c.hidden);
        } else {
            layer.qkv = stacked({q, k, v});
        }
        const auto qBias = bias(qName, qRows), kBias = bias(kName, kvRows), vBias = bias(vName, kvRows);
        if (qBias || kBias || vBias) {
            const auto orZero = [&](const std::optional<at::Tensor>& b, std::int64_t n) {
                return b ? *b : at::zeros({n}, at::TensorOptions().dtype(m_dtype).device(m_device));
            };
            const auto ropeBias = [&](const at::Tensor& b, int heads) {
                return m_gguf ? b.view({heads, c.headDim / 2, 2}).transpose(1, 2).reshape({-1}) : b;
            };
            layer.qkv.setBias(at::cat({ropeBias(orZero(qBias, qRows), c.queryHeads), ropeBias(orZero(kBias, kvRows), c.kvHeads), orZero(vBias, kvRows)}));
        }
        const std::string oName = fileName(i, "attn_output", "self_attn.o_proj");
        layer.output = matrix(oName, c.hidden, qRows);
        if (const auto b = bias(oName, c.hidden)) layer.output.setBias(*b);

        const std::string gateName = fileName(i, "ffn_gate", "mlp.gate_proj"), upName = fileName(i, "ffn_up", "mlp.up_proj"),
                          downName = fileName(i, "ffn_down", "mlp.down_proj");
        const WeightTensor &gate = m_file->tensor(gateName, {c.feedForward, c.hidden}), &up = m_file->tensor(upName, {c.feedForward, c.hidden});
        const auto gateBias = bias(gateName, c.feedForward), upBias = bias(upName, c.feedForward);
        if (random(gate)) {
            layer.gateUp = stacked({matrix(gateName, c.feedForward, c.hidden), matrix(upName, c.feedForward, c.hidden)});
        } else if (gate.type == up.type && gate.bytes.data() + gate.bytes.size() == up.bytes.data() && !gateBias && !upBias &&
            reinterpret_cast<std::uintptr_t>(gate.bytes.data()) % alignof(float) == 0) {
            const std::int64_t width = rowBytes(gate.type, c.hidden);
            layer.gateUp = Matrix(at::from_blob(const_cast<std::byte*>(gate.bytes.data()), {2 * static_cast<std::int64_t>(c.feedForward), width}, at::kByte),
                                  gate.type, c.hidden);
        } else {
            layer.gate = matrix(gateName, c.feedForward, c.hidden);
            layer.up = matrix(upName, c.feedForward, c.hidden);
            if (gateBias) layer.gate.setBias(*gateBias);
            if (upBias) layer.up.setBias(*upBias);
        }
        layer.down = matrix(downName, c.hidden, c.feedForward);
        if (const auto b = bias(downName, c.hidden)) layer.down.setBias(*b);

        if (!m_device.is_cpu())
            for (Matrix* m : {&layer.qkv, &layer.output, &layer.gateUp, &layer.gate, &layer.up, &layer.down})
                if (m->packed().defined()) m->unpackTo(m_dtype, m_device);
        if (!m_device.is_cpu() && !layer.gateUp.in() && gateBias.has_value() == upBias.has_value()) {
            layer.gateUp = std::exchange(layer.gate, {});
            layer.gateUp.stack(std::exchange(layer.up, {}));
        }
    }
    if (!m_device.is_cpu()) {
        m_embedding.unpackTo(m_dtype, m_device);
        if (!c.tiedEmbeddings) m_head.unpackTo(m_dtype, m_device);
    }
}

at::Tensor Llama::layers(std::span<const TokenId> ids, Position first, std::span<const PassLane> lanes, std::stop_token stop) const {
    const ModelConfig& c = m_config;
    const auto count = static_cast<std::int64_t>(ids.size());
    at::Tensor idTensor = at::empty({count}, at::kLong);
    for (std::int64_t i = 0; i < count; ++i) {
        const TokenId id = ids[static_cast<std::size_t>(i)];
        if (id < 0 || id >= c.vocab)
            throw EngineError("model: token id " + std::to_string(id) + " at position " + std::to_string(first + i) + " is outside the vocabulary of " +
                              std::to_string(c.vocab));
        idTensor.data_ptr<std::int64_t>()[i] = id;
    }
    return layers(idTensor.to(m_device), at::arange(first, first + count, at::kInt).to(m_device), lanes, stop);
}

at::Tensor Llama::layers(const at::Tensor& ids, const at::Tensor& positions, std::span<const PassLane> lanes, std::stop_token stop) const {
    const ModelConfig& c = m_config;
    const std::int64_t count = ids.size(0), width = static_cast<std::int64_t>(lanes.size());
    at::Tensor x = m_embedding.rows(ids, m_dtype); // [S, hidden]
    if (width > 1) x = x.repeat({width, 1});

    for (int i = 0; i < c.layers; ++i) {
        if (stop.stop_requested()) throw Cancelled{};
        const Layer& layer = m_layers[static_cast<std::size_t>(i)];
        const at::Tensor qkv = layer.qkv.apply(x, {.norm = layer.attentionNorm, .eps = c.normEps});
        std::vector<at::Tensor> attended;
        for (std::int64_t lane = 0; lane < width; ++lane)
            attended.push_back(attend(LayerIndex{i}, qkv.narrow(0, lane * count, count), positions, lanes[static_cast<std::size_t>(lane)]));
        x = layer.output.apply(width > 1 ? at::cat(attended) : attended.front(), {.residual = x});
        at::Tensor gated;
        if (layer.gateUp.in()) {
            gated = layer.gateUp.apply(x, {.norm = layer.mlpNorm, .eps = c.normEps, .gated = true});
        } else {
            const at::Tensor normed = ops::rms_norm(x, layer.mlpNorm, c.normEps);
            gated = ops::silu_mul(at::cat({layer.gate.apply(normed), layer.up.apply(normed)}, 1));
        }
        x = layer.down.apply(gated, {.residual = x});
    }
    return x;
}

// One layer's attention of one lane. projected: [S, (queryHeads + 2·kvHeads)·D], before RoPE.
at::Tensor Llama::attend(LayerIndex index, const at::Tensor& projected, const at::Tensor& positions, const PassLane& lane) const {
    const ModelConfig& c = m_config;
    KvCache& cache = lane.cache;
    const ModelConfig& stored = cache.config(); // its kvHeads may be the query heads
    const auto copied = [&](const at::Tensor& x) { return repeatHeads(x, stored.kvHeads / c.kvHeads); };
    LayerObserver* observer = lane.observer;
    const std::int64_t count = projected.size(0);
    const double scale = 1.0 / std::sqrt(static_cast<double>(c.headDim));
    const std::int64_t heads = c.queryHeads + 2 * c.kvHeads;
    const at::Tensor qkv = count == 1 ? projected.view({heads, 1, c.headDim}) : projected.view({count, heads, c.headDim}).transpose(0, 1);
    const at::Tensor plain = qkv.narrow(0, 0, c.queryHeads);
    const auto values = [&] { return copied(qkv.narrow(0, c.queryHeads + c.kvHeads, c.kvHeads)); };
    at::Tensor q; // [queryHeads, S, D] after RoPE
    if (count == 1 && stored.kvHeads == c.kvHeads && !cache.quantized()) {
        const at::Tensor turned = cache.ropeAppend(index, projected, positions, cache.plainKeys() ? m_still : m_inverse);
        if (!cache.plainKeys()) q = turned;
    } else if (!cache.plainKeys()) {
        const at::Tensor rotated = ops::rope(qkv.narrow(0, 0, c.queryHeads + c.kvHeads), positions, m_inverse);
        q = rotated.narrow(0, 0, c.queryHeads);
        cache.append(index, copied(rotated.narrow(0, c.queryHeads, c.kvHeads)), values(), positions);
    } else {
        cache.append(index, copied(qkv.narrow(0, c.queryHeads, c.kvHeads)), values(), positions);
    }
    const CacheLayer& held = cache.layer(index);
    const bool recordable = count == 1 && !m_device.is_cpu();
    at::Tensor attended;
    std::optional<at::Tensor> chosen;
    if (observer && cache.rope() == RopeMode::cacheRelative && observer->choosesEntries()) {
        const KvCache::Dense all = cache.plain(index, recordable);
        chosen = observer->attend({index, stored, held, plain, positions, all.keys, all.values, scale, {}, m_inverse, nullptr, plain});
        if (chosen) attended = attendTo(*chosen, plain, all, held, positions, scale, observer->wanted(index, cache, count));
    }
    if (!chosen) {
        if (!q.defined() && cache.rope() == RopeMode::cacheRelative) { // the queries take the slots of their own entries
            const at::Tensor end = repeatHeads(held.lengths, stored.groupSize()).unsqueeze(1);
            q = ops::rope(plain, (end + at::arange(-count, 0, end.options()).unsqueeze(0)).to(at::kInt), m_inverse);
        } else if (!q.defined()) {
            q = ops::rope(plain, positions, m_inverse);
        }
        const std::optional<KvCache::Packed> packed = count == 1 && !(observer && observer->readsEntries()) ? cache.packed(index, m_inverse) : std::nullopt;
        const KvCache::Dense dense = packed ? KvCache::Dense{} : cache.attended(index, m_inverse, recordable);
        ops::AttentionStats* stats = observer ? observer->wanted(index, cache, count) : nullptr;
        const bool even = std::ranges::all_of(held.held, [&](std::int32_t n) { return n == held.held.front(); });
        ops::KnownAttention known;
        if (packed) {
            attended = ops::packed_attention(q, packed->keys, packed->values, held.positions, held.lengths, positions, scale, stats, packed->turn);
        } else if (held.ragged()) {
            attended = ops::ragged_attention(q, dense.keys, dense.values, held.positions, held.starts, held.lengths, held.capacity(), positions, scale, stats);
        } else if ((!stats || cache.whole()) && even && count > 1) { // entries ascend, the newest are the queries' own
            ops::AttentionStats nothing, &collected = stats ? *stats : nothing;
            attended = ops::causal_attention(q, dense.keys, dense.values, held.held.front(), scale, &collected);
            known = {attended, collected.logSumExp};
        } else {
            attended = ops::attention(q, dense.keys, dense.values, held.positions, held.lengths, positions, scale, stats);
        }
        const KvCache::Dense shown = held.ragged() ? KvCache::Dense{} : dense; // nobody looks at ragged ones
        if (observer)
            observer->afterAttention({index, stored, held, q, positions, shown.keys, shown.values, scale, stats ? stats->lastRows : at::Tensor(), m_inverse, nullptr, plain, false, known}, cache);
    }
    cache.settle(index);
    return attended;
}

// Attention over a subset of the entries, renumbered from 0; the newest S of them are the queries' own.
at::Tensor Llama::attendTo(const at::Tensor& chosen, const at::Tensor& plainQueries, const KvCache::Dense& stored, const CacheLayer& held,
                           const at::Tensor& positions, double scale, ops::AttentionStats* stats) const {
    const std::int64_t size = chosen.size(0), count = plainQueries.size(1);
    if (count == 1) return ops::sparse_attention(plainQueries, stored.keys, stored.values, held.positions, chosen, m_inverse, positions, scale, stats);
    const auto ints = at::TensorOptions().dtype(at::kInt).device(m_device);
    const at::Tensor index = chosen.expand({stored.keys.size(0), size}).contiguous();
    const at::Tensor counts = at::full({stored.keys.size(0)}, static_cast<std::int32_t>(size), ints);
    const at::Tensor keys = ops::rope(ops::gather_entries(stored.keys, index, counts, size), at::arange(size, ints), m_inverse);
    const at::Tensor values = ops::gather_entries(stored.values, index, counts, size), own = ops::gather_entries(held.positions, index, counts, size);
    const at::Tensor q = ops::rope(plainQueries, at::arange(size - count, size, ints), m_inverse);
    return ops::attention(q, keys, values, own, counts, positions, scale, stats);
}

at::Tensor Llama::forward(std::span<const TokenId> ids, Position first, KvCache& cache, LayerObserver* observer, LogitRows rows, std::stop_token stop) const {
    const PassLane lane{cache, observer};
    at::Tensor x = layers(ids, first, std::span(&lane, 1), stop);
    if (rows == LogitRows::none) return {};
    if (rows == LogitRows::last) x = x.narrow(0, x.size(0) - 1, 1);
    return head().apply(x, {.norm = m_finalNorm, .eps = m_config.normEps}).to(at::kFloat);
}

at::Tensor Llama::step(const at::Tensor& id, const at::Tensor& position, KvCache& cache, LayerObserver* observer) const {
    const PassLane lane{cache, observer};
    return head().apply(layers(id, position, std::span(&lane, 1), {}), {.norm = m_finalNorm, .eps = m_config.normEps}).to(at::kFloat);
}

at::Tensor Llama::losses(std::span<const TokenId> ids, std::span<const TokenId> targets, Position first, std::span<const PassLane> lanes,
                         std::stop_token stop) const {
    constexpr std::int64_t Slice = 3584; // vocabulary rows: weights and logits of a 512-token block stay near the processor
    const auto width = static_cast<std::int64_t>(lanes.size());
    const at::Tensor wanted = at::tensor(at::IntArrayRef(std::vector<std::int64_t>(targets.begin(), targets.end())), at::kLong).to(m_device).repeat({width});
    const at::Tensor x = ops::rms_norm(layers(ids, first, lanes, stop), m_finalNorm, m_config.normEps);
    at::Tensor total, chosen = at::zeros({x.size(0)}, wanted.options().dtype(at::kFloat)); // log Σ exp so far; the target's logit
    for (std::int64_t begin = 0; begin < m_config.vocab; begin += Slice) {
        if (stop.stop_requested()) throw Cancelled{};
        const std::int64_t rows = std::min<std::int64_t>(Slice, m_config.vocab - begin);
        const at::Tensor logits = head().slice(begin, rows).apply(x).to(at::kFloat); // [lanes · S, rows]
        const at::Tensor part = at::logsumexp(logits, 1), inside = (wanted >= begin) & (wanted < begin + rows);
        chosen = at::where(inside, logits.gather(1, (wanted - begin).clamp(0, rows - 1).unsqueeze(1)).squeeze(1), chosen);
        total = total.defined() ? at::logaddexp(total, part) : part;
    }
    return (total - chosen).view({width, -1});
}

} // namespace

std::unique_ptr<Model> makeLlama(std::shared_ptr<const WeightFile> file, at::ScalarType dtype, at::Device device) {
    return std::make_unique<Llama>(std::move(file), dtype, device);
}

} // namespace keepsight
