// Tensors become trace records here and nowhere else.
#pragma once

#include "engine/data/trace_sink.h"
#include "engine/session/branch.h"

namespace keepsight {

// Sums of attention weights by bin become the mean over the visible pairs of each cell.
// sums [rows, cols] fp32; the map's geometry fields are set, values are not.
void fillMap(AttentionMap& map, const at::Tensor& sums);

// The shared prefill maps of all layers and KV heads.
void recordPrefillMaps(const Snapshot& snapshot, TraceSink& sink);
// A lane's maps of the rows [prefill, seen).
void recordLaneMaps(LaneIndex lane, const Branch& branch, Position rowBegin, int bin, TraceSink& sink);

// One step of a lane with what it evicted.
void recordStep(LaneIndex lane, const StepRecord& step, std::vector<Branch::Eviction> evictions, TraceSink& sink);

// Kept entries of a cache as positions.
KeptSets keptSets(const KvCache& cache);
std::vector<double> keptCounts(const KvCache& cache); // entries held, [layers × kvHeads] row-major: the rows' kept_per_layer

} // namespace keepsight
