// What the keys of a GGUF file mean to a Llama model and to its tokenizer.
#include "engine/data/error.h"
#include "engine/model/config_reader.h"
#include "engine/model/weights_gguf.h"

#include <algorithm>

namespace keepsight {
namespace {

int toInt(const GgufMetadata& m, std::string_view key, std::int64_t value) {
    if (value < 0 || value > 0x7fffffff)
        m.fail("key '" + std::string(key) + "' is " + std::to_string(value) + ", expected 0 to 2147483647");
    return static_cast<int>(value);
}

int required(const GgufMetadata& m, std::string_view key) {
    const auto value = m.integer(key);
    if (!value) m.fail("key '" + std::string(key) + "' is missing");
    return toInt(m, key, *value);
}

int optional(const GgufMetadata& m, std::string_view key, int otherwise) {
    const auto value = m.integer(key);
    return value ? toInt(m, key, *value) : otherwise;
}

// Some files write one value per layer; only equal ones are supported.
int perLayer(const GgufMetadata& m, std::string_view key, int otherwise) {
    const auto values = m.integers(key);
    if (values.empty()) return otherwise;
    if (std::any_of(values.begin(), values.end(), [&](auto v) { return v != values.front(); }))
        m.fail("key '" + std::string(key) + "' differs between layers, which is not supported");
    return toInt(m, key, values.front());
}

std::int32_t tokenId(const GgufMetadata& m, std::string_view key, int vocab) {
    const auto value = m.integer(key);
    if (!value) return -1;
    if (*value < 0 || *value >= vocab)
        m.fail("key '" + std::string(key) + "' is " + std::to_string(*value) + ", the vocabulary has " + std::to_string(vocab) + " tokens");
    return static_cast<std::int32_t>(*value);
}

class GgufWeights final : public WeightFile {
public:
    explicit GgufWeights(const std::filesystem::path& file) : m_mapping(file), m_files{file} {
        GgufFile parsed = parseGguf(m_mapping.bytes(), file.string());
        m_config = ggufConfig(parsed);
        if (m_config.name.empty()) m_config.name = file.stem().string();
        m_tokenizer = ggufTokenizer(parsed.metadata, m_config.vocab);
        m_stops = ggufStopTokens(parsed.metadata, m_config.vocab);
        m_tensors = std::move(parsed.tensors);
    }

