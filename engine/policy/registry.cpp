#include "engine/policy/policy.h"

#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace keepsight {

#define KEEPSIGHT_POLICY(id) PolicyEntry id##_policy();
#include "engine/policy/policies.def"
#undef KEEPSIGHT_POLICY

namespace {

const ParamInfo* findParam(const PolicyInfo& info, std::string_view name) {
    for (const ParamInfo& p : info.params)
        if (p.name == name) return &p;
    return nullptr;
}

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

bool isEvery(std::string_view timing) {
    int n = 0;
    if (!timing.starts_with("every:")) return false;
    const auto [end, error] = std::from_chars(timing.data() + 6, timing.data() + timing.size(), n);
    return error == std::errc{} && end == timing.data() + timing.size() && n > 0;
}

void checkValue(const PolicyInfo& info, const ParamInfo& param, const std::string& value) {
    const auto refuse = [&](const std::string& expected) {
        throw UsageError("policy " + info.id + ": parameter '" + param.name + "' expects " + expected + ", found '" + value + "'");
    };
    if (param.type == ParamInfo::Type::choice) {
        const bool every = param.name == "timing" && isEvery(value);
        if (!every && std::find(param.choices.begin(), param.choices.end(), value) == param.choices.end()) refuse("one of " + joined(param.choices));
        return;
    }
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    const bool whole = param.type == ParamInfo::Type::integer;
    const std::string range = (whole ? "a whole number" : "a number") + std::string(" from ") + shortNumber(param.low) + " to " + shortNumber(param.high);
    if (error != std::errc{} || end != value.data() + value.size() || !(number >= param.low && number <= param.high)) refuse(range);
    if (whole && number != std::floor(number)) refuse(range);
    if (info.id == "snapkv" && param.name == "kernel" && std::fmod(number, 2.0) == 0.0) refuse("an odd number (an even one shifts the votes)");
}

} // namespace

const std::vector<PolicyEntry>& policyRegistry() {
    static const std::vector<PolicyEntry> entries = {
#define KEEPSIGHT_POLICY(id) id##_policy(),
#include "engine/policy/policies.def"
#undef KEEPSIGHT_POLICY
    };
    return entries;
}

const PolicyEntry& policyEntry(std::string_view idOrAlias) {
    std::vector<std::string> ids;
    for (const PolicyEntry& entry : policyRegistry()) {
        if (entry.info.id == idOrAlias || std::find(entry.info.aliases.begin(), entry.info.aliases.end(), idOrAlias) != entry.info.aliases.end()) return entry;
        ids.push_back(entry.info.id);
    }
    throw UsageError("policy '" + std::string(idOrAlias) + "' is not known; expected one of: " + joined(ids));
}

void checkPolicySpec(const PolicySpec& spec) {
    const PolicyInfo& info = policyEntry(spec.id).info;
    for (const auto& [name, value] : spec.params) {
        const ParamInfo* param = findParam(info, name);
        if (!param) {
            std::vector<std::string> names;
            for (const ParamInfo& p : info.params) names.push_back(p.name);
            throw UsageError("policy " + info.id + " has no parameter '" + name + "'; " + (names.empty() ? "it takes none" : "expected one of: " + joined(names)));
        }
        checkValue(info, *param, value);
    }
    const Budget& b = spec.budget;
    if (b.kind == Budget::Kind::ratio && !(b.compressionRatio >= 0.0 && b.compressionRatio < 1.0))
        throw UsageError("compression ratio expects a number c with 0 <= c < 1 (the fraction removed), found " + shortNumber(b.compressionRatio));
    if (b.kind == Budget::Kind::tokens && b.tokens < 1)
        throw UsageError("budget expects a whole number of tokens of at least 1, found " + std::to_string(b.tokens));
}

