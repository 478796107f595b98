// The form of a quantizer: how a cache stores what its policy keeps.
#pragma once

#include "widgets/policy/choice_form.h"

namespace keepsight {

class QuantForm : public ChoiceForm {
    Q_OBJECT
public:
    explicit QuantForm(const std::vector<QuantInfo>& quantizers, QWidget* parent = nullptr);

    QuantSpec spec() const { return {id(), params()}; }
    void setSpec(const QuantSpec& spec) { choose(spec.id, spec.params); } // does not emit
    QuantSpec parse(const std::string& text) const;                        // "kivi:bits=4", as a registry writes it
};

} // namespace keepsight
