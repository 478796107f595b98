// The quantizers by id, and their specs.
#include "engine/cache/quantizer.h"

#include "engine/data/error.h"
#include "engine/policy/spec.h"

#include <algorithm>
#include <cmath>

namespace keepsight {

#define KEEPSIGHT_QUANTIZER(id) QuantEntry id##_quantizer();
#include "engine/cache/quantizers.def"
#undef KEEPSIGHT_QUANTIZER

QuantEntry none_quantizer() { return {{"none", {"off"}, "Stores every value in the model's own number type.", "", {}}, nullptr}; }

const std::vector<QuantEntry>& quantRegistry() {
    static const std::vector<QuantEntry> entries = {
#define KEEPSIGHT_QUANTIZER(id) id##_quantizer(),
#include "engine/cache/quantizers.def"
#undef KEEPSIGHT_QUANTIZER
    };
    return entries;
}

const QuantEntry& quantEntry(std::string_view idOrAlias) {
    std::vector<std::string> ids;
    for (const QuantEntry& entry : quantRegistry()) {
        if (entry.info.id == idOrAlias || std::ranges::find(entry.info.aliases, idOrAlias) != entry.info.aliases.end()) return entry;
        ids.push_back(entry.info.id);
    }
    throw UsageError("quantizer '" + std::string(idOrAlias) + "' is not known; expected one of: " + joined(ids));
}

void checkQuantSpec(const QuantSpec& spec) {
    const QuantEntry& entry = quantEntry(spec.id);
    checkParams("quantizer " + entry.info.id, entry.info.params, spec.params);
    if (entry.make) entry.make(entry.info, spec); // combinations are checked where they are used
}

QuantSpec parseQuantSpec(std::string_view text) {
    QuantSpec spec;
    const QuantInfo& info = quantEntry(text.substr(0, text.find(':'))).info;
    spec.id = info.id;
    spec.params = parseParams("quantizer", text);
    checkQuantSpec(spec);
    dropDefaults(info.params, spec.params);
    return spec;
}

std::unique_ptr<Quantizer> makeQuantizer(const QuantSpec& spec) {
    const QuantEntry& entry = quantEntry(spec.id);
    checkParams("quantizer " + entry.info.id, entry.info.params, spec.params);
    if (!entry.make) return nullptr;
    QuantSpec own = spec;
    own.id = entry.info.id;
    return entry.make(entry.info, own);
}

int Quantizer::tokensFor(int budget, LayerIndex layer, const ModelConfig& config) const {
    if (!m_equalMemory) return budget;
    const double tokens = budget * 16.0 / budgetBits(layer, config);
    return std::max(1, static_cast<int>(std::floor(tokens + 1e-9))); // 16/b may come out a hair below a whole number
}

ParamInfo equalMemoryParam() {
    return flagParam("equal_memory", false, "Whether the budget counts 16-bit tokens, so that more tokens are kept for the same bytes.");
}

} // namespace keepsight
