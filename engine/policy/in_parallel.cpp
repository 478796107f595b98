#include "engine/policy/in_parallel.h"

#include <c10/core/InferenceMode.h>
#include <exception>
#include <omp.h>

namespace keepsight {

void inParallel(std::int64_t count, bool worthIt, const std::function<void(std::int64_t)>& run) {
    if (!worthIt || omp_in_parallel()) {
        for (std::int64_t i = 0; i < count; ++i) run(i);
        return;
    }
    const bool inference = c10::InferenceMode::is_enabled(); // known to its own thread only
    std::exception_ptr failed;                               // nothing may leave a parallel region
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < count; ++i) {
        const c10::InferenceMode guard(inference);
        try {
            run(i);
        } catch (...) {
#pragma omp critical
            if (!failed) failed = std::current_exception();
        }
    }
    if (failed) std::rethrow_exception(failed);
}

} // namespace keepsight
