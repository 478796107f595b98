// The policies by id, and their specs.
#include "engine/policy/policy.h"

#include "engine/data/error.h"

#include <algorithm>

namespace keepsight {

#define KEEPSIGHT_POLICY(id) PolicyEntry id##_policy();
#define KEEPSIGHT_POLICIES(family) std::vector<PolicyEntry> family##_policies();
#include "engine/policy/policies.def"
#undef KEEPSIGHT_POLICY
#undef KEEPSIGHT_POLICIES

const std::vector<PolicyEntry>& policyRegistry() {
    static const std::vector<PolicyEntry> entries = [] {
        std::vector<PolicyEntry> out;
        const auto add = [&](std::vector<PolicyEntry> family) { std::ranges::move(family, std::back_inserter(out)); };
#define KEEPSIGHT_POLICY(id) out.push_back(id##_policy());
#define KEEPSIGHT_POLICIES(family) add(family##_policies());
#include "engine/policy/policies.def"
#undef KEEPSIGHT_POLICY
#undef KEEPSIGHT_POLICIES
        return out;
    }();
    return entries;
}

const PolicyEntry& policyEntry(std::string_view idOrAlias) {
    std::vector<std::string> ids;
    for (const PolicyEntry& entry : policyRegistry()) {
        const bool variant = entry.info.id.find_first_of("_+") != std::string::npos && entry.info.id.starts_with("kvc"); // too many to list
        if (entry.info.id == idOrAlias || std::ranges::find(entry.info.aliases, idOrAlias) != entry.info.aliases.end()) return entry;
        if (!variant) ids.push_back(entry.info.id);
    }
    throw UsageError("policy '" + std::string(idOrAlias) + "' is not known; expected one of: " + joined(ids));
}

void checkPolicySpec(const PolicySpec& spec) {
    const PolicyInfo& info = policyEntry(spec.id).info;
    checkParams("policy " + info.id, info.params, spec.params);
    const Budget& b = spec.budget;
    if (b.kind == Budget::Kind::ratio && !(b.compressionRatio >= 0.0 && b.compressionRatio < 1.0))
        throw UsageError("compression ratio expects a number c with 0 <= c < 1 (the fraction removed), found " + shortNumber(b.compressionRatio));
    if (b.kind == Budget::Kind::tokens && b.tokens < 1)
        throw UsageError("budget expects a whole number of tokens of at least 1, found " + std::to_string(b.tokens));
}

PolicySpec parsePolicySpec(std::string_view text) {
    PolicySpec spec;
    const PolicyInfo& info = policyEntry(text.substr(0, text.find(':'))).info;
    spec.id = info.id;
    spec.params = parseParams("policy", text);
    checkPolicySpec(spec);
    dropDefaults(info.params, spec.params);
    return spec;
}

std::unique_ptr<const Policy> makePolicy(const PolicySpec& spec) {
    checkPolicySpec(spec);
    const PolicyEntry& entry = policyEntry(spec.id);
    PolicySpec own = spec;
    own.id = entry.info.id;
    return entry.make(entry.info, own);
}

} // namespace keepsight
