// A seeded random llama of a few thousand weights, and helpers over it: every engine path in milliseconds.
#pragma once

#include "engine/data/error.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "engine/session/branch.h"

#include <ATen/ATen.h>
#include <cmath>
#include <cstring>
#include <deque>
#include <random>

namespace keepsight::testing {

class TinyWeights final : public WeightFile {
public:
    explicit TinyWeights(int layers = 2, int queryHeads = 4, int kvHeads = 2, int headDim = 8, int vocab = 64, unsigned seed = 1) : m_random(seed) {
        const float gain = std::sqrt(std::min(1.0f, 32.0f / static_cast<float>(queryHeads * headDim))); // wider models are no wilder
        m_config.architecture = "llama";
        m_config.layers = layers;
        m_config.queryHeads = queryHeads;
        m_config.kvHeads = kvHeads;
        m_config.headDim = headDim;
        m_config.hidden = queryHeads * headDim;
        m_config.feedForward = 2 * m_config.hidden;
        m_config.vocab = vocab;
        m_config.maxPositions = 4096;
        m_config.tiedEmbeddings = true;
        const ModelConfig& c = m_config;
        matrix("model.embed_tokens.weight", {c.vocab, c.hidden}, 1.0f);
        ones("model.norm.weight", c.hidden);
        for (int l = 0; l < layers; ++l) {
            const std::string p = "model.layers." + std::to_string(l) + ".";
            ones(p + "input_layernorm.weight", c.hidden);
            ones(p + "post_attention_layernorm.weight", c.hidden);
            matrix(p + "self_attn.q_proj.weight", {queryHeads * headDim, c.hidden}, 0.6f * gain);
            matrix(p + "self_attn.k_proj.weight", {kvHeads * headDim, c.hidden}, 0.6f * gain);
            matrix(p + "self_attn.v_proj.weight", {kvHeads * headDim, c.hidden}, 0.3f * gain);
            matrix(p + "self_attn.o_proj.weight", {c.hidden, queryHeads * headDim}, 0.3f * gain);
            matrix(p + "mlp.gate_proj.weight", {c.feedForward, c.hidden}, 0.2f * gain);
            matrix(p + "mlp.up_proj.weight", {c.feedForward, c.hidden}, 0.2f * gain);
            matrix(p + "mlp.down_proj.weight", {c.hidden, c.feedForward}, 0.2f * gain);
        }
    }
    // The same model written with a copy of its KV head for every query head.
    void copyKvHeads() {
        const std::int64_t group = m_config.groupSize(), block = static_cast<std::int64_t>(m_config.headDim) * m_config.hidden;
        for (int l = 0; l < m_config.layers; ++l)
            for (const char* which : {"k_proj", "v_proj"}) {
                const std::string name = "model.layers." + std::to_string(l) + ".self_attn." + which + ".weight";
                const float* rows = reinterpret_cast<const float*>(m_tensors.at(name).bytes.data());
                std::vector<float> copies;
                for (std::int64_t h = 0; h < m_config.queryHeads; ++h) copies.insert(copies.end(), rows + h / group * block, rows + (h / group + 1) * block);
                add(name, {static_cast<std::int64_t>(m_config.queryHeads) * m_config.headDim, m_config.hidden}, std::move(copies));
            }
        m_config.kvHeads = m_config.queryHeads;
    }
    const ModelConfig& config() const override { return m_config; }
    const TokenizerSource& tokenizer() const override { return m_tokenizer; }
    const std::string& format() const override { return m_format; }
    const std::vector<std::filesystem::path>& files() const override { return m_files; }
    const std::map<std::string, WeightTensor, std::less<>>& tensors() const override { return m_tensors; }
    std::vector<std::int32_t> stopTokens() const override { return {}; }

private:
    void add(const std::string& name, std::vector<std::int64_t> shape, std::vector<float> values) {
        const std::vector<float>& kept = m_store.emplace_back(std::move(values));
        m_tensors[name] = {name, WeightType::f32, std::move(shape), std::as_bytes(std::span(kept))};
    }
    void matrix(const std::string& name, std::vector<std::int64_t> shape, float scale) {
        std::vector<float> values(static_cast<std::size_t>(shape[0] * shape[1]));
        std::normal_distribution<float> normal(0.0f, scale);
        for (float& v : values) v = normal(m_random);
        add(name, std::move(shape), std::move(values));
    }
    void ones(const std::string& name, int size) { add(name, {size}, std::vector<float>(static_cast<std::size_t>(size), 1.0f)); }

    std::mt19937 m_random;
    ModelConfig m_config;
    TokenizerSource m_tokenizer;
    std::string m_format = "safetensors";
    std::vector<std::filesystem::path> m_files;
    std::deque<std::vector<float>> m_store;
    std::map<std::string, WeightTensor, std::less<>> m_tensors;
};

inline std::unique_ptr<Model> tinyModel(int layers = 2, int queryHeads = 4, int kvHeads = 2, int headDim = 8, unsigned seed = 1) {
    return Model::make(std::make_shared<TinyWeights>(layers, queryHeads, kvHeads, headDim, 64, seed), at::kFloat, at::kCPU);
}

inline std::vector<TokenId> tinyIds(int count, unsigned seed = 7, int vocab = 64) {
    std::mt19937 random(seed);
    std::vector<TokenId> ids(static_cast<std::size_t>(count));
    for (TokenId& id : ids) id = static_cast<TokenId>(random() % static_cast<unsigned>(vocab));
    return ids;
}

inline std::shared_ptr<const Policy> policyOf(const std::string& text, Budget budget) {
    PolicySpec spec = parsePolicySpec(text);
    spec.budget = budget;
    return makePolicy(spec);
}

inline std::shared_ptr<const Snapshot> prefillFor(const Model& model, const std::vector<TokenId>& ids, const std::shared_ptr<const Policy>& policy) {
    return Snapshot::prefill(model, ids, prefillOptionsFor(std::span(&policy, 1), static_cast<std::int64_t>(ids.size())), {});
}

} // namespace keepsight::testing
