#include "kernels/scratch.h"

#include <cstdlib>
#include <functional>

namespace keepsight {
namespace {

struct Arena {
    static constexpr std::size_t Size = 256 << 10; // longer scratch is rare and worth its own allocation
    std::byte* const begin = static_cast<std::byte*>(std::aligned_alloc(64, Size));
    std::size_t used = 0;
    ~Arena() { std::free(begin); }
    bool holds(const std::byte* memory) const { return std::greater_equal<>()(memory, begin) && std::less<>()(memory, begin + Size); }
};
thread_local Arena arena;

} // namespace

void* takeScratch(std::size_t bytes) {
    if (!arena.begin || bytes > Arena::Size - arena.used) return std::aligned_alloc(64, bytes);
    std::byte* memory = arena.begin + arena.used;
    arena.used += bytes;
    return memory;
}

void giveScratch(void* memory) {
    auto* bytes = static_cast<std::byte*>(memory);
    if (arena.begin && arena.holds(bytes))
        arena.used = static_cast<std::size_t>(bytes - arena.begin);
    else
        std::free(memory);
}

} // namespace keepsight
