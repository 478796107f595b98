// What all policies share: budgets by layer, protection, head-wise budgets, chunks.
#include "engine/policy/policy.h"

#include "engine/data/error.h"
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace keepsight {

ops::OutputChange changeOf(RowSum sum) {
    switch (sum) {
    case RowSum::attention: break;
    case RowSum::value: return ops::OutputChange::value;
    case RowSum::key: return ops::OutputChange::key;
    case RowSum::joint: return ops::OutputChange::joint;
    case RowSum::independent: return ops::OutputChange::independent;
    }
    throw EngineError("policy: attention was asked for as an output change");
}

Policy::Policy(const PolicyInfo& info, PolicySpec spec) : m_spec(std::move(spec)), m_kind(info.kind) {
    const Params params(info, m_spec);
    if (params.has("timing")) m_schedule = scheduleOf(params.choice("timing"));
    if (params.has("rope")) m_rope = ropeModeOf(params.choice("rope"));
    if (params.has("agg")) m_agg = params.choice("agg");
    if (params.has("granularity")) m_perQueryHead = params.choice("granularity") == "query_head";
    if (!params.has("heads")) return; // the rest comes together, see sharedParams()
    m_protect = {params.integer("sinks"), params.integer("recent")};
    m_adaptive = params.choice("heads") == "ada";
    m_adaptiveFloor = params.real("ada_floor");
    m_layerRatios = params.reals("layers");
    if (params.has("chunk")) m_chunk = params.integer("chunk");
}

int Policy::layerBudget(const Place& place) const {
    if (m_layerRatios.empty()) return budgetAt(place);
    // The list spans the layers: one value is for all, two are the first and the last layer's, and so on.
    const double at = place.layers > 1 ? static_cast<double>(place.layer.value) * static_cast<double>(m_layerRatios.size() - 1) / (place.layers - 1) : 0.0;
    const auto low = static_cast<std::size_t>(at), high = std::min(low + 1, m_layerRatios.size() - 1);
    const double ratio = m_layerRatios[low] + (at - static_cast<double>(low)) * (m_layerRatios[high] - m_layerRatios[low]);
    return Budget::removed(ratio).resolve(place.seen);
}

Plan Policy::planFor(const Place& place) const {
    int tokens = layerBudget(place);
    if (place.quantizer && place.config) tokens = place.quantizer->tokensFor(std::min(tokens, 1 << 26), place.layer, *place.config);
    Plan p = plan(place, tokens);
    p.protect.sinks = std::max(p.protect.sinks, m_protect.sinks);
    p.protect.recent = std::max(p.protect.recent, m_protect.recent);
    if (m_layerRatios.empty() && m_spec.budget.kind == Budget::Kind::ratio) p.removed = m_spec.budget.compressionRatio;
    p.adaptive = m_adaptive;
    p.adaptiveFloor = m_adaptiveFloor;
    p.chunk = m_chunk;
    return p;
}

Plan Policy::plan(const Place&, int budget) const { return {.keep = budget, .protect = {}, .window = 0, .notice = {}}; }

bool Policy::decides(const Place& place, const Plan& plan, std::int64_t total, int kvHeads, const LayerMemory*) const {
    return plan.adaptive ? total > static_cast<std::int64_t>(plan.keep) * kvHeads : place.held > plan.keep;
}

Selection Policy::choose(const LayerView& view, const Place&, const Plan& plan, const at::Tensor& scores, LayerMemory*, std::string* notice) const {
    return select(scores, view.entries.held, plan, notice);
}

ParamInfo timingParam(std::string initial) {
    return {"timing", ParamInfo::Type::choice, std::move(initial), 0, 0, {"prefill_end", "each_step"}, "",
            "When entries are dropped: once after the prefill, or again after every decoded token. Also every:N (after the prefill and every N tokens) and "
            "decode:N (every N decoded tokens only)."};
}

Schedule scheduleOf(const std::string& timing) {
    if (timing == "each_step") return {.afterPrefill = true, .everySteps = 1};
    if (timing.starts_with("every:")) return {.afterPrefill = true, .everySteps = std::atoi(timing.c_str() + 6)};
    if (timing.starts_with("decode:")) return {.afterPrefill = false, .everySteps = std::atoi(timing.c_str() + 7)};
    return {};
}

ParamInfo ropeParam(std::string initial) {
    return {"rope", ParamInfo::Type::choice, std::move(initial), 0, 0, {"original", "cache_relative"}, "",
            "Positions after eviction: each key keeps its own, or the kept tokens are renumbered from 0 without gaps."};
}

RopeMode ropeModeOf(const std::string& rope) { return rope == "cache_relative" ? RopeMode::cacheRelative : RopeMode::original; }

ParamInfo aggParam() {
    return {"agg", ParamInfo::Type::choice, "mean", 0, 0, {"mean", "max", "sum"}, "", "How the scores of the query heads that share a KV head become one."};
}

ParamInfo granularityParam() {
    return {"granularity", ParamInfo::Type::choice, "kv_head", 0, 0, {"kv_head", "query_head"}, "",
            "kv_head: one set for the query heads that share a KV head; query_head: a set for each query head, which then holds a copy of its own, as the papers' codes do."};
}

std::vector<ParamInfo> sharedParams(Shared kind) {
    std::vector<ParamInfo> out = {
        {"sinks", ParamInfo::Type::integer, "0", 0, 1 << 20, {}, "tokens", "First tokens that always stay, within the budget."},
        {"recent", ParamInfo::Type::integer, "0", 0, 1 << 24, {}, "tokens", "Newest tokens that always stay, within the budget."},
        {"heads", ParamInfo::Type::choice, "uniform", 0, 0, {"uniform", "ada"}, "",
         "uniform: every head keeps the budget; ada: the heads of a layer share it by score (AdaKV, arXiv:2407.11550), and what they leave is really freed."},
        {"ada_floor", ParamInfo::Type::real, "0.2", 0, 1, {}, "share", "With heads=ada: the share of the budget that each head is sure of."},
        {"layers", ParamInfo::Type::reals, "", 0, 0.999, {}, "removed",
         "Shares removed from the first to the last layer, separated by '/', in place of the ratio; values between are interpolated."}};
    if (kind == Shared::attention)
        out.push_back(granularityParam());
    else
        out.push_back({"chunk", ParamInfo::Type::integer, "0", 0, 1 << 20, {}, "tokens", "Score and cut every chunk of that many tokens by itself; 0: all at once."});
    return out;
}

std::vector<ParamInfo> operator+(std::vector<ParamInfo> own, const std::vector<ParamInfo>& more) {
    for (const ParamInfo& param : more) // a policy's own word for one of them comes first
        if (std::ranges::find(own, param.name, &ParamInfo::name) == own.end()) own.push_back(param);
    return own;
}

at::Tensor reduceGroup(const at::Tensor& perQueryHead, int kvHeads, const std::string& agg) {
    return ops::grouped(perQueryHead, kvHeads, groupVote(agg));
}

ops::GroupVote groupVote(const std::string& agg) { return agg == "max" ? ops::GroupVote::largest : agg == "sum" ? ops::GroupVote::sum : ops::GroupVote::mean; }

std::int64_t roundHalfEven(double x) {
    const double down = std::floor(x), rest = x - down;
    const auto low = static_cast<std::int64_t>(down);
    return rest > 0.5 || (rest == 0.5 && low % 2 != 0) ? low + 1 : low;
}

} // namespace keepsight
