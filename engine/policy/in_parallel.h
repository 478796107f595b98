// Independent work side by side on the CPU's threads.
#pragma once

#include <cstdint>
#include <functional>

namespace keepsight {

// Calls run(i) for 0 ≤ i < count, in parallel if that is worth it; kernels called inside take one thread each. The first exception goes on to the caller.
void inParallel(std::int64_t count, bool worthIt, const std::function<void(std::int64_t)>& run);

} // namespace keepsight
