#include "app/cli/commands/commands.h"
#include "engine/data/error.h"

namespace keepsight::cli {

RunCommand addPerplexity(CLI::App& app) {
    struct Options {
        ModelOption model;
        PromptOptions prompt;
        LaneOptions lanes;
        OutputOptions output;
        WindowOptions windows;
        std::string protocol = "suffix";
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->prompt.add(app, "--text-file");
    options->lanes.add(app);
    options->output.add(app);
    app.add_option("--protocol", options->protocol, "suffix: prefill the first part of a window, score the rest on the compressed cache")
        ->capture_default_str();
    options->windows.add(app);
    return [options](const Shell& shell) {
        if (options->protocol != "suffix")
            throw UsageError("--protocol: '" + options->protocol +
                             "' is not available; available: suffix (token by token: the command score)");
        JobRequest request;
        request.job.kind = RunKind::ppl;
        request.job.prompt = options->prompt.read();
        request.job.ppl = options->windows.read();
        request.plan = options->lanes.plan();
        request.model = options->model;
        request.output = options->output;
        request.columns = {"policy", "params",    "quant",    "compression_ratio", "budget",         "nll",       "nll_stderr",
                           "ppl",    "ppl_delta", "n_tokens", "kv_bytes",          "bits_per_value", "prefill_s", "ttft_s"};
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
