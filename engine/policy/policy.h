// A policy decides which entries of a layer's cache stay. Separate values: score, budget, protection, schedule, selection.
//
// Adding one: engine/policy/x.cpp (info + class), one line in policies.def, tests/engine/policy/x_test.cpp.
#pragma once

#include "engine/data/explanation.h"
#include "engine/data/policy_spec.h"
#include "engine/model/model.h"
#include "engine/policy/spec.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace keepsight {

// What is summed over query rows for every entry, per query head [queryHeads, C]. Weights are added up inside the attention operator; the
// others are ops::output_change of each block of queries.
enum class RowSum { attention, value, key, joint, independent };
ops::OutputChange changeOf(RowSum sum); // not of attention

// What a policy must be given; the session asks this, never the policy's name.
struct Needs {
    int lastRows = 0;          // query vectors of that many last tokens; of the prompt, and of the newest tokens where it evicts while decoding
    bool columnSums = false;   // `sum` over all prompt queries
    bool decodeRows = false;   // the attention row of every decoded token
    bool decodeSums = false;   // the policy's statistic goes on being summed (`sum`) while decoding
    RowSum sum = RowSum::attention;
    bool entries = true;       // score() looks at keys or values while decoding
    int queryMoments = -1;     // mean and covariance of the prompt's queries before RoPE, without that many first tokens; −1: not needed
};

struct Schedule {
    bool afterPrefill = true;
    int everySteps = 0;        // 0: never while decoding
    bool operator==(const Schedule&) const = default;
};

// Entries no score may drop; a mask, never a score.
struct Protect {
    int sinks = 0, recent = 0;
};

// Where a budget is spent.
struct Place {
    LayerIndex layer;
    int layers = 1;
    std::int64_t held = 0;     // entries of the fullest head, this call's included
    std::int64_t seen = 0;     // tokens processed so far
    std::int64_t fresh = 0;    // of these, by this call (after the prefill: the whole prompt)
    std::int64_t prompt = 0;   // of these, the prompt's
    const Quantizer* quantizer = nullptr; // of the lane; its equal_memory turns the budget into more tokens
    const ModelConfig* config = nullptr;  // set with it
    static Place afterPrompt(std::int64_t tokens, LayerIndex layer = {}, int layers = 1) { return {layer, layers, tokens, tokens, tokens, tokens, nullptr, nullptr}; }
};

// The budget of one layer made concrete.
struct Plan {
    int keep = 0;              // entries per KV head after selection (their mean, if adaptive)
    Protect protect;
    int window = 0;            // query rows a window policy votes with
    std::string notice;        // what had to give way; shown to the person
    bool adaptive = false;     // heads share keep × kvHeads entries by score (AdaKV, arXiv:2407.11550)
    double adaptiveFloor = 0.2; // share of `keep` every head is sure of
    double removed = -1;       // the ratio that `keep` came from; −1: a number of tokens
    int chunk = 0;             // > 0: the same share is kept of every chunk of that many entries (kvpress's ChunkPress)
};

// What an attend policy lets the coming queries of a layer see: one set for all heads. Tensors lie where the cache is.
struct Attended {
    at::Tensor entries; // [n] int32, ascending, the newest S among them
    at::Tensor votes;   // [C] fp32: what the entries were ranked by, higher is attended to
    Protect sure;       // attended to without a vote
    at::Tensor age;     // int32 scalar: the set was chosen that many tokens ago; 0: by this call
};

// What a policy remembers of one layer beside its entries: a reservoir, how far it has compressed …
struct LayerMemory {
    virtual ~LayerMemory() = default;
};

class Policy {
public:
    explicit Policy(const PolicyInfo& info, PolicySpec spec); // reads the parameters of sharedParams() that the info declares
    virtual ~Policy() = default;
    const PolicySpec& spec() const { return m_spec; }
    PolicyKind kind() const { return m_kind; }

    virtual Needs needs(std::int64_t /*promptTokens*/) const { return {}; }
    virtual Schedule schedule() const { return m_schedule; }
    virtual RopeMode rope() const { return m_rope; }
    // Every query head scores for itself and keeps a copy of its KV head's entries: what the policy is shown has queryHeads "KV heads".
    bool perQueryHead() const { return m_perQueryHead; }
    // Layers the policy leaves alone.
    virtual bool skips(LayerIndex) const { return false; }

    // The number of entries wanted per head when `seen` tokens were processed; the mean over layers.
    virtual int budget(std::int64_t seen) const { return m_spec.budget.resolve(seen); }
    virtual int budgetAt(const Place& place) const { return budget(place.seen); }
    // budget → the layer's share → plan(), with the shared parameters applied.
    Plan planFor(const Place& place) const;
    // Is there anything to choose? Default: more is held than the plan keeps. total: entries of all heads. memory: the layer's own, or null.
    virtual bool decides(const Place& place, const Plan& plan, std::int64_t total, int kvHeads, const LayerMemory* memory) const;

