// The shape of a model, as plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace keepsight {

// RoPE frequency scaling of config.json's rope_scaling / GGUF's rope.scaling.* keys.
struct RopeScaling {
    enum class Kind { none, linear, llama3 } kind = Kind::none;
    double factor = 1.0;
    double lowFreqFactor = 1.0, highFreqFactor = 4.0; // llama3 only
    int originalMaxPositions = 8192;                  // llama3 only
};

struct ModelConfig {
    std::string architecture; // registry id of engine/model: "llama"
    std::string name;         // for people
    int layers = 0, queryHeads = 0, kvHeads = 0, headDim = 0, hidden = 0, feedForward = 0, vocab = 0;
    int maxPositions = 0;     // context length the model was trained for
    double ropeTheta = 10000.0, normEps = 1e-5;
    RopeScaling ropeScaling;
    std::vector<float> ropeFactors; // GGUF rope_freqs.weight [headDim/2], divides the frequencies; empty: none
    bool tiedEmbeddings = false, attentionBias = false, mlpBias = false;
    std::vector<int> slidingWindow; // per layer, 0 = full; empty: all full
    int groupSize() const { return kvHeads > 0 ? queryHeads / kvHeads : 0; }
};

// Everything `info` prints; also stored in sessions.
struct ModelInfo {
    ModelConfig config;
    std::string path, sha256;      // sha256 of the weight file(s) in name order; empty until Engine::ensureHash
    std::string format;            // "gguf" | "safetensors"
    std::string weightTypes;       // "Q4_1 210, F32 61, Q8_0 1"
    std::string tokenizer;         // "byte-level BPE, pre-tokenizer smollm, 49152 tokens"
    std::string chatTemplate;      // name of the built-in frame, or "" (raw mode)
    std::string dtype, device;     // "fp32", "cpu"
    std::int64_t parameters = 0, weightBytes = 0;
    std::int64_t kvBytesPerToken = 0; // all layers and KV heads, keys + values, in dtype
};

} // namespace keepsight
