// Model files as named, memory-mapped tensors. No torch here: bytes, types and shapes only.
#pragma once

#include "engine/data/model_config.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

// Storage of a tensor; values are GGUF's type numbers, so that kernels, GGUF and messages agree.
enum class WeightType : int { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, bf16 = 30 };
const char* name(WeightType type);
std::int64_t rowBytes(WeightType type, std::int64_t columns); // of one row; throws EngineError if columns is no multiple of the block

struct WeightTensor {
    std::string name;                // as in the file
    WeightType type = WeightType::f32;
    std::vector<std::int64_t> shape; // row-major, as Hugging Face writes it: [out, in] for a matrix (GGUF's order reversed)
    std::span<const std::byte> bytes; // inside the mapping, valid while the WeightFile lives; empty in a model of random weights
};

// The tokenizer as found in a model file or beside it; the tokenizer folder interprets it.
struct TokenizerSource {
    enum class Kind { none, tokenizerJson, gguf, sentencepiece } kind = Kind::none;
    std::filesystem::path path;      // tokenizer.json or tokenizer.model
    // GGUF: tokenizer.ggml.*
    std::string ggmlModel, ggmlPre;  // "gpt2", "smollm"
    std::vector<std::string> tokens, merges;
    std::vector<std::int32_t> types; // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    std::int32_t bos = -1, eos = -1;
    bool addBos = false, addEos = false;
    std::string chatTemplate;        // Jinja text from GGUF, tokenizer_config.json or chat_template.jinja; "" none
};

// One model on disk: config, tokenizer source and all tensors. Immutable after open; the mappings live as long as it does.
class WeightFile {
public:
    virtual ~WeightFile() = default;
    virtual const ModelConfig& config() const = 0;
    virtual const TokenizerSource& tokenizer() const = 0;
    virtual const std::string& format() const = 0;             // "gguf" | "safetensors" | "random"
    virtual const std::vector<std::filesystem::path>& files() const = 0; // weight files, name order
    virtual const std::map<std::string, WeightTensor, std::less<>>& tensors() const = 0;
    virtual std::vector<std::int32_t> stopTokens() const = 0;     // from generation_config.json / config.json / GGUF, may be empty

    // Throws EngineError naming the tensor, what shape was expected and what was found.
    const WeightTensor& tensor(std::string_view name, std::vector<std::int64_t> shape) const;
    const WeightTensor* find(std::string_view name) const;
};

// path: a Hugging Face directory, a .gguf file, or "random:" and one of randomShapes(). Every refusal is one EngineError sentence (experience.md, Robustness).
std::unique_ptr<WeightFile> openWeights(const std::filesystem::path& path);
std::unique_ptr<WeightFile> openGguf(const std::filesystem::path& file);
// A model's shape without its weights, which are made up on the device: for timing only. Its tokenizer has one token a byte.
std::unique_ptr<WeightFile> openRandom(std::string_view shape); // throws EngineError naming the known ones
std::vector<std::string> randomShapes();                        // "llama-3-8b" …
std::unique_ptr<WeightFile> openSafetensors(const std::filesystem::path& directory);

// sha256 over the weight files' bytes in name order, lower-case hex; cached under $XDG_CACHE_HOME/keepsight by path, size and mtime.
std::string weightHash(const std::vector<std::filesystem::path>& files);

} // namespace keepsight
