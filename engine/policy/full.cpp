// full: every token stays. The baseline of every comparison.
#include "engine/policy/policy.h"

#include <limits>

namespace keepsight {
namespace {

class Full final : public Policy {
public:
    using Policy::Policy;
    Schedule schedule() const override { return {.afterPrefill = false, .everySteps = 0}; }
    int budget(std::int64_t) const override { return std::numeric_limits<int>::max(); }
};

} // namespace

PolicyEntry full_policy();
PolicyEntry full_policy() {
    PolicyInfo info{"full", {"baseline", "none"}, PolicyKind::evict, "Keeps every token: the uncompressed baseline.", "", {}, false};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<Full>(i, spec); }};
}

} // namespace keepsight
