#include "engine/data/job.h"

#include "engine/data/json_strict.h"
#include "engine/data/plain_json.h"

#include <algorithm>
#include <charconv>

namespace keepsight {

namespace {

const char* const kindNames[] = {"score", "generate", "needle", "ppl", "bench", "suite"};

// Every field once, for both directions.
template <class P, class Visit>
void eachField(P& prompt, const Visit& visit) requires std::is_same_v<std::remove_const_t<P>, PromptSpec> {
    visit("chat", prompt.chat);
    visit("special", prompt.special);
}
template <class S, class Visit>
void eachField(S& sampler, const Visit& visit) requires std::is_same_v<std::remove_const_t<S>, SamplerSpec> {
    visit("temperature", sampler.temperature);
    visit("top_p", sampler.topP);
}
template <class S, class Visit>
void eachField(S& score, const Visit& visit) requires std::is_same_v<std::remove_const_t<S>, ScoreSpec> {
    visit("prefix_ratio", score.prefixRatio);
}
template <class G, class Visit>
void eachField(G& generate, const Visit& visit) requires std::is_same_v<std::remove_const_t<G>, GenerateSpec> {
    visit("max_new", generate.maxNew);
    visit("ignore_eos", generate.ignoreEos);
    visit("explain", generate.explain);
}
template <class P, class Visit>
void eachField(P& ppl, const Visit& visit) requires std::is_same_v<std::remove_const_t<P>, PplSpec> {
    visit("max_length", ppl.maxLength);
    visit("prefix_ratio", ppl.prefixRatio);
    visit("windows", ppl.windows);
    visit("include_boundary", ppl.includeBoundary);
}
template <class N, class Visit>
void eachField(N& needle, const Visit& visit) requires std::is_same_v<std::remove_const_t<N>, NeedleSpec> {
    visit("lengths", needle.lengths);
    visit("depths", needle.depths);
    visit("keys", needle.keys);
    visit("digits", needle.digits);
    visit("query_aware", needle.queryAware);
    visit("haystack", needle.haystack);
}
template <class B, class Visit>
void eachField(B& bench, const Visit& visit) requires std::is_same_v<std::remove_const_t<B>, BenchSpec> {
    visit("context", bench.context);
    visit("new_tokens", bench.newTokens);
    visit("warmup", bench.warmup);
    visit("repeats", bench.repeats);
}
template <class S, class Visit>
void eachField(S& suite, const Visit& visit) requires std::is_same_v<std::remove_const_t<S>, SuiteSpec> {
    visit("bench", suite.bench);
}
template <class T, class Visit>
void eachField(T& trace, const Visit& visit) requires std::is_same_v<std::remove_const_t<T>, TraceOptions> {
    visit("attention_bins", trace.attentionBins);
    visit("retention", trace.retention);
}

template <class T>
OrderedJson written(const T& record) {
    OrderedJson out = OrderedJson::object();
    eachField(record, [&](const char* key, const auto& member) {
        if constexpr (std::is_same_v<std::decay_t<decltype(member)>, std::string>)
            out[key] = jsonOfBytes(member);
        else
            out[key] = member;
    });
    return out;
}

template <class T>
void readSection(StrictObject& job, const char* key, T& record) {
    const OrderedJson* value = job.take(key);
    if (!value) return;
    StrictObject object(*value, job.path(key));
    eachField(record, [&](const char* name, auto& member) { object.read(name, member); });
    object.finish();
}

std::string number(double value) {
    char text[40];
    const auto end = std::to_chars(text, text + sizeof text, value).ptr;
    return {text, end};
}

std::string quoted(const std::string& word) {
    const auto plain = [](unsigned char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
               std::string_view("_@%+=:,./-~").find(static_cast<char>(c)) != std::string_view::npos;
    };
    if (!word.empty() && word.front() != '~' && std::all_of(word.begin(), word.end(), plain)) return word;
    std::string out = "'";
    for (const char c : word) {
        if (c == '\'')
            out += "'\\''";
        else
            out += c;
    }
    return out + "'";
}

std::string quotedPath(const std::string& path) { return quoted(path.starts_with('-') ? "./" + path : path); }

std::string budgetOption(const Budget& budget) {
    return budget.kind == Budget::Kind::ratio ? " --compression-ratio " + number(budget.compressionRatio)
                                              : " --budget " + std::to_string(budget.tokens);
}

template <class T>
void addOnce(std::vector<T>& values, const T& value) {
    if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
}

// --policy … crossed with --compression-ratio … and --quant … where the lanes are such a product, else one --lane each.
std::string laneOptions(const Job& job) {
    std::vector<std::string> policies, quantizers;
    std::vector<Budget> budgets;
    for (const LaneSpec& lane : job.lanes) {
        addOnce(policies, lane.policy.text());
        addOnce(budgets, lane.policy.budget);
        addOnce(quantizers, lane.policy.quant.text());
    }
    const std::size_t cells = budgets.size() * quantizers.size();
    bool product = policies.size() * cells == job.lanes.size();
    if (job.kind == RunKind::score || job.kind == RunKind::generate) product = product && cells <= 1;
    for (std::size_t i = 0; product && i < job.lanes.size(); ++i) {
        const PolicySpec& policy = job.lanes[i].policy;
        product = policy.text() == policies[i / cells] && policy.budget == budgets[i / quantizers.size() % budgets.size()] &&
                  policy.budget.kind == budgets.front().kind && policy.quant.text() == quantizers[i % quantizers.size()];
    }
    std::string out;
    if (!product) {
        for (const LaneSpec& lane : job.lanes)
            out += " --lane " + quoted(laneText(lane));
        return out;
    }
    for (const std::string& policy : policies)
        out += " --policy " + quoted(policy);
    const bool onlyFull = policies.size() == 1 && policies.front() == "full";
    for (const Budget& budget : budgets)
        if (!onlyFull || budget != Budget()) out += budgetOption(budget);
    for (const std::string& quantizer : quantizers)
        if (quantizers.size() > 1 || quantizer != "none") out += " --quant " + quoted(quantizer);
    return out;
}

// A list as A:B:S where its values are evenly spaced, else separated by commas.
template <class T>
std::string rangeOrList(const std::vector<T>& values) {
    const auto text = [](T value) { return number(static_cast<double>(value)); };
    if (values.size() == 1) return text(values[0]) + ":" + text(values[0]) + ":1";
    bool even = values.size() > 2 && values[1] > values[0];
    for (std::size_t i = 0; even && i < values.size(); ++i)
        even = values[i] == static_cast<T>(values[0] + static_cast<T>(i) * (values[1] - values[0]));
    if (even) return text(values.front()) + ":" + text(values.back()) + ":" + text(static_cast<T>(values[1] - values[0]));
    std::string out;
    for (const T value : values)
        out += (out.empty() ? "" : ",") + text(value);
    return out;
}

std::string depthsText(const std::vector<double>& depths) {
    bool whole = depths.size() > 1; // N evenly spaced depths from 0 to 100 %
    for (std::size_t i = 0; whole && i < depths.size(); ++i)
        whole = std::abs(depths[i] - 100.0 * static_cast<double>(i) / static_cast<double>(depths.size() - 1)) < 1e-9;
    return whole ? std::to_string(depths.size()) : rangeOrList(depths);
}

std::string promptOptions(const PromptSpec& prompt, const char* option, const std::string& textFile) {
    constexpr std::size_t LongestInline = 160;
    std::string out;
    if (prompt.ids)
        out = " --ids-file " + quotedPath(textFile.empty() ? "ids.json" : textFile);
    else if (textFile.empty() && !prompt.text.empty() && prompt.text.size() <= LongestInline &&
             prompt.text.find_first_of("\n\r") == std::string::npos)
        out = std::string(" ") + option + " <(printf %s " + quoted(prompt.text) +
              ")"; // the option takes a file: bash and zsh make one of this
    else
        out = std::string(" ") + option + " " + quotedPath(textFile.empty() ? "prompt.txt" : textFile);
    if (prompt.chat) out += " --chat";
    if (prompt.special) out += " --special";
    return out;
}

std::string benchOptions(const BenchSpec& bench) {
    return " --ctx " + std::to_string(bench.context) + " --new " + std::to_string(bench.newTokens) + " --warmup " + std::to_string(bench.warmup) + " --repeats " +
           std::to_string(bench.repeats);
}

} // namespace

const char* name(RunKind kind) { return kindNames[static_cast<int>(kind)]; }

std::string laneText(const LaneSpec& lane) {
    const Budget& budget = lane.policy.budget;
    std::string text = lane.policy.text();
    if (lane.policy.id != "full" || budget != Budget())
        text += budget.kind == Budget::Kind::ratio ? "@" + number(budget.compressionRatio) : "@b" + std::to_string(budget.tokens);
    return lane.policy.quant == QuantSpec() ? text : text + "~" + lane.policy.quant.text();
}

std::string jobToJson(const Job& job) {
    OrderedJson out = {{"kind", name(job.kind)}};
    OrderedJson prompt = {{"text", jsonOfBytes(job.prompt.text)}};
    if (job.prompt.ids) prompt["ids"] = *job.prompt.ids;
    prompt.update(written(job.prompt));
    out["prompt"] = prompt;
    out["lanes"] = OrderedJson::array();
    for (const LaneSpec& lane : job.lanes)
        out["lanes"].push_back({{"label", jsonOfBytes(lane.label)}, {"policy", policyToJson(lane.policy)}});
    out["sampler"] = written(job.sampler);
    out["score"] = written(job.score);
    out["generate"] = written(job.generate);
    if (job.generate.explain.empty()) out["generate"].erase("explain"); // likewise
    out["ppl"] = written(job.ppl);
    out["needle"] = written(job.needle);
    out["bench"] = written(job.bench);
    if (job.suite != SuiteSpec()) out["suite"] = written(job.suite); // younger than the first sessions: written where it says something
    out["trace"] = written(job.trace);
    out["seed"] = job.seed;
    out["command_line"] = jsonOfBytes(job.commandLine);
    return out.dump();
}

Job jobFromJson(const std::string& json) {
    const OrderedJson value = parseStrictJson(json, "job");
    StrictObject object(value, "job");
    Job job;
    const OrderedJson* kind = object.take("kind");
    if (!kind) throw EngineError("job: key 'kind' is missing");
    job.kind = enumOfJson<RunKind>(*kind, kindNames, "job.kind");
    if (const OrderedJson* prompt = object.take("prompt")) {
        StrictObject inner(*prompt, "job.prompt");
        inner.read("text", job.prompt.text);
        if (const OrderedJson* ids = inner.take("ids")) StrictObject::convert(*ids, job.prompt.ids.emplace(), "job.prompt.ids");
        eachField(job.prompt, [&](const char* key, auto& member) { inner.read(key, member); });
        inner.finish();
    }
    if (const OrderedJson* lanes = object.take("lanes")) {
        if (!lanes->is_array()) throw EngineError("job.lanes: expected an array, found " + std::string(lanes->type_name()));
        for (const OrderedJson& lane : *lanes) {
            const std::string what = "job.lanes[" + std::to_string(job.lanes.size()) + "]";
            StrictObject inner(lane, what);
            LaneSpec& spec = job.lanes.emplace_back();
            inner.read("label", spec.label);
            if (const OrderedJson* policy = inner.take("policy")) spec.policy = policyFromJson(*policy, what + ".policy");
            inner.finish();
        }
    }
    readSection(object, "sampler", job.sampler);
    readSection(object, "score", job.score);
    readSection(object, "generate", job.generate);
    readSection(object, "ppl", job.ppl);
    readSection(object, "needle", job.needle);
    readSection(object, "bench", job.bench);
    readSection(object, "suite", job.suite);
    readSection(object, "trace", job.trace);
    object.read("seed", job.seed);
    object.read("command_line", job.commandLine);
    object.finish();
    return job;
}

std::string commandLineOf(const Job& job, const std::string& modelPath, const std::string& textFile) {
    std::string out = "keepsight-cli";
    if (job.seed != 0) out += " --seed " + std::to_string(job.seed);
    out += std::string(" ") + name(job.kind);
    if (!modelPath.empty()) out += " --model " + quotedPath(modelPath);
    switch (job.kind) {
    case RunKind::score:
        out += promptOptions(job.prompt, "--text-file", textFile) + " --prefix-ratio " + number(job.score.prefixRatio);
        break;
    case RunKind::generate:
        out += promptOptions(job.prompt, "--prompt-file", textFile) + " --max-new " + std::to_string(job.generate.maxNew);
        if (job.generate.ignoreEos) out += " --ignore-eos";
        for (const int position : job.generate.explain) out += " --explain " + std::to_string(position);
        if (job.sampler.temperature != 0.0) out += " --temperature " + number(job.sampler.temperature);
        if (job.sampler.topP != 1.0) out += " --top-p " + number(job.sampler.topP);
        break;
    case RunKind::ppl:
    case RunKind::suite:
        out += promptOptions(job.prompt, "--text-file", textFile) + " --max-length " + std::to_string(job.ppl.maxLength) +
               " --prefix-ratio " + number(job.ppl.prefixRatio) + " --windows " + std::to_string(job.ppl.windows);
        if (!job.ppl.includeBoundary) out += " --no-boundary";
        if (job.kind == RunKind::suite) out += job.suite.bench ? benchOptions(job.bench) : " --no-bench";
        break;
    case RunKind::needle:
        out += " --lengths " + rangeOrList(job.needle.lengths) + " --depths " + depthsText(job.needle.depths) + " --keys " +
               std::to_string(job.needle.keys);
        if (job.needle.digits != NeedleSpec().digits) out += " --digits " + std::to_string(job.needle.digits);
        if (job.needle.queryAware) out += " --query-aware";
        if (!job.needle.haystack.empty()) out += " --haystack-file " + quotedPath(textFile.empty() ? "haystack.txt" : textFile);
        break;
    case RunKind::bench:
        out += benchOptions(job.bench);
        break;
    }
    return out + laneOptions(job);
}

} // namespace keepsight
