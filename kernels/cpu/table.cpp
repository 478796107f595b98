#include "kernels/cpu/isa.h"

#define KEEPSIGHT_TEXT2(x) #x
#define KEEPSIGHT_TEXT(x) KEEPSIGHT_TEXT2(x)

namespace keepsight::KEEPSIGHT_ISA {

extern const CpuKernels table;
const CpuKernels table{KEEPSIGHT_TEXT(KEEPSIGHT_ISA), linear, dequantize, attention, packedAttention, outputChangeOne, outputChange, rmsNorm, siluMul, rope, moveEntries,
                        appendEntries, dequantizeEntries};

#ifdef __AVX512F__
extern const CpuKernels vnniTable; // the same but linear()
const CpuKernels vnniTable{"avx512vnni", linearVnni, dequantize, attention, packedAttention, outputChangeOne, outputChange, rmsNorm, siluMul, rope, moveEntries,
                            appendEntries, dequantizeEntries};
#endif

} // namespace keepsight::KEEPSIGHT_ISA
