#include "engine/model/config_reader.h"

#include "engine/data/error.h"
#include "engine/model/weights_json.h"
#include "engine/model/weights_mapping.h"

#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::uintmax_t MaxTokenizerConfigBytes = 64u << 20;
constexpr const char* Supported = "llama, mistral without sliding window, qwen2 without sliding window";

// One JSON object with typed, checked access; null counts as absent, as Hugging Face writes it.
class Fields {
public:
    Fields(const json& object, std::string where) : m_object(object), m_where(std::move(where)) {
        if (!object.is_object()) fail("expected a JSON object");
    }

    [[noreturn]] void fail(const std::string& sentence) const { throw EngineError(m_where + ": " + sentence); }
    const json* find(const char* key) const {
        const auto it = m_object.find(key);
        return it == m_object.end() || it->is_null() ? nullptr : &*it;
    }
    int integer(const char* key) const {
        const json* v = find(key);
        if (!v) fail(std::string("'") + key + "' is missing");
        return toInt(key, *v);
    }
    int integer(const char* key, int otherwise) const {
        const json* v = find(key);
        return v ? toInt(key, *v) : otherwise;
    }
    double real(const char* key, double otherwise) const {
        const json* v = find(key);
        if (!v) return otherwise;
        if (!v->is_number()) fail(std::string("'") + key + "' should be a number, found " + v->type_name());
        return v->get<double>();
    }
    bool boolean(const char* key, bool otherwise) const {
        const json* v = find(key);
        if (!v) return otherwise;
        if (!v->is_boolean()) fail(std::string("'") + key + "' should be true or false, found " + v->type_name());
        return v->get<bool>();
    }
    std::string text(const char* key, const char* otherwise = "") const {
        const json* v = find(key);
        if (!v) return otherwise;
        if (!v->is_string()) fail(std::string("'") + key + "' should be a string, found " + v->type_name());
        return v->get<std::string>();
    }

private:
    int toInt(const char* key, const json& v) const {
        const bool fits =
            v.is_number_unsigned() ? v.get<std::uint64_t>() <= 0x7fffffffu : v.is_number_integer() && v.get<std::int64_t>() >= -0x7fffffff;
        if (!fits) fail(std::string("'") + key + "' should be a 32-bit integer, found " + shown(v.dump()));
        return v.get<int>();
    }

    const json& m_object;
    std::string m_where;
};

void readRope(const Fields& config, const std::string& where, ModelConfig& out) {
    out.ropeTheta = config.real("rope_theta", 10000.0);
    const json* object = config.find("rope_parameters"); // transformers 5
    if (!object) object = config.find("rope_scaling");
    if (!object) return;
    const Fields rope(*object, where + ": rope settings");
    out.ropeTheta = rope.real("rope_theta", out.ropeTheta);
    const std::string type = rope.text("rope_type", rope.text("type", "default").c_str());
    if (const double share = rope.real("partial_rotary_factor", 1.0); share != 1.0)
        rope.fail("partial_rotary_factor must be 1, found " + std::to_string(share));
    if (type == "default" || type == "none") return;
    auto& scaling = out.ropeScaling;
    if (type == "linear") {
        scaling.kind = RopeScaling::Kind::linear;
    } else if (type == "llama3") {
        scaling.kind = RopeScaling::Kind::llama3;
        for (const char* key : {"low_freq_factor", "high_freq_factor"})
            if (!rope.find(key)) rope.fail(std::string("'") + key + "' is missing");
        scaling.lowFreqFactor = rope.real("low_freq_factor", 1.0);
        scaling.highFreqFactor = rope.real("high_freq_factor", 4.0);
        scaling.originalMaxPositions = rope.integer("original_max_position_embeddings");
        if (!(scaling.lowFreqFactor > 0) || !(scaling.highFreqFactor > scaling.lowFreqFactor) || scaling.originalMaxPositions < 1)
            rope.fail("expected 0 < low_freq_factor < high_freq_factor and original_max_position_embeddings ≥ 1");
    } else {
        rope.fail("type '" + shown(type) + "' is not supported; supported are default, linear, llama3");
    }
    if (!rope.find("factor")) rope.fail("'factor' is missing");
    scaling.factor = rope.real("factor", 1.0);
    if (!(scaling.factor >= 1.0)) rope.fail("factor should be at least 1, found " + std::to_string(scaling.factor));
}