PolicySpec parsePolicySpec(std::string_view text) {
    PolicySpec spec;
    const std::size_t colon = text.find(':');
    const PolicyInfo& info = policyEntry(text.substr(0, colon)).info;
    spec.id = info.id;
    std::string_view rest = colon == std::string_view::npos ? std::string_view{} : text.substr(colon + 1);
    if (colon != std::string_view::npos && rest.empty()) throw UsageError("policy '" + std::string(text) + "': expected key=value after ':', found nothing");
    while (!rest.empty()) {
        const std::size_t comma = rest.find(',');
        const std::string_view pair = rest.substr(0, comma);
        const std::size_t equals = pair.find('=');
        if (equals == std::string_view::npos || equals == 0)
            throw UsageError("policy '" + std::string(text) + "': expected key=value, found '" + std::string(pair) + "'");
        const std::string name(pair.substr(0, equals)), value(pair.substr(equals + 1));
        if (!spec.params.emplace(name, value).second) throw UsageError("policy '" + std::string(text) + "': parameter '" + name + "' is given twice");
        rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
        if (comma != std::string_view::npos && rest.empty()) throw UsageError("policy '" + std::string(text) + "': expected key=value after the last ','");
    }
    checkPolicySpec(spec);
    // A default written out is the default: equal policies compare equal and print alike.
    std::erase_if(spec.params, [&](const auto& p) { return findParam(info, p.first)->initial == p.second; });
    return spec;
}

std::unique_ptr<const Policy> makePolicy(const PolicySpec& spec) {
    checkPolicySpec(spec);
    const PolicyEntry& entry = policyEntry(spec.id);
    PolicySpec own = spec;
    own.id = entry.info.id;
    return entry.make(entry.info, own);
}

const std::string& Params::text(std::string_view name) const {
    const auto given = m_spec.params.find(std::string(name));
    if (given != m_spec.params.end()) return given->second;
    const ParamInfo* param = findParam(m_info, name);
    if (!param) throw std::logic_error("policy " + m_info.id + " reads a parameter it does not declare");
    return param->initial;
}

int Params::integer(std::string_view name) const { return std::atoi(text(name).c_str()); }

double Params::real(std::string_view name) const {
    const std::string& t = text(name);
    double value = 0;
    std::from_chars(t.data(), t.data() + t.size(), value);
    return value;
}

std::string Params::choice(std::string_view name) const { return text(name); }

Plan Policy::plan(std::int64_t, int budget) const { return {.keep = budget, .protect = {}, .window = 0, .notice = {}}; }

ParamInfo timingParam(std::string initial) {
    return {"timing", ParamInfo::Type::choice, std::move(initial), 0, 0, {"prefill_end", "each_step"}, "",
            "When entries are dropped: once after the prefill, or again after every decoded token (every:N on the command line: after every N-th)."};
}

Schedule scheduleOf(const std::string& timing) {
    if (timing == "each_step") return {.afterPrefill = true, .everySteps = 1};
    if (isEvery(timing)) return {.afterPrefill = true, .everySteps = std::atoi(timing.c_str() + 6)};
    return {};
}

ParamInfo ropeParam(std::string initial) {
    return {"rope", ParamInfo::Type::choice, std::move(initial), 0, 0, {"original", "cache_relative"}, "",
            "Positions after eviction: each key keeps its own, or the kept tokens are renumbered from 0 without gaps."};
}

RopeMode ropeModeOf(const std::string& rope) { return rope == "cache_relative" ? RopeMode::cacheRelative : RopeMode::original; }

ParamInfo aggParam() {
    return {"agg", ParamInfo::Type::choice, "mean", 0, 0, {"mean", "max", "sum"}, "", "How the scores of the query heads that share a KV head become one."};
}

at::Tensor reduceGroup(const at::Tensor& perQueryHead, int kvHeads, const std::string& agg) {
    const at::Tensor grouped = perQueryHead.view({kvHeads, -1, perQueryHead.size(-1)});
    if (agg == "max") return grouped.amax(1);
    return agg == "sum" ? grouped.sum(1) : grouped.mean(1);
}

} // namespace keepsight
