#include "engine/data/trace.h"

#include "engine/data/error.h"

#include <algorithm>
#include <array>

namespace keepsight {

namespace {

constexpr int TopCode = 254; // weight 1; each code below is 1/16 octave less

std::array<float, 256> makeWeights() {
    std::array<float, 256> weights{};
    for (int code = 1; code <= TopCode; ++code)
        weights[static_cast<std::size_t>(code)] = static_cast<float>(std::exp2((code - TopCode) / 16.0));
    weights[255] = std::numeric_limits<float>::quiet_NaN();
    return weights;
}

std::shared_ptr<const AttentionMap> newestOf(const std::vector<std::shared_ptr<const AttentionMap>>& maps, LayerIndex layer, HeadIndex head,
                                             bool perQueryHead) {
    for (auto it = maps.rbegin(); it != maps.rend(); ++it)
        if ((*it)->layer == layer && (*it)->head == head && (*it)->perQueryHead == perQueryHead) return *it;
    return nullptr;
}

} // namespace

std::uint8_t attentionCode(float weight) {
    if (std::isnan(weight)) return 255;
    if (!(weight > 0.0f)) return 0;
    const double code = std::nearbyint(std::log2(static_cast<double>(weight)) * 16.0) + TopCode;
    if (code < 1.0) return 0;
    return static_cast<std::uint8_t>(std::min<double>(code, TopCode));
}

float attentionWeight(std::uint8_t code) {
    static const std::array<float, 256> weights = makeWeights();
    return weights[code];
}

const Measurement::Value* Measurement::find(std::string_view name) const {
    for (const auto& [key, value] : fields)
        if (key == name) return &value;
    return nullptr;
}

double Measurement::number(std::string_view name, double otherwise) const {
    const Value* value = find(name);
    if (!value) return otherwise;
    if (const auto* real = std::get_if<double>(value)) return *real;
    if (const auto* integer = std::get_if<std::int64_t>(value)) return static_cast<double>(*integer);
    if (const auto* flag = std::get_if<bool>(value)) return *flag ? 1.0 : 0.0;
    return otherwise;
}

std::string Measurement::text(std::string_view name) const {
    const Value* value = find(name);
    const auto* string = value ? std::get_if<std::string>(value) : nullptr;
    return string ? *string : std::string();
}

void Measurement::set(std::string name, Value value) {
    for (auto& [key, old] : fields)
        if (key == name) {
            old = std::move(value);
            return;
        }
    fields.emplace_back(std::move(name), std::move(value));
}

int Trace::lastStep() const {
    int last = -1;
    for (const Lane& lane : lanes)
        if (!lane.steps.empty()) last = std::max(last, lane.steps.back().step.value);
    return last;
}

const TokenRecord* Trace::tokenAt(LaneIndex lane, Position p) const {
    if (p < 0) return nullptr;
    if (static_cast<std::size_t>(p) < tokens.size()) return &tokens[static_cast<std::size_t>(p)];
    if (lane.value < 0 || static_cast<std::size_t>(lane.value) >= lanes.size()) return nullptr;
    const auto& own = lanes[static_cast<std::size_t>(lane.value)].generated;
    const auto it = std::lower_bound(own.begin(), own.end(), p, [](const TokenRecord& token, Position at) { return token.position < at; });
    return it != own.end() && it->position == p ? &*it : nullptr;
}

std::shared_ptr<const AttentionMap> Trace::map(LaneIndex lane, LayerIndex layer, HeadIndex head, bool perQueryHead) const {
    if (lane == SharedLane) return newestOf(maps, layer, head, perQueryHead);
    if (lane.value < 0 || static_cast<std::size_t>(lane.value) >= lanes.size()) return nullptr;
    return newestOf(lanes[static_cast<std::size_t>(lane.value)].maps, layer, head, perQueryHead);
}

double Trace::perplexityAt(LaneIndex lane, Step step) const {
    if (lane.value < 0 || static_cast<std::size_t>(lane.value) >= lanes.size()) return NotMeasured;
    double sum = 0.0;
    std::int64_t known = 0;
    for (const StepRecord& record : lanes[static_cast<std::size_t>(lane.value)].steps) {
        if (record.step > step) break;
        if (std::isnan(record.nll)) continue;
        sum += record.nll;
        ++known;
    }
    return known > 0 ? std::exp(sum / static_cast<double>(known)) : NotMeasured;
}

int storedHeads(const ModelConfig& config, const PolicySpec& policy) {
    const auto found = policy.params.find("granularity");
    return found != policy.params.end() && found->second == "query_head" ? config.queryHeads : config.kvHeads;
}

int storedHeads(const Trace& trace, LaneIndex lane) {
    if (lane.value < 0 || static_cast<std::size_t>(lane.value) >= trace.lanes.size()) return trace.model.config.kvHeads;
    const Lane& of = trace.lanes[static_cast<std::size_t>(lane.value)];
    return of.retention.heads() > 0 ? of.retention.heads() : storedHeads(trace.model.config, of.policy);
}

HeadIndex kvHeadOf(const Trace& trace, LaneIndex lane, HeadIndex stored) {
    return HeadIndex{stored.value * trace.model.config.kvHeads / std::max(1, storedHeads(trace, lane))};
}

std::vector<std::int32_t> evictedFor(const Trace& trace, LaneIndex lane, LayerIndex layer, HeadIndex mapHead, bool perQueryHead) {
    const Retention& r = trace.lanes.at(static_cast<std::size_t>(lane.value)).retention;
    const int mapHeads = perQueryHead ? trace.model.config.queryHeads : trace.model.config.kvHeads;
    if (layer.value < 0 || layer.value >= r.layers() || mapHead.value < 0 || mapHead.value >= mapHeads || r.heads() == 0) return {};
    const int first = mapHead.value * r.heads() / mapHeads, end = std::max(first + 1, (mapHead.value + 1) * r.heads() / mapHeads);
    const auto row = r.evictedAt(layer, HeadIndex{first});
    std::vector<std::int32_t> out(row.begin(), row.end());
    for (int head = first + 1; head < end; ++head)
        std::ranges::transform(out, r.evictedAt(layer, HeadIndex{head}), out.begin(), [](std::int32_t a, std::int32_t b) { return std::max(a, b); });
    return out;
}

std::shared_ptr<const Trace> withPreview(const Trace& trace, LaneIndex laneIndex, const PolicySpec& policy, const KeptSets& sets) {
    if (laneIndex.value < 0 || static_cast<std::size_t>(laneIndex.value) >= trace.lanes.size())
        throw EngineError("preview: lane " + std::to_string(laneIndex.value) + " is outside 0 … " +
                          std::to_string(static_cast<int>(trace.lanes.size()) - 1));
    auto out = std::make_shared<Trace>(trace);
    Lane& lane = out->lanes[static_cast<std::size_t>(laneIndex.value)];
    const int layers = lane.retention.layers() > 0 ? lane.retention.layers() : trace.model.config.layers;
    const int heads = storedHeads(trace.model.config, policy);
    const Position length = trace.prefillLength;
    if (sets.kept.size() != static_cast<std::size_t>(layers))
        throw EngineError("preview: kept sets of " + std::to_string(sets.kept.size()) + " layers for a model of " + std::to_string(layers));

    Retention retention(layers, heads);
    retention.append(Step{0}, length);
    std::int64_t entries = 0;
    KeepRecord record{laneIndex, Step{1}, {}, {}, {}};
    for (int layer = 0; layer < layers; ++layer) {
        const auto& ofLayer = sets.kept[static_cast<std::size_t>(layer)];
        if (ofLayer.size() != static_cast<std::size_t>(heads))
            throw EngineError("preview: kept sets of " + std::to_string(ofLayer.size()) + " heads in layer " + std::to_string(layer) +
                              " for a model of " + std::to_string(heads));
        for (int head = 0; head < heads; ++head) {
            const auto& kept = ofLayer[static_cast<std::size_t>(head)];
            record.layer = LayerIndex{layer};
            record.head = HeadIndex{head};
            record.evicted.clear();
            Position next = 0;
            for (const Position p : kept) {
                if (p < next || p >= length)
                    throw EngineError("preview: kept position " + std::to_string(p) + " in layer " + std::to_string(layer) + ", head " +
                                      std::to_string(head) + " is out of order or outside the " + std::to_string(length) +
                                      " prefilled tokens");
                for (; next < p; ++next)
                    record.evicted.push_back(next);
                next = p + 1;
            }
            for (; next < length; ++next)
                record.evicted.push_back(next);
            retention.evict(record);
            entries += static_cast<std::int64_t>(kept.size());
        }
    }

    StepRecord prefill;
    prefill.kind = StepRecord::Kind::prefill;
    prefill.count = length;
    prefill.kvBytes = prefill.allocatedBytes = trace.model.kvBytesPerToken * length;
    if (!lane.steps.empty()) prefill = lane.steps.front();
    StepRecord evict;
    evict.step = Step{1};
    evict.kind = StepRecord::Kind::evict;
    evict.firstPosition = length;
    const std::int64_t rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(layers) * trace.model.config.kvHeads);
    evict.kvBytes = evict.allocatedBytes = sets.bitsPerValue > 0 ? static_cast<std::int64_t>(static_cast<double>(2 * entries * trace.model.config.headDim) * sets.bitsPerValue / 8)
                                                                 : trace.model.kvBytesPerToken * entries / rows;

    lane.policy = policy;
    lane.generated.clear();
    lane.steps = {prefill, evict};
    lane.retention = std::move(retention);
    lane.maps.clear();
    lane.notice = sets.notice;
    // What was measured under the lane's former policy says nothing about the previewed one.
    std::erase_if(out->measurements, [&](const Measurement& m) { return m.lane == laneIndex; });
    return out;
}

} // namespace keepsight
