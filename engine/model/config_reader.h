// config.json and its neighbours of a Hugging Face model directory as plain values.
#pragma once

#include "engine/data/model_config.h"
#include "engine/model/weights.h"

#include <filesystem>
#include <vector>

namespace keepsight {

// Llama, plain Mistral (no sliding window) and Qwen2 (bias on q, k, v) all run as architecture "llama".
// Anything that would change the arithmetic and is not supported is refused by name.
ModelConfig readConfig(const std::filesystem::path& configJson);

// From generation_config.json, else config.json; one id or a list.
std::vector<std::int32_t> readStopTokens(const std::filesystem::path& directory);

// tokenizer.json, else tokenizer.model; the chat template from chat_template.jinja, else tokenizer_config.json.
TokenizerSource readTokenizerSource(const std::filesystem::path& directory);

// `name` inside the model directory; throws EngineError if a link leads out of it (a hub cache's blobs folder is part of it).
std::filesystem::path insideDirectory(const std::filesystem::path& directory, const std::string& name);

// Rejects sizes no model has and combinations that do not divide; where: names the file. Used for both formats.
void checkConfig(const ModelConfig& config, const std::string& where);

} // namespace keepsight
