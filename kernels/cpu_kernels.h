// One table of CPU kernels per instruction set.
#pragma once

#include "kernels/attention.h"
#include "kernels/entries.h"
#include "kernels/linear.h"
#include "kernels/packed.h"
#include "kernels/pointwise.h"
#include "kernels/quant.h"
#include "kernels/scores.h"

#include <string_view>

namespace keepsight {

struct CpuKernels {
    const char* name;
    void (*linear)(const LinearArgs&);
    void (*dequantize)(const DequantizeArgs&);
    void (*attention)(const AttentionArgs&, float* logSumExp); // [queryHeads, queries] log Σ exp of the logits, of several queries; or null
    void (*packedAttention)(const PackedAttentionArgs&);
    void (*outputChangeOne)(const OutputChangeArgs&);
    void (*outputChange)(const OutputChangeArgs&, const void* output, const float* logSumExp); // output: `out` of their attention, null for kind 0
    void (*rmsNorm)(const RmsNormArgs&);
    void (*siluMul)(const SiluMulArgs&);
    void (*rope)(const RopeArgs&);
    void (*moveEntries)(const MoveEntriesArgs&);
    void (*appendEntries)(const AppendEntriesArgs&);
    void (*dequantizeEntries)(const DequantizeEntriesArgs&);
    void (*lagSpread)(const LagSpreadArgs&);
    bool bf16Attention; // attention() of several bf16 queries multiplies them in matrix units
};

const CpuKernels& cpuKernels();            // best for this processor, or what useCpuKernels chose
bool useCpuKernels(std::string_view name); // "baseline" | "avx2" | "avx512" | "avx512vnni" | "avx512amx"; false: unknown here. For tests and benchmarks
bool multipliesBf16();                     // this processor has units for products of bf16

} // namespace keepsight
