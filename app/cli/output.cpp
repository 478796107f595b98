#include "app/cli/output.h"

#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>

namespace keepsight::cli {
namespace {

// A parameter as the type the registry gives it: {"window": 32, "pool": "avg"}.
OrderedJson parameters(const std::string& policy, const std::string& text) {
    OrderedJson out = OrderedJson::object();
    const auto& infos = Engine::policies();
    const auto info = std::find_if(infos.begin(), infos.end(), [&](const PolicyInfo& p) { return p.id == policy; });
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size()), equals = text.find('=', begin);
        if (equals == std::string::npos || equals > end) break;
        const std::string name = text.substr(begin, equals - begin), value = text.substr(equals + 1, end - equals - 1);
        OrderedJson typed = value;
        if (info != infos.end())
            for (const ParamInfo& p : info->params)
                if (p.name == name && p.type != ParamInfo::Type::choice)
                    if (auto number = OrderedJson::parse(value, nullptr, false); number.is_number()) typed = std::move(number);
        out[name] = std::move(typed);
        begin = end + 1;
    }
    return out;
}

OrderedJson number(double value) { return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr); }

OrderedJson valueToJson(const Measurement::Value& value) {
    return std::visit(
        [](const auto& v) -> OrderedJson {
            using T = std::decay_t<decltype(v)>;
            if constexpr (std::is_same_v<T, std::monostate>) {
                return nullptr;
            } else if constexpr (std::is_same_v<T, double>) {
                return number(v);
            } else if constexpr (std::is_same_v<T, std::vector<double>>) {
                OrderedJson list = OrderedJson::array();
                for (const double item : v)
                    list.push_back(number(item));
                return list;
            } else {
                return v;
            }
        },
        value);
}

// [layers × heads] counts as one list per layer.
OrderedJson perLayer(const std::vector<double>& values, int layers) {
    OrderedJson out = OrderedJson::array();
    const std::size_t heads = std::max<std::size_t>(1, values.size() / static_cast<std::size_t>(layers));
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (i % heads == 0) out.push_back(OrderedJson::array());
        out.back().push_back(static_cast<std::int64_t>(values[i]));
    }
    return out;
}

OrderedJson rowToJson(const Measurement& row, int layers) {
    OrderedJson out = OrderedJson::object();
    for (const auto& [name, value] : row.fields) {
        const auto* list = std::get_if<std::vector<double>>(&value);
        if (name == "params" && std::holds_alternative<std::string>(value))
            out[name] = parameters(row.text("policy"), std::get<std::string>(value));
        else if (name == "kept_per_layer" && list && layers > 0)
            out[name] = perLayer(*list, layers);
        else
            out[name] = valueToJson(value);
    }
    return out;
}

OrderedJson keptAt(const Retention& retention, Step step) {
    OrderedJson layers = OrderedJson::array();
    for (int l = 0; l < retention.layers(); ++l) {
        OrderedJson heads = OrderedJson::array();
        for (int h = 0; h < retention.heads(); ++h)
            heads.push_back(retention.keptAt(step, LayerIndex{l}, HeadIndex{h}));
        layers.push_back({{"heads", std::move(heads)}});
    }
    return {{"layers", std::move(layers)}};
}

std::string cell(const Measurement::Value* value, const std::string& column) {
    if (!value || std::holds_alternative<std::monostate>(*value)) return "-";
    if (const auto* v = std::get_if<double>(value)) {
        if (!std::isfinite(*v)) return "-";
        char text[40];
        const char* format = column == "compression_ratio" || column == "depth" ? "%g" : std::abs(*v) >= 1e6 ? "%.4g" : "%.4f";
        std::snprintf(text, sizeof text, format, *v);
        return text;
    }
    if (const auto* v = std::get_if<std::int64_t>(value)) return std::to_string(*v);
    if (const auto* v = std::get_if<bool>(value)) return *v ? "yes" : "no";
    if (const auto* v = std::get_if<std::string>(value)) {
        std::string line = *v;
        std::replace_if(
            line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
        return line.empty() ? "-" : line;
    }
    return std::to_string(std::get<std::vector<double>>(*value).size()) + " values";
}

bool holdsObjects(const OrderedJson& json) {
    return json.is_object() || (json.is_array() && std::any_of(json.begin(), json.end(), holdsObjects));
}

// Objects line by line; lists without objects, which may be long, on one line.
void print(const OrderedJson& json, std::size_t depth, std::string& out) {
    if (json.empty() || !holdsObjects(json)) {
        out += json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
        return;
    }
    const bool object = json.is_object();
    out += object ? '{' : '[';
    bool first = true;
    for (const auto& [key, value] : json.items()) {
        out += (first ? "\n" : ",\n") + std::string(depth + 1, ' ');
        if (object) out += OrderedJson(key).dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + ": ";
        print(value, depth + 1, out);
        first = false;
    }
    out += "\n" + std::string(depth, ' ') + (object ? '}' : ']');
}

std::size_t width(const std::string& text) { // code points, good enough for columns
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xc0) != 0x80; }));
}

} // namespace

