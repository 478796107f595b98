// One editor for one parameter, by its type. Values go in and out as canonical text.
#pragma once

#include "engine/data/policy_spec.h"

#include <QString>
#include <functional>
#include <string>

class QObject;
class QWidget;

namespace keepsight {

struct ParamEditor {
    ParamInfo param;
    QWidget* row = nullptr;   // what stands beside the label
    QWidget* field = nullptr; // in it, or the same: named as the parameter, takes the keyboard
    std::function<std::string()> value;           // the last one that was whole and in range
    std::function<void(const std::string&)> show; // falls back to the default
    bool isDefault() const { return value() == param.initial; }
};

// edited is called after every change by hand, and at times without one.
ParamEditor makeParamEditor(const ParamInfo& param, QObject* context, std::function<void()> edited);
std::string usableText(const ParamInfo& param, const std::string& text); // as an editor would give it back: the default where it does not parse
QString paramHelp(const ParamInfo& param); // help, default and range, a line each

// In a scrolling panel the wheel scrolls; it changes a value only where the keyboard focus is.
void guardWheel(QWidget* widget);

} // namespace keepsight