void refuseSlidingWindow(const Fields& config, const std::string& type, int maxPositions) {
    if (type == "qwen2" && !config.boolean("use_sliding_window", false)) return;
    const int window = config.integer("sliding_window", 0);
    if (window > 0 && window < maxPositions)
        config.fail("sliding_window " + std::to_string(window) + " is shorter than the context of " + std::to_string(maxPositions) +
                    " tokens; sliding-window models are not supported");
}

std::vector<std::int32_t> idList(const Fields& fields, const char* key) {
    const json* v = fields.find(key);
    if (!v) return {};
    std::vector<std::int32_t> out;
    const json list = v->is_array() ? *v : json::array({*v});
    for (const json& id : list) {
        if (!id.is_number_unsigned() || id.get<std::uint64_t>() > 0x7fffffffu)
            fields.fail(std::string("'") + key + "' should be token ids, found " + shown(id.dump()));
        out.push_back(id.get<std::int32_t>());
    }
    return out;
}

// A template is one text, or a list of named ones of which "default" is used.
std::string templateText(const Fields& config) {
    const json* v = config.find("chat_template");
    if (!v) return {};
    if (v->is_string()) return v->get<std::string>();
    if (!v->is_array()) config.fail(std::string("'chat_template' should be a string or a list, found ") + v->type_name());
    for (const json& entry : *v) {
        const Fields named(entry, "chat_template entry");
        if (named.text("name") == "default") return named.text("template");
    }
    return {};
}

} // namespace

void checkConfig(const ModelConfig& c, const std::string& where) {
    const auto range = [&](const char* what, std::int64_t value, std::int64_t high) {
        if (value < 1 || value > high)
            throw EngineError(where + ": " + what + " should be 1 to " + std::to_string(high) + ", found " + std::to_string(value));
    };
    range("the number of layers", c.layers, 4096);
    range("the number of query heads", c.queryHeads, 4096);
    range("the number of KV heads", c.kvHeads, c.queryHeads);
    range("the head size", c.headDim, 4096);
    range("the hidden size", c.hidden, 1 << 20);
    range("the feed-forward size", c.feedForward, 1 << 24);
    range("the vocabulary size", c.vocab, 1 << 24);
    range("the context length", c.maxPositions, 1 << 30);
    if (c.queryHeads % c.kvHeads != 0)
        throw EngineError(where + ": " + std::to_string(c.queryHeads) + " query heads cannot share " + std::to_string(c.kvHeads) +
                          " KV heads evenly");
    if (c.headDim % 2 != 0)
        throw EngineError(where + ": the head size " + std::to_string(c.headDim) + " is odd, rotary positions need pairs");
    const auto positive = [&](const char* what, double value, double high) {
        if (!(value > 0 && value <= high))
            throw EngineError(where + ": " + what + " should be above 0 and at most " + std::to_string(high) + ", found " +
                              std::to_string(value));
    };
    positive("the rope base", c.ropeTheta, 1e15);
    positive("the norm's epsilon", c.normEps, 1.0);
    positive("the rope scaling factor", c.ropeScaling.factor, 1e6);
    for (const float factor : c.ropeFactors)
        if (!(std::isfinite(factor) && factor > 0))
            throw EngineError(where + ": rope_freqs holds " + std::to_string(factor) + ", expected positive numbers");
}

fs::path insideDirectory(const fs::path& directory, const std::string& name) {
    const bool plain = isPlainName(name) && name.find_first_of("/\\") == std::string::npos && name != "." && name != "..";
    if (!plain)
        throw EngineError("weights: '" + shown(name) + "' is not a file name inside the model directory '" + directory.string() + "'");
    std::error_code error;
    const fs::path root = fs::canonical(directory, error);
    if (error) throw EngineError("weights: cannot read '" + directory.string() + "': " + error.message());
    const fs::path target = fs::weakly_canonical(root / name, error);
    if (error) throw EngineError("weights: cannot resolve '" + (directory / name).string() + "': " + error.message());
    const auto within = [&](const fs::path& base) {
        return std::mismatch(base.begin(), base.end(), target.begin(), target.end()).first == base.end();
    };
    // a hub cache keeps <repo>/snapshots/<commit>/name as a link to <repo>/blobs/<hash>
    const bool blob = root.parent_path().filename() == "snapshots" && within(root.parent_path().parent_path() / "blobs");
    if (!within(root) && !blob)
        throw EngineError("weights: '" + (directory / name).string() + "' is a link out of the model directory, to '" + target.string() +
                          "'");
    return target;
}

