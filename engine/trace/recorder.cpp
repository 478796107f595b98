#include "engine/trace/recorder.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {

void fillMap(AttentionMap& map, const at::Tensor& sums) {
    const at::Tensor host = sums.to(at::kCPU, at::kFloat).contiguous();
    const float* sum = host.data_ptr<float>();
    const auto stride = host.size(1);
    map.values.resize(static_cast<std::size_t>(map.rows) * static_cast<std::size_t>(map.cols));
    for (std::int32_t r = 0; r < map.rows; ++r) {
        const Position q0 = map.rowBegin + r * map.rowBin, q1 = std::min(q0 + map.rowBin, map.rowEnd);
        for (std::int32_t c = 0; c < map.cols; ++c) {
            const Position k0 = c * map.colBin, k1 = k0 + map.colBin;
            std::int64_t pairs = 0; // (q, k) with k0 ≤ k < k1 and k ≤ q
            for (Position q = q0; q < q1; ++q) pairs += std::clamp(q + 1 - k0, 0, k1 - k0);
            map.values[static_cast<std::size_t>(r) * static_cast<std::size_t>(map.cols) + static_cast<std::size_t>(c)] =
                pairs == 0 ? std::numeric_limits<float>::quiet_NaN() : storedAttention(sum[r * stride + c] / static_cast<float>(pairs));
        }
    }
}

namespace {

void recordMaps(LaneIndex lane, LayerIndex layer, const at::Tensor& sums, Position rowBegin, Position rowEnd, int bin, TraceSink& sink) {
    for (std::int64_t h = 0; h < sums.size(0); ++h) {
        auto map = std::make_shared<AttentionMap>();
        map->lane = lane;
        map->layer = layer;
        map->head = HeadIndex{static_cast<std::int32_t>(h)};
        map->rowBegin = rowBegin;
        map->rowEnd = rowEnd;
        map->rowBin = map->colBin = bin;
        map->rows = (rowEnd - rowBegin + bin - 1) / bin;
        map->cols = (rowEnd + bin - 1) / bin;
        fillMap(*map, sums[h]);
        sink.add(std::move(map));
    }
}

} // namespace

void recordPrefillMaps(const Snapshot& snapshot, TraceSink& sink) {
    const int bin = snapshot.options().mapBin;
    if (bin == 0) return;
    for (int l = 0; l < snapshot.cache().layers(); ++l)
        recordMaps(SharedLane, LayerIndex{l}, snapshot.map(LayerIndex{l}), 0, static_cast<Position>(snapshot.length()), bin, sink);
}

void recordLaneMaps(LaneIndex lane, const Branch& branch, Position rowBegin, int bin, TraceSink& sink) {
    if (bin == 0 || branch.seen() <= rowBegin) return;
    for (int l = 0; l < branch.cache().layers(); ++l)
        if (branch.map(LayerIndex{l}).defined()) recordMaps(lane, LayerIndex{l}, branch.map(LayerIndex{l}), rowBegin, branch.seen(), bin, sink);
}

void recordStep(LaneIndex lane, const StepRecord& step, std::vector<Branch::Eviction> evictions, TraceSink& sink) {
    sink.add(lane, step);
    for (Branch::Eviction& e : evictions) sink.add(KeepRecord{lane, step.step, e.layer, e.head, std::move(e.positions)});
}

KeptSets keptSets(const KvCache& cache) {
    KeptSets out;
    for (int l = 0; l < cache.layers(); ++l) out.kept.push_back(cache.layer(LayerIndex{l}).heldPositions());
    return out;
}

std::vector<double> keptCounts(const KvCache& cache) {
    std::vector<double> out;
    for (int l = 0; l < cache.layers(); ++l)
        for (const std::int32_t n : cache.layer(LayerIndex{l}).held) out.push_back(n);
    return out;
}

} // namespace keepsight
