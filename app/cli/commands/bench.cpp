#include "app/cli/commands/commands.h"
#include "engine/model/weights.h"

namespace keepsight::cli {

RunCommand addBench(CLI::App& app) {
    struct Options {
        ModelOption model;
        LaneOptions lanes;
        OutputOptions output;
        BenchSpec bench;
        std::string shape;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->lanes.add(app);
    options->output.add(app);
    addBenchOptions(app, options->bench);
    std::string shapes;
    for (const std::string& shape : randomShapes())
        shapes += (shapes.empty() ? "" : ", ") + shape;
    app.add_option("--random-weights", options->shape, "A model of that shape with made-up weights, in place of --model: " + shapes)->excludes(app.get_option("--model"));
    return [options](const Shell& shell) {
        JobRequest request;
        request.job.kind = RunKind::bench;
        request.job.bench = options->bench;
        request.job.trace.attentionBins = 0;
        request.plan = options->lanes.plan();
        request.model = options->model;
        if (!options->shape.empty()) request.model.path = "random:" + options->shape;
        request.output = options->output;
        request.columns = {"policy",    "params", "quant",   "compression_ratio", "budget",     "ctx",      "new",
                           "prefill_s", "ttft_s", "tpot_ms", "tpot_iqr_ms",       "throughput", "kv_bytes", "kv_bytes_peak"};
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
