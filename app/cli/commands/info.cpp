#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "app/cli/output.h"

namespace keepsight::cli {
namespace {

OrderedJson infoToJson(const ModelInfo& m) {
    const ModelConfig& c = m.config;
    const char* scaling = c.ropeScaling.kind == RopeScaling::Kind::none     ? "none"
                          : c.ropeScaling.kind == RopeScaling::Kind::linear ? "linear"
                                                                            : "llama3";
    OrderedJson out;
    out["schema"] = "keepsight.info/1";
    out["model"] = {{"path", m.path},     {"sha256", m.sha256},       {"arch", c.architecture},     {"name", c.name},
                    {"format", m.format}, {"weights", m.weightTypes}, {"parameters", m.parameters}, {"weight_bytes", m.weightBytes}};
    out["config"] = {{"layers", c.layers},
                     {"query_heads", c.queryHeads},
                     {"kv_heads", c.kvHeads},
                     {"head_dim", c.headDim},
                     {"hidden", c.hidden},
                     {"feed_forward", c.feedForward},
                     {"vocab", c.vocab},
                     {"max_positions", c.maxPositions},
                     {"rope_theta", c.ropeTheta},
                     {"rope_scaling", scaling},
                     {"norm_eps", c.normEps},
                     {"tied_embeddings", c.tiedEmbeddings},
                     {"attention_bias", c.attentionBias}};
    out["tokenizer"] = m.tokenizer;
    out["chat_frame"] = m.chatTemplate;
    out["device"] = m.device;
    out["dtype"] = m.dtype;
    out["kv_bytes_per_token"] = m.kvBytesPerToken;
    return out;
}

std::string infoToText(const ModelInfo& m) {
    const ModelConfig& c = m.config;
    const auto number = [](std::int64_t v) { return std::to_string(v); };
    std::string out;
    const auto line = [&](std::string name, const std::string& value) {
        name.resize(18, ' ');
        out += name + value + "\n";
    };
    line("name", c.name);
    line("path", m.path);
    line("sha256", m.sha256);
    line("architecture", c.architecture + " (" + m.format + ")");
    line("weights", m.weightTypes + "; " + number(m.parameters) + " parameters, " + number(m.weightBytes) + " bytes");
    line("layers", number(c.layers));
    line("heads", number(c.queryHeads) + " query, " + number(c.kvHeads) + " KV, of " + number(c.headDim));
    line("hidden", number(c.hidden) + ", feed-forward " + number(c.feedForward));
    line("vocabulary", number(c.vocab) + (c.tiedEmbeddings ? " (tied embeddings)" : ""));
    line("context", number(c.maxPositions) + " tokens");
    line("tokenizer", m.tokenizer);
    line("chat frame", m.chatTemplate.empty() ? "none known: prompts run raw" : m.chatTemplate);
    line("device, dtype", m.device + ", " + m.dtype);
    line("KV cache", number(m.kvBytesPerToken) + " bytes per token");
    return out;
}

} // namespace

RunCommand addInfo(CLI::App& app) {
    struct Options {
        ModelOption model;
        std::string json;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    auto* json = app.add_option("--json", options->json, "Write JSON; -, or nothing: to stdout")->expected(0, 1);
    return [options, json](const Shell& shell) {
        ProgressLine progress(shell.options.shows("info"));
        const auto opened = openModel(shell, options->model, progress);
        if (!opened.engine) return ExitCancelled;
        const ModelInfo info = opened.engine->ensureHash(shell.interrupt.token());
        if (json->count() == 0)
            writeOutput("-", infoToText(info));
        else
            writeOutput(options->json.empty() ? "-" : options->json, dump(infoToJson(info)));
        return ExitDone;
    };
}

} // namespace keepsight::cli