std::vector<Measurement> rowsOf(const Trace& trace, const std::string& kind) {
    std::vector<Measurement> rows;
    std::ranges::copy_if(trace.measurements, std::back_inserter(rows), [&](const Measurement& m) { return m.kind == kind; });
    return rows;
}

std::vector<Measurement> plannedRows(const Trace& trace, const std::string& kind, const LanePlan& plan) {
    std::vector<Measurement> rows;
    const std::vector<Measurement> all = rowsOf(trace, kind);
    for (const auto& planned : plan.rows)
        for (const Measurement& measured : all) {
            if (measured.lane.value != static_cast<std::int32_t>(planned.lane)) continue;
            Measurement row = measured;
            const bool ratio = planned.budget.kind == Budget::Kind::ratio;
            row.set("compression_ratio", ratio ? Measurement::Value(planned.budget.compressionRatio) : Measurement::Value());
            row.set("budget", ratio ? Measurement::Value() : Measurement::Value(static_cast<std::int64_t>(planned.budget.tokens)));
            rows.push_back(std::move(row));
        }
    return rows;
}

OrderedJson resultsToJson(const std::string& kind, const Trace& trace, const ModelInfo& model, const std::vector<Measurement>& rows) {
    OrderedJson out;
    out["schema"] = "keepsight." + kind + "/1";
    out["model"] = {{"path", model.path}, {"sha256", model.sha256}, {"arch", model.config.architecture}};
    out["device"] = trace.run.device;
    out["dtype"] = trace.run.dtype;
    out["threads"] = trace.run.threads;
    out["seed"] = trace.run.seed;
    out["tool_version"] = trace.run.toolVersion;
    out["torch_version"] = trace.run.torchVersion;
    out["command_line"] = trace.run.commandLine;
    if (trace.run.cancelled) out["cancelled"] = true;
    OrderedJson notices = OrderedJson::array();
    for (const Lane& lane : trace.lanes)
        if (!lane.notice.empty()) notices.push_back({{"lane", lane.label}, {"notice", lane.notice}});
    if (!notices.empty()) out["notices"] = std::move(notices);
    out["rows"] = OrderedJson::array();
    for (const Measurement& row : rows)
        out["rows"].push_back(rowToJson(row, model.config.layers));
    const std::vector<Measurement> explanations = rowsOf(trace, "explain");
    for (const Measurement& row : explanations)
        out["explanations"].push_back(rowToJson(row, model.config.layers));
    return out;
}

OrderedJson retainedToJson(const Trace& trace) {
    OrderedJson lanes = OrderedJson::array();
    for (const Lane& lane : trace.lanes) {
        const int last = static_cast<int>(lane.steps.size()) - 1;
        OrderedJson kept = {{"after_prefill", keptAt(lane.retention, Step{std::min(1, last)})},
                            {"final", keptAt(lane.retention, Step{last})}};
        if (trace.lanes.size() == 1) return kept;
        OrderedJson labelled = {{"lane", lane.label}, {"policy", laneText({lane.label, lane.policy})}};
        labelled.update(kept);
        lanes.push_back(std::move(labelled));
    }
    return {{"lanes", std::move(lanes)}};
}

std::string table(const std::vector<Measurement>& rows, const std::vector<std::string>& columns) {
    std::vector<std::vector<std::string>> cells;
    std::vector<std::string> heads;
    for (const std::string& column : columns) {
        std::vector<std::string> list;
        bool any = false;
        for (const Measurement& row : rows) {
            list.push_back(cell(row.find(column), column));
            any = any || list.back() != "-";
        }
        if (!any) continue;
        heads.push_back(column);
        cells.push_back(std::move(list));
    }
    std::string out;
    const auto line = [&](const auto& textOf) {
        for (std::size_t c = 0; c < heads.size(); ++c) {
            std::size_t widest = width(heads[c]);
            for (const std::string& text : cells[c])
                widest = std::max(widest, width(text));
            const std::string& text = textOf(c);
            const std::string pad(widest - width(text), ' ');
            const bool left = c == 0; // names to the left, numbers to the right
            out += (c ? "  " : "") + (left ? text + pad : pad + text);
        }
        while (out.ends_with(' '))
            out.pop_back();
        out += '\n';
    };
    line([&](std::size_t c) -> const std::string& { return heads[c]; });
    for (std::size_t r = 0; r < rows.size(); ++r)
        line([&](std::size_t c) -> const std::string& { return cells[c][r]; });
    return out;
}

std::string dump(const OrderedJson& json) {
    std::string out;
    print(json, 0, out);
    return out + "\n";
}

void writeOutput(const std::string& file, const std::string& text) {
    const bool toStdout = file == "-";
    // a pipe or a device is written to, never replaced by a file of that name
    if (!toStdout && (!std::filesystem::exists(file) || std::filesystem::is_regular_file(file))) return writeFileAtomically(file, text);
    std::ofstream opened;
    if (!toStdout) opened.open(file, std::ios::binary);
    std::ostream& out = toStdout ? std::cout : opened;
    out << text << std::flush;
    if (!out) throw EngineError("cannot write to " + (toStdout ? std::string("stdout") : "'" + file + "'"));
}

} // namespace keepsight::cli
