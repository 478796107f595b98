// Barriers in shared memory, and copies there that arrive at one: of each thread (cp.async), and by the copy engine of compute capability 9.0.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace keepsight::cuda {

__device__ inline std::uint32_t sharedPlace(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void initBarrier(std::uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedPlace(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void arrive(std::uint64_t* barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedPlace(barrier)) : "memory"); }
// Once all that the thread has copied with cp.async is there.
__device__ inline void arriveWhenCopied(std::uint64_t* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(sharedPlace(barrier)) : "memory");
}
__device__ inline void waitFor(std::uint64_t* barrier, unsigned phase) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define KEEPSIGHT_WAIT "try_wait" // sleeps for a while
#else
#define KEEPSIGHT_WAIT "test_wait"
#endif
    unsigned done;
    do
        asm volatile("{\n.reg .pred p;\nmbarrier." KEEPSIGHT_WAIT ".parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(sharedPlace(barrier)), "r"(phase)
                     : "memory");
    while (!done);
#undef KEEPSIGHT_WAIT
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool HasCopyEngine = true;

// One lane of a whole warp: the compiler sees that it is one, and asks the engine without a loop over lanes.
__device__ __forceinline__ bool isElected() {
    unsigned is;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is));
    return is;
}

__device__ inline void arriveExpecting(std::uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedPlace(barrier)), "r"(bytes) : "memory");
}
// More bytes are awaited before the phase ends; the thread has still to arrive.
__device__ inline void expectBytes(std::uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(sharedPlace(barrier)), "r"(bytes) : "memory");
}
// Barriers, and whatever threads wrote, are seen by the copies that follow.
__device__ inline void showToCopyEngine() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// bytes: a multiple of 16, as are both places.
__device__ inline void copyBulk(std::uint32_t to, const void* from, int bytes, std::uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(sharedPlace(barrier)) : "memory");
}
#else // compiled, never called
constexpr bool HasCopyEngine = false;

__device__ inline bool isElected() { return false; }

__device__ inline void arriveExpecting(std::uint64_t*, int) {}
__device__ inline void expectBytes(std::uint64_t*, int) {}
__device__ inline void showToCopyEngine() {}
__device__ inline void copyBulk(std::uint32_t, const void*, int, std::uint64_t*) {}
#endif

} // namespace keepsight::cuda
