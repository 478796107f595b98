#include "app/cli/commands/commands.h"
#include "engine/data/error.h"

namespace keepsight::cli {

RunCommand addPerplexity(CLI::App& app) {
    struct Options {
        ModelOption model;
        PromptOptions prompt;
        LaneOptions lanes;
        OutputOptions output;
        PplSpec ppl;
        std::string protocol = "suffix";
        bool noBoundary = false;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->prompt.add(app, "--text-file");
    options->lanes.add(app);
    options->output.add(app);
    app.add_option("--protocol", options->protocol, "suffix: prefill the first part of a window, score the rest on the compressed cache")
        ->capture_default_str();
    app.add_option("--max-length", options->ppl.maxLength, "Tokens per window")->check(CLI::Range(4, 1 << 24))->capture_default_str();
    app.add_option("--prefix-ratio", options->ppl.prefixRatio, "Share of a window that is prefilled")
        ->check(realFrom(0.0, 1.0))
        ->capture_default_str();
    app.add_option("--windows", options->ppl.windows, "Windows at most; a last partial one is dropped")
        ->check(CLI::Range(1, 1 << 24))
        ->capture_default_str();
    app.add_flag("--no-boundary", options->noBoundary, "Leave out the first suffix token, which is predicted before anything is removed");
    return [options](const Shell& shell) {
        if (options->protocol != "suffix")
            throw UsageError("--protocol: '" + options->protocol +
                             "' is not available; available: suffix (token by token: the command score)");
        JobRequest request;
        request.job.kind = RunKind::ppl;
        request.job.prompt = options->prompt.read();
        request.job.ppl = options->ppl;
        request.job.ppl.includeBoundary = !options->noBoundary;
        request.plan = options->lanes.plan();
        request.model = options->model;
        request.output = options->output;
        request.columns = {"policy", "params",    "compression_ratio", "budget",   "nll",       "nll_stderr",
                           "ppl",    "ppl_delta", "n_tokens",          "kv_bytes", "prefill_s", "ttft_s"};
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
