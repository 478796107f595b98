#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "app/cli/output.h"

namespace keepsight::cli {
namespace {

const char* kindName(PolicyKind kind) { return kind == PolicyKind::evict ? "evict" : kind == PolicyKind::admit ? "admit" : "attend"; }

OrderedJson parameterToJson(const ParamInfo& p) {
    const bool choice = p.type == ParamInfo::Type::choice, integer = p.type == ParamInfo::Type::integer;
    OrderedJson initial = p.initial;
    if (!choice)
        if (auto number = OrderedJson::parse(p.initial, nullptr, false); number.is_number()) initial = std::move(number);
    const auto bound = [&](double v) {
        return choice ? OrderedJson() : integer ? OrderedJson(static_cast<std::int64_t>(v)) : OrderedJson(v);
    };
    OrderedJson out = {{"name", p.name},
                       {"type", choice    ? "choice"
                                : integer ? "integer"
                                          : "real"},
                       {"default", initial},
                       {"low", bound(p.low)},
                       {"high", bound(p.high)}};
    if (choice) out["choices"] = p.choices;
    if (!p.unit.empty()) out["unit"] = p.unit;
    out["help"] = p.help;
    return out;
}

OrderedJson policiesToJson() {
    OrderedJson list = OrderedJson::array();
    for (const PolicyInfo& info : Engine::policies()) {
        OrderedJson parameters = OrderedJson::array();
        for (const ParamInfo& p : info.params)
            parameters.push_back(parameterToJson(p));
        list.push_back({{"id", info.id},
                        {"aliases", info.aliases},
                        {"kind", kindName(info.kind)},
                        {"summary", info.summary},
                        {"paper", info.paper},
                        {"uses_budget", info.usesBudget},
                        {"parameters", parameters}});
    }
    return {{"policies", list}};
}

std::string rangeText(const ParamInfo& p) {
    std::string out;
    if (p.type == ParamInfo::Type::choice) {
        for (const std::string& choice : p.choices)
            out += (out.empty() ? "" : "|") + choice;
        return out;
    }
    char text[80];
    std::snprintf(text, sizeof text, "%.12g … %.12g", p.low, p.high);
    return text + (p.unit.empty() ? "" : " " + p.unit);
}

std::string policiesToText() {
    std::string out;
    for (const PolicyInfo& info : Engine::policies()) {
        out += info.id;
        for (const std::string& alias : info.aliases)
            out += ", " + alias;
        out += std::string("  (") + kindName(info.kind) + ")\n    " + info.summary + "\n";
        if (!info.paper.empty()) out += "    " + info.paper + "\n";
        for (const ParamInfo& p : info.params)
            out += "      " + p.name + "=" + p.initial + "  [" + rangeText(p) + "]  " + p.help + "\n";
    }
    return out;
}

} // namespace

RunCommand addPolicies(CLI::App& app) {
    const auto json = std::make_shared<std::string>();
    auto* option = app.add_option("--json", *json, "Write JSON; -, or nothing: to stdout")->expected(0, 1);
    return [json, option](const Shell&) {
        if (option->count() == 0)
            writeOutput("-", policiesToText());
        else
            writeOutput(json->empty() ? "-" : *json, dump(policiesToJson()));
        return ExitDone;
    };
}

} // namespace keepsight::cli