    // Remembered with every entry after the prefill, [queryHeads or kvHeads, C] fp32; it moves with the entries and, with
    // needs().decodeSums, goes on being summed. Undefined: nothing is remembered. sums: [queryHeads, C] as asked for in needs().
    virtual at::Tensor statistic(const LayerView&, const Plan&, const at::Tensor& /*sums*/) const { return {}; }
    // [kvHeads, C] fp32, higher is kept. Undefined: the newer the better.
    virtual at::Tensor score(const LayerView&, const Plan&, const at::Tensor& /*statistic*/) const { return {}; }
    // Calls for one token with the same key launch the same device work, in score() or attend(): it depends on no other number of the host, such as how
    // many entries are held, and nothing waits for the device. Such steps are recorded (session/decode_graph.h) where choose() is the default.
    // nullopt: they are not.
    virtual std::optional<std::string> workKey(const Place&, const Plan&) const { return std::nullopt; }
    // Has the host to bring something for such a step? Then beforeStep() does, replayed or not, to where the layer's entries are. Each head will hold
    // `held` of them at most.
    virtual bool brings() const { return false; }
    virtual void beforeStep(const CacheLayer&, std::int64_t /*held*/) const {}
    // Tells apart plans whose scores differ: previews reuse scores with the same key.
    virtual std::string scoreKey(const Plan&) const { return {}; }
    // A fresh memory for one layer; null: none needed.
    virtual std::unique_ptr<LayerMemory> remember() const { return nullptr; }
    // Which entries stay; default: select(scores, held, plan). memory: this layer's own, may be changed.
    virtual Selection choose(const LayerView& view, const Place& place, const Plan& plan, const at::Tensor& scores, LayerMemory* memory,
                             std::string* notice) const;

    // Where the choice for one more token hangs on the layer's memory: can it be made where the cache is? Then of the host's side …
    virtual bool stepsOnDevice() const { return false; }
    // … come numbers, of every layer equally many; the memory counts the token, and what it needs lies on `device` …
    virtual std::vector<std::int32_t> stepNumbers(const Place&, LayerMemory&, at::Device) const { return {}; }
    // … and from these there [n] int32 the limits [3] with which ops::drop_lowest drops one entry of each head or none. Recorded like score().
    virtual at::Tensor stepLimits(const LayerView&, const at::Tensor& /*numbers*/, LayerMemory&) const { return {}; }

    // Adds to an explanation what only the policy knows (a rule without scores); default: nothing.
    virtual void amend(Explanation&, const LayerView&, const Place&, const Plan&) const {}

    // The policy acts inside the prompt's pass too, so that the shared prefill is not its own: the lane passes the prompt itself.
    virtual bool ownsPrefill() const { return false; }

    // PolicyKind::attend: what the coming queries attend to; nullopt: all. Called before attention,
    // with view.queries and keys before RoPE.
    virtual std::optional<Attended> attend(const LayerView&, const Place&, LayerMemory*) const { return std::nullopt; }

protected:
    bool layersAlike() const { return m_layerRatios.empty(); } // as far as the parameter layers goes
    // How `budget` entries are split in this layer. Default: all by score.
    virtual Plan plan(const Place& place, int budget) const;

    PolicySpec m_spec;
    PolicyKind m_kind = PolicyKind::evict;
    Schedule m_schedule;             // of the parameter timing
    RopeMode m_rope = RopeMode::original; // of the parameter rope
    std::string m_agg = "mean";      // of the parameter agg

private:
    int layerBudget(const Place& place) const;

    Protect m_protect;
    bool m_adaptive = false, m_perQueryHead = false;
    double m_adaptiveFloor = 0.2;
    int m_chunk = 0;
    std::vector<double> m_layerRatios; // removed, first to last layer; empty: the same everywhere
};

struct PolicyEntry {
    PolicyInfo info;
    std::unique_ptr<const Policy> (*make)(const PolicyInfo&, const PolicySpec&);
};

// Registry order is menu order.
const std::vector<PolicyEntry>& policyRegistry();
const PolicyEntry& policyEntry(std::string_view idOrAlias); // throws UsageError listing the ids
PolicySpec parsePolicySpec(std::string_view text);          // id[:key=value[,key=value]…]; throws UsageError
void checkPolicySpec(const PolicySpec& spec);               // names, types, ranges, combinations; throws UsageError
std::unique_ptr<const Policy> makePolicy(const PolicySpec& spec);

// Parameters that several policies share; the base class reads them.
ParamInfo timingParam(std::string initial);                 // prefill_end | each_step | every:N | decode:N
ParamInfo ropeParam(std::string initial);                   // original | cache_relative
ParamInfo aggParam();                                       // mean | max | sum: how a group's query heads become one KV head
ParamInfo granularityParam();                               // kv_head | query_head
enum class Shared { attention, keys };                      // keys: scores need no queries, so that chunks can be scored alone
std::vector<ParamInfo> sharedParams(Shared kind);           // sinks, recent, heads, ada_floor, layers, granularity or chunk
std::vector<ParamInfo> operator+(std::vector<ParamInfo> own, const std::vector<ParamInfo>& more);

Schedule scheduleOf(const std::string& timing);
RopeMode ropeModeOf(const std::string& rope);
at::Tensor reduceGroup(const at::Tensor& perQueryHead, int kvHeads, const std::string& agg); // [queryHeads, …] → [kvHeads, …]
ops::GroupVote groupVote(const std::string& agg); // aggParam()'s
std::int64_t roundHalfEven(double x);

} // namespace keepsight
