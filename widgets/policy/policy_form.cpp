#include "widgets/policy/policy_form.h"

#include <algorithm>

namespace keepsight {
namespace {

constexpr int FoldedFrom = 4; // papers

QString kindText(PolicyKind kind) {
    switch (kind) {
    case PolicyKind::evict: return PolicyForm::tr("Frees stored tokens.");
    case PolicyKind::admit: return PolicyForm::tr("Never stores some tokens.");
    case PolicyKind::attend: return PolicyForm::tr("Stores every token, attends to some.");
    }
    return {};
}

std::vector<Choice> choicesOf(const std::vector<PolicyInfo>& policies) {
    std::vector<Choice> out;
    for (const PolicyInfo& policy : policies)
        out.push_back({policy.id, policy.aliases, policy.summary, policy.paper, kindText(policy.kind), policy.params});
    return out;
}

} // namespace

PolicyForm::PolicyForm(std::vector<PolicyInfo> policies, QWidget* parent)
    : ChoiceForm(choicesOf(policies),
                 {QStringLiteral("policy"), tr("&Policy"), tr("Policy"), tr("About this policy"), tr("This program has no policy of that name; choose another one."),
                  tr("This policy has no parameters."), tr("Type to search")},
                 FoldedFrom, parent),
      m_policies(std::move(policies)) {
    connect(this, &ChoiceForm::changed, this, [this] { Q_EMIT specChanged(spec()); });
}

const PolicyInfo* PolicyForm::info(const std::string& id) const {
    const auto found = std::ranges::find(m_policies, id, &PolicyInfo::id);
    return found == m_policies.end() ? nullptr : &*found;
}

const PolicyInfo* PolicyForm::info() const { return info(id()); }

PolicySpec PolicyForm::spec() const {
    PolicySpec out = m_given;
    out.id = id();
    out.params = params();
    return out;
}

void PolicyForm::setSpec(const PolicySpec& spec) {
    m_given = spec;
    choose(spec.id, spec.params);
}

} // namespace keepsight
