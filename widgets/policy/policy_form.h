// A form for one policy and its parameters, built only from PolicyInfo: no policy is known by name.
#pragma once

#include "engine/data/policy_spec.h"

#include <QWidget>
#include <functional>
#include <vector>

class QComboBox;
class QFormLayout;
class QLabel;
class QPushButton;

namespace keepsight {

class PolicyForm : public QWidget {
    Q_OBJECT
public:
    explicit PolicyForm(std::vector<PolicyInfo> policies, QWidget* parent = nullptr);

    // params holds only what differs from the defaults; the budget is the one last given to setSpec.
    PolicySpec spec() const;
    // Shows a spec without emitting. Aliases are resolved; unknown parameters and values that do not parse fall back to the defaults;
    // an unknown policy stays selected under its own name, without parameters to edit.
    void setSpec(const PolicySpec& spec);
    const PolicyInfo* info() const; // of the selected policy; nullptr: unknown

public Q_SLOTS:
    void resetToDefaults(); // parameters only; emits if anything changed

Q_SIGNALS:
    void specChanged(const keepsight::PolicySpec& spec);

private:
    struct Editor {
        ParamInfo param;
        QWidget* widget = nullptr;
        QLabel* label = nullptr;
        std::function<std::string()> value;           // canonical text
        std::function<void(const std::string&)> show; // falls back to the default
    };
    void build(const std::map<std::string, std::string>& params);
    Editor makeEditor(const ParamInfo& param);
    void edited();
    void markChanged();
    static bool isDefault(const Editor& editor) { return editor.value() == editor.param.initial; }

    std::vector<PolicyInfo> m_policies;
    PolicySpec m_spec;
    std::vector<Editor> m_editors;
    bool m_building = false;
    QComboBox* m_policy = nullptr;
    QLabel* m_summary = nullptr;
    QWidget* m_params = nullptr;
    QFormLayout* m_form = nullptr;
    QPushButton* m_reset = nullptr;
};

} // namespace keepsight
