// layerquant: some layers in more bits than the others.
//
// Paper: More tokens, lower precision, arXiv:2412.12706. Keeping more tokens in fewer bits beats fewer tokens in 16 bits at the same
// memory, and some layers bear it less than others: layers begin … end − 1 get range_bits, the others bits; 16 leaves a layer as it is.
// A layer is packed once, at the end of the prompt, with hqq_rtn's codec (keys axis 1, values axis 0); generated tokens stay exact.
// equal_memory=nominal is the paper's exchange, C · 16 / bits tokens for a budget of C; it leaves out scales and zeros (0.5 bits a value
// at groups of 64), which `on` counts.
// Where we differ: the code that came with the method (QPruningKV) packs the other layers at 4 bits whatever it is told, and those of the
// range only if told 16 bits. Ours does what was meant.
#include "engine/cache/packed_groups.h"
#include "engine/data/error.h"
#include "engine/policy/spec.h"

namespace keepsight {
namespace {

class LayerQuant final : public Quantizer {
public:
    LayerQuant(const QuantInfo& info, const QuantSpec& given) : Quantizer(given) {
        const Params params(info, given);
        m_bits = params.integer("bits");
        m_rangeBits = params.integer("range_bits");
        m_begin = params.integer("begin");
        m_end = params.integer("end");
        m_group = params.integer("group");
        m_nominal = params.choice("equal_memory") == "nominal";
        m_equalMemory = m_nominal || params.flag("equal_memory");
        if (m_begin > m_end)
            throw UsageError("quantizer layerquant: parameter 'begin' expects at most the end " + std::to_string(m_end) + ", found " +
                             std::to_string(m_begin));
    }

    std::unique_ptr<StoredSide> make(Side side, LayerIndex layer, const SideShape& shape) const override {
        const GroupShape groups = groupsOf(layer);
        if (groups.bits == 16) return storedPlain(shape);
        if (const std::string why = groupRefusal("layerquant", groups.group, shape.headDim); !why.empty()) throw EngineError(why);
        return std::make_unique<StoredParts>(shape, side == Side::keys ? packedByToken(shape, groups) : packedAcross(shape, groups),
                                             ResidualRule{ResidualRule::When::prompt});
    }
    double effectiveBits(LayerIndex layer, const ModelConfig& config) const override {
        const GroupShape groups = groupsOf(layer);
        return groups.bits == 16 ? 16 : groupedBits(config.headDim, groups);
    }
    std::string refuses(const ModelConfig& config) const override {
        for (int l = 0; l < config.layers; ++l)
            if (groupsOf(LayerIndex{l}).bits != 16) return groupRefusal("layerquant", m_group, config.headDim);
        return {};
    }

protected:
    double budgetBits(LayerIndex layer, const ModelConfig& config) const override {
        return m_nominal ? groupsOf(layer).bits : effectiveBits(layer, config);
    }

private:
    GroupShape groupsOf(LayerIndex layer) const {
        return {layer.value >= m_begin && layer.value < m_end ? m_rangeBits : m_bits, m_group, 1.0 / 20000};
    }

    int m_bits = 4, m_rangeBits = 8, m_begin = 0, m_end = 4, m_group = 64;
    bool m_nominal = false;
};

} // namespace

QuantEntry layerquant_quantizer();
QuantEntry layerquant_quantizer() {
    using Type = ParamInfo::Type;
    const std::vector<std::string> bits = {"2", "4", "8", "16"};
    ParamInfo equalMemory = equalMemoryParam();
    equalMemory.choices.push_back("nominal");
    equalMemory.help =
        "Whether the budget counts 16-bit tokens, so that more are kept for the same bytes; nominal: scales are not counted.";
    return {{"layerquant",
             {"layer_quant"},
             "Packs the prompt in more bits in some layers than in the others.",
             "More tokens, lower precision, arXiv:2412.12706",
             {{"bits", Type::choice, "4", 0, 0, bits, "bits", "Bits of a code in the other layers; 16 leaves them unpacked."},
              {"range_bits", Type::choice, "8", 0, 0, bits, "bits", "Bits of a code in the layers of the range; 16 leaves them unpacked."},
              {"begin", Type::integer, "0", 0, 1024, {}, "", "First layer of the range."},
              {"end", Type::integer, "4", 0, 1024, {}, "", "Layer behind the range; equal to begin: no range."},
              {"group", Type::integer, "64", 4, 1024, {}, "values", "Values that share a scale."},
              equalMemory}},
            [](const QuantInfo& info, const QuantSpec& spec) -> std::unique_ptr<Quantizer> {
                return std::make_unique<LayerQuant>(info, spec);
            }};
}

} // namespace keepsight
