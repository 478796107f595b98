#include "app/cli/options.h"

#include "engine/data/error.h"
#include "engine/engine.h"
#include "engine/model/weights_json.h"
#include "engine/tokenizer/tokenizer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>

namespace keepsight::cli {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t MaxTextBytes = std::size_t{1} << 30;

std::string readAll(const std::string& file) {
    std::ifstream opened;
    if (file != "-") {
        if (fs::is_directory(file)) throw EngineError("'" + file + "' is a directory, expected a text file");
        opened.open(file, std::ios::binary);
        if (!opened) throw EngineError("cannot read '" + file + "': " + std::strerror(errno));
    }
    std::istream& in = file == "-" ? std::cin : opened;
    std::string text;
    std::vector<char> buffer(1 << 16);
    while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())), in.gcount() > 0) {
        text.append(buffer.data(), static_cast<std::size_t>(in.gcount()));
        if (text.size() > MaxTextBytes)
            throw EngineError("'" + file + "' has more than " + std::to_string(MaxTextBytes) +
                              " bytes, which is more than any model reads");
    }
    return text;
}

template <class T>
bool parseNumber(std::string_view text, T& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
}

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(separator, begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

// "A:B:S" from A to at most B, or a list.
template <class T>
std::vector<T> parseRange(const std::string& text, const std::string& option) {
    constexpr std::size_t MaxItems = 10000;
    const auto fail = [&] { throw UsageError(option + ": expected A:B:S or a list like 1,2,3, found '" + text + "'"); };
    std::vector<T> out;
    if (text.find(':') != std::string::npos) {
        const auto parts = split(text, ':');
        T first{}, last{}, step{};
        if (parts.size() != 3 || !parseNumber(parts[0], first) || !parseNumber(parts[1], last) || !parseNumber(parts[2], step)) fail();
        if (!(step > T{0}) || !(last >= first) || !std::isfinite(static_cast<double>(last)) || !std::isfinite(static_cast<double>(first)))
            throw UsageError(option + ": expected A ≤ B and S above 0 in A:B:S, found '" + text + "'");
        const double count = (static_cast<double>(last) - static_cast<double>(first)) / static_cast<double>(step);
        if (!(count < static_cast<double>(MaxItems)))
            throw UsageError(option + ": '" + text + "' gives more than " + std::to_string(MaxItems) + " values");
        for (int i = 0; static_cast<double>(i) <= count + 1e-9; ++i)
            out.push_back(static_cast<T>(first + static_cast<T>(i) * step));
        return out;
    }
    for (const auto part : split(text, ',')) {
        T value{};
        if (!parseNumber(part, value)) fail();
        out.push_back(value);
    }
    return out;
}

// CLI11 would wrap a negative seed round.
std::string seedProblem(std::string& text) {
    std::uint64_t value = 0;
    return parseNumber(text, value) ? std::string() : "expected a whole number from 0 to 18446744073709551615, found '" + text + "'";
}

std::string labelOf(std::size_t index) { // A … Z, AA, AB …
    std::string label;
    for (std::size_t n = index + 1; n > 0; n = (n - 1) / 26)
        label.insert(label.begin(), static_cast<char>('A' + (n - 1) % 26));
    return label;
}

Budget ratioBudget(double ratio) {
    if (!(ratio >= 0.0 && ratio < 1.0))
        throw UsageError("the compression ratio should be at least 0 and below 1 (the share removed), found " + std::to_string(ratio));
    return Budget::removed(ratio + 0.0); // −0 becomes 0
}

Budget tokenBudget(int tokens) {
    if (tokens < 1) throw UsageError("the budget should be at least 1 token per layer and KV head, found " + std::to_string(tokens));
    return Budget::kept(tokens);
}

bool usesBudget(const std::string& id) {
    for (const PolicyInfo& info : Engine::policies())
        if (info.id == id) return info.usesBudget;
    return true;
}

PolicySpec parseLane(const std::string& whole) {
    const std::size_t tilde = whole.find('~');
    const std::string text = whole.substr(0, tilde);
    const std::size_t at = text.rfind('@');
    PolicySpec spec = Engine::parsePolicy(text.substr(0, at));
    if (tilde != std::string::npos) spec.quant = Engine::parseQuant(std::string_view(whole).substr(tilde + 1));
    if (at == std::string::npos) return spec;
    const std::string_view budget = std::string_view(text).substr(at + 1);
    int tokens = 0;
    double ratio = 0;
    if (budget.starts_with('b') && parseNumber(budget.substr(1), tokens))
        spec.budget = tokenBudget(tokens);
    else if (parseNumber(budget, ratio))
        spec.budget = ratioBudget(ratio);
    else
        throw UsageError("--lane: expected POLICY@RATIO or POLICY@bTOKENS, found '" + text + "'");
    return spec;
}

} // namespace

