// A policy decides which entries of a layer's cache stay. Five separate values: score, budget, protection, schedule, selection.
//
// Adding one: engine/policy/x.cpp (info + class), one line in policies.def, tests/engine/policy/x_test.cpp.
#pragma once

#include "engine/data/policy_spec.h"
#include "engine/model/model.h"

#include <memory>
#include <string>
#include <vector>

namespace keepsight {

// What a policy must be given; the session asks this, never the policy's name.
struct Needs {
    int lastRows = 0;          // query vectors of that many last prompt tokens
    bool columnSums = false;   // Σ over all prompt queries of the attention each entry received
    bool decodeRows = false;   // the attention row of every decoded token
    bool decodeSums = false;   // the policy's statistic goes on being summed while decoding
};

struct Schedule {
    bool afterPrefill = true;
    int everySteps = 0;        // 0: never while decoding
};

// Entries no score may drop; a mask, never a score.
struct Protect {
    int sinks = 0, recent = 0;
};

// The budget of one layer made concrete for `held` entries per head.
struct Plan {
    int keep = 0;              // entries per KV head after selection
    Protect protect;
    int window = 0;            // query rows a window policy votes with
    std::string notice;        // what had to give way; shown to the person
};

class Policy {
public:
    explicit Policy(PolicySpec spec) : m_spec(std::move(spec)) {}
    virtual ~Policy() = default;
    const PolicySpec& spec() const { return m_spec; }

    virtual Needs needs(std::int64_t /*promptTokens*/) const { return {}; }
    virtual Schedule schedule() const { return {}; }
    virtual RopeMode rope() const { return RopeMode::original; }
    // How `budget` entries of `held` are split. Default: all by score.
    virtual Plan plan(std::int64_t held, int budget) const;
    // Layers the policy leaves alone.
    virtual bool skips(LayerIndex) const { return false; }
    // Remembered with every entry after the prefill, [queryHeads or kvHeads, C] fp32; it moves with the entries and, with
    // needs().decodeSums, goes on being summed. Undefined: nothing is remembered. columnSums: [queryHeads, C] as asked for in needs().
    virtual at::Tensor statistic(const LayerView&, const Plan&, const at::Tensor& /*columnSums*/) const { return {}; }
    // [kvHeads, C] fp32, higher is kept. Undefined: the newer the better.
    virtual at::Tensor score(const LayerView&, const Plan&, const at::Tensor& /*statistic*/) const { return {}; }
    // Tells apart plans whose scores differ: previews reuse scores with the same key.
    virtual std::string scoreKey(const Plan&) const { return {}; }

    // The number of entries wanted when `seen` tokens were processed.
    virtual int budget(std::int64_t seen) const { return m_spec.budget.resolve(seen); }

protected:
    PolicySpec m_spec;
};

// Values of a spec's parameters with the registry's defaults filled in.
class Params {
public:
    Params(const PolicyInfo& info, const PolicySpec& spec) : m_info(info), m_spec(spec) {}
    int integer(std::string_view name) const;
    double real(std::string_view name) const;
    std::string choice(std::string_view name) const;

private:
    const std::string& text(std::string_view name) const;
    const PolicyInfo& m_info;
    const PolicySpec& m_spec;
};

struct PolicyEntry {
    PolicyInfo info;
    std::unique_ptr<const Policy> (*make)(const PolicyInfo&, const PolicySpec&);
};

// Registry order is menu order.
const std::vector<PolicyEntry>& policyRegistry();
const PolicyEntry& policyEntry(std::string_view idOrAlias); // throws UsageError listing the ids
PolicySpec parsePolicySpec(std::string_view text);          // id[:key=value[,key=value]…]; throws UsageError
void checkPolicySpec(const PolicySpec& spec);               // names, types, ranges; throws UsageError
std::unique_ptr<const Policy> makePolicy(const PolicySpec& spec);

// Parameters that several policies share.
ParamInfo timingParam(std::string initial);                 // prefill_end | each_step | every:N
Schedule scheduleOf(const std::string& timing);
ParamInfo ropeParam(std::string initial);                   // original | cache_relative
RopeMode ropeModeOf(const std::string& rope);
ParamInfo aggParam();                                       // mean | max | sum: how a group's query heads become one KV head
at::Tensor reduceGroup(const at::Tensor& perQueryHead, int kvHeads, const std::string& agg); // [queryHeads, C] → [kvHeads, C]

} // namespace keepsight
