#include "widgets/lanes/lane_editor.h"

#include <algorithm>

namespace keepsight {

LaneResults laneResults(const Trace& trace, LaneIndex lane) {
    LaneResults out;
    const auto index = static_cast<std::size_t>(lane.value);
    if (lane.value < 0 || index >= trace.lanes.size()) return out;
    const Lane& of = trace.lanes[index];
    out.notice = QString::fromStdString(of.notice);
    if (of.steps.empty()) return out;
    out.measured = true;
    const StepRecord& last = of.steps.back();
    out.kvBytes = static_cast<double>(last.kvBytes);

    // Asking the retention is exact also when the bytes are those of a quantized cache, but costs layers × heads × positions.
    const int layers = of.retention.layers(), heads = of.retention.heads();
    if (layers > 0 && heads > 0) {
        std::int64_t held = 0;
        for (int l = 0; l < layers; ++l)
            for (int h = 0; h < heads; ++h)
                held += std::ranges::count(of.retention.evictedAt(LayerIndex{l}, HeadIndex{h}), NeverEvicted);
        out.keptPerHead = static_cast<double>(held) / (layers * heads);
        const double values = 2.0 * static_cast<double>(held) * trace.model.config.headDim; // keys and values
        if (of.policy.quant != QuantSpec() && values > 0) out.bitsPerValue = 8 * out.kvBytes / values;
    }

    out.perplexity = trace.perplexityAt(lane, last.step);
    if (lane.value > 0 && trace.run.kind == "score" && !trace.lanes.front().steps.empty()) {
        // A run feeds its lanes one after the other: compare over the steps both have.
        const Step common{std::min(last.step.value, trace.lanes.front().steps.back().step.value)};
        out.perplexityDelta = trace.perplexityAt(lane, common) - trace.perplexityAt(LaneIndex{0}, common);
    }

    std::vector<double> times;
    for (const StepRecord& step : of.steps)
        if (step.kind == StepRecord::Kind::decode && !std::isnan(step.milliseconds)) times.push_back(step.milliseconds);
    if (!times.empty()) {
        const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
        std::nth_element(times.begin(), middle, times.end());
        out.msPerToken = *middle;
        if (times.size() % 2 == 0) out.msPerToken = (*middle + *std::max_element(times.begin(), middle)) / 2;
    }
    return out;
}

} // namespace keepsight
