#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "app/cli/output.h"

namespace keepsight::cli {

RunCommand addTokenize(CLI::App& app) {
    struct Options {
        ModelOption model;
        PromptOptions prompt;
        std::string json = "-";
        bool noSpecial = false;
    };
    const auto options = std::make_shared<Options>();
    options->model.add(app);
    options->prompt.add(app, "--text-file");
    app.add_flag("--no-special", options->noSpecial, "Plain text only, as without --special: the default, said aloud")
        ->excludes("--special");
    app.add_option("--json", options->json, "Where to write {\"ids\":[…],\"pieces\":[…]}; -: stdout")->capture_default_str();
    return [options](const Shell& shell) {
        const PromptSpec prompt = options->prompt.read();
        ProgressLine progress(shell.options.shows("info"));
        const auto opened = openModel(shell, options->model, progress);
        if (!opened.engine) return ExitCancelled;
        const Tokens tokens = opened.engine->tokenize(prompt);
        const OrderedJson out = {{"ids", tokens.ids}, {"pieces", tokens.pieces}};
        writeOutput(options->json, out.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
        return ExitDone;
    };
}

} // namespace keepsight::cli
