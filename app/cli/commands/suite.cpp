#include "app/cli/commands/commands.h"

namespace keepsight::cli {

RunCommand addSuite(CLI::App& app) {
    struct Options {
        ModelOption model;
        PromptOptions prompt;
        LaneOptions lanes;
        OutputOptions output;
        WindowOptions windows;
        BenchSpec bench;
        bool noBench = false;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->prompt.add(app, "--text-file");
    options->lanes.add(app);
    options->output.add(app);
    options->windows.add(app);
    addBenchOptions(app, options->bench);
    app.add_flag("--no-bench", options->noBench, "Leave the decode times out");
    return [options](const Shell& shell) {
        JobRequest request;
        request.job.kind = RunKind::suite;
        request.job.prompt = options->prompt.read();
        request.job.ppl = options->windows.read();
        request.job.bench = options->bench;
        request.job.suite.bench = !options->noBench;
        request.job.trace.attentionBins = 0;
        request.plan = options->lanes.plan();
        request.model = options->model;
        request.output = options->output;
        request.resumes = true;
        request.columns = {"policy", "params", "quant", "compression_ratio", "budget", "ppl", "ppl_delta", "nll_stderr", "kv_bytes", "bits_per_value", "tpot_ms", "tpot_iqr_ms"};
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