ModelConfig readConfig(const fs::path& configJson) {
    const std::string where = "'" + configJson.string() + "'";
    const json document = readForeignJson(configJson);
    const Fields config(document, where);
    const std::string type = config.text("model_type");
    if (type.empty()) config.fail(std::string("'model_type' is missing; supported are ") + Supported);
    if (type != "llama" && type != "mistral" && type != "qwen2")
        config.fail("architecture '" + shown(type) + "' is not supported; supported are " + Supported);
    if (config.find("quantization_config")) {
        const Fields quant(*config.find("quantization_config"), where + ": quantization_config");
        config.fail("weights quantized by '" + shown(quant.text("quant_method", "an unnamed method")) +
                    "' are not supported; use F32, F16 or BF16 weights, or a GGUF file");
    }
    if (const std::string act = config.text("hidden_act", "silu"); act != "silu")
        config.fail("hidden_act '" + shown(act) + "' is not supported, only silu");

    ModelConfig out;
    out.architecture = "llama";
    out.name = config.text("_name_or_path");
    out.layers = config.integer("num_hidden_layers");
    out.hidden = config.integer("hidden_size");
    out.queryHeads = config.integer("num_attention_heads");
    out.kvHeads = config.integer("num_key_value_heads", out.queryHeads);
    out.feedForward = config.integer("intermediate_size");
    out.vocab = config.integer("vocab_size");
    out.maxPositions = config.integer("max_position_embeddings", 2048);
    out.headDim = config.integer("head_dim", out.queryHeads > 0 ? out.hidden / out.queryHeads : 0);
    if (!config.find("head_dim") && out.queryHeads > 0 && out.hidden % out.queryHeads != 0)
        config.fail("hidden_size " + std::to_string(out.hidden) + " is no multiple of " + std::to_string(out.queryHeads) +
                    " heads and head_dim is missing");
    out.normEps = config.real("rms_norm_eps", 1e-6);
    out.tiedEmbeddings = config.boolean("tie_word_embeddings", false);
    out.attentionBias = type == "qwen2" || config.boolean("attention_bias", false);
    out.mlpBias = config.boolean("mlp_bias", false);
    if (config.real("partial_rotary_factor", 1.0) != 1.0) config.fail("partial_rotary_factor must be 1");
    readRope(config, where, out);
    checkConfig(out, where);
    refuseSlidingWindow(config, type, out.maxPositions);
    return out;
}

std::vector<std::int32_t> readStopTokens(const fs::path& directory) {
    for (const char* name : {"generation_config.json", "config.json"}) {
        const fs::path file = insideDirectory(directory, name);
        if (!fs::exists(file)) continue;
        const json document = readForeignJson(file);
        if (auto ids = idList(Fields(document, "'" + file.string() + "'"), "eos_token_id"); !ids.empty()) return ids;
    }
    return {};
}

TokenizerSource readTokenizerSource(const fs::path& directory) {
    TokenizerSource out;
    if (const auto file = insideDirectory(directory, "tokenizer.json"); fs::exists(file)) {
        out.kind = TokenizerSource::Kind::tokenizerJson;
        out.path = file;
    } else if (const auto model = insideDirectory(directory, "tokenizer.model"); fs::exists(model)) {
        out.kind = TokenizerSource::Kind::sentencepiece;
        out.path = model;
        out.addBos = true; // what a Llama tokenizer does unless its settings say otherwise
    }
    if (const auto file = insideDirectory(directory, "config.json"); fs::exists(file)) {
        const json document = readForeignJson(file);
        const Fields config(document, "'" + file.string() + "'");
        if (const auto ids = idList(config, "bos_token_id"); !ids.empty()) out.bos = ids.front();
        if (const auto ids = idList(config, "eos_token_id"); !ids.empty()) out.eos = ids.front();
    }
    if (const auto file = insideDirectory(directory, "tokenizer_config.json"); fs::exists(file)) {
        const json document = readForeignJson(file, MaxTokenizerConfigBytes);
        const Fields config(document, "'" + file.string() + "'");
        out.addBos = config.boolean("add_bos_token", out.addBos);
        out.addEos = config.boolean("add_eos_token", out.addEos);
        out.chatTemplate = templateText(config);
    }
    if (const auto file = insideDirectory(directory, "chat_template.jinja"); fs::exists(file))
        out.chatTemplate = readSmallFile(file, 1u << 20);
    return out;
}

} // namespace keepsight
