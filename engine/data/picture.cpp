#include "engine/data/picture.h"

#include "engine/data/error.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

namespace keepsight {

namespace {

std::string plain(double value) {
    std::string text = std::to_string(value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
    return text;
}

[[noreturn]] void outside(const char* what, int value, int last) {
    throw UsageError("picture: " + std::string(what) + " " + std::to_string(value) + " is outside 0 … " + std::to_string(last));
}

[[noreturn]] void nothing(std::string_view name) {
    throw UsageError("picture: this session holds nothing to draw as '" + std::string(name) + "'");
}

std::string laneNote(const Lane& lane) {
    std::string note = "lane " + lane.label + ": " + lane.policy.text();
    const Budget& budget = lane.policy.budget;
    if (budget.kind == Budget::Kind::tokens)
        note += ", " + std::to_string(budget.tokens) + " tokens kept per head";
    else if (budget.compressionRatio > 0)
        note += ", " + plain(100 * budget.compressionRatio) + " % removed";
    if (lane.policy.quant != QuantSpec()) note += ", stored by " + lane.policy.quant.text();
    return note;
}

std::string laneTitle(const Lane& lane) {
    const Budget& budget = lane.policy.budget;
    std::string text = lane.label + " " + lane.policy.text();
    if (budget.kind == Budget::Kind::tokens)
        text += " @" + std::to_string(budget.tokens);
    else if (budget.compressionRatio > 0)
        text += " −" + plain(100 * budget.compressionRatio) + " %";
    return lane.policy.quant == QuantSpec() ? text : text + " ~" + lane.policy.quant.text();
}

// The lane in focus and its numbers, checked.
struct Focused {
    const Lane& lane;
    Step step;
    Focused(const Trace& trace, const PictureFocus& focus, std::string_view name) : lane(pick(trace, focus, name)), step(focus.step) {
        const int last = static_cast<int>(lane.steps.size()) - 1;
        if (step.value < 0)
            step = Step{last};
        else if (step.value > last)
            outside("step", step.value, last);
    }
    static const Lane& pick(const Trace& trace, const PictureFocus& focus, std::string_view name) {
        if (trace.lanes.empty()) nothing(name);
        if (focus.lane.value < 0 || static_cast<std::size_t>(focus.lane.value) >= trace.lanes.size())
            outside("lane", focus.lane.value, static_cast<int>(trace.lanes.size()) - 1);
        return trace.lanes[static_cast<std::size_t>(focus.lane.value)];
    }
};

PictureData start(const Trace& trace, std::string name, std::string valueName, std::string unit) {
    PictureData data;
    data.name = std::move(name);
    data.valueName = std::move(valueName);
    data.unit = std::move(unit);
    if (!trace.model.config.name.empty()) data.notes.push_back("model: " + trace.model.config.name);
    return data;
}

PictureData retained(const Trace& trace, const PictureFocus& focus) {
    const Focused at(trace, focus, "retained");
    const Retention& r = at.lane.retention;
    const bool overview = focus.layer.value < 0;
    if (r.positions() == 0 || r.layers() == 0 || r.heads() == 0) nothing("retained");
    if (!overview && focus.layer.value >= r.layers()) outside("layer", focus.layer.value, r.layers() - 1);
    if (!overview && focus.head.value >= r.heads()) outside("head", focus.head.value, r.heads() - 1);
    if (overview) {
        const Position n = r.positionsAt(at.step);
        PictureData data = start(trace, "retained-" + at.lane.label, "held", "");
        data.shape = {static_cast<std::size_t>(r.layers()), static_cast<std::size_t>(r.heads()), static_cast<std::size_t>(n)};
        data.axes = {{"layer", "", 0, 1, {}}, {r.heads() == trace.model.config.kvHeads ? "KV head" : "query head", "", 0, 1, {}}, {"position", "tokens", 0, 1, {}}};
        data.values.reserve(data.shape[0] * data.shape[1] * data.shape[2]);
        for (int layer = 0; layer < r.layers(); ++layer)
            for (int head = 0; head < r.heads(); ++head) {
                const auto row = r.evictedAt(LayerIndex{layer}, HeadIndex{head});
                for (Position p = 0; p < n; ++p)
                    data.values.push_back(row[static_cast<std::size_t>(p)] > at.step.value ? 1.0 : 0.0);
            }
        data.notes.push_back(laneNote(at.lane));
        data.notes.push_back("step " + std::to_string(at.step.value));
        return data;
    }
    // One head, or the share of the layer's heads if none is chosen.
    const int first = std::max(0, focus.head.value), last = focus.head.value < 0 ? r.heads() - 1 : first;
    PictureData data = start(trace,
                             "retained-" + at.lane.label + "-L" + std::to_string(focus.layer.value) +
                                 (focus.head.value < 0 ? "" : "-H" + std::to_string(first)),
                             "held", "");
    const std::size_t steps = at.lane.steps.size(), n = static_cast<std::size_t>(r.positions());
    data.shape = {steps, n};
    data.axes = {{"step", "", 0, 1, {}}, {"position", "tokens", 0, 1, {}}};
    data.values.assign(steps * n, 0.0);
    for (std::size_t step = 0; step < steps; ++step) {
        double* const out = data.values.data() + step * n;
        const auto born = static_cast<std::size_t>(r.positionsAt(Step{static_cast<int>(step)}));
        for (int head = first; head <= last; ++head) {
            const auto row = r.evictedAt(focus.layer, HeadIndex{head});
            for (std::size_t p = 0; p < born; ++p)
                out[p] += row[p] > static_cast<int>(step) ? 1.0 / (last - first + 1) : 0.0;
        }
        std::fill(out + born, out + n, NotMeasured);
    }
    data.notes.push_back(laneNote(at.lane));
    return data;
}

PictureData attention(const Trace& trace, const PictureFocus& focus) {
    const Focused at(trace, focus, "attention");
    const ModelConfig& config = trace.model.config;
    const int heads = focus.perQueryHead ? config.queryHeads : config.kvHeads;
    if (focus.layer.value < 0 || focus.layer.value >= config.layers) outside("layer", focus.layer.value, config.layers - 1);
    if (focus.head.value < 0 || focus.head.value >= heads) outside(focus.perQueryHead ? "query head" : "head", focus.head.value, heads - 1);
    const auto prefill = trace.map(SharedLane, focus.layer, focus.head, focus.perQueryHead);
    auto own = trace.map(focus.lane, focus.layer, focus.head, focus.perQueryHead);
    const Position known = at.lane.steps.empty() ? std::numeric_limits<Position>::max() : at.lane.retention.positionsAt(at.step);
    int ownRows = 0; // rows whose queries were there at the focused step
    if (own)
        for (; ownRows < own->rows && own->rowBegin + ownRows * own->rowBin < known; ++ownRows) {
        }
    if (ownRows == 0) own = nullptr;
    if (!prefill && !own) nothing("attention");

    const AttentionMap& some = prefill ? *prefill : *own;
    const int colBin = prefill && own ? std::gcd(prefill->colBin, own->colBin) : some.colBin;
    const Position keys = std::max(prefill ? std::min(prefill->cols * prefill->colBin, prefill->rowEnd) : 0,
                                   own ? std::min({own->cols * own->colBin, own->rowEnd, known}) : 0);
    const int cols = (keys + colBin - 1) / colBin;
    PictureData data = start(trace,
                             "attention-" + at.lane.label + "-L" + std::to_string(focus.layer.value) + (focus.perQueryHead ? "-Q" : "-H") +
                                 std::to_string(focus.head.value),
                             "mean attention weight", "");
    PictureAxis rowAxis{"query position", "tokens", static_cast<double>(some.rowBegin), static_cast<double>(some.rowBin), {}};
    const bool regular =
        !prefill || !own || (prefill->rowBin == own->rowBin && prefill->rowBegin + prefill->rows * prefill->rowBin == own->rowBegin);
    const std::vector<std::int32_t> evicted = evictedFor(trace, focus.lane, focus.layer, focus.head, focus.perQueryHead);
    const auto addRows = [&](const AttentionMap& map, int rows, bool lanesOwn) {
        for (int r = 0; r < rows; ++r) {
            const Position firstQuery = map.rowBegin + r * map.rowBin, endQuery = std::min(map.rowEnd, firstQuery + map.rowBin);
            if (!regular)
                rowAxis.labels.push_back(endQuery - firstQuery == 1 ? std::to_string(firstQuery)
                                                                    : std::to_string(firstQuery) + "–" + std::to_string(endQuery - 1));
            std::span<const std::int32_t> born;
            if (lanesOwn && at.lane.retention.layers() > 0) {
                born = at.lane.retention.bornAt();
            }
            for (int c = 0; c < cols; ++c) {
                const int from = c * colBin / map.colBin;
                double value =
                    from < map.cols
                        ? static_cast<double>(
                              map.values[static_cast<std::size_t>(r) * static_cast<std::size_t>(map.cols) + static_cast<std::size_t>(from)])
                        : NotMeasured;
                // A column is gone for a row if each of its keys was evicted before the row's first query came.
                if (static_cast<std::size_t>(firstQuery) < born.size()) {
                    const Position begin = from * map.colBin,
                                   end = std::min({begin + map.colBin, endQuery, static_cast<Position>(evicted.size())});
                    bool held = begin >= end;
                    for (Position p = begin; p < end && !held; ++p)
                        held = evicted[static_cast<std::size_t>(p)] >= born[static_cast<std::size_t>(firstQuery)];
                    if (!held) value = NotMeasured;
                }
                data.values.push_back(value);
            }
        }
    };
    if (prefill) addRows(*prefill, prefill->rows, false);
    if (own) addRows(*own, ownRows, true);
    data.shape = {static_cast<std::size_t>((prefill ? prefill->rows : 0) + ownRows), static_cast<std::size_t>(cols)};
    data.axes = {rowAxis, {"key position", "tokens", 0, static_cast<double>(colBin), {}}};
    data.notes.push_back(laneNote(at.lane));
    if (prefill && own) data.notes.push_back("rows from query " + std::to_string(own->rowBegin) + " on are the lane's own");
    return data;
}

PictureData needle(const Trace& trace, const PictureFocus& focus) {
    const Lane& lane = Focused::pick(trace, focus, "needle");
    std::map<std::pair<double, double>, std::pair<double, int>> cells; // depth, length → sum, count
    std::set<double> depths, lengths;
    for (const Measurement& m : trace.measurements) {
        if (m.kind != "needle") continue;
        const double depth = m.number("depth"), length = m.number("length"), score = m.number("score");
        if (std::isnan(depth) || std::isnan(length)) continue;
        depths.insert(depth); // of all lanes, so that their grids can be laid side by side
        lengths.insert(length);
        if (m.lane != focus.lane || std::isnan(score)) continue;
        auto& cell = cells[{depth, length}];
        cell.first += score;
        ++cell.second;
    }
    if (cells.empty()) nothing("needle");
    PictureData data = start(trace, "needle-" + lane.label, "mean score", "");
    data.shape = {depths.size(), lengths.size()};
    data.axes = {{"depth", "%", 0, 1, {}}, {"length", "tokens", 0, 1, {}}};
    for (const double depth : depths) {
        data.axes[0].labels.push_back(plain(depth));
        for (const double length : lengths) {
            const auto cell = cells.find({depth, length});
            data.values.push_back(cell == cells.end() ? NotMeasured : cell->second.first / cell->second.second);
        }
    }
    for (const double length : lengths)
        data.axes[1].labels.push_back(plain(length));
    data.notes.push_back(laneNote(lane));
    return data;
}

PictureData tokens(const Trace& trace, const PictureFocus& focus) {
    Position n = 0;
    const auto stepOf = [&](const Lane& lane) { // lanes that ended earlier show their last step
        const int last = static_cast<int>(lane.steps.size()) - 1;
        return Step{focus.step.value < 0 ? last : std::min(focus.step.value, last)};
    };
    if (focus.step.value > trace.lastStep()) outside("step", focus.step.value, trace.lastStep());
    for (const Lane& lane : trace.lanes)
        if (lane.retention.layers() > 0) n = std::max(n, lane.retention.positionsAt(stepOf(lane)));
    if (n == 0) nothing("tokens");
    PictureData data = start(trace, "tokens", "share of layers and heads holding", "");
    data.shape = {static_cast<std::size_t>(n), trace.lanes.size()};
    data.axes = {{"position", "tokens", 0, 1, {}}, {"lane", "", 0, 1, {}}};
    data.values.assign(data.shape[0] * data.shape[1], NotMeasured);
    for (std::size_t i = 0; i < trace.lanes.size(); ++i) {
        const Lane& lane = trace.lanes[i];
        data.axes[1].labels.push_back(laneTitle(lane));
        data.notes.push_back(laneNote(lane));
        const double all = static_cast<double>(lane.retention.layers()) * lane.retention.heads();
        if (all == 0) continue;
        const auto holders = lane.retention.holdersAt(stepOf(lane));
        for (std::size_t p = 0; p < holders.size(); ++p)
            data.values[p * trace.lanes.size() + i] = holders[p] / all;
    }
    return data;
}

PictureData curve(const Trace& trace, std::string_view name) {
    const bool ppl = name == "ppl", tpot = name == "tpot";
    PictureData data = start(trace, std::string(name),
                             ppl    ? "running perplexity"
                             : tpot ? "time per decode step"
                                    : "stored KV bytes",
                             ppl    ? ""
                             : tpot ? "ms"
                                    : "bytes");
    data.xName = "step";
    const auto steps = static_cast<std::size_t>(trace.lastStep() + 1);
    std::vector<std::vector<double>> series;
    for (const Lane& lane : trace.lanes) {
        auto& out = series.emplace_back(steps, NotMeasured);
        double sum = 0;
        int known = 0;
        for (const StepRecord& step : lane.steps) {
            double& value = out[static_cast<std::size_t>(step.step.value)];
            if (ppl && !std::isnan(step.nll)) {
                sum += step.nll;
                value = std::exp(sum / ++known);
            } else if (tpot && step.kind == StepRecord::Kind::decode)
                value = step.milliseconds;
            else if (!ppl && !tpot)
                value = static_cast<double>(step.kvBytes);
        }
    }
    for (std::size_t step = 0; step < steps; ++step) {
        if (std::all_of(series.begin(), series.end(), [&](const auto& s) { return std::isnan(s[step]); })) continue;
        data.x.push_back(static_cast<double>(step));
        for (const auto& s : series)
            data.values.push_back(s[step]);
    }
    if (data.x.empty()) nothing(name);
    data.shape = {data.x.size(), series.size()};
    data.axes = {{"step", "", 0, 1, {}}, {"lane", "", 0, 1, {}}};
    for (const Lane& lane : trace.lanes) {
        data.axes[1].labels.push_back(laneTitle(lane));
        data.notes.push_back(laneNote(lane));
    }
    return data;
}

PictureData pareto(const Trace& trace) {
    PictureData data = start(trace, "pareto", "", "");
    data.axes = {{"run", "", 0, 1, {}}, {"", "", 0, 1, {"KV bytes", "perplexity"}}};
    for (const Measurement& m : trace.measurements) {
        const double bytes = m.number("kv_bytes"), value = m.number("ppl");
        if ((m.kind != "ppl" && m.kind != "suite") || std::isnan(bytes) || std::isnan(value)) continue;
        data.values.insert(data.values.end(), {bytes, value});
        const bool known = m.lane.value >= 0 && static_cast<std::size_t>(m.lane.value) < trace.lanes.size();
        data.axes[0].labels.push_back(known ? laneTitle(trace.lanes[static_cast<std::size_t>(m.lane.value)]) : m.text("policy"));
    }
    if (data.values.empty()) nothing("pareto");
    data.shape = {data.values.size() / 2, 2};
    return data;
}

} // namespace

const std::vector<std::string>& pictureNames() {
    static const std::vector<std::string> names = {"retained", "attention", "needle", "tokens", "ppl", "tpot", "memory", "pareto"};
    return names;
}

PictureData picture(const Trace& trace, std::string_view name, const PictureFocus& focus) {
    if (name == "retained") return retained(trace, focus);
    if (name == "attention") return attention(trace, focus);
    if (name == "needle") return needle(trace, focus);
    if (name == "tokens") return tokens(trace, focus);
    if (name == "ppl" || name == "tpot" || name == "memory") return curve(trace, name);
    if (name == "pareto") return pareto(trace);
    std::string list;
    for (const std::string& known : pictureNames())
        list += (list.empty() ? "" : ", ") + known;
    throw UsageError("picture: '" + std::string(name) + "' is unknown; expected one of " + list);
}

} // namespace keepsight
