// The small values of a trace as JSON and back, shared by jobs and session files. Internal to engine/data's sources.
#pragma once

#include "engine/data/json_strict.h"
#include "engine/data/trace.h"

namespace keepsight {

OrderedJson policyToJson(const PolicySpec& policy);
PolicySpec policyFromJson(const OrderedJson& value, const std::string& what);
OrderedJson runToJson(const RunInfo& run);
RunInfo runFromJson(const OrderedJson& value, const std::string& what);
OrderedJson modelToJson(const ModelInfo& model);
ModelInfo modelFromJson(const OrderedJson& value, const std::string& what);
// [["name", value], …]; doubles that JSON cannot write become {"real": "nan" | "inf" | "-inf"}.
OrderedJson fieldsToJson(const Measurement& measurement);
void fieldsFromJson(const OrderedJson& value, Measurement& out, const std::string& what);

} // namespace keepsight
