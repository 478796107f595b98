// A run as plain data: the whole world of the widgets, of the .keep file and of the figures.
//
// A run has lanes (A, B, …: one policy + budget each) that share the tokens of the prompt and, where exact, one prefill.
// Step 0 is the end of the prefill with nothing evicted yet; step 1 the eviction after the prefill; step n ≥ 2 the n−1-th
// decoded token with the evictions it caused. Retention is kept per lane as one number for each position, layer and KV head:
// the step at which it was evicted (NeverEvicted while it is held); so every step is read in the same time, forwards or backwards.
#pragma once

#include "engine/data/ids.h"
#include "engine/data/model_config.h"
#include "engine/data/policy_spec.h"
#include "engine/data/progress.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace keepsight {

inline constexpr double NotMeasured = std::numeric_limits<double>::quiet_NaN();

struct TokenRecord {
    enum class Role : std::uint8_t { prompt, forced, generated }; // forced: teacher-forced continuation (Score)
    TokenId id = 0;
    Position position = 0;
    Role role = Role::prompt;
    std::string bytes; // what the token decodes to; a token may hold part of a UTF-8 character
};

struct StepRecord {
    enum class Kind : std::uint8_t { prefill, evict, decode };
    Step step;                    // ascending within a lane, from 0
    Kind kind = Kind::decode;
    Position firstPosition = 0;   // positions appended to the cache by this step: [firstPosition, firstPosition + count)
    std::int32_t count = 0;
    double milliseconds = NotMeasured; // wall time of the step, policy included
    double policyMilliseconds = NotMeasured; // of which observe + score + select + compact
    double nll = NotMeasured;     // nats, of the token this step appended, given what was held before it
    std::int64_t kvBytes = 0;     // stored entries (keys + values), after the step
    std::int64_t allocatedBytes = 0; // really held by the cache, after the step
};

// Evictions of one step in one layer and KV head.
struct KeepRecord {
    LaneIndex lane;
    Step step;
    LayerIndex layer;
    HeadIndex head;
    std::vector<Position> evicted; // ascending
};

// Mean attention weights of one layer and head over a grid of bins; rows are queries, columns keys, both by original position.
// A KV head's map is the mean over its query heads. Row r covers queries [rowBegin + r·rowBin, …) up to rowEnd, column c keys [c·colBin, …).
// A cell is the mean over its causally visible (query, key) pairs, 0 for evicted keys, NaN where no pair is visible.
struct AttentionMap {
    LaneIndex lane = SharedLane;   // SharedLane: the common, uncompressed prefill
    LayerIndex layer;
    HeadIndex head;                // KV head, or query head if perQueryHead
    bool perQueryHead = false;
    Position rowBegin = 0, rowEnd = 0; // queries covered
    std::int32_t rowBin = 1, colBin = 1; // tokens per bin
    std::int32_t rows = 0, cols = 0;
    std::vector<float> values;     // [rows, cols], row-major; binned maps hold storedAttention() values, full-resolution ones exact floats
};

// Attention weights are stored in 8 bits on a log2 grid of 1/16 octave (relative error ≤ 2.2 %, range 2^-15.8 … 1, below: 0);
// recorders round with this before anything is shown, so that a replay draws the same picture as the live run.
std::uint8_t attentionCode(float weight);   // 0: zero, 255: not visible (NaN)
float attentionWeight(std::uint8_t code);
inline float storedAttention(float weight) { return attentionWeight(attentionCode(weight)); }

// One row of results: a needle cell, a PPL row, a bench row. Field names are those of the CLI's JSON; order is the column order.
struct Measurement {
    using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<double>>;
    std::string kind; // "needle" | "ppl" | "bench" | "score" | "generate"
    LaneIndex lane = SharedLane;
    std::vector<std::pair<std::string, Value>> fields;

    const Value* find(std::string_view name) const;
    double number(std::string_view name, double otherwise = NotMeasured) const; // also from int64 and bool
    std::string text(std::string_view name) const;                              // "" if absent or not a string
    void set(std::string name, Value value);                                    // replaces or appends
};

// Which of the positions appended so far each layer and KV head still holds. A copy is cheap, and independent of the original.
class Retention {
public:
    Retention() = default;
    Retention(int layers, int kvHeads) : m_layers(layers), m_heads(kvHeads) {}

