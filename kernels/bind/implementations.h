// What the dispatcher holds behind ops.h. Arguments were checked there; only values (lengths, indices) are still to be judged.
#pragma once

#include "kernels/bind/ops.h"

#include <torch/library.h>

namespace keepsight::ops {

// What attention() and causal_attention() are to collect over `entries` places of each KV head, as the dispatcher takes it. Throws EngineError.
struct CheckedStats {
    std::optional<at::Tensor> columnSum, lastRows, map;
    int64_t rowBegin = 0, rowBin = 1, colBin = 1;
};
CheckedStats checkStats(const char* op, const AttentionStats* stats, const at::Tensor& q, int64_t kvHeads, int64_t entries);

inline at::Tensor shownToHeads(const at::Tensor& rows, int64_t heads) { return rows.expand({heads, rows.size(0), rows.size(1)}); } // [N, D] → [heads, N, D]

void defineOperators(torch::Library& library);   // the schemas
void registerCpu(torch::Library& library);       // key CPU: kernels/cpu
void registerComposite(torch::Library& library); // key CompositeExplicitAutograd: ATen calls, right on any device

void registerOutputChange(torch::Library& library); // output_change.cpp: the same key

void defineDecodeOperators(torch::Library& library); // decode.cpp: schemas and the composite key
void registerDecodeComposite(torch::Library& library);
void registerSelect(torch::Library& library);       // select.cpp: the same key

void defineQuantOperators(torch::Library& library); // the three above call these for quant.cpp
void registerQuantCpu(torch::Library& library);
void registerQuantComposite(torch::Library& library);

void definePackedOperators(torch::Library& library); // for packed.cpp, likewise
void registerPackedCpu(torch::Library& library);
void registerPackedComposite(torch::Library& library);

void defineScoreOperators(torch::Library& library); // for scores.cpp, likewise
void registerScoreCpu(torch::Library& library);
void registerScoreComposite(torch::Library& library);

void defineVoteOperators(torch::Library& library); // for votes.cpp and beside.cpp; the CPU runs the composite ones
void registerVoteComposite(torch::Library& library);
void defineBesideOperators(torch::Library& library);
void registerBesideComposite(torch::Library& library);

} // namespace keepsight::ops
