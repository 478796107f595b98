#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "app/cli/output.h"
#include "engine/data/picture.h"
#include "engine/data/trace_file.h"

#include <set>

namespace keepsight::cli {
namespace {

std::string ending(const RunInfo& run) {
    if (!run.failure.empty()) return "failed: " + run.failure;
    if (run.cancelled) return "cancelled";
    return run.finished ? "complete" : "cut off while recording";
}

std::string summary(const Trace& trace) {
    std::string out;
    const auto line = [&](std::string name, const std::string& value) {
        name.resize(12, ' ');
        if (!value.empty()) out += name + value + "\n";
    };
    line("run", trace.run.kind + ", " + ending(trace.run));
    line("command", trace.run.commandLine);
    line("created", trace.run.createdUtc + " by version " + trace.run.toolVersion + ", torch " + trace.run.torchVersion);
    line("model", trace.model.config.name + " (" + trace.model.path + ")");
    line("device", trace.run.device + ", " + trace.run.dtype + ", " + std::to_string(trace.run.threads) + " threads, seed " +
                       std::to_string(trace.run.seed));
    line("tokens", std::to_string(trace.tokens.size()) + " shared, of which " + std::to_string(trace.prefillLength) + " prefilled");
    for (const Lane& lane : trace.lanes) {
        std::string text = laneText({lane.label, lane.policy}) + ", " + std::to_string(lane.steps.size()) + " steps, " +
                           std::to_string(lane.generated.size()) + " generated tokens";
        if (!lane.steps.empty()) text += ", " + std::to_string(lane.steps.back().kvBytes) + " KV bytes at the end";
        line("lane " + lane.label, text);
        line("", lane.notice);
    }
    return out;
}

// Every field that holds one value, in the order of first appearance.
std::vector<std::string> columnsOf(const std::vector<Measurement>& rows) {
    std::vector<std::string> columns;
    std::set<std::string> seen;
    for (const Measurement& row : rows)
        for (const auto& [name, value] : row.fields)
            if (!std::holds_alternative<std::vector<double>>(value) && seen.insert(name).second) columns.push_back(name);
    return columns;
}

} // namespace

RunCommand addReplay(CLI::App& app) {
    struct Options {
        std::string file, dumpRetained;
        OutputOptions output;
    };
    const auto options = std::make_shared<Options>();
    app.add_option("FILE", options->file, "A .keep session")->required();
    options->output.add(app, false);
    app.add_option("--dump-retained", options->dumpRetained, "Write the positions kept after the prefill and at the end as JSON");
    return [options](const Shell&) {
        options->output.check();
        const auto trace = loadTrace(options->file);
        const std::vector<Measurement> rows = rowsOf(*trace, trace->run.kind); // what the run's own command prints
        if (!options->output.json.empty())
            writeOutput(options->output.json, dump(resultsToJson(trace->run.kind, *trace, trace->model, rows)));
        if (!options->output.csv.empty()) writeOutput(options->output.csv, measurementsToCsv(rows));
        if (!options->dumpRetained.empty()) writeOutput(options->dumpRetained, dump(retainedToJson(*trace)));
        if (options->output.textToStdout() && options->dumpRetained != "-")
            writeOutput("-", summary(*trace) + (rows.empty() ? "" : "\n" + table(rows, columnsOf(rows))));
        return ExitDone;
    };
}

} // namespace keepsight::cli
