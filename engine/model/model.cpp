#include "engine/model/model.h"

#include "engine/data/error.h"
#include "engine/model/last_sums.h"

#include <ATen/ATen.h>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>

namespace keepsight {

at::Tensor LayerView::lastRows(std::int64_t count) const {
    if (rows.defined() && rows.size(1) >= count) return rows.narrow(1, rows.size(1) - count, count);
    const std::int64_t have = queries.size(1);
    if (have < count)
        throw EngineError("policy: attention of the last " + std::to_string(count) + " queries was asked for, only " + std::to_string(have) + " were kept");
    if (count == 1 && !keys.device().is_cpu()) { // the newest query alone: a device walks the keys as it does while decoding
        ops::AttentionStats stats;
        stats.lastRows = at::empty({queries.size(0), 1, keys.size(1)}, queries.options().dtype(at::kFloat));
        ops::attention(queries.narrow(1, have - 1, 1), keys, keys, entries.positions, entries.lengths, queryPositions.narrow(0, have - 1, 1), scale, &stats);
        return stats.lastRows;
    }
    return ops::attention_rows(queries.narrow(1, have - count, count), keys, entries.positions, entries.lengths,
                               queryPositions.narrow(0, have - count, count), scale);
}

at::Tensor LayerView::lastSums(std::int64_t count) const {
    const std::int64_t have = queries.size(1);
    if (remembered && have >= count) return remembered->weights(*this, count);
    if (count < 2 || have < count) return lastRows(count).sum(1);
    if (!whole || keys.device().is_cpu())
        return ops::attention_sums(queries.narrow(1, have - count, count), keys, entries.positions, entries.lengths, queryPositions.narrow(0, have - count, count), scale);
    ops::AttentionStats stats;
    stats.columnSum = at::zeros({queries.size(0), keys.size(1)}, queries.options().dtype(at::kFloat));
    ops::causal_attention(queries.narrow(1, have - count, count), keys, keys, entries.held.front(), scale, &stats); // the weights do not depend on the values
    return stats.columnSum;
}

at::Tensor LayerView::lastChanges(ops::OutputChange kind, std::int64_t count) const {
    if (remembered) return remembered->changes(*this, kind, count);
    const std::int64_t first = queries.size(1) - count;
    const ops::KnownAttention last{known.output.defined() ? known.output.narrow(0, first, count) : at::Tensor(),
                                   known.logSumExp.defined() ? known.logSumExp.narrow(1, first, count) : at::Tensor()};
    return ops::output_change(queries.narrow(1, first, count), keys, values, entries.positions, entries.lengths, queryPositions.narrow(0, first, count), scale, kind, &last);
}

at::Tensor ropeInverseFrequencies(const ModelConfig& config) {
    // fp32 throughout, in transformers' order of operations, so that angles agree to the last bit.
    at::Tensor exponents = at::arange(0, config.headDim, 2, at::kLong).to(at::kFloat) / static_cast<double>(config.headDim);
    at::Tensor inverse = at::reciprocal(at::pow(at::Scalar(config.ropeTheta), exponents));
    if (!config.ropeFactors.empty()) inverse = inverse / at::tensor(config.ropeFactors, at::kFloat);
    const RopeScaling& scaling = config.ropeScaling;
    if (scaling.kind == RopeScaling::Kind::linear) inverse = inverse / scaling.factor;
    if (scaling.kind == RopeScaling::Kind::llama3 && config.ropeFactors.empty()) { // GGUF's factors already hold this scaling
        const double low = scaling.originalMaxPositions / scaling.lowFreqFactor, high = scaling.originalMaxPositions / scaling.highFreqFactor;
        const at::Tensor wavelength = 2 * std::numbers::pi / inverse;
        const at::Tensor stretched = at::where(wavelength > low, inverse / scaling.factor, inverse);
        const at::Tensor smooth = (scaling.originalMaxPositions / wavelength - scaling.lowFreqFactor) / (scaling.highFreqFactor - scaling.lowFreqFactor);
        const at::Tensor between = (1 - smooth) * stretched / scaling.factor + smooth * stretched;
        inverse = at::where((wavelength <= low) & (wavelength >= high), between, stretched);
    }
    return inverse.contiguous();
}

std::string mebibytes(std::int64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

namespace {

// Weights are unpacked to dtype on a device: said before anything is copied there.
void checkFits(const WeightFile& file, at::ScalarType dtype, at::Device device) {
    const std::optional<std::int64_t> free = ops::freeMemory(device);
    if (!free) return;
    std::int64_t values = 0;
    for (const auto& [name, tensor] : file.tensors())
        values += std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::int64_t{1}, std::multiplies<>());
    const std::int64_t needed = values * static_cast<std::int64_t>(c10::elementSize(dtype));
    if (needed > *free)
        throw EngineError("model: its " + std::to_string(values) + " weights need " + mebibytes(needed) + " on " + device.str() + " as " + c10::toString(dtype) + ", only " + mebibytes(*free) +
                          " are free; take a 16-bit type, a smaller model, or the CPU");
}

} // namespace

std::unique_ptr<Model> Model::make(std::shared_ptr<const WeightFile> file, at::ScalarType dtype, at::Device device) {
    checkFits(*file, dtype, device);
    const std::string& architecture = file->config().architecture;
    std::string known;
#define KEEPSIGHT_MODEL(id, factory)                                                                                                                     \
    if (architecture == id) return factory(std::move(file), dtype, device);                                                                              \
    known += known.empty() ? id : std::string(", ") + id;
#include "engine/model/models.def"
#undef KEEPSIGHT_MODEL
    throw EngineError("model: architecture '" + architecture + "' is not supported; expected one of: " + known);
}

} // namespace keepsight
