// What goes together: a policy, its parameters, its budget and its quantizer.
#pragma once

#include "engine/data/model_config.h"
#include "engine/data/policy_spec.h"

#include <string>

namespace keepsight {

// The sentence that refuses the combination, whatever the model; empty: it works. The parts themselves must be valid.
std::string laneConflict(const PolicySpec& spec);
// Names, types, ranges and the combination; with a model also what the quantizer asks of it. Throws UsageError.
void checkLane(const PolicySpec& spec, const ModelConfig* model = nullptr);

} // namespace keepsight