void GlobalOptions::add(CLI::App& app) {
    app.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
    app.add_option("--dtype", dtype, "auto (fp32 on CPU, bf16 on CUDA), fp32, bf16 or fp16")->capture_default_str();
    app.add_option("--threads", threads, "CPU threads; 0: all cores")->check(CLI::Range(0, 4096))->capture_default_str();
    app.add_option("--seed", seed, "Seed of sampling, keys and depths")
        ->check(CLI::Validator(seedProblem, "UINT64"))
        ->capture_default_str();
    app.add_option("--log-level", logLevel, "What stderr shows: error, warn, info or debug")
        ->check(CLI::IsMember({"error", "warn", "info", "debug"}))
        ->capture_default_str();
}

bool GlobalOptions::shows(std::string_view level) const {
    const auto rank = [](std::string_view name) { return name == "error" ? 0 : name == "warn" ? 1 : name == "info" ? 2 : 3; };
    return rank(level) <= rank(logLevel);
}

void ModelOption::add(CLI::App& app) {
    app.add_option("--model", path,
                   "Hugging Face directory or .gguf file; default: the model that set-up installed, else $KEEPSIGHT_MODEL");
}

fs::path ModelOption::resolve() const {
    if (!path.empty()) return path;
    std::error_code error;
    const fs::path program = fs::read_symlink("/proc/self/exe", error);
    const fs::path folder = program.parent_path().parent_path() / "models";
    std::vector<fs::path> found;
    if (!error)
        for (const auto& entry : fs::directory_iterator(folder, error))
            if (entry.path().extension() == ".gguf") found.push_back(entry.path());
    if (!found.empty()) return *std::min_element(found.begin(), found.end());
    if (const char* model = std::getenv("KEEPSIGHT_MODEL"); model && *model) return model;
    throw EngineError("no model given and none installed in '" + folder.string() +
                      "'; name one with --model, or run app/run.sh --build-only to install the default");
}

void PromptOptions::add(CLI::App& app, const std::string& textOption, bool frames) {
    auto* text = app.add_option(textOption, textFile, "UTF-8 text; - reads stdin");
    app.add_option("--ids-file", idsFile, "JSON array of token ids in place of text")->excludes(text);
    if (!frames) return;
    app.add_flag("--chat", chat, "Wrap the text as a user turn of the model's chat frame");
    app.add_flag("--special", special, "Add BOS and the like as the tokenizer says, and read special tokens in the text");
}

PromptSpec PromptOptions::read() const {
    PromptSpec prompt;
    prompt.chat = chat;
    prompt.special = special;
    if (!idsFile.empty())
        prompt.ids = readIds(idsFile);
    else if (!textFile.empty())
        prompt.text = readText(textFile);
    else
        throw UsageError("a text is needed: name a text file, or token ids with --ids-file");
    return prompt;
}

