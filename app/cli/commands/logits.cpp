#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "app/cli/output.h"
#include "engine/data/error.h"

#include <cmath>

namespace keepsight::cli {

RunCommand addLogits(CLI::App& app) {
    struct Options {
        ModelOption model;
        std::string idsFile, json = "-";
        int greedy = 0;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    app.add_option("--ids-file", options->idsFile, "JSON array of token ids; -: stdin")->required();
    app.add_option("--greedy", options->greedy, "Append N greedy tokens")->check(CLI::Range(0, 1 << 20))->capture_default_str();
    app.add_option("--json", options->json, "Where to write the result; -: stdout")->capture_default_str();
    return [options](const Shell& shell) {
        const std::vector<TokenId> ids = readIds(options->idsFile);
        ProgressLine progress(shell.options.shows("info"));
        const auto opened = openModel(shell, options->model, progress);
        if (!opened.engine) return ExitCancelled;
        const int vocab = opened.engine->model().config.vocab;
        for (std::size_t i = 0; i < ids.size(); ++i)
            if (ids[i] >= vocab)
                throw EngineError("'" + options->idsFile + "': token id " + std::to_string(ids[i]) + " at index " + std::to_string(i) +
                                  " is outside the vocabulary of " + std::to_string(vocab));
        const LogitsResult result = opened.engine->logits(ids, options->greedy, shell.interrupt.token());
        const OrderedJson out = {{"nll", std::isfinite(result.nll) ? OrderedJson(result.nll) : OrderedJson()},
                                 {"argmax", result.argmax},
                                 {"last_logits", result.lastLogits},
                                 {"greedy", result.greedy}};
        writeOutput(options->json, out.dump() + "\n");
        return ExitDone;
    };
}

} // namespace keepsight::cli
