// keepsight-cli: everything the engine does, without a display. Results on stdout or in files, everything else on stderr.
#include "app/calm_threads.h"
#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "engine/data/error.h"

#include <iostream>
#include <new>

using namespace keepsight;
using namespace keepsight::cli;

namespace {

struct Entry {
    const char* name;
    const char* help;
    RunCommand (*add)(CLI::App&);
    CLI::App* app = nullptr;
    RunCommand run = {};
};

Entry entries[] = {
    {"policies", "List the policies with their parameters and papers", addPolicies},
    {"quantizers", "List the ways to store a cache in few bits, with their parameters and papers", addQuantizers},
    {"info", "Architecture, sizes, tokenizer and KV bytes per token of a model", addInfo},
    {"tokenize", "Turn text into token ids", addTokenize},
    {"logits", "Loss, arg-max and last logits of given ids, for checks against other implementations", addLogits},
    {"generate", "Continue a prompt under one or more policies", addGenerate},
    {"score", "Feed a text token by token and score each from what a policy still holds", addScore},
    {"ppl", "Suffix perplexity on a compressed cache", addPerplexity},
    {"bench", "Time prefill and decoding", addBench},
    {"suite", "One table of policies × budgets × quantizers: suffix perplexity, bytes and decode times; resumes", addSuite},
    {"needle", "Hide a pass key at many lengths and depths and ask for it", addNeedle},
    {"replay", "Print or re-export what a session holds, without the model", addReplay},
    {"export", "Write the data behind the pictures of a session", addExport},
};

int fail(const std::string& sentence, int code) {
    std::cerr << "keepsight-cli: " << sentence << std::endl;
    return code;
}

} // namespace

int main(int argc, char** argv) {
    Interrupt interrupt;
    Shell shell{{}, interrupt, quotedLine(argc, argv)};
    CLI::App app(
        "Runs language models under KV-cache compression policies, measures what that costs and saves, and records what they keep.",
        "keepsight-cli");
    app.set_version_flag("--version", "keepsight-cli " + Engine::version());
    app.require_subcommand(1);
    shell.options.add(app);
    for (Entry& entry : entries) {
        entry.app = app.add_subcommand(entry.name, entry.help);
        entry.app->fallthrough(); // the general options may also follow the command
        entry.run = entry.add(*entry.app);
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& e) {
        return app.exit(e); // --help, --version
    } catch (const CLI::ParseError& e) {
        const Entry* chosen = nullptr;
        for (const Entry& entry : entries)
            if (entry.app->parsed()) chosen = &entry;
        return fail(std::string(e.what()) + "; see keepsight-cli " + (chosen ? chosen->name + std::string(" ") : "") + "--help", ExitUsage);
    }
    try {
        for (const Entry& entry : entries)
            if (entry.app->parsed()) return entry.run(shell);
        return ExitUsage;
    } catch (const UsageError& e) {
        return fail(e.what(), ExitUsage);
    } catch (const std::bad_alloc&) {
        return fail("out of memory; use a smaller model, fewer tokens or fewer lanes", ExitFailed);
    } catch (const std::exception& e) {
        return interrupt.requested() ? ExitCancelled : fail(e.what(), ExitFailed);
    } catch (...) { // stopped inside a call that has no other way to say so
        return interrupt.requested() ? ExitCancelled : fail("stopped for an unknown reason", ExitFailed);
    }
}