    void append(Step step, int count);                      // the next `count` positions enter every layer and head
    void evict(const KeepRecord& record);                   // throws EngineError on positions never appended or evicted before
    int layers() const { return m_layers; }
    int heads() const { return m_heads; }
    Position positions() const { return static_cast<Position>(m_born.size()); } // appended so far
    Position positionsAt(Step step) const;                  // appended up to and including step
    bool holds(Step step, LayerIndex layer, HeadIndex head, Position position) const;
    std::vector<Position> keptAt(Step step, LayerIndex layer, HeadIndex head) const; // ascending
    int countAt(Step step, LayerIndex layer, HeadIndex head) const;
    int holdersAt(Step step, Position position) const;      // in 0 … layers × heads
    std::vector<std::int32_t> holdersAt(Step step) const;   // the same for all positions at once, [positionsAt(step)]
    // Step at which each position was evicted (NeverEvicted: held), [positions()]; and the step that appended it.
    std::span<const std::int32_t> evictedAt(LayerIndex layer, HeadIndex head) const;
    std::span<const std::int32_t> bornAt() const { return m_born; }

private:
    // Rows are shared by copies until one of them evicts: a snapshot of a running trace costs what has changed since the one before.
    // Beyond positions() they are filled with NeverEvicted as far as they reach, so that most appends touch none of them.
    using Row = std::vector<std::int32_t>;            // [reach ≥ positions]
    void reach(std::size_t size);

    int m_layers = 0, m_heads = 0;
    std::vector<std::int32_t> m_born;                 // [positions]
    std::vector<std::shared_ptr<Row>> m_evicted;      // [layers × heads]; those that evicted nothing yet are one
};

struct Lane {
    std::string label;                 // "A", "B", …
    PolicySpec policy;
    std::vector<TokenRecord> generated; // this lane's own continuation (Generate); positions follow the shared tokens'
    std::vector<StepRecord> steps;     // index == step value
    Retention retention;
    std::vector<std::shared_ptr<const AttentionMap>> maps; // rows after the prefill
    std::string notice;                // e.g. "window shrunk from 64 to 32: budget 65" ; empty: none
};

// Enough to repeat the run, and to say how it ended.
struct RunInfo {
    std::string kind;             // "score" | "generate" | "needle" | "ppl" | "bench"
    std::string commandLine;      // keepsight-cli …, ready to paste
    std::string jobJson;          // the whole Job, see job.h
    std::string toolVersion, torchVersion, createdUtc;
    std::string device, dtype;
    int threads = 0;
    std::uint64_t seed = 0;
    bool finished = false;        // false: recording was cut off (kill, power)
    bool cancelled = false;
    std::string failure;          // one sentence, or empty
};

struct Trace {
    static constexpr int CurrentFormat = 1;
    int formatVersion = CurrentFormat;
    RunInfo run;
    ModelInfo model;
    std::vector<TokenRecord> tokens;   // shared: prompt, and the forced continuation of Score; index == position
    Position prefillLength = 0;        // tokens [0, prefillLength) were prefilled
    std::vector<Lane> lanes;
    std::vector<std::shared_ptr<const AttentionMap>> maps; // shared prefill maps, and full-resolution heads on request
    std::vector<Measurement> measurements;

    int lastStep() const;                                         // over all lanes; −1: none
    const TokenRecord* tokenAt(LaneIndex lane, Position p) const; // shared or generated; nullptr: none
    // Newest map of a head covering rows of that part; nullptr: not recorded. lane = SharedLane: the prefill part.
    std::shared_ptr<const AttentionMap> map(LaneIndex lane, LayerIndex layer, HeadIndex head, bool perQueryHead = false) const;
    // The PPL of the steps with a known NLL up to and including step; NaN before the first.
    double perplexityAt(LaneIndex lane, Step step) const;
};

// Heads that hold entries of their own under a policy: the KV heads, or the query heads with granularity=query_head.
int storedHeads(const ModelConfig& config, const PolicySpec& policy);
// The same of a lane as recorded, and the KV head whose keys one of these heads holds.
int storedHeads(const Trace& trace, LaneIndex lane);
HeadIndex kvHeadOf(const Trace& trace, LaneIndex lane, HeadIndex stored);
// Step at which each position was evicted for the queries of a map: a map of a KV head that stores its query heads apart loses a key with the last of them.
std::vector<std::int32_t> evictedFor(const Trace& trace, LaneIndex lane, LayerIndex layer, HeadIndex mapHead, bool perQueryHead);

// Positions kept per layer and KV head, ascending: what a budget slider previews.
struct KeptSets {
    std::vector<std::vector<std::vector<Position>>> kept; // [layers][storedHeads]
    double bitsPerValue = 0; // as a quantizer packs them, its residual left out; 0: the model's own type
    std::string notice;
};

// `trace` with lane's history cut after the prefill and these sets kept at step 1: the slider's preview.
std::shared_ptr<const Trace> withPreview(const Trace& trace, LaneIndex lane, const PolicySpec& policy, const KeptSets& sets);

} // namespace keepsight
