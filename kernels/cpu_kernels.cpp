#include "kernels/cpu_kernels.h"

#include <atomic>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace keepsight {

namespace baseline {
extern const CpuKernels table;
}
#ifdef KEEPSIGHT_X86
namespace avx2 {
extern const CpuKernels table;
}
namespace avx512 {
extern const CpuKernels table, vnniTable, amxTable;
}
#endif

namespace {

bool tilesGranted() { // a process asks the system for the tiles' registers, and has them in all its threads
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long RequestPermission = 0x1023, TileData = 18;
    static const bool granted = syscall(SYS_arch_prctl, RequestPermission, TileData) == 0;
    return granted;
#else
    return false;
#endif
}

const CpuKernels* supported(std::string_view name) {
#ifdef KEEPSIGHT_X86
    if (name == "avx512amx")
        return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && supported("avx512vnni") && tilesGranted() ? &avx512::amxTable : nullptr;
    if (name == "avx512vnni") return __builtin_cpu_supports("avx512vnni") && supported("avx512") ? &avx512::vnniTable : nullptr;
    if (name == "avx512")
        return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512cd") && supported("avx2")
                   ? &avx512::table
                   : nullptr;
    if (name == "avx2")
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") ? &avx2::table : nullptr;
#endif
    return name == "baseline" ? &baseline::table : nullptr;
}

const CpuKernels* best() {
    for (auto name : {"avx512amx", "avx512vnni", "avx512", "avx2"})
        if (const CpuKernels* table = supported(name)) return table;
    return &baseline::table;
}

std::atomic<const CpuKernels*>& chosen() {
    static std::atomic<const CpuKernels*> table{best()};
    return table;
}

} // namespace

const CpuKernels& cpuKernels() { return *chosen().load(std::memory_order_relaxed); }

bool useCpuKernels(std::string_view name) {
    const CpuKernels* table = supported(name);
    if (table) chosen() = table;
    return table != nullptr;
}

bool multipliesBf16() {
#ifdef KEEPSIGHT_X86
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

} // namespace keepsight
