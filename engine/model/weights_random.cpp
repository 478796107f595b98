// Shapes of known models, for timing without a checkpoint.
#include "engine/data/error.h"
#include "engine/model/weights.h"

#include <algorithm>

namespace keepsight {
namespace {

struct Shape {
    const char* name;
    int layers, queryHeads, kvHeads, headDim, hidden, feedForward, vocab;
    double theta, eps;
    bool tied, biased;
};

constexpr Shape Shapes[] = {{"llama-3-8b", 32, 32, 8, 128, 4096, 14336, 128256, 5e5, 1e-5, false, false},
                            {"llama-3.2-1b", 16, 32, 8, 64, 2048, 8192, 128256, 5e5, 1e-5, true, false},
                            {"qwen2-7b", 28, 28, 4, 128, 3584, 18944, 152064, 1e6, 1e-6, false, true}};
constexpr int LongestContext = 1 << 20; // positions mean nothing here

class RandomWeights final : public WeightFile {
public:
    explicit RandomWeights(const Shape& s) {
        m_config.architecture = "llama";
        m_config.name = std::string("random ") + s.name;
        m_config.layers = s.layers;
        m_config.queryHeads = s.queryHeads;
        m_config.kvHeads = s.kvHeads;
        m_config.headDim = s.headDim;
        m_config.hidden = s.hidden;
        m_config.feedForward = s.feedForward;
        m_config.vocab = s.vocab;
        m_config.maxPositions = LongestContext;
        m_config.ropeTheta = s.theta;
        m_config.normEps = s.eps;
        m_config.tiedEmbeddings = s.tied;
        m_config.attentionBias = s.biased;
        const std::int64_t q = std::int64_t{s.queryHeads} * s.headDim, kv = std::int64_t{s.kvHeads} * s.headDim;
        add("model.embed_tokens.weight", {s.vocab, s.hidden});
        if (!s.tied) add("lm_head.weight", {s.vocab, s.hidden});
        add("model.norm.weight", {s.hidden});
        for (int l = 0; l < s.layers; ++l) {
            const std::string p = "model.layers." + std::to_string(l) + ".";
            for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) add(p + norm + ".weight", {s.hidden});
            for (const auto& [which, rows] : {std::pair("q_proj", q), {"k_proj", kv}, {"v_proj", kv}}) {
                add(p + "self_attn." + which + ".weight", {rows, s.hidden});
                if (s.biased) add(p + "self_attn." + which + ".bias", {rows});
            }
            add(p + "self_attn.o_proj.weight", {s.hidden, q});
            for (const char* which : {"gate_proj", "up_proj"}) add(p + "mlp." + which + ".weight", {s.feedForward, s.hidden});
            add(p + "mlp.down_proj.weight", {s.hidden, s.feedForward});
        }
        // GPT-2's alphabet: every byte as a printable character.
        m_tokenizer.kind = TokenizerSource::Kind::gguf;
        m_tokenizer.ggmlModel = "gpt2";
        m_tokenizer.ggmlPre = "gpt-2";
        for (int byte = 0, shifted = 256; byte < 256; ++byte) {
            const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
            const int code = printable ? byte : shifted++;
            m_tokenizer.tokens.push_back(code < 128 ? std::string(1, static_cast<char>(code))
                                                    : std::string{static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 63))});
        }
    }
    const ModelConfig& config() const override { return m_config; }
    const TokenizerSource& tokenizer() const override { return m_tokenizer; }
    const std::string& format() const override { return m_format; }
    const std::vector<std::filesystem::path>& files() const override { return m_files; }
    const std::map<std::string, WeightTensor, std::less<>>& tensors() const override { return m_tensors; }
    std::vector<std::int32_t> stopTokens() const override { return {}; }

private:
    void add(const std::string& name, std::vector<std::int64_t> shape) { m_tensors[name] = {name, WeightType::bf16, std::move(shape), {}}; }

    ModelConfig m_config;
    TokenizerSource m_tokenizer;
    std::string m_format = "random";
    std::vector<std::filesystem::path> m_files;
    std::map<std::string, WeightTensor, std::less<>> m_tensors;
};

} // namespace

std::vector<std::string> randomShapes() {
    std::vector<std::string> out;
    for (const Shape& s : Shapes) out.emplace_back(s.name);
    return out;
}

std::unique_ptr<WeightFile> openRandom(std::string_view shape) {
    const auto found = std::ranges::find(Shapes, shape, &Shape::name);
    if (found != std::end(Shapes)) return std::make_unique<RandomWeights>(*found);
    std::string known;
    for (const std::string& name : randomShapes()) known += (known.empty() ? "" : ", ") + name;
    throw EngineError("weights: no shape of random weights is called '" + std::string(shape) + "'; expected one of: " + known);
}

} // namespace keepsight
