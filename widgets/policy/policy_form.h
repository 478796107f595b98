// The form of a policy. Budget and quantizer are not edited here, but stay as they were given.
#pragma once

#include "widgets/policy/choice_form.h"

namespace keepsight {

class PolicyForm : public ChoiceForm {
    Q_OBJECT
public:
    explicit PolicyForm(std::vector<PolicyInfo> policies, QWidget* parent = nullptr);

    PolicySpec spec() const;
    void setSpec(const PolicySpec& spec); // does not emit
    const PolicyInfo* info() const;       // of the selected policy; nullptr: unknown
    const PolicyInfo* info(const std::string& id) const;

Q_SIGNALS:
    void specChanged(const keepsight::PolicySpec& spec);

private:
    std::vector<PolicyInfo> m_policies;
    PolicySpec m_given; // budget and quantizer
};

} // namespace keepsight
