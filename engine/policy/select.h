// From scores to the entries that stay, and why each of them did.
#pragma once

#include "engine/cache/kv_cache.h"
#include "engine/data/explanation.h"
#include "engine/policy/policy.h"

#include <functional>

namespace keepsight {

// Per KV head: the protected entries and the highest scores among the rest, `plan.keep` in all (everything if fewer are held); if
// plan.adaptive, keep × heads in all heads together, if plan.chunk, the same share of every chunk.
// scores [kvHeads, ≥ held] fp32 in any memory, or undefined: the newer the better. Ties: the larger position wins, then the lower head.
// NaN counts as −inf. If the protected entries alone exceed the budget, recents shrink to keep − sinks, then sinks; notice says so.
// Scores on a device are ranked there where selectThere() can, and only what stays comes to the host.
Selection select(const at::Tensor& scores, const std::vector<std::int32_t>& held, const Plan& plan, std::string* notice = nullptr);

// What a plan protects where more entries are held than `keep` may stay: recents give way first, then sinks.
Protect affordable(const Protect& wanted, std::int32_t keep);

// The same where the scores lie, for heads that hold equally many, more than stay, and are not cut into chunks. scores [kvHeads, ≥ held] fp32.
bool selectsThere(const std::vector<std::int32_t>& held, const Plan& plan);
Selection selectThere(const at::Tensor& scores, const std::vector<std::int32_t>& held, const Plan& plan);

// How select() would choose in a step that is made on a device: what its work depends on beside numbers that lie there.
struct DeviceChoice {
    std::int64_t drops = 0; // entries that each head loses; if shared, all heads together
    bool shared = false;    // plan.adaptive
    std::int64_t sure = 0;  // then: the best of each head that stay whatever the others have
    bool one() const { return !shared && drops == 1; } // what ops::drop_lowest does
};
std::optional<DeviceChoice> deviceChoice(const Plan& plan, const std::vector<std::int32_t>& held); // nullopt: only the host can

// What goes, [2, kvHeads, drops] int32: positions and entries, as KvCache::dropEntries takes them, −1: none. The same entries stay as with select(), to the
// tie. limits [3] int32 there: entries kept, first and newest ones that are safe. Nothing waits for the device.
at::Tensor selectOnDevice(const at::Tensor& scores, const CacheLayer& entries, const at::Tensor& limits, const DeviceChoice& choice);

// What the selection did with entry `index` of `head`: score, rank, cutoff and who holds the last slot. budgetNeeded is left unset.
Explanation explainEntry(const at::Tensor& scores, const CacheLayer& entries, const Plan& plan, const Selection& selection, HeadIndex head, std::int32_t index);

// The smallest budget (tokens per head) that keeps an entry, by halving: more budget never drops one for plain scores, and nearly never for
// split ones. What was dropped needs more than it had, though windows that shrink with the budget may keep it by accident with less.
// keptWith: does the policy with that budget, and its plan at `place`, keep it? −1: no budget up to `most` does, or the policy has none.
int budgetThatKeeps(const Policy& policy, const Place& place, const Plan& now, bool kept, int most, const std::function<bool(const Policy&, const Plan&)>& keptWith);

} // namespace keepsight
