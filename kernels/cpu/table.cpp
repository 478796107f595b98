#include "kernels/cpu/isa.h"

#define KEEPSIGHT_TEXT2(x) #x
#define KEEPSIGHT_TEXT(x) KEEPSIGHT_TEXT2(x)

namespace keepsight::KEEPSIGHT_ISA {

namespace {
constexpr CpuKernels with(const char* name, void (*product)(const LinearArgs&)) {
    return {name, product, dequantize, attention, packedAttention, outputChangeOne, outputChange, rmsNorm, siluMul, rope, moveEntries, appendEntries, dequantizeEntries, lagSpread};
}
} // namespace

extern const CpuKernels table;
const CpuKernels table = with(KEEPSIGHT_TEXT(KEEPSIGHT_ISA), linear);

#ifdef __AVX512F__
extern const CpuKernels vnniTable;
const CpuKernels vnniTable = with("avx512vnni", linearVnni);
#endif

} // namespace keepsight::KEEPSIGHT_ISA
