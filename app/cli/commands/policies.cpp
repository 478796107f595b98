#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "app/cli/output.h"

#include <algorithm>

namespace keepsight::cli {
namespace {

const char* kindName(PolicyKind kind) { return kind == PolicyKind::evict ? "evict" : kind == PolicyKind::admit ? "admit" : "attend"; }

const char* typeName(ParamInfo::Type type) {
    switch (type) {
    case ParamInfo::Type::integer: return "integer";
    case ParamInfo::Type::real: return "real";
    case ParamInfo::Type::choice: return "choice";
    case ParamInfo::Type::reals: return "reals";
    case ParamInfo::Type::file: return "file";
    case ParamInfo::Type::settings: return "settings";
    }
    return "";
}

bool isText(const ParamInfo& p) { return p.type == ParamInfo::Type::choice || p.type == ParamInfo::Type::file || p.type == ParamInfo::Type::settings; }
bool isNumber(const ParamInfo& p) { return p.type == ParamInfo::Type::integer || p.type == ParamInfo::Type::real; }

OrderedJson parameterToJson(const ParamInfo& p) {
    OrderedJson initial = p.initial;
    if (isNumber(p))
        if (auto number = OrderedJson::parse(p.initial, nullptr, false); number.is_number()) initial = std::move(number);
    const auto bound = [&](double v) {
        if (isText(p)) return OrderedJson();
        return p.type == ParamInfo::Type::integer ? OrderedJson(static_cast<std::int64_t>(v)) : OrderedJson(v);
    };
    OrderedJson out = {{"name", p.name}, {"type", typeName(p.type)}, {"default", initial}, {"low", bound(p.low)}, {"high", bound(p.high)}};
    if (!p.choices.empty()) out["choices"] = p.choices;
    if (!p.unit.empty()) out["unit"] = p.unit;
    out["help"] = p.help;
    return out;
}

OrderedJson parametersToJson(const std::vector<ParamInfo>& params) {
    OrderedJson out = OrderedJson::array();
    for (const ParamInfo& p : params)
        out.push_back(parameterToJson(p));
    return out;
}

OrderedJson policiesToJson() {
    OrderedJson list = OrderedJson::array();
    for (const PolicyInfo& info : Engine::policies())
        list.push_back({{"id", info.id},
                        {"aliases", info.aliases},
                        {"kind", kindName(info.kind)},
                        {"summary", info.summary},
                        {"paper", info.paper},
                        {"uses_budget", info.usesBudget},
                        {"parameters", parametersToJson(info.params)}});
    return {{"policies", list}};
}

OrderedJson quantizersToJson() {
    OrderedJson list = OrderedJson::array();
    for (const QuantInfo& info : Engine::quantizers())
        list.push_back({{"id", info.id},
                        {"aliases", info.aliases},
                        {"summary", info.summary},
                        {"paper", info.paper},
                        {"parameters", parametersToJson(info.params)}});
    return {{"quantizers", list}};
}

std::string rangeText(const ParamInfo& p) {
    if (p.type == ParamInfo::Type::file) return "a file";
    if (p.type == ParamInfo::Type::settings) return "name=value;…";
    std::string out;
    for (const std::string& choice : p.choices)
        out += (out.empty() ? "" : "|") + choice;
    if (p.type == ParamInfo::Type::choice) return out;
    char text[80];
    std::snprintf(text, sizeof text, "%.12g … %.12g", p.low, p.high);
    return (p.type == ParamInfo::Type::reals ? "list of " : "") + std::string(text) + (p.unit.empty() ? "" : " " + p.unit);
}

// Head line, summary, paper and parameters of one registry entry.
template <class Info>
std::string entryToText(const Info& info, const std::string& behind) {
    std::string out = info.id;
    for (const std::string& alias : info.aliases)
        out += ", " + alias;
    out += behind + "\n    " + info.summary + "\n";
    if (!info.paper.empty()) out += "    " + info.paper + "\n";
    for (const ParamInfo& p : info.params)
        out += "      " + p.name + "=" + p.initial + "  [" + rangeText(p) + "]  " + p.help + "\n";
    return out;
}

std::string policiesToText() {
    std::string out;
    for (const PolicyInfo& info : Engine::policies())
        out += entryToText(info, std::string("  (") + kindName(info.kind) + ")");
    return out;
}

std::string quantizersToText() {
    std::string out;
    for (const QuantInfo& info : Engine::quantizers())
        out += entryToText(info, "");
    return out;
}

bool sameWords(const ParamInfo& a, const ParamInfo& b) { return a.name == b.name && a.help == b.help && a.initial == b.initial; }

// Parameters that many entries declare with the same words and default; the tables name them once, below.
template <class Info>
std::vector<ParamInfo> sharedOf(const std::vector<Info>& rows) {
    constexpr int Many = 4;
    std::vector<ParamInfo> out;
    for (const Info& row : rows)
        for (const ParamInfo& p : row.params) {
            if (std::ranges::any_of(out, [&](const ParamInfo& known) { return sameWords(known, p); })) continue;
            const auto declares = [&](const Info& other) { return std::ranges::any_of(other.params, [&](const ParamInfo& q) { return sameWords(p, q); }); };
            if (std::ranges::count_if(rows, declares) >= Many) out.push_back(p);
        }
    return out;
}

std::string inTable(std::string text) { // a bar would end the cell
    for (std::size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2)
        text.replace(at, 1, ", ");
    return text;
}

std::string parameterToMarkdown(const ParamInfo& p) {
    constexpr std::size_t Many = 12;
    const std::string range = p.choices.size() > Many ? "any of " + std::to_string(p.choices.size()) : inTable(rangeText(p));
    return "`" + p.name + (p.initial.empty() ? "" : "=" + p.initial) + "` (" + range + ")";
}

// A family: neighbours of one paper whose names begin alike share a row.
template <class Info>
std::size_t familyEnd(const std::vector<Info>& entries, std::size_t begin) {
    std::size_t end = begin + 1;
    while (end < entries.size() && !entries[begin].paper.empty() && entries[end].paper == entries[begin].paper && entries[end].id.substr(0, 3) == entries[begin].id.substr(0, 3))
        ++end;
    return end;
}

template <class Info>
std::string toMarkdown(const std::vector<Info>& entries, const std::string& what) {
    std::vector<Info> rows;
    for (std::size_t i = 0; i < entries.size(); i = familyEnd(entries, i))
        rows.push_back(entries[i]);
    const std::vector<ParamInfo> shared = sharedOf(rows);
    const auto isShared = [&](const ParamInfo& p) { return std::ranges::any_of(shared, [&](const ParamInfo& s) { return sameWords(s, p); }); };
    std::string out = "| " + what + " | | parameters: default (range) | paper |\n|---|---|---|---|\n";
    for (std::size_t i = 0; i < entries.size();) {
        const Info& info = entries[i];
        const std::size_t end = familyEnd(entries, i);
        std::string names = "`" + info.id + "`", parameters;
        for (const std::string& alias : info.aliases)
            names += ", `" + alias + "`";
        if (end > i + 1) names += " and " + std::to_string(end - i - 1) + " more";
        for (const ParamInfo& p : info.params)
            if (!isShared(p)) parameters += (parameters.empty() ? "" : ", ") + parameterToMarkdown(p);
        out += "| " + names + " | " + inTable(info.summary) + " | " + parameters + " | " + inTable(info.paper) + " |\n";
        i = end;
    }
    if (!shared.empty()) out += "\nShared by many:\n\n";
    for (const ParamInfo& p : shared)
        out += "- " + parameterToMarkdown(p) + ": " + p.help + "\n";
    return out;
}

std::string policiesToMarkdown() { return toMarkdown(Engine::policies(), "policy"); }
std::string quantizersToMarkdown() { return toMarkdown(Engine::quantizers(), "quantizer"); }

RunCommand addListing(CLI::App& app, std::string (*text)(), OrderedJson (*json)(), std::string (*markdown)()) {
    const auto file = std::make_shared<std::string>();
    const auto markdownWanted = std::make_shared<bool>(false);
    auto* table = app.add_flag("--markdown", *markdownWanted, "Write a Markdown table, as the README shows it");
    auto* option = app.add_option("--json", *file, "Write JSON; -, or nothing: to stdout")->expected(0, 1);
    table->excludes(option);
    return [=](const Shell&) {
        if (*markdownWanted)
            writeOutput("-", markdown());
        else if (option->count() == 0)
            writeOutput("-", text());
        else
            writeOutput(file->empty() ? "-" : *file, dump(json()));
        return ExitDone;
    };
}

} // namespace

RunCommand addPolicies(CLI::App& app) { return addListing(app, policiesToText, policiesToJson, policiesToMarkdown); }
RunCommand addQuantizers(CLI::App& app) { return addListing(app, quantizersToText, quantizersToJson, quantizersToMarkdown); }

} // namespace keepsight::cli
