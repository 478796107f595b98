// A decoder-only transformer over a KvCache. Positions are given, never guessed from the cache length, which shrinks.
#pragma once

#include "engine/cache/kv_cache.h"
#include "engine/data/ids.h"
#include "engine/model/weights.h"
#include "kernels/bind/ops.h"

#include <memory>
#include <optional>
#include <span>
#include <stop_token>

namespace keepsight {

// First and second moments of a layer's prompt queries before RoPE (expected_attention).
struct QueryMoments {
    at::Tensor sum;      // [queryHeads, headDim] fp64
    at::Tensor products; // [queryHeads, headDim, headDim] fp64: Σ q qᵀ
    std::int64_t count = 0;
};

class LastSums;

// What an observer of a forward pass sees of one layer, right after its attention. H heads, S new queries, C capacity, D head_dim.
struct LayerView {
    LayerIndex layer;
    const ModelConfig& config;
    const CacheLayer& entries;        // with the new tokens appended
    at::Tensor queries;               // [queryHeads, S, headDim] newest S tokens, after RoPE
    at::Tensor queryPositions;        // [S] int32
    at::Tensor keys;                  // [kvHeads, C, headDim] as attended to: unpacked, after RoPE in either mode
    at::Tensor values;                // [kvHeads, C, headDim] as attended to
    double scale = 1.0;               // of the logits: 1/√D
    at::Tensor rows;                  // [queryHeads, R, C] weights of the last R queries, if they were collected
    at::Tensor inverseFrequencies;    // [headDim/2] fp32
    const QueryMoments* moments = nullptr; // of the prompt, if they were collected
    at::Tensor plainQueries;          // queries before RoPE; only during a forward pass
    bool whole = false;               // nothing was dropped, and the queries are those of the newest entries
    ops::KnownAttention known;        // what attention of these queries gave; undefined where it is not at hand
    LastSums* remembered = nullptr;   // what lastSums() and lastChanges() add up, for views that are looked at again and again; null: nothing

    // Weights of the last `count` queries over the held entries, [queryHeads, count, C] fp32: collected ones, else recomputed from queries.
    at::Tensor lastRows(std::int64_t count) const;
    // Their sum over these queries, [queryHeads, C] fp32; devices do not hold the rows for it.
    at::Tensor lastSums(std::int64_t count) const;
    // How much the outputs of the last `count` queries would change without each entry, summed over them, [queryHeads, C] fp32.
    at::Tensor lastChanges(ops::OutputChange kind, std::int64_t count) const;
};

class LayerObserver {
public:
    virtual ~LayerObserver() = default;
    // Statistics this layer's attention is to collect, filled before afterAttention; nullptr: none.
    // Called after the new entries were appended, so that statistics can be sized to the capacity.
    virtual ops::AttentionStats* wanted(LayerIndex, KvCache&, std::int64_t /*newTokens*/) { return nullptr; }
    virtual void afterAttention(const LayerView&, KvCache&) {}
    // Does afterAttention() look at the view's keys or values? If not, those of one query may be undefined: packed ones are not unpacked for nothing.
    virtual bool readsEntries() const { return true; }
    virtual bool choosesEntries() const { return false; }
    // If so: the entries that the coming queries attend to, one ascending set for all heads, [n] int32 where the cache is, the newest S among them;
    // nullopt: all. Only asked where the cache is cacheRelative: keys are before RoPE, the chosen ones are renumbered from 0.
    virtual std::optional<at::Tensor> attend(const LayerView&) { return std::nullopt; }
    // A recorded pass was launched again: what it changed on the host, appended entries aside, changes now.
    virtual void replayed(KvCache&) {}
};

enum class LogitRows { none, last, all };

// One of several caches that the same tokens pass.
struct PassLane {
    KvCache& cache;
    LayerObserver* observer = nullptr;
};

// Thrown out of forward() when the stop token fires; jobs turn it into Outcome::cancelled.
struct Cancelled {};

class Model {
public:
    virtual ~Model() = default;
    virtual const ModelConfig& config() const = 0;
    virtual at::ScalarType dtype() const = 0;
    virtual at::Device device() const = 0;
    virtual const at::Tensor& inverseFrequencies() const = 0; // [headDim/2] fp32
    // Appends ids at positions first, first+1, … to the cache and returns fp32 logits [S or 1, vocab] (undefined for none).
    // The stop token is looked at before every layer.
    virtual at::Tensor forward(std::span<const TokenId> ids, Position first, KvCache& cache, LayerObserver* observer, LogitRows rows,
                               std::stop_token stop = {}) const = 0;
    // One token whose id [1] int64 and position [1] int32 lie on the device: a pass that can be recorded and replayed, if its observer neither waits
    // for the device nor takes from the host what changes from step to step. Every head needs a free place. Returns fp32 logits [1, vocab] on the device.
    virtual at::Tensor step(const at::Tensor& id, const at::Tensor& position, KvCache& cache, LayerObserver* observer) const = 0;
    // The same pass for scoring, over several caches at once: −log p(targets[i] | … ids[i]) in nats, [lanes, S] fp32. Weights are read and
    // unpacked once for all of them. The [S, vocab] logits are never held, only a slice of the vocabulary at a time, which stays in the
    // processor's cache.
    virtual at::Tensor losses(std::span<const TokenId> ids, std::span<const TokenId> targets, Position first, std::span<const PassLane> lanes,
                              std::stop_token stop = {}) const = 0;

    // `file` must outlive the model: weights may be used where they are mapped.
    static std::unique_ptr<Model> make(std::shared_ptr<const WeightFile> file, at::ScalarType dtype, at::Device device);
};

// Inverse RoPE frequencies as Hugging Face computes them, fp32 [headDim/2], with llama-3 or linear scaling and GGUF's factors.
at::Tensor ropeInverseFrequencies(const ModelConfig& config);

std::string mebibytes(std::int64_t bytes); // rounded up, for messages

// engine/model/models.def: the one line of an architecture.
std::unique_ptr<Model> makeLlama(std::shared_ptr<const WeightFile> file, at::ScalarType dtype, at::Device device);

} // namespace keepsight
