#include "app/cli/run_job.h"

#include "app/cli/exit_codes.h"
#include "app/cli/output.h"
#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "engine/data/trace_file.h"

#include <filesystem>
#include <iostream>
#include <optional>

namespace keepsight::cli {

void Shell::notice(const std::string& text) const {
    if (options.shows("warn")) std::cerr << "keepsight-cli: " << text << std::endl;
}

OpenedModel openModel(const Shell& shell, const ModelOption& model, ProgressLine& progress) {
    auto engine = std::make_unique<Engine>();
    OpenOptions open;
    open.model = model.resolve();
    open.device = shell.options.device;
    open.dtype = shell.options.dtype;
    open.threads = shell.options.threads;
    const Outcome outcome = engine->open(open, shell.interrupt.token(), [&](const Progress& p) { progress.show(p); });
    progress.clear();
    if (outcome == Outcome::cancelled) engine.reset();
    return {std::move(engine)};
}

namespace {

// The session at `path` if it holds a run of the same job on the same model that did not come to its end.
std::optional<Trace> unfinishedRun(const std::string& path, const Job& job, Engine& engine, const Shell& shell) {
    if (!std::filesystem::is_regular_file(path)) return std::nullopt;
    try {
        const std::shared_ptr<const Trace> trace = loadTrace(path);
        Job before = jobFromJson(trace->run.jobJson);
        before.commandLine = job.commandLine;
        const bool whole = trace->run.finished && !trace->run.cancelled && trace->run.failure.empty();
        if (whole || !(before == job) || trace->model.sha256 != engine.ensureHash(shell.interrupt.token()).sha256 || trace->run.dtype != engine.model().dtype)
            return std::nullopt;
        return *trace;
    } catch (const EngineError&) {
        return std::nullopt; // no session, or of a newer version: the run starts anew and replaces it
    }
}

} // namespace

int runJob(const Shell& shell, JobRequest request) {
    request.output.check();
    request.job.lanes = request.plan.lanes;
    request.job.seed = shell.options.seed;
    request.job.commandLine = shell.commandLine;
    for (const LaneSpec& lane : request.job.lanes)
        if (lane.policy.id != "full" && lane.policy.budget == Budget())
            shell.notice("lane " + lane.label + ": " + lane.policy.text() + " has compression ratio 0 and removes nothing");

    ProgressLine progress(shell.options.shows("info"));
    const OpenedModel opened = openModel(shell, request.model, progress);
    if (!opened.engine) return ExitCancelled;

    std::optional<Trace> resume;
    if (request.resumes && !request.output.session.empty()) {
        resume = unfinishedRun(request.output.session, request.job, *opened.engine, shell);
        if (resume) shell.notice("going on with '" + request.output.session + "': " + std::to_string(resume->measurements.size()) + " results are there already");
    }

    MemoryTrace memory;
    std::vector<TraceSink*> sinks{&memory};
    std::unique_ptr<TraceFileWriter> file;
    if (!request.output.session.empty()) {
        opened.engine->ensureHash(shell.interrupt.token());
        file = std::make_unique<TraceFileWriter>(request.output.session);
        sinks.push_back(file.get());
    }
    std::unique_ptr<TraceSink> follower;
    if (request.follow && (follower = request.follow(progress))) sinks.push_back(follower.get());
    TeeSink tee(sinks);
    const Outcome outcome = opened.engine->run(request.job, tee, shell.interrupt.token(), [&](const Progress& p) { progress.show(p); },
                                              resume ? &*resume : nullptr);
    progress.clear();

    const auto trace = memory.snapshot();
    for (const Lane& lane : trace->lanes)
        if (!lane.notice.empty()) shell.notice("lane " + lane.label + " (" + laneText({lane.label, lane.policy}) + "): " + lane.notice);
    const std::string kind = name(request.job.kind);
    const auto rows = plannedRows(*trace, kind, request.plan);
    if (!request.output.json.empty()) {
        const ModelInfo model = opened.engine->ensureHash(shell.interrupt.token());
        writeOutput(request.output.json, dump(resultsToJson(kind, *trace, model, rows)));
    }
    if (!request.output.csv.empty()) writeOutput(request.output.csv, measurementsToCsv(rows));
    if (!request.dumpRetained.empty()) writeOutput(request.dumpRetained, dump(retainedToJson(*trace)));
    if (request.output.textToStdout() && request.dumpRetained != "-") {
        if (request.text)
            writeOutput("-", request.text(*trace));
        else if (!rows.empty())
            writeOutput("-", table(rows, request.columns));
    }
    if (outcome == Outcome::complete) return ExitDone;
    shell.notice("cancelled; " + std::to_string(trace->measurements.size()) + " finished results are kept");
    return ExitCancelled;
}

} // namespace keepsight::cli
