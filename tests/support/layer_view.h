// A LayerView over hand-made tensors, for testing a scorer without a model.
#pragma once

#include "engine/model/model.h"
#include "engine/policy/select.h"

#include <ATen/ATen.h>

namespace keepsight::testing {

struct LayerFixture {
    ModelConfig config;
    CacheLayer entries;
    at::Tensor queries, queryPositions;

    // keys, values [kvHeads, N, D]; queries [queryHeads, w, D]: those of the last w tokens.
    LayerFixture(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& newest) : queries(newest) {
        config.layers = 1;
        config.kvHeads = static_cast<int>(keys.size(0));
        config.queryHeads = static_cast<int>(newest.size(0));
        config.headDim = static_cast<int>(keys.size(2));
        const std::int64_t n = keys.size(1);
        entries.keys = keys;
        entries.values = values;
        entries.positions = at::arange(n, at::kInt).expand({config.kvHeads, n}).contiguous();
        entries.lengths = at::full({config.kvHeads}, static_cast<std::int32_t>(n), at::kInt);
        entries.held.assign(static_cast<std::size_t>(config.kvHeads), static_cast<std::int32_t>(n));
        queryPositions = at::arange(n - newest.size(1), n, at::kInt);
    }
    LayerView view() const {
        return {LayerIndex{0}, config, entries, queries, queryPositions, entries.keys, entries.values, 1.0 / std::sqrt(static_cast<double>(config.headDim)), {},
                ropeInverseFrequencies(config), nullptr, {}};
    }
    Place place() const { return Place::afterPrompt(entries.maxHeld(), LayerIndex{0}, config.layers); }
    Selection selection(const Policy& policy, const at::Tensor& sums = {}, LayerMemory* memory = nullptr) const {
        const Plan plan = policy.planFor(place());
        return policy.choose(view(), place(), plan, policy.score(view(), plan, policy.statistic(view(), plan, sums)), memory, nullptr);
    }
};

} // namespace keepsight::testing
