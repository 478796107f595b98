// One lane: a policy acting on its own copy of a prefilled cache. The loop a newcomer reads first is Branch::afterAttention.
#pragma once

#include "engine/policy/select.h"
#include "engine/session/decode_graph.h"
#include "engine/session/snapshot.h"

#include <map>

namespace keepsight {

struct BranchOptions {
    std::int64_t headroom = 64;   // tokens that will be appended
    int mapBin = 0, mapRows = 0, mapCols = 0; // attention maps of the rows after the prefill; mapBin 0: none
    bool recordEvictions = true;
    std::shared_ptr<const Quantizer> quantizer; // how the lane stores its cache; null: as it comes
    std::vector<Position> explain;              // tokens whose fate takeExplanations() tells
    std::stop_token stop;                       // of the constructor, where the lane passes the prompt itself
};

class Branch final : private LayerObserver {
public:
    // Scores, selects and copies what `policy` keeps of the prefill. Throws EngineError, Cancelled.
    Branch(const Model& model, std::shared_ptr<const Snapshot> snapshot, std::shared_ptr<const Policy> policy, const BranchOptions& options);
    Branch(const Branch&) = delete;

    struct Eviction {
        LayerIndex layer;
        HeadIndex head;
        std::vector<Position> positions; // ascending
    };
    // Since the last call; first the ones after the prefill.
    std::vector<Eviction> takeEvictions() { return std::exchange(m_evictions, {}); }
    // Of every selection since the last call that had one of BranchOptions::explain before it; layer by layer, head by head.
    std::vector<Explanation> takeExplanations() { return std::exchange(m_explanations, {}); }

    // Feeds ids behind all tokens seen; with `evict` the policy's schedule applies after each layer's attention.
    // Logits fp32 [rows, vocab] on the CPU. Throws Cancelled: the branch is then unusable.
    at::Tensor feed(std::span<const TokenId> ids, LogitRows rows, bool evict, std::stop_token stop);

    // Feeds ids without eviction to branches of one snapshot and gives the loss of targets[i] after ids[i], [branches, S] fp32 on the CPU.
    static at::Tensor losses(std::span<const std::unique_ptr<Branch>> branches, std::span<const TokenId> ids, std::span<const TokenId> targets, std::stop_token stop);

    // [vocab] fp32 on the CPU: what the prompt predicts; the snapshot's, or this lane's own where it passed the prompt itself.
    const at::Tensor& firstLogits() const { return m_firstLogits; }
    const KvCache& cache() const { return m_cache; }
    const Policy& policy() const { return *m_policy; }
    Position seen() const { return m_seen; }
    std::int64_t replayedSteps() const { return m_graph.replays(); } // tokens whose step was a recorded one
    const std::string& notice() const { return m_notice; }
    bool keptEverything() const { return m_keptEverything; }
    double selectMilliseconds() const { return m_selectMilliseconds; }       // of the constructor
    double policyMilliseconds() const { return m_policyMilliseconds; }       // of the last feed
    at::Tensor map(LayerIndex layer) const; // [kvHeads of the model, rows, cols] sums, the mean of the query heads; undefined: none

private:
    ops::AttentionStats* wanted(LayerIndex layer, KvCache& cache, std::int64_t newTokens) override;
    void afterAttention(const LayerView& view, KvCache& cache) override;
    bool choosesEntries() const override { return m_policy->kind() == PolicyKind::attend; }
    std::optional<at::Tensor> attend(const LayerView& view) override;
    bool readsEntries() const override;
    void replayed(KvCache& cache) override;
    std::optional<std::string> planStep();
    struct LayerStep {
        Plan plan;
        bool chooses = false;
        bool told = false;   // only the device knows how many entries of which head went, until takeGone()
        DeviceChoice choice; // unless a memory makes it
    };
    std::optional<std::string> planLayer(LayerIndex layer, LayerStep& step) const;
    void bring(std::vector<LayerStep> steps);
    std::vector<std::int32_t> numbersOf(LayerIndex layer, const Plan& plan);
    void dropOnDevice(const LayerView& view, KvCache& cache, const at::Tensor& statistic);
    bool due() const { return m_evict && m_policy->schedule().everySteps > 0 && m_steps % m_policy->schedule().everySteps == 0; }
    void takeGone();
    Place place(LayerIndex layer, std::int64_t held, std::int64_t fresh) const;
    LayerView withWindow(const LayerView& view);
    void passPrompt(std::stop_token stop);
    void explain(const LayerView& view, const Plan& plan, const Place& here, const at::Tensor& scores, const Selection& selection);
    void explain(const LayerView& view, const Place& here, const Attended& attended);

    const Model& m_model;
    std::shared_ptr<const Snapshot> m_snapshot;
    std::shared_ptr<const Policy> m_policy;
    BranchOptions m_options;
    KvCache m_cache;
    Needs m_needs;
    Position m_seen = 0;
    std::int64_t m_steps = 0;     // feeds with eviction
    bool m_evict = false, m_keptEverything = true;
    std::string m_notice;
    double m_selectMilliseconds = 0, m_policyMilliseconds = 0;
    std::vector<Eviction> m_evictions;
    std::vector<Explanation> m_explanations;
    at::Tensor m_firstLogits;
    std::vector<std::shared_ptr<LayerMemory>> m_memories; // per layer
    std::vector<at::Tensor> m_window; // per layer [queryHeads, ≤ lastRows, headDim]: newest queries, where the policy votes with them while decoding
    bool m_windowed = false;
    std::vector<at::Tensor> m_maps;
    ops::AttentionStats m_stats;
    // Of a step that evicts on the device: what each layer does, numbers that tell the device, and what went.
    std::vector<LayerStep> m_planned;    // empty: evictions, if any, are the host's
    bool m_idle = false;                 // of these no layer chooses
    at::Tensor m_numbers, m_numbersHost; // [layers, n] int32: ops::drop_lowest's limits, or Policy::stepNumbers()
    std::map<std::int64_t, at::Tensor> m_gone; // by the most that a head loses: [layers, 2, kvHeads, most] int32, positions and entries
    std::int64_t m_most = 1;             // the step's
    DecodeGraph m_graph;
};

} // namespace keepsight
