// Times the engine on the default model (or --model M): the budget slider, prefill and decode, what statistics cost, a sweep, opening.
// Prints tables, and JSON with --json FILE. Names after the options run only these parts: slider speed statistics sweep open.
// --policy ID, as often as wanted: the slider of these only.
#include "engine/data/error.h"
#include "engine/engine.h"
#include "engine/session/snapshot.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <algorithm>
#include <c10/core/InferenceMode.h>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

namespace {

using namespace keepsight;
using nlohmann::json;

struct Options {
    std::string model = KEEPSIGHT_BUILD "/models/SmolLM2-135M-Instruct.Q4_1.gguf", jsonFile;
    int threads = 0;
    std::set<std::string> parts, policies;
};

double milliseconds(const std::function<void()>& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

double middle(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

std::vector<double> repeated(int times, const std::function<void()>& work) {
    std::vector<double> out;
    for (int i = 0; i < times; ++i) out.push_back(milliseconds(work));
    return out;
}

std::vector<TokenId> textIds(const Engine& engine, std::size_t count) {
    std::ifstream in(KEEPSIGHT_RESOURCES "/texts/harbour_long.txt", std::ios::binary);
    const std::vector<TokenId> text = engine.tokenize({.text = {std::istreambuf_iterator<char>(in), {}}}).ids;
    std::vector<TokenId> out;
    for (std::size_t i = 0; i < count; ++i) out.push_back(text[i % text.size()]);
    return out;
}

LaneSpec lane(const std::string& policy, Budget budget) {
    LaneSpec out{"", Engine::parsePolicy(policy)};
    out.policy.budget = budget;
    return out;
}

void open(Engine& engine, const Options& options, const char* dtype) {
    engine.open({.model = options.model, .device = "cpu", .dtype = dtype, .threads = options.threads});
}

// What the window does while the slider moves: preview() and withPreview(), without a forward pass. "First" scores the entries, once for
// each policy after a prefill; "again" selects anew from remembered scores.
json slider(const Options& options) {
    constexpr int Tokens = 4000, Prefills = 3, Repeats = 20;
    Engine engine;
    open(engine, options, "fp32");
    Job job;
    job.prompt.ids = textIds(engine, Tokens + 1);
    job.score.prefixRatio = 1; // all but the last
    job.lanes = {lane("full", Budget()), lane("kvcV", Budget::removed(0.2))}; // the latter looks at more queries than is usual
    std::map<std::string, std::vector<double>> first, again;
    std::string others; // that want sums of their own over the whole prompt
    for (int prefill = 0; prefill < Prefills; ++prefill) {
        MemoryTrace memory;
        engine.run(job, memory);
        const auto trace = memory.snapshot();
        for (const PolicyInfo& info : Engine::policies()) {
            if (!options.policies.empty() && !options.policies.contains(info.id)) continue;
            int moves = 0;
            bool served = true;
            const auto move = [&] {
                const PolicySpec spec = lane(info.id, Budget::removed(0.2 + 0.03 * (++moves % 20))).policy;
                const auto sets = engine.preview(spec);
                served = sets.has_value();
                if (served) withPreview(*trace, LaneIndex{0}, spec, *sets);
            };
            const double once = milliseconds(move);
            if (!served) {
                if (prefill == 0) others += (others.empty() ? "" : ", ") + info.id;
                continue;
            }
            first[info.id].push_back(once);
            if (prefill + 1 == Prefills) again[info.id] = repeated(Repeats, move);
        }
    }
    std::printf("\nbudget slider, %d tokens: preview() + withPreview(), ms\n%-16s %10s %10s %10s\n", Tokens, "policy", "first", "again", "worst");
    json rows = json::array();
    for (const PolicyInfo& info : Engine::policies()) {
        if (!first.contains(info.id)) continue;
        const double once = middle(first[info.id]), later = middle(again[info.id]), worst = *std::max_element(again[info.id].begin(), again[info.id].end());
        std::printf("%-16s %10.2f %10.2f %10.2f\n", info.id.c_str(), once, later, worst);
        rows.push_back({{"policy", info.id}, {"tokens", Tokens}, {"first_ms", once}, {"again_ms", later}, {"again_worst_ms", worst}});
    }
    if (!others.empty()) std::printf("not measured, as they want sums of their own over the prompt: %s\n", others.c_str());
    return rows;
}

// GB/s read and written by a copy that no cache holds.
double copyRate() {
    const at::Tensor from = at::ones({64 << 20}), to = at::zeros({64 << 20});
    return 2 * static_cast<double>(from.nbytes()) / middle(repeated(7, [&] { to.copy_(from); })) * 1e-6;
}

// The bench job of the command line, full cache. A decoded token reads all weights as they are stored, and the cache: the limit is their bytes at the
// rate of a copy, measured beside each row.
json speed(const Options& options) {
    std::printf("\nprefill and decode, full cache\n%-6s %8s %16s %16s %10s %26s\n", "dtype", "context", "prefill tok/s", "decode tok/s", "copy GB/s",
                "of limit: weights, + cache");
    json rows = json::array();
    for (const char* dtype : {"fp32", "bf16"}) {
        Engine engine;
        open(engine, options, dtype);
        for (const int context : {512, 2048}) {
            Job job;
            job.kind = RunKind::bench;
            job.prompt.ids = textIds(engine, static_cast<std::size_t>(context));
            job.lanes = {lane("full", Budget())};
            job.bench = {.context = context, .newTokens = 32, .warmup = 1, .repeats = 5};
            MemoryTrace memory;
            const double before = copyRate();
            engine.run(job, memory);
            const Measurement row = memory.snapshot()->measurements.front();
            const double rate = std::max(before, copyRate()), weights = static_cast<double>(engine.model().weightBytes), tokens = row.number("decode_tok_s");
            const auto share = [&](double bytes) { return bytes * tokens / (rate * 1e9); };
            const double ofWeights = share(weights), ofAll = share(weights + row.number("kv_bytes"));
            std::printf("%-6s %8d %16.1f %16.1f %10.1f %16.2f %9.2f\n", dtype, context, row.number("prefill_tok_s"), tokens, rate, ofWeights, ofAll);
            rows.push_back({{"dtype", dtype}, {"context", context}, {"prefill_tok_s", row.number("prefill_tok_s")}, {"decode_tok_s", tokens},
                            {"tpot_ms", row.number("tpot_ms")}, {"tpot_iqr_ms", row.number("tpot_iqr_ms")}, {"copy_gb_per_s", rate},
                            {"of_weight_limit", ofWeights}, {"of_byte_limit", ofAll}});
        }
    }
    return rows;
}

// One prefill of 2048 tokens, alternately with nothing collected and with each statistic.
json statistics(const Options& options) {
    constexpr int Tokens = 2048, Repeats = 5;
    Engine tokens;
    open(tokens, options, "fp32");
    const std::vector<TokenId> ids = textIds(tokens, Tokens);
    tokens.close();
    const c10::InferenceMode guard;
    const auto model = Model::make(openWeights(options.model), at::kFloat, at::kCPU);
    const std::vector<std::pair<const char*, PrefillOptions>> kinds = {{"nothing", {}},
                                                                       {"last 128 queries", {.lastRows = 128}},
                                                                       {"column sums", {.columnSums = true}},
                                                                       {"maps of 128 bins", {.mapBin = Tokens / 128}},
                                                                       {"all of them", {.lastRows = 128, .columnSums = true, .mapBin = Tokens / 128}}};
    std::vector<std::vector<double>> times(kinds.size());
    for (int r = 0; r < Repeats; ++r)
        for (std::size_t k = 0; k < kinds.size(); ++k) times[k].push_back(milliseconds([&] { Snapshot::prefill(*model, ids, kinds[k].second, {}); }));
    std::printf("\ncost of statistics, prefill of %d tokens, fp32\n%-20s %10s %10s\n", Tokens, "collected", "ms", "ratio");
    json rows = json::array();
    for (std::size_t k = 0; k < kinds.size(); ++k) {
        const double ms = middle(times[k]), ratio = ms / middle(times[0]);
        std::printf("%-20s %10.0f %10.3f\n", kinds[k].first, ms, ratio);
        rows.push_back({{"collected", kinds[k].first}, {"tokens", Tokens}, {"ms", ms}, {"ratio", ratio}});
    }
    return rows;
}

// Suffix perplexity of 7 policies × 4 ratios on 2 windows of 1024, and the same 28 results as 28 jobs would take them: one policy timed alone.
json sweep(const Options& options) {
    Engine engine;
    open(engine, options, "fp32");
    Job job;
    job.kind = RunKind::ppl;
    job.prompt.ids = textIds(engine, 2048);
    job.ppl.windows = 2;
    for (const PolicyInfo& info : Engine::policies())
        for (const double removed : {0.2, 0.4, 0.6, 0.8}) job.lanes.push_back(lane(info.id, Budget::removed(removed)));
    MemoryTrace memory;
    const double together = milliseconds([&] { engine.run(job, memory); }) / 1000;
    Job one = job;
    double apart = 0;
    for (const LaneSpec& each : job.lanes) {
        if (each.policy.budget.compressionRatio != 0.4) continue; // one ratio of each policy stands for the four
        one.lanes = {each};
        MemoryTrace alone;
        apart += 4 * milliseconds([&] { engine.run(one, alone); }) / 1000;
    }
    std::printf("\nsweep, %zu lanes, 2 windows of 1024: one job %.1f s; as single jobs %.1f s (from one ratio of each policy); ratio %.2f\n", job.lanes.size(), together, apart,
                apart / together);
    return {{"lanes", job.lanes.size()}, {"windows", 2}, {"one_job_s", together}, {"single_jobs_s", apart}};
}

json openings(const Options& options) {
    std::printf("\nopen, ms (the file is in the page cache)\n");
    json rows = json::array();
    for (const char* dtype : {"fp32", "bf16"}) {
        const double ms = middle(repeated(5, [&] {
            Engine engine;
            open(engine, options, dtype);
        }));
        std::printf("%-6s %10.0f\n", dtype, ms);
        rows.push_back({{"dtype", dtype}, {"ms", ms}});
    }
    return rows;
}

} // namespace

int main(int argc, char** argv) {
    Options options;
    options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument == "--json" && i + 1 < argc)
            options.jsonFile = argv[++i];
        else if (argument == "--model" && i + 1 < argc)
            options.model = argv[++i];
        else if (argument == "--policy" && i + 1 < argc)
            options.policies.insert(argv[++i]);
        else if (argument == "--threads" && i + 1 < argc)
            options.threads = std::max(1, std::atoi(argv[++i]));
        else
            options.parts.insert(argument);
    }
    const std::pair<const char*, json (*)(const Options&)> parts[] = {{"open", openings}, {"slider", slider}, {"speed", speed}, {"statistics", statistics}, {"sweep", sweep}};
    for (const std::string& wanted : options.parts)
        if (std::none_of(std::begin(parts), std::end(parts), [&](const auto& p) { return wanted == p.first; }))
            return std::fprintf(stderr, "engine_bench: expected open, slider, speed, statistics or sweep, found '%s'\n", wanted.c_str()), 2;
    try {
        at::set_num_threads(options.threads);
        json out = {{"schema", "keepsight.engine_bench/1"}, {"version", Engine::version()}, {"model", options.model}, {"threads", options.threads}};
        std::printf("%s, %d threads, medians\n", options.model.c_str(), options.threads);
        for (const auto& [name, measure] : parts)
            if (options.parts.empty() || options.parts.contains(name)) {
                out[name] = measure(options);
                std::fflush(stdout);
            }
        if (!options.jsonFile.empty()) std::ofstream(options.jsonFile) << out.dump(1) << "\n";
    } catch (const EngineError& e) {
        return std::fprintf(stderr, "engine_bench: %s\n", e.what()), 1;
    }
}
