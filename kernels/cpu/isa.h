// Declares this instruction set's kernels; every file of this folder is compiled once per set, with KEEPSIGHT_ISA naming the namespace.
// Keep inline library templates (containers, algorithms) out of this folder: the linker keeps one copy of each, possibly one
// that an older processor cannot run.
#pragma once

#include "kernels/cpu_kernels.h"

namespace keepsight::KEEPSIGHT_ISA {

void linear(const LinearArgs& args);
void attentionAmx(const AttentionArgs& args, float* logSumExp); // avx512 only, for processors with AMX-BF16
void linearVnni(const LinearArgs& args); // avx512 only, for processors with AVX512-VNNI
void dequantize(const DequantizeArgs& args);
void attention(const AttentionArgs& args, float* logSumExp);
void attentionOne(const AttentionArgs& args); // queries == 1
void packedAttention(const PackedAttentionArgs& args);
void codedAttention(const PackedAttentionArgs& args); // the same for every form; packedAttention() calls it for the unusual ones
void outputChangeOne(const OutputChangeArgs& args);
void outputChange(const OutputChangeArgs& args, const void* output, const float* logSumExp);
void rmsNorm(const RmsNormArgs& args);
void siluMul(const SiluMulArgs& args);
void rope(const RopeArgs& args);
void moveEntries(const MoveEntriesArgs& args);
void appendEntries(const AppendEntriesArgs& args);
void dequantizeEntries(const DequantizeEntriesArgs& args);
void lagSpread(const LagSpreadArgs& args);

} // namespace keepsight::KEEPSIGHT_ISA
