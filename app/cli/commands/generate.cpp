#include "app/cli/commands/commands.h"
#include "app/cli/output.h"
#include "engine/tokenizer/tokenizer.h"

#include <iostream>

namespace keepsight::cli {
namespace {

// Writes one lane's text to stdout while it is made, in whole characters.
class StreamingSink final : public TraceSink {
public:
    explicit StreamingSink(ProgressLine& progress) : m_progress(progress) {}
    void begin(const Trace&) override {}
    void add(LaneIndex, const TokenRecord& token) override {
        if (token.role != TokenRecord::Role::generated) return;
        m_progress.stop();
        std::cout << m_stream.push(token.bytes) << std::flush;
    }
    void add(LaneIndex, const StepRecord&) override {}
    void add(const KeepRecord&) override {}
    void add(std::shared_ptr<const AttentionMap>) override {}
    void add(const Measurement&) override {}
    void notice(LaneIndex, const std::string&) override {}
    void end(Outcome, const std::string&) override { std::cout << m_stream.finish(); }

private:
    ProgressLine& m_progress;
    Utf8Stream m_stream;
};

std::string wholeText(const Lane& lane) {
    Utf8Stream stream;
    std::string out;
    for (const TokenRecord& token : lane.generated)
        out += stream.push(token.bytes);
    return out + stream.finish();
}

} // namespace

RunCommand addGenerate(CLI::App& app) {
    struct Options {
        ModelOption model;
        PromptOptions prompt;
        LaneOptions lanes;
        OutputOptions output;
        GenerateSpec generate;
        SamplerSpec sampler;
        std::string dumpRetained;
        int attentionBins = TraceOptions().attentionBins;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->prompt.add(app, "--prompt-file");
    options->lanes.add(app);
    options->output.add(app);
    app.add_option("--max-new", options->generate.maxNew, "Tokens to generate at most; 0 stops after the prefill")
        ->check(CLI::Range(0, 1 << 24))
        ->capture_default_str();
    app.add_flag("--ignore-eos", options->generate.ignoreEos, "Go on after the token that ends an answer");
    app.add_option("--temperature", options->sampler.temperature, "0: greedy")->check(realFrom(0.0, 100.0))->capture_default_str();
    app.add_option("--top-p", options->sampler.topP, "Share of the probability to sample from")
        ->check(realFrom(0.0, 1.0))
        ->capture_default_str();
    app.add_option("--attention-bins", options->attentionBins, "Bins a side of the attention maps in the session; 0: none")
        ->check(CLI::Range(0, 256))
        ->capture_default_str();
    app.add_option("--explain", options->generate.explain,
                   "Tell for the token at this position, repeatable, why each layer and head kept or dropped it: score, rank, cutoff and who got its place")
        ->check(CLI::Range(0, 1 << 24))
        ->allow_extra_args(false);
    app.add_option("--dump-retained", options->dumpRetained, "Write the positions kept after the prefill and at the end as JSON");
    return [options](const Shell& shell) {
        JobRequest request;
        request.job.kind = RunKind::generate;
        request.job.prompt = options->prompt.read();
        request.job.generate = options->generate;
        request.job.sampler = options->sampler;
        request.job.trace.attentionBins =
            options->output.session.empty() ? 0 : options->attentionBins; // maps only where they are kept
        request.plan = options->lanes.plan();
        request.model = options->model;
        request.output = options->output;
        request.dumpRetained = options->dumpRetained;
        const bool single = request.plan.lanes.size() == 1;
        if (single && options->output.textToStdout() && options->dumpRetained != "-")
            request.follow = [](ProgressLine& progress) { return std::make_unique<StreamingSink>(progress); };
        request.text = [single](const Trace& trace) {
            std::string out;
            if (single) out = trace.lanes.empty() || trace.lanes[0].generated.empty() ? "" : "\n";
            else for (const Lane& lane : trace.lanes)
                out += "[" + lane.label + "] " + laneText({lane.label, lane.policy}) + "\n" + wholeText(lane) + "\n";
            if (const std::vector<Measurement> why = rowsOf(trace, "explain"); !why.empty())
                out += (out.empty() ? "" : "\n") + table(why, {"lane", "position", "layer", "head", "step", "kept", "protected_by", "score", "rank", "candidates", "cutoff",
                                                               "margin", "last_kept", "budget", "budget_needed", "note"});
            return out;
        };
        return runJob(shell, std::move(request));
    };
}

} // namespace keepsight::cli
