#include "app/cli/commands/commands.h"

namespace keepsight::cli {

RunCommand addScore(CLI::App& app) {
    struct Options {
        ModelOption model;
        PromptOptions prompt;
        LaneOptions lanes;
        OutputOptions output;
        ScoreSpec score;
        std::string dumpRetained;
        int attentionBins = TraceOptions().attentionBins;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->prompt.add(app, "--text-file");
    options->lanes.add(app);
    options->output.add(app);
    app.add_option("--prefix-ratio", options->score.prefixRatio, "Share of the text that is prefilled; the rest is fed token by token")
        ->check(realFrom(0.0, 1.0))
        ->capture_default_str();
    app.add_option("--attention-bins", options->attentionBins, "Bins a side of the attention maps in the session; 0: none")
        ->check(CLI::Range(0, 256))
        ->capture_default_str();
    app.add_option("--dump-retained", options->dumpRetained, "Write the positions kept after the prefill and at the end as JSON");
    return [options](const Shell& shell) {
        JobRequest request;
        request.job.kind = RunKind::score;
        request.job.prompt = options->prompt.read();
        request.job.score = options->score;
        request.job.trace.attentionBins =
            options->output.session.empty() ? 0 : options->attentionBins; // maps only where they are kept
        request.plan = options->lanes.plan();
        request.model = options->model;
        request.output = options->output;
        request.dumpRetained = options->dumpRetained;
        request.columns = {"policy",    "params",   "compression_ratio", "budget",    "nll",    "ppl",
                           "ppl_delta", "n_tokens", "kv_bytes",          "prefill_s", "tpot_ms"};
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
