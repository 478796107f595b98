// hqq_rtn: the whole prompt in few bits by round-to-nearest, as Hugging Face's quantized cache does it with its HQQ backend.
// outlier_rtn: the same, with large values left exact.
//
// Groups of g values share s = max((max − min) / (2^b − 1), 1/20000) and min; c = round((x − min) / s). No optimiser moves them afterwards
// (HQQ, mobiusml.github.io/hqq_blog, has one; transformers switched its default in May 2025, we pin it off).
// axis 1: a group is g neighbouring channels of one token and head. axis 0: the values are taken as one array in storage order and a group
// is every (numel/g)-th of them, whichever channel, token or head that hits. The defaults, keys 1 and values 0, are the library's, and
// KIVI's the other way round or neither: the name "kivi" for it elsewhere is wrong.
// The prompt is packed at its end, all of it; generated tokens stay exact until `residual` of them have gathered, then all are packed.
// Where we differ: with axis 1 old codes are never touched again. With axis 0 every packing and every eviction decodes and encodes all
// entries anew, as the library does for both axes; errors add up.
// outlier_rtn: |x| > threshold is kept apart as a 16-bit number with its place, and its group sees a 0 instead; the idea of LLM.int8()'s
// threshold 6 (arXiv:2208.07339) on a cache.
#include "engine/cache/packed_groups.h"
#include "engine/data/error.h"
#include "engine/policy/spec.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {
namespace {

constexpr double LeastScale = 1.0 / 20000; // HQQ caps the inverse at 2e4

class Rtn final : public Quantizer {
public:
    Rtn(const QuantInfo& info, const QuantSpec& given) : Quantizer(given), m_id(info.id) {
        const Params params(info, given);
        m_groups = {params.integer("bits"), params.integer("group"), LeastScale};
        m_residual = params.integer("residual");
        m_axisKey = params.integer("axis_key");
        m_axisValue = params.integer("axis_value");
        if (params.has("threshold")) m_threshold = params.real("threshold");
        m_equalMemory = params.flag("equal_memory");
    }

    std::unique_ptr<StoredSide> make(Side side, LayerIndex, const SideShape& shape) const override {
        if (const std::string why = groupRefusal(m_id, m_groups.group, shape.headDim); !why.empty()) throw EngineError(why);
        const int axis = side == Side::keys ? m_axisKey : m_axisValue;
        std::unique_ptr<PackedPart> packed = axis == 1 ? packedByToken(shape, m_groups) : packedAcross(shape, m_groups);
        if (m_threshold > 0) packed = packedBeside(shape, std::move(packed), {{}, m_threshold});
        return std::make_unique<StoredParts>(shape, std::move(packed), ResidualRule{ResidualRule::When::gathered, m_residual});
    }
    double effectiveBits(LayerIndex, const ModelConfig& config) const override { return groupedBits(config.headDim, m_groups); }
    std::string refuses(const ModelConfig& config) const override { return groupRefusal(m_id, m_groups.group, config.headDim); }

private:
    std::string m_id;
    GroupShape m_groups;
    int m_residual = 128, m_axisKey = 1, m_axisValue = 0;
    double m_threshold = 0; // 0: no outliers
};

std::vector<ParamInfo> rtnParams() {
    using Type = ParamInfo::Type;
    const std::vector<std::string> axes = {"0", "1"};
    return {{"bits", Type::choice, "4", 0, 0, {"2", "4", "8"}, "bits", "Bits of a code."},
            {"axis_key", Type::choice, "1", 0, 0, axes, "",
             "How keys are grouped: 1 neighbouring channels of a token, 0 across tokens and heads."},
            {"axis_value", Type::choice, "0", 0, 0, axes, "",
             "How values are grouped: 1 neighbouring channels of a token, 0 across tokens and heads."},
            {"group", Type::integer, "64", 4, 1024, {}, "values", "Values that share a scale."},
            {"residual",
             Type::integer,
             "128",
             1,
             1 << 20,
             {},
             "tokens",
             "Generated tokens that gather in full precision before all of them are packed."},
            equalMemoryParam()};
}

std::unique_ptr<Quantizer> makeRtn(const QuantInfo& info, const QuantSpec& spec) { return std::make_unique<Rtn>(info, spec); }

} // namespace

QuantEntry hqq_rtn_quantizer();
QuantEntry hqq_rtn_quantizer() {
    return {{"hqq_rtn",
             {"hqq"},
             "Packs the whole prompt by rounding to the nearest code, as Hugging Face's quantized cache does.",
             "HQQ, mobiusml.github.io/hqq_blog",
             rtnParams()},
            makeRtn};
}

QuantEntry outlier_rtn_quantizer();
QuantEntry outlier_rtn_quantizer() {
    std::vector<ParamInfo> params = {
        {"threshold", ParamInfo::Type::real, "6", 1e-3, 65504, {}, "", "Values larger than this in size are stored exactly."}};
    std::ranges::move(rtnParams(), std::back_inserter(params));
    return {{"outlier_rtn", {"outlier"}, "Packs like hqq_rtn, but stores large values exactly beside the codes.", "", params}, makeRtn};
}

} // namespace keepsight
