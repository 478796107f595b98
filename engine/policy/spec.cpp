#include "engine/policy/spec.h"

#include "engine/data/error.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

namespace keepsight {
namespace {

const ParamInfo* find(const std::vector<ParamInfo>& params, std::string_view name) {
    const auto found = std::ranges::find(params, name, &ParamInfo::name);
    return found == params.end() ? nullptr : &*found;
}

bool number(std::string_view text, double& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc{} && end == text.data() + text.size();
}

bool isInterval(std::string_view timing) { // every:N, decode:N
    for (const std::string_view prefix : {"every:", "decode:"}) {
        double n = 0;
        if (timing.starts_with(prefix) && number(timing.substr(prefix.size()), n) && n >= 1 && n == std::floor(n) && n <= 1 << 24) return true;
    }
    return false;
}

// nullopt: one of them is no number.
std::optional<std::vector<double>> numbers(std::string_view text) {
    std::vector<double> out;
    while (!text.empty()) {
        const std::size_t slash = text.find('/');
        if (!number(text.substr(0, slash), out.emplace_back())) return std::nullopt;
        if (slash == std::string_view::npos) return out;
        text.remove_prefix(slash + 1);
        if (text.empty()) return std::nullopt;
    }
    return out;
}

void checkValue(const std::string& what, const ParamInfo& param, const std::string& value) {
    const auto refuse = [&](const std::string& expected) {
        throw UsageError(what + ": parameter '" + param.name + "' expects " + expected + ", found '" + value + "'");
    };
    const std::string range = " from " + shortNumber(param.low) + " to " + shortNumber(param.high);
    const auto inside = [&](double v) { return v >= param.low && v <= param.high; };
    switch (param.type) {
    case ParamInfo::Type::choice:
        if (param.name == "timing" && isInterval(value)) return;
        if (std::ranges::find(param.choices, value) == param.choices.end()) refuse("one of " + joined(param.choices));
        return;
    case ParamInfo::Type::file:
    case ParamInfo::Type::settings:
        return; // read when it is used
    case ParamInfo::Type::reals: {
        const auto list = numbers(value);
        if (!list || !std::ranges::all_of(*list, inside)) refuse("numbers" + range + " separated by '/'");
        return;
    }
    case ParamInfo::Type::real: {
        double v = 0;
        if (!number(value, v) || !inside(v)) refuse("a number" + range);
        return;
    }
    case ParamInfo::Type::integer: {
        double v = 0;
        if (!number(value, v) || !inside(v) || v != std::floor(v)) refuse("a whole number" + range);
        if (param.odd && std::fmod(v, 2.0) == 0.0) refuse("an odd number (an even one would shift what it pools)");
        return;
    }
    }
}

} // namespace

std::string joined(const std::vector<std::string>& words) {
    std::string out;
    for (const std::string& w : words) out += (out.empty() ? "" : ", ") + w;
    return out;
}

std::string shortNumber(double v) {
    std::string s = std::to_string(v);
    s.erase(s.find_last_not_of('0') + 1);
    if (s.back() == '.') s.pop_back();
    return s;
}

ParamValues parseParams(std::string_view what, std::string_view text) {
    ParamValues values;
    const std::string where = std::string(what) + " '" + std::string(text) + "'";
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos) return values;
    std::string_view rest = text.substr(colon + 1);
    if (rest.empty()) throw UsageError(where + ": expected key=value after ':', found nothing");
    while (!rest.empty()) {
        const std::size_t comma = rest.find(',');
        const std::string_view pair = rest.substr(0, comma);
        const std::size_t equals = pair.find('=');
        if (equals == std::string_view::npos || equals == 0) throw UsageError(where + ": expected key=value, found '" + std::string(pair) + "'");
        const std::string name(pair.substr(0, equals));
        if (!values.emplace(name, pair.substr(equals + 1)).second) throw UsageError(where + ": parameter '" + name + "' is given twice");
        if (comma == std::string_view::npos) break;
        rest.remove_prefix(comma + 1);
        if (rest.empty()) throw UsageError(where + ": expected key=value after the last ','");
    }
    return values;
}

void checkParams(const std::string& what, const std::vector<ParamInfo>& params, const ParamValues& values) {
    for (const auto& [name, value] : values) {
        if (const ParamInfo* param = find(params, name)) {
            checkValue(what, *param, value);
            continue;
        }
        std::vector<std::string> names;
        for (const ParamInfo& p : params) names.push_back(p.name);
        throw UsageError(what + " has no parameter '" + name + "'; " + (names.empty() ? "it takes none" : "expected one of: " + joined(names)));
    }
}

void dropDefaults(const std::vector<ParamInfo>& params, ParamValues& values) {
    std::erase_if(values, [&](const auto& value) {
        const ParamInfo* param = find(params, value.first);
        return param && param->initial == value.second;
    });
}

bool Params::has(std::string_view name) const { return find(m_infos, name) != nullptr; }

const std::string& Params::choice(std::string_view name) const {
    if (const auto given = m_values.find(std::string(name)); given != m_values.end()) return given->second;
    const ParamInfo* param = find(m_infos, name);
    if (!param) throw std::logic_error("parameter '" + std::string(name) + "' is read but not declared");
    return param->initial;
}

double Params::real(std::string_view name) const {
    double value = 0;
    number(choice(name), value);
    return value;
}

int Params::integer(std::string_view name) const { return static_cast<int>(real(name)); }
std::vector<double> Params::reals(std::string_view name) const { return numbers(choice(name)).value_or(std::vector<double>{}); }

ParamInfo flagParam(std::string name, bool initial, std::string help) {
    return {std::move(name), ParamInfo::Type::choice, initial ? "on" : "off", 0, 0, {"off", "on"}, "", std::move(help)};
}

} // namespace keepsight
