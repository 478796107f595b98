#include "kernels/cpu/isa.h"

#define KEEPSIGHT_TEXT2(x) #x
#define KEEPSIGHT_TEXT(x) KEEPSIGHT_TEXT2(x)

namespace keepsight::KEEPSIGHT_ISA {

namespace {
constexpr CpuKernels with(const char* name, void (*product)(const LinearArgs&), void (*attended)(const AttentionArgs&, float*) = attention) {
    return {name, product, dequantize, attended, packedAttention, outputChangeOne, outputChange, rmsNorm, siluMul, rope, moveEntries, appendEntries, dequantizeEntries, lagSpread, attended != attention};
}
} // namespace

extern const CpuKernels table;
const CpuKernels table = with(KEEPSIGHT_TEXT(KEEPSIGHT_ISA), linear);

#ifdef __AVX512F__
extern const CpuKernels vnniTable, amxTable;
const CpuKernels vnniTable = with("avx512vnni", linearVnni);
const CpuKernels amxTable = with("avx512amx", linearVnni, attentionAmx);
#endif

} // namespace keepsight::KEEPSIGHT_ISA
