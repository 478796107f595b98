// kivi: keys in few bits by channel, values by token, the newest tokens exact.
//
// Paper: KIVI, arXiv:2402.02750. Keys have channels that are large for every token, values have not: so keys share a scale along a channel
// (groups of g consecutive tokens), values along a token (groups of g neighbouring channels), and an outlier channel widens no other's
// range.
// With b bits: s = (max − min) / (2^b − 1), c = round((x − min) / s), x̃ = c · s + min; s and min in fp16.
// A channel group needs its g tokens, therefore the residual R, in full precision: of keys the N mod R newest after the prompt, then up to
// R, packed as one block when R have gathered; of values always the R newest, the oldest packed as each new one comes. Keys are stored
// after RoPE. Defaults are the paper's (2 bits, g 32, R 128); models whose query heads share KV heads do better with 4.
// Where we differ: the original cannot evict from a packed group. Ours lets entries go one by one: codes lie by entry, and a group keeps
// its scale and zero until its last entry goes, so that what stays reads as before and is never coded twice. Its heads may also hold
// different numbers of entries; R then counts each head's own.
#include "engine/cache/packed_groups.h"
#include "engine/data/error.h"
#include "engine/policy/spec.h"

namespace keepsight {
namespace {

class Kivi final : public Quantizer {
public:
    Kivi(const QuantInfo& info, const QuantSpec& given) : Quantizer(given) {
        const Params params(info, given);
        m_groups = {params.integer("bits"), params.integer("group"), 0};
        m_residual = params.integer("residual");
        m_equalMemory = params.flag("equal_memory");
        if (m_residual % m_groups.group != 0)
            throw UsageError("quantizer kivi: parameter 'residual' expects a multiple of the group " + std::to_string(m_groups.group) +
                             ", found " + std::to_string(m_residual));
    }

    std::unique_ptr<StoredSide> make(Side side, LayerIndex, const SideShape& shape) const override {
        if (const std::string why = groupRefusal("kivi", m_groups.group, shape.headDim); !why.empty()) throw EngineError(why);
        if (side == Side::keys)
            return std::make_unique<StoredParts>(shape, packedByChannel(shape, m_groups), ResidualRule{ResidualRule::When::blocks, m_residual});
        return std::make_unique<StoredParts>(shape, packedByToken(shape, m_groups), ResidualRule{ResidualRule::When::older, m_residual});
    }
    double effectiveBits(LayerIndex, const ModelConfig& config) const override { return groupedBits(config.headDim, m_groups); }
    std::string refuses(const ModelConfig& config) const override { return groupRefusal("kivi", m_groups.group, config.headDim); }

private:
    GroupShape m_groups;
    int m_residual = 128;
};

} // namespace

QuantEntry kivi_quantizer();
QuantEntry kivi_quantizer() {
    using Type = ParamInfo::Type;
    return {{"kivi",
             {},
             "Packs keys by channel and values by token, and leaves the newest tokens exact.",
             "KIVI, arXiv:2402.02750",
             {{"bits",
               Type::choice,
               "2",
               0,
               0,
               {"2", "4", "8"},
               "bits",
               "Bits of a code; 4 is advised for models whose query heads share KV heads."},
              {"group",
               Type::integer,
               "32",
               4,
               1024,
               {},
               "values",
               "Values that share a scale: tokens of a key channel, channels of a value token."},
              {"residual", Type::integer, "128", 4, 65536, {}, "tokens", "Newest tokens left in full precision; a multiple of the group."},
              equalMemoryParam()}},
            [](const QuantInfo& info, const QuantSpec& spec) -> std::unique_ptr<Quantizer> { return std::make_unique<Kivi>(info, spec); }};
}

} // namespace keepsight
