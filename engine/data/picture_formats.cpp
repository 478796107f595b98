#include "engine/data/picture.h"

#include "engine/data/json_strict.h"

#include <algorithm>
#include <bit>
#include <charconv>

namespace keepsight {

namespace {

std::string number(double value) { // shortest text that reads back as the same double; missing: empty
    if (std::isnan(value)) return {};
    char text[40];
    return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

std::string csvField(const std::string& text) {
    if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
    std::string out = "\"";
    for (const char c : text)
        out += c == '"' ? std::string("\"\"") : std::string(1, c);
    return out + '"';
}

std::string withUnit(const std::string& name, const std::string& unit) { return csvField(unit.empty() ? name : name + " [" + unit + "]"); }

std::string axisValue(const PictureAxis& axis, std::size_t i) {
    return i < axis.labels.size() ? csvField(axis.labels[i]) : number(axis.first + static_cast<double>(i) * axis.step);
}

// Curves and point sets: one line per point, one column per series.
std::string tableCsv(const PictureData& data) {
    const std::size_t points = data.shape.empty() ? 0 : data.shape[0], series = data.shape.size() > 1 ? data.shape[1] : 1;
    std::string out = data.x.empty() ? csvField(data.axes[0].name) : withUnit(data.xName, data.xUnit);
    for (std::size_t s = 0; s < series; ++s)
        out += "," + withUnit(data.axes.size() > 1 && s < data.axes[1].labels.size() ? data.axes[1].labels[s] : data.valueName, data.unit);
    out += '\n';
    for (std::size_t p = 0; p < points; ++p) {
        out += data.x.empty() ? axisValue(data.axes[0], p) : number(data.x[p]);
        for (std::size_t s = 0; s < series; ++s)
            out += "," + number(data.values[p * series + s]);
        out += '\n';
    }
    return out;
}

OrderedJson measured(const Measurement::Value& value) {
    struct {
        OrderedJson operator()(std::monostate) const { return nullptr; }
        OrderedJson operator()(bool v) const { return v; }
        OrderedJson operator()(std::int64_t v) const { return v; }
        OrderedJson operator()(double v) const { return v; } // NaN and infinities are written as null
        OrderedJson operator()(const std::string& v) const { return v; }
        OrderedJson operator()(const std::vector<double>& v) const { return v; }
    } visitor;
    return std::visit(visitor, value);
}

std::string text(const OrderedJson& json, int indent) { return json.dump(indent, ' ', false, OrderedJson::error_handler_t::replace); }

} // namespace

std::string toCsv(const PictureData& data) {
    if (!data.x.empty() || data.valueName.empty()) return tableCsv(data);
    std::string out;
    for (const PictureAxis& axis : data.axes)
        out += withUnit(axis.name, axis.unit) + ",";
    out += withUnit(data.valueName, data.unit) + "\n";
    std::vector<std::size_t> index(data.shape.size(), 0);
    for (const double value : data.values) {
        for (std::size_t d = 0; d < index.size(); ++d)
            out += (d < data.axes.size() ? axisValue(data.axes[d], index[d]) : std::to_string(index[d])) + ",";
        out += number(value) + "\n";
        for (std::size_t d = index.size(); d-- > 0;) {
            if (++index[d] < data.shape[d]) break;
            index[d] = 0;
        }
    }
    return out;
}

std::string toNpy(const PictureData& data) {
    std::string header = "{'descr': '<f8', 'fortran_order': False, 'shape': (";
    for (const std::size_t extent : data.shape)
        header += std::to_string(extent) + ",";
    if (data.shape.size() > 1) header.pop_back();
    header += "), }";
    constexpr std::size_t Prefix = 10; // magic, version, header length
    header.append(63 - (Prefix + header.size()) % 64, ' ');
    header += '\n';
    std::string out("\x93NUMPY\x01\x00", 8);
    out += static_cast<char>(header.size() & 0xff);
    out += static_cast<char>(header.size() >> 8);
    out += header;
    out.reserve(out.size() + data.values.size() * 8);
    for (const double value : data.values) {
        const auto bits = std::bit_cast<std::uint64_t>(value);
        for (int byte = 0; byte < 8; ++byte)
            out += static_cast<char>(bits >> (8 * byte));
    }
    return out;
}

std::string toJson(const PictureData& data) {
    OrderedJson out = {
        {"schema", "keepsight.picture/1"}, {"name", data.name}, {"value_name", data.valueName}, {"unit", data.unit}, {"shape", data.shape}};
    out["axes"] = OrderedJson::array();
    for (const PictureAxis& axis : data.axes) {
        OrderedJson one = {{"name", axis.name}, {"unit", axis.unit}};
        if (axis.labels.empty()) {
            one["first"] = axis.first;
            one["step"] = axis.step;
        } else {
            one["labels"] = axis.labels;
        }
        out["axes"].push_back(one);
    }
    if (!data.x.empty()) {
        out["x_name"] = data.xName;
        out["x_unit"] = data.xUnit;
        out["x"] = data.x;
    }
    out["notes"] = data.notes;
    out["values"] = data.values;
    return text(out, -1) + "\n";
}

std::string measurementsToCsv(const std::vector<Measurement>& rows) {
    std::vector<std::string> columns;
    for (const Measurement& row : rows)
        for (const auto& [name, value] : row.fields)
            if (std::find(columns.begin(), columns.end(), name) == columns.end()) columns.push_back(name);
    std::string out;
    for (const std::string& column : columns)
        out += (out.empty() ? "" : ",") + csvField(column);
    out += '\n';
    for (const Measurement& row : rows) {
        std::string line;
        for (std::size_t i = 0; i < columns.size(); ++i) {
            if (i > 0) line += ',';
            const Measurement::Value* value = row.find(columns[i]);
            if (!value) continue;
            if (const auto* string = std::get_if<std::string>(value))
                line += csvField(*string);
            else if (const auto* flag = std::get_if<bool>(value))
                line += *flag ? "true" : "false";
            else if (const auto* integer = std::get_if<std::int64_t>(value))
                line += std::to_string(*integer);
            else if (const auto* real = std::get_if<double>(value))
                line += number(*real);
            else if (const auto* list = std::get_if<std::vector<double>>(value))
                for (std::size_t k = 0; k < list->size(); ++k)
                    line += (k ? ";" : "") + number((*list)[k]);
        }
        out += line + '\n';
    }
    return out;
}

std::string measurementsToJson(const std::vector<Measurement>& rows, int indent) {
    OrderedJson out = OrderedJson::array();
    for (const Measurement& row : rows) {
        OrderedJson one = OrderedJson::object();
        for (const auto& [name, value] : row.fields)
            one[name] = measured(value);
        out.push_back(one);
    }
    return text(out, indent);
}

} // namespace keepsight
