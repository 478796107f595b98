// What policies and quantizers have in common: id[:name=value,…], checked against the parameters a registry entry declares.
#pragma once

#include "engine/data/policy_spec.h"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

using ParamValues = std::map<std::string, std::string>;

// "id:a=1,b=2" → values as typed; throws UsageError. what: "policy" | "quantizer".
ParamValues parseParams(std::string_view what, std::string_view text);
// Names, types and ranges; throws UsageError. `what` begins the sentence: "policy snapkv".
void checkParams(const std::string& what, const std::vector<ParamInfo>& params, const ParamValues& values);
// Drops what equals its default, so that equal choices compare equal and print alike.
void dropDefaults(const std::vector<ParamInfo>& params, ParamValues& values);
std::string joined(const std::vector<std::string>& words); // "a, b, c"
std::string shortNumber(double v);                         // without trailing zeros

// Values of a spec's parameters with the registry's defaults filled in.
class Params {
public:
    Params(const std::vector<ParamInfo>& infos, const ParamValues& values) : m_infos(infos), m_values(values) {}
    Params(const PolicyInfo& info, const PolicySpec& spec) : Params(info.params, spec.params) {}
    Params(const QuantInfo& info, const QuantSpec& spec) : Params(info.params, spec.params) {}
    bool has(std::string_view name) const; // declared
    int integer(std::string_view name) const;
    double real(std::string_view name) const;
    std::vector<double> reals(std::string_view name) const;
    const std::string& choice(std::string_view name) const;
    bool flag(std::string_view name) const { return choice(name) == "on"; } // a choice of on and off

private:
    const std::vector<ParamInfo>& m_infos;
    const ParamValues& m_values;
};

// A choice of "on" and "off".
ParamInfo flagParam(std::string name, bool initial, std::string help);

} // namespace keepsight