void LaneOptions::add(CLI::App& app) {
    auto* policy =
        app.add_option("--policy", policies, "POLICY[:name=value,…], repeatable; see the command policies")->allow_extra_args(false);
    auto* ratio = app.add_option("--compression-ratio", ratios, "Share of the tokens removed, 0 ≤ C < 1; a list, crossed with the policies")
                      ->delimiter(',')
                      ->allow_extra_args(false);
    auto* budget = app.add_option("--budget", budgets, "Tokens kept per layer and KV head; a list, crossed with the policies")
                       ->delimiter(',')
                       ->allow_extra_args(false);
    auto* lane = app.add_option("--lane", lanes, "POLICY@RATIO or POLICY@bTOKENS, with ~QUANTIZER behind it where the cache is packed; repeatable, in place of --policy, budgets and --quant")
                     ->allow_extra_args(false);
    auto* quant = app.add_option("--quant", quantizers, "QUANTIZER[:name=value,…] of the cache, repeatable, crossed with the policies; see the command quantizers")
                      ->allow_extra_args(false);
    ratio->excludes(budget);
    lane->excludes(policy)->excludes(ratio)->excludes(budget)->excludes(quant);
}

LanePlan LaneOptions::plan() const {
    std::vector<QuantSpec> quants;
    std::transform(quantizers.begin(), quantizers.end(), std::back_inserter(quants), [](const std::string& text) { return Engine::parseQuant(text); });
    if (quants.empty()) quants.emplace_back();
    LanePlan plan;
    const auto add = [&](PolicySpec spec) {
        for (const PolicyInfo& info : Engine::policies()) // some policies are made for one quantizer
            if (info.id == spec.id && spec.quant == QuantSpec() && !info.quant.empty()) spec.quant = Engine::parseQuant(info.quant);
        Engine::checkPolicy(spec);
        plan.lanes.push_back({labelOf(plan.lanes.size()), std::move(spec)});
        return plan.lanes.size() - 1;
    };
    if (!lanes.empty()) {
        for (const std::string& text : lanes) {
            PolicySpec spec = parseLane(text);
            const Budget budget = spec.budget;
            plan.rows.push_back({add(std::move(spec)), budget});
        }
        return plan;
    }
    std::vector<Budget> crossed;
    std::transform(ratios.begin(), ratios.end(), std::back_inserter(crossed), ratioBudget);
    std::transform(budgets.begin(), budgets.end(), std::back_inserter(crossed), tokenBudget);
    if (crossed.empty()) crossed.emplace_back();
    for (const std::string& text : policies.empty() ? std::vector<std::string>{"full"} : policies) {
        PolicySpec spec = Engine::parsePolicy(text);
        if (!usesBudget(spec.id)) {
            for (const QuantSpec& quant : quants) {
                spec.quant = quant;
                const std::size_t lane = add(spec);
                for (const Budget& budget : crossed)
                    plan.rows.push_back({lane, budget});
            }
            continue;
        }
        for (const Budget& budget : crossed)
            for (const QuantSpec& quant : quants) {
                spec.budget = budget;
                spec.quant = quant;
                plan.rows.push_back({add(spec), budget});
            }
    }
    return plan;
}

void OutputOptions::add(CLI::App& app, bool withSession) {
    app.add_option("--json", json, "Write the rows as JSON; -: to stdout");
    app.add_option("--csv", csv, "Write the rows as CSV; -: to stdout");
    if (withSession) app.add_option("--session", session, "Record the whole run as a .keep session");
}

void OutputOptions::check() const {
    if (json == "-" && csv == "-") throw UsageError("--json and --csv cannot both go to stdout");
    for (const std::string& file : {json, csv, session}) {
        if (file.empty() || file == "-") continue;
        const fs::path folder = fs::absolute(file).parent_path();
        if (!fs::is_directory(folder))
            throw EngineError("cannot write '" + file + "': the folder '" + folder.string() + "' does not exist");
        if (fs::is_directory(file)) throw EngineError("cannot write '" + file + "': it is a directory");
        if (file == session && fs::exists(file) && !fs::is_regular_file(file))
            throw EngineError("cannot record into '" + file + "': it is no regular file");
    }
}