    const ModelConfig& config() const override { return m_config; }
    const TokenizerSource& tokenizer() const override { return m_tokenizer; }
    const std::string& format() const override { return m_format; }
    const std::vector<std::filesystem::path>& files() const override { return m_files; }
    const std::map<std::string, WeightTensor, std::less<>>& tensors() const override { return m_tensors; }
    std::vector<std::int32_t> stopTokens() const override { return m_stops; }

private:
    MappedFile m_mapping;
    std::string m_format = "gguf";
    std::vector<std::filesystem::path> m_files;
    ModelConfig m_config;
    TokenizerSource m_tokenizer;
    std::vector<std::int32_t> m_stops;
    std::map<std::string, WeightTensor, std::less<>> m_tensors;
};

} // namespace

ModelConfig ggufConfig(const GgufFile& file) {
    const GgufMetadata& m = file.metadata;
    const std::string architecture = m.text("general.architecture").value_or("");
    if (architecture.empty()) m.fail("key 'general.architecture' is missing");
    if (architecture != "llama") m.fail("architecture '" + shown(architecture) + "' is not supported in GGUF files; supported is llama");
    if (const int parts = optional(m, "split.count", 1); parts > 1)
        m.fail("is one of " + std::to_string(parts) + " parts; merge them into one file first");
    if (const int experts = optional(m, "llama.expert_count", 0); experts > 0)
        m.fail("is a mixture of " + std::to_string(experts) + " experts, which is not supported");

    ModelConfig out;
    out.architecture = architecture;
    out.name = m.text("general.name").value_or("");
    out.layers = required(m, "llama.block_count");
    out.maxPositions = required(m, "llama.context_length");
    out.hidden = required(m, "llama.embedding_length");
    if (!m.find("llama.feed_forward_length")) m.fail("key 'llama.feed_forward_length' is missing");
    out.feedForward = perLayer(m, "llama.feed_forward_length", 0);
    if (!m.find("llama.attention.head_count")) m.fail("key 'llama.attention.head_count' is missing");
    out.queryHeads = perLayer(m, "llama.attention.head_count", 0);
    out.kvHeads = perLayer(m, "llama.attention.head_count_kv", out.queryHeads);
    out.headDim = optional(m, "llama.attention.key_length", out.queryHeads > 0 ? out.hidden / out.queryHeads : 0);
    if (const int values = optional(m, "llama.attention.value_length", out.headDim); values != out.headDim)
        m.fail("keys have " + std::to_string(out.headDim) + " and values " + std::to_string(values) +
               " numbers per head, which is not supported");
    if (const int rotated = optional(m, "llama.rope.dimension_count", out.headDim); rotated != out.headDim)
        m.fail("rotates " + std::to_string(rotated) + " of " + std::to_string(out.headDim) + " numbers per head, which is not supported");
    const auto epsilon = m.real("llama.attention.layer_norm_rms_epsilon");
    if (!epsilon) m.fail("key 'llama.attention.layer_norm_rms_epsilon' is missing");
    out.normEps = *epsilon;
    out.ropeTheta = m.real("llama.rope.freq_base").value_or(10000.0);
    const std::string scaling = m.text("llama.rope.scaling.type").value_or(m.find("llama.rope.scale_linear") ? "linear" : "none");
    if (scaling == "linear") {
        out.ropeScaling.factor = m.real("llama.rope.scaling.factor").value_or(m.real("llama.rope.scale_linear").value_or(1.0));
        out.ropeScaling.kind = RopeScaling::Kind::linear;
    } else if (scaling != "none") {
        m.fail("rope scaling '" + shown(scaling) + "' is not supported; supported are none and linear, and rope_freqs.weight");
    }
    if (const int window = optional(m, "llama.attention.sliding_window", 0); window > 0 && window < out.maxPositions)
        m.fail("has a sliding window of " + std::to_string(window) + " tokens, which is not supported");

    const auto embedding = file.tensors.find("token_embd.weight");
    if (embedding == file.tensors.end()) m.fail("tensor 'token_embd.weight' is missing");
    const auto& shape = embedding->second.shape;
    if (shape.size() != 2 || shape[1] != out.hidden)
        m.fail("tensor 'token_embd.weight' is " + shapeText(shape) + ", expected [vocabulary]×" + std::to_string(out.hidden));
    out.vocab = toInt(m, "token_embd.weight", shape[0]);
    out.tiedEmbeddings = !file.tensors.contains("output.weight");
    out.attentionBias = file.tensors.contains("blk.0.attn_q.bias");
    out.mlpBias = file.tensors.contains("blk.0.ffn_gate.bias");
    if (const auto it = file.tensors.find("rope_freqs.weight"); it != file.tensors.end()) {
        const WeightTensor& freqs = it->second;
        if (freqs.type != WeightType::f32 || freqs.shape != std::vector<std::int64_t>{out.headDim / 2})
            m.fail(std::string("tensor 'rope_freqs.weight' is ") + name(freqs.type) + " " + shapeText(freqs.shape) + ", expected F32 " +
                   std::to_string(out.headDim / 2));
        out.ropeFactors.resize(static_cast<std::size_t>(out.headDim / 2));
        std::memcpy(out.ropeFactors.data(), freqs.bytes.data(), freqs.bytes.size());
    }
    checkConfig(out, "'" + m.where + "'");
    return out;
}

TokenizerSource ggufTokenizer(const GgufMetadata& m, int vocab) {
    TokenizerSource out;
    out.ggmlModel = m.text("tokenizer.ggml.model").value_or("");
    if (out.ggmlModel.empty()) return out;
    out.kind = TokenizerSource::Kind::gguf;
    out.ggmlPre = m.text("tokenizer.ggml.pre").value_or("");
    out.tokens = m.texts("tokenizer.ggml.tokens");
    out.merges = m.texts("tokenizer.ggml.merges");
    for (const auto type : m.integers("tokenizer.ggml.token_type")) {
        if (type < 0 || type > 6) m.fail("key 'tokenizer.ggml.token_type' holds the unknown type " + std::to_string(type));
        out.types.push_back(static_cast<std::int32_t>(type));
    }
    if (out.tokens.size() > static_cast<std::size_t>(vocab))
        m.fail("the tokenizer has " + std::to_string(out.tokens.size()) + " tokens, the embedding only " + std::to_string(vocab) + " rows");
    if (!out.types.empty() && out.types.size() != out.tokens.size())
        m.fail("the tokenizer has " + std::to_string(out.tokens.size()) + " tokens but " + std::to_string(out.types.size()) +
               " token types");
    const int known = static_cast<int>(out.tokens.size());
    out.bos = tokenId(m, "tokenizer.ggml.bos_token_id", known);
    out.eos = tokenId(m, "tokenizer.ggml.eos_token_id", known);
    // files without the key follow the habit of their tokenizer: SentencePiece and Llama 3 start with BOS
    const bool habit = out.ggmlModel == "llama" || out.ggmlPre.starts_with("llama");
    out.addBos = m.boolean("tokenizer.ggml.add_bos_token").value_or(habit && out.bos >= 0);
    out.addEos = m.boolean("tokenizer.ggml.add_eos_token").value_or(false);
    out.chatTemplate = m.text("tokenizer.chat_template").value_or("");
    return out;
}

std::vector<std::int32_t> ggufStopTokens(const GgufMetadata& m, int vocab) {
    std::vector<std::int32_t> out;
    for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
        if (const auto id = tokenId(m, key, vocab); id >= 0 && std::find(out.begin(), out.end(), id) == out.end()) out.push_back(id);
    return out;
}

std::unique_ptr<WeightFile> openGguf(const std::filesystem::path& file) { return std::make_unique<GgufWeights>(file); }

} // namespace keepsight
