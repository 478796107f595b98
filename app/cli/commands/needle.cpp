#include "app/cli/commands/commands.h"
#include "engine/data/error.h"

namespace keepsight::cli {

RunCommand addNeedle(CLI::App& app) {
    struct Options {
        ModelOption model;
        LaneOptions lanes;
        OutputOptions output;
        NeedleSpec needle;
        std::string lengths = "1000", depths = "0,50,100", style = "passkey", haystackFile;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->lanes.add(app);
    options->output.add(app);
    app.add_option("--lengths", options->lengths, "Tokens of the whole prompt: A:B:S or a list")->capture_default_str();
    app.add_option("--depths", options->depths, "N evenly spaced depths, A:B:S or a list of percentages")->capture_default_str();
    app.add_option("--keys", options->needle.keys, "Keys per cell")->check(CLI::Range(1, 1000))->capture_default_str();
    app.add_option("--digits", options->needle.digits, "Digits of a key")->check(CLI::Range(1, 64))->capture_default_str();
    app.add_option("--style", options->style, "passkey: a number hidden in filler text")->capture_default_str();
    app.add_option("--haystack-file", options->haystackFile, "Filler text in place of our own");
    app.add_flag("--query-aware", options->needle.queryAware, "The question is part of the prefill that the policy sees");
    return [options](const Shell& shell) {
        if (options->style != "passkey")
            throw UsageError("--style: '" + options->style +
                             "' is not available; available: passkey, with your own filler through --haystack-file");
        JobRequest request;
        request.job.kind = RunKind::needle;
        request.job.needle = options->needle;
        request.job.needle.lengths = parseIntegers(options->lengths, "--lengths");
        for (const int length : request.job.needle.lengths)
            if (length < 1) throw UsageError("--lengths: expected positive numbers of tokens, found " + std::to_string(length));
        request.job.needle.depths = parseDepths(options->depths);
        if (!options->haystackFile.empty()) request.job.needle.haystack = readText(options->haystackFile);
        request.job.trace.attentionBins = 0;
        request.plan = options->lanes.plan();
        request.model = options->model;
        request.output = options->output;
        request.resumes = true;
        request.columns = {"policy",    "params", "compression_ratio", "budget", "length",           "depth",
                           "key_index", "score",  "expected",          "answer", "kept_needle_share"};
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