void WindowOptions::add(CLI::App& app) {
    app.add_option("--max-length", ppl.maxLength, "Tokens per window")->check(CLI::Range(4, 1 << 24))->capture_default_str();
    app.add_option("--prefix-ratio", ppl.prefixRatio, "Share of a window that is prefilled")->check(realFrom(0.0, 1.0))->capture_default_str();
    app.add_option("--windows", ppl.windows, "Windows at most; a last partial one is dropped")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_flag("--no-boundary", noBoundary, "Leave out the first suffix token, which is predicted before anything is removed");
}

PplSpec WindowOptions::read() const {
    PplSpec out = ppl;
    out.includeBoundary = !noBoundary;
    return out;
}

void addBenchOptions(CLI::App& app, BenchSpec& bench) {
    app.add_option("--ctx", bench.context, "Prompt tokens")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_option("--new", bench.newTokens, "Tokens to decode")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_option("--warmup", bench.warmup, "Runs before the timed ones")->check(CLI::Range(0, 1000))->capture_default_str();
    app.add_option("--repeats", bench.repeats, "Timed runs; the median is reported")->check(CLI::Range(1, 100000))->capture_default_str();
}

std::string readText(const std::string& file) {
    std::string text = readAll(file);
    const std::string where = "'" + (file == "-" ? "stdin" : file) + "'";
    if (const auto at = text.find('\0'); at != std::string::npos)
        throw EngineError(where + " holds a NUL byte at byte " + std::to_string(at) + ", expected UTF-8 text; is it a binary file?");
    if (!isValidUtf8(text)) throw EngineError(where + " is not valid UTF-8; convert it first, for example with iconv -t utf-8");
    if (text.empty()) throw EngineError(where + " is empty, expected text");
    return text;
}

std::vector<TokenId> readIds(const std::string& file) {
    const auto document = parseForeignJson(readAll(file), "'" + file + "'");
    if (!document.is_array() || document.empty()) throw EngineError("'" + file + "' should be a JSON array of token ids like [1, 2, 3]");
    std::vector<TokenId> ids;
    for (const auto& id : document) {
        if (!id.is_number_unsigned() || id.get<std::uint64_t>() > 0x7fffffffu)
            throw EngineError("'" + file + "': item " + std::to_string(ids.size()) + " should be a token id, found " +
                              id.dump(-1, ' ', true).substr(0, 40));
        ids.push_back(id.get<TokenId>());
    }
    return ids;
}

std::vector<int> parseIntegers(const std::string& text, const std::string& option) { return parseRange<int>(text, option); }

std::vector<double> parseDepths(const std::string& text) {
    int count = 0;
    if (parseNumber(text, count)) {
        if (count < 1 || count > 1000) throw UsageError("--depths: expected 1 to 1000 depths, found " + text);
        if (count == 1) return {50.0};
        std::vector<double> out;
        for (int i = 0; i < count; ++i)
            out.push_back(100.0 * i / (count - 1));
        return out;
    }
    auto out = parseRange<double>(text, "--depths");
    for (const double depth : out)
        if (!(depth >= 0 && depth <= 100)) throw UsageError("--depths: expected percentages from 0 to 100, found '" + text + "'");
    return out;
}

CLI::Validator realFrom(double low, double high) {
    char range[64];
    std::snprintf(range, sizeof range, "%g to %g", low, high);
    const std::string expected = range;
    const auto check = [=](std::string& text) {
        double value = 0;
        const bool valid = parseNumber(text, value) && value >= low && value <= high;
        return valid ? std::string() : "expected " + expected + ", found '" + text + "'";
    };
    return CLI::Validator(check, expected);
}

std::string quotedLine(int argc, char** argv) {
    std::string line = "keepsight-cli";
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const bool plain =
            !word.empty() &&
            word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-") == std::string::npos;
        line += ' ';
        if (plain) {
            line += word;
            continue;
        }
        line += '\'';
        for (const char c : word)
            line += c == '\'' ? std::string("'\\''") : std::string(1, c);
        line += '\'';
    }
    return line;
}

} // namespace keepsight::cli
