#include "app/cli/commands/commands.h"

namespace keepsight::cli {

RunCommand addBench(CLI::App& app) {
    struct Options {
        ModelOption model;
        LaneOptions lanes;
        OutputOptions output;
        BenchSpec bench;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->lanes.add(app);
    options->output.add(app);
    app.add_option("--ctx", options->bench.context, "Prompt tokens")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_option("--new", options->bench.newTokens, "Tokens to decode")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_option("--warmup", options->bench.warmup, "Runs before the timed ones")->check(CLI::Range(0, 1000))->capture_default_str();
    app.add_option("--repeats", options->bench.repeats, "Timed runs; the median is reported")
        ->check(CLI::Range(1, 100000))
        ->capture_default_str();
    return [options](const Shell& shell) {
        JobRequest request;
        request.job.kind = RunKind::bench;
        request.job.bench = options->bench;
        request.job.trace.attentionBins = 0;
        request.plan = options->lanes.plan();
        request.model = options->model;
        request.output = options->output;
        request.columns = {"policy", "params",  "compression_ratio", "budget",     "ctx",      "new",          "prefill_s",
                           "ttft_s", "tpot_ms", "tpot_iqr_ms",       "throughput", "kv_bytes", "kv_bytes_peak"};
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
