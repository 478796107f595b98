// Measured rows as JSON, CSV and text.
#pragma once

#include "app/cli/options.h"
#include "engine/data/trace.h"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace keepsight::cli {

using OrderedJson = nlohmann::ordered_json;

// The trace's rows of that kind in the plan's order; a lane that stands for several budgets is repeated with each of them.
std::vector<Measurement> plannedRows(const Trace& trace, const std::string& kind, const LanePlan& plan);
std::vector<Measurement> rowsOf(const Trace& trace, const std::string& kind); // as recorded

// {"schema":"keepsight.ppl/1","model":{…},"device","dtype",…,"rows":[…]}; NaN as null.
OrderedJson resultsToJson(const std::string& kind, const Trace& trace, const ModelInfo& model, const std::vector<Measurement>& rows);

// {"after_prefill":{"layers":[{"heads":[[…]]}]},"final":{…}} for one lane, {"lanes":[{"policy",…,"after_prefill","final"}]} for several.
OrderedJson retainedToJson(const Trace& trace);

// Aligned columns; those no row has are left out.
std::string table(const std::vector<Measurement>& rows, const std::vector<std::string>& columns);

std::string dump(const OrderedJson& json);                          // bytes that are not UTF-8 become U+FFFD
void writeOutput(const std::string& file, const std::string& text); // "-": stdout; else atomically

} // namespace keepsight::cli
