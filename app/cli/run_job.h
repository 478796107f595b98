// From options to results: opens the model, runs one job under Ctrl-C and progress, writes what came out.
#pragma once

#include "app/cli/interrupt.h"
#include "app/cli/options.h"
#include "app/cli/progress_line.h"
#include "engine/engine.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace keepsight::cli {

// What every command gets: the options in front of it and the way to be stopped.
struct Shell {
    GlobalOptions options;
    Interrupt& interrupt;
    std::string commandLine;
    void notice(const std::string& text) const; // one line on stderr
};

struct OpenedModel {
    std::unique_ptr<Engine> engine; // null: cancelled while loading
};
OpenedModel openModel(const Shell& shell, const ModelOption& model, ProgressLine& progress);

struct JobRequest {
    Job job;
    LanePlan plan;
    ModelOption model;
    OutputOptions output;
    bool resumes = false;                                            // goes on with an unfinished recording of the same job in output.session
    std::string dumpRetained;                                        // file, or empty
    std::vector<std::string> columns;                                // of the table on stdout
    std::function<std::unique_ptr<TraceSink>(ProgressLine&)> follow; // optional: sees the records as they come
    std::function<std::string(const Trace&)> text;                   // optional: in place of the table
};
int runJob(const Shell& shell, JobRequest request); // exit code

} // namespace keepsight::cli
