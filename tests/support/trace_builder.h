// A small, plausible, seeded Score run made without a model: what tests of data, widgets and figures look at.
#pragma once

#include "engine/data/job.h"
#include "engine/data/trace_sink.h"

#include <algorithm>
#include <random>

namespace keepsight::test {

struct TraceShape {
    int layers = 4, kvHeads = 3, queryHeads = 9;
    int prompt = 60, decode = 20; // tokens; every decoded token makes lane B evict one per head
    double removed = 0.5;         // share that lane B removes after the prefill
    int mapBins = 20;             // per side; 0: no maps
    bool generated = false;       // lanes say their own tokens instead of the forced ones
    bool measurements = true;
    unsigned seed = 7;
};

// Sends the run record by record, in the order the engine does; end() is left to the caller.
inline void record(TraceSink& sink, const TraceShape& shape = {}) {
    std::mt19937 random(shape.seed);
    const auto uniform = [&] { return (random() % 1000003u) / 1000003.0; }; // the standard's distributions differ between libraries

    Trace header;
    header.run.kind = shape.generated ? "generate" : "score";
    header.run.toolVersion = "0.1.0";
    header.run.torchVersion = "2.11.0";
    header.run.createdUtc = "2026-01-02T03:04:05Z";
    header.run.device = "cpu";
    header.run.dtype = "fp32";
    header.run.threads = 2;
    header.run.seed = shape.seed;
    ModelConfig& config = header.model.config;
    config.architecture = "llama";
    config.name = "tiny";
    config.layers = shape.layers;
    config.queryHeads = shape.queryHeads;
    config.kvHeads = shape.kvHeads;
    config.headDim = 8;
    config.hidden = 8 * shape.queryHeads;
    config.feedForward = 96;
    config.vocab = 256;
    config.maxPositions = 2048;
    header.model.path = "/models/tiny.gguf";
    header.model.format = "gguf";
    header.model.weightTypes = "F32 12";
    header.model.tokenizer = "byte-level BPE, 256 tokens";
    header.model.dtype = "fp32";
    header.model.device = "cpu";
    header.model.kvBytesPerToken = 2LL * shape.layers * shape.kvHeads * config.headDim * 4;
    header.prefillLength = shape.prompt;
    PolicySpec snapkv;
    snapkv.id = "snapkv";
    snapkv.params["window"] = "8";
    snapkv.budget = Budget::removed(shape.removed);
    header.lanes.resize(2);
    header.lanes[0].label = "A";
    header.lanes[1].label = "B";
    header.lanes[1].policy = snapkv;

    static const char* const words[] = {"The",     " lantern", " keeper", " counted", " boats",       ",",         " and", " wrote", " the",
                                        " number", " down",    ".",       "\n",       " caf\xc3\xa9", " \xe2\x9c", "\x93"};
    std::vector<TokenRecord> tokens;
    for (int p = 0; p < shape.prompt + shape.decode; ++p) {
        TokenRecord token;
        const unsigned word = static_cast<unsigned>(p) % 16u;
        token.id = static_cast<TokenId>(word + 3);
        token.position = p;
        token.role = p < shape.prompt  ? TokenRecord::Role::prompt
                     : shape.generated ? TokenRecord::Role::generated
                                       : TokenRecord::Role::forced;
        token.bytes = words[word];
        tokens.push_back(token);
    }
    Job job;
    job.kind = shape.generated ? RunKind::generate : RunKind::score;
    job.prompt.text = "The lantern keeper counted boats.";
    job.lanes = {{"A", header.lanes[0].policy}, {"B", snapkv}};
    job.seed = shape.seed;
    header.run.jobJson = jobToJson(job);
    header.run.commandLine = commandLineOf(job, header.model.path);
    sink.begin(header);

    for (int p = 0; p < shape.prompt; ++p)
        sink.add(SharedLane, tokens[static_cast<std::size_t>(p)]);
    const auto addMap = [&](LaneIndex lane, int layer, int head, Position rowBegin, Position rowEnd, Position keys) {
        auto map = std::make_shared<AttentionMap>();
        map->lane = lane;
        map->layer = LayerIndex{layer};
        map->head = HeadIndex{head};
        map->rowBegin = rowBegin;
        map->rowEnd = rowEnd;
        map->colBin = (keys + shape.mapBins - 1) / shape.mapBins;
        map->rowBin = lane == SharedLane ? map->colBin : 1;
        map->rows = (rowEnd - rowBegin + map->rowBin - 1) / map->rowBin;
        map->cols = (keys + map->colBin - 1) / map->colBin;
        for (int r = 0; r < map->rows; ++r)
            for (int c = 0; c < map->cols; ++c) {
                const Position lastQuery = std::min(rowEnd, rowBegin + (r + 1) * map->rowBin) - 1;
                const bool visible = c * map->colBin <= lastQuery;
                const double weight = c == 0 ? 0.4 : 0.5 * uniform() * uniform() / (1 + lastQuery);
                map->values.push_back(visible ? storedAttention(static_cast<float>(weight)) : std::numeric_limits<float>::quiet_NaN());
            }
        sink.add(std::shared_ptr<const AttentionMap>(map));
    };
    if (shape.mapBins > 0)
        for (int layer = 0; layer < shape.layers; ++layer)
            for (int head = 0; head < shape.kvHeads; ++head)
                addMap(SharedLane, layer, head, 0, shape.prompt, shape.prompt);

    const std::int64_t perEntry = header.model.kvBytesPerToken / (shape.layers * shape.kvHeads);
    if (!shape.generated)
        for (int p = shape.prompt; p < shape.prompt + shape.decode; ++p)
            sink.add(SharedLane, tokens[static_cast<std::size_t>(p)]);
    for (int laneValue = 0; laneValue < 2; ++laneValue) {
        const LaneIndex lane{laneValue};
        const bool evicts = laneValue == 1;
        std::vector<std::vector<Position>> held(static_cast<std::size_t>(shape.layers * shape.kvHeads)); // [layers × heads]
        std::int64_t entries = 0;
        const auto addStep = [&](int value, StepRecord::Kind kind, Position first, int count) {
            StepRecord step;
            step.step = Step{value};
            step.kind = kind;
            step.firstPosition = first;
            step.count = count;
            step.milliseconds = kind == StepRecord::Kind::prefill ? 40.0
                                : kind == StepRecord::Kind::evict ? 2.0
                                                                  : 5.0 + uniform() - 2.0 * laneValue;
            step.policyMilliseconds = kind == StepRecord::Kind::prefill ? NotMeasured : 0.25;
            if (kind == StepRecord::Kind::decode) step.nll = 2.0 + uniform() + 0.1 * laneValue;
            step.kvBytes = entries * perEntry;
            step.allocatedBytes = step.kvBytes + 1024;
            sink.add(lane, step);
        };
        for (auto& row : held)
            for (Position p = 0; p < shape.prompt; ++p)
                row.push_back(p);
        const auto rows = static_cast<std::int64_t>(held.size());
        entries = rows * shape.prompt;
        addStep(0, StepRecord::Kind::prefill, 0, shape.prompt);
        const int budget = evicts ? snapkv.budget.resolve(shape.prompt) : shape.prompt;
        entries = rows * budget;
        addStep(1, StepRecord::Kind::evict, shape.prompt, 0);
        for (int step = 1; step <= shape.decode + 1; ++step) {
            if (step > 1) {
                const Position p = shape.prompt + step - 2;
                if (shape.generated) sink.add(lane, tokens[static_cast<std::size_t>(p)]);
                if (!evicts) entries += rows;
                addStep(step, StepRecord::Kind::decode, p, 1);
                for (auto& row : held)
                    row.push_back(p);
            }
            if (!evicts) continue;
            for (std::size_t i = 0; i < held.size(); ++i) {
                KeepRecord record{
                    lane, Step{step}, LayerIndex{static_cast<int>(i) / shape.kvHeads}, HeadIndex{static_cast<int>(i) % shape.kvHeads}, {}};
                // The first four and the newest eight stay; what goes is drawn from between.
                while (static_cast<int>(held[i].size()) > budget && held[i].size() > 12) {
                    const auto at = 4 + static_cast<std::ptrdiff_t>(uniform() * static_cast<double>(held[i].size() - 12));
                    record.evicted.push_back(held[i][static_cast<std::size_t>(at)]);
                    held[i].erase(held[i].begin() + at);
                }
                std::sort(record.evicted.begin(), record.evicted.end());
                sink.add(record);
            }
        }
        if (shape.mapBins > 0 && shape.decode > 0)
            for (int layer = 0; layer < shape.layers; ++layer)
                for (int head = 0; head < shape.kvHeads; ++head)
                    addMap(lane, layer, head, shape.prompt, shape.prompt + shape.decode, shape.prompt + shape.decode);
        if (evicts) sink.notice(lane, "window shrunk from 32 to 8: budget " + std::to_string(budget));
    }

    if (!shape.measurements) return;
    for (int laneValue = 0; laneValue < 2; ++laneValue) {
        const PolicySpec& policy = header.lanes[static_cast<std::size_t>(laneValue)].policy;
        const double removed = policy.budget.compressionRatio;
        for (const int length : {500, 1000, 2000})
            for (const double depth : {0.0, 50.0, 100.0}) {
                if (laneValue == 1 && length == 2000 && depth == 50.0) continue; // a cell that was not run
                Measurement cell;
                cell.kind = "needle";
                cell.lane = LaneIndex{laneValue};
                const double score = laneValue == 0 ? 1.0 : depth == 50.0 ? 0.0 : length == 2000 ? 0.5 : 1.0;
                cell.set("policy", policy.id);
                cell.set("compression_ratio", removed);
                cell.set("budget", Measurement::Value());
                cell.set("length", std::int64_t{length});
                cell.set("depth", depth);
                cell.set("key_index", std::int64_t{0});
                cell.set("score", score);
                cell.set("expected", std::string("71432"));
                cell.set("answer", std::string(score == 1.0 ? " 71432." : " 71\xe2\x80"));
                cell.set("query_aware", false);
                cell.set("kept_needle_share", laneValue == 0 ? 1.0 : 0.25 + 0.5 * score);
                sink.add(cell);
            }
        Measurement ppl;
        ppl.kind = "ppl";
        ppl.lane = LaneIndex{laneValue};
        ppl.set("policy", policy.id);
        ppl.set("compression_ratio", removed);
        ppl.set("ppl", laneValue == 0 ? 17.5 : 19.25);
        ppl.set("n_tokens", std::int64_t{512});
        ppl.set("per_window", std::vector<double>{2.8, 3.1});
        ppl.set("kv_bytes", header.model.kvBytesPerToken * 1024 / (laneValue + 1));
        sink.add(ppl);
    }
}

inline std::shared_ptr<const Trace> buildTrace(const TraceShape& shape = {}) {
    MemoryTrace sink;
    record(sink, shape);
    sink.end(Outcome::complete, {});
    return sink.snapshot();
}

} // namespace keepsight::test
