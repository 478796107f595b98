// Prefill once, branch many: the uncompressed cache after a prompt with everything that scorers asked for, shared and immutable.
#pragma once

#include "engine/data/trace.h"
#include "engine/model/last_sums.h"
#include "engine/policy/policy.h"
#include "engine/policy/select.h"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <stop_token>
#include <vector>

namespace keepsight {

struct PrefillOptions {
    int lastRows = 0;          // query vectors kept of that many last tokens
    bool columnSums = false;   // RowSum::attention
    std::set<RowSum> sums;     // the others, each one more pass over the prompt's queries
    int queryMoments = -1;     // moments of the queries before RoPE, without that many first tokens; −1: none
    int mapBin = 0;            // tokens per bin of the attention maps; 0: none
    std::int64_t reserve = 0;  // entries per head to make room for; at least the prompt
};

// What several policies need together, for a prompt of that length.
PrefillOptions prefillOptionsFor(std::span<const std::shared_ptr<const Policy>> policies, std::int64_t promptTokens);

class Snapshot {
public:
    static constexpr std::int64_t Block = 512; // tokens per forward pass: bounds memory and the time between two looks at the stop token
    static std::int64_t blockOf(const Model& model) { return model.device().is_cpu() ? Block : 32768; } // a device is only busy with long ones

    // Throws Cancelled, EngineError. onTokens(done) after each block.
    static std::shared_ptr<const Snapshot> prefill(const Model& model, std::span<const TokenId> ids, const PrefillOptions& options, std::stop_token stop,
                                                   const std::function<void(std::int64_t)>& onTokens = {});

    std::int64_t length() const { return m_length; }
    const PrefillOptions& options() const { return m_options; }
    const KvCache& cache() const { return m_cache; }
    const at::Tensor& lastLogits() const { return m_lastLogits; } // [vocab] fp32, on the CPU
    std::span<const TokenId> ids() const { return m_ids; }
    double milliseconds() const { return m_milliseconds; }
    LayerView view(LayerIndex layer) const;
    // The same as `policy` sees it: with granularity=query_head each query head has its KV head's entries for itself, copied only to be scored.
    enum class Purpose { score, choose };
    class Sight {
    public:
        Sight(const Snapshot& snapshot, const Policy& policy, LayerIndex layer, Purpose purpose);
        Sight(const Sight&) = delete;

    private:
        const CacheLayer m_wide;

    public:
        const LayerView view;
    };
    const at::Tensor& map(LayerIndex layer) const { return m_maps[static_cast<std::size_t>(layer.value)]; } // [kvHeads, rows, cols] sums; undefined: none
    const at::Tensor& inverseFrequencies() const { return m_inverse; }

    // What `policy` keeps right after this prefill. Scores are computed once per policy and reused for every budget that does not change them. Thread-safe.
    // quantizer: of the lane, whose equal_memory turns the budget into more tokens; null: none.
    struct Choice {
        std::vector<Selection> selections;   // per layer
        std::vector<at::Tensor> statistics;  // per layer, as Policy::statistic; undefined: none
        std::vector<std::shared_ptr<LayerMemory>> memories; // per layer, as Policy::remember; null: none
        std::string notice;
        bool everything = true;              // nothing is dropped
    };
    Choice choose(const Policy& policy, const Quantizer* quantizer = nullptr) const;
    // The same choice in one layer, explained for one token of one head.
    Explanation explain(const Policy& policy, const Quantizer* quantizer, LayerIndex layer, HeadIndex head, Position position) const;
    // False if this prefill did not collect what the policy needs.
    bool serves(const Policy& policy) const;

private:
    explicit Snapshot(KvCache cache) : m_cache(std::move(cache)) {}
    struct Scored {
        at::Tensor scores, statistic; // scores [kvHeads, ≥ held] fp32; both where the cache is
    };
    std::shared_ptr<const Scored> scored(const Policy& policy, const Plan& plan, LayerIndex layer) const;
    Place place(LayerIndex layer, const Quantizer* quantizer) const;

    KvCache m_cache;
    const ModelConfig* m_config = nullptr;
    ModelConfig m_wideConfig;             // with kvHeads = queryHeads
    PrefillOptions m_options;
    std::vector<TokenId> m_ids;
    std::int64_t m_length = 0;
    double m_milliseconds = 0;
    at::Tensor m_lastLogits, m_inverse, m_queryPositions;
    std::vector<at::Tensor> m_queries;    // per layer [queryHeads, lastRows, headDim]
    std::vector<at::Tensor> m_logSumExps; // of these, [queryHeads, lastRows]; undefined: not known
    std::map<RowSum, std::vector<at::Tensor>> m_sums; // per layer [queryHeads, C]
    std::vector<QueryMoments> m_moments;
    std::vector<at::Tensor> m_maps;
    mutable std::mutex m_mutex;
    std::vector<std::unique_ptr<LastSums>> m_lastSums; // per layer, on the CPU; a device is fast enough, and its memory dear
    static constexpr std::size_t Remembered = 4;          // scores of one policy that differ with the budget
    mutable std::map<std::string, std::deque<std::pair<std::string, std::shared_ptr<const Scored>>>> m_scored; // by layer and policy: by score key, the newest last

    friend class PrefillObserver;
};

} // namespace keepsight
