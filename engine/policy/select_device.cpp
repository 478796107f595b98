// select() in steps whose entries are chosen where they lie: ATen's calls and ops::top_k, of which none waits for the device.
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>
#include <numeric>

namespace keepsight {

Protect affordable(const Protect& wanted, std::int32_t keep) {
    const std::int32_t sinks = std::min(wanted.sinks, keep);
    return {sinks, std::min(wanted.recent, keep - sinks)};
}

std::optional<DeviceChoice> deviceChoice(const Plan& plan, const std::vector<std::int32_t>& held) {
    constexpr std::int64_t Most = 1024; // evictions of a head that are told one by one
    const std::int32_t keep = std::max(1, plan.keep);
    const Protect safe = affordable(plan.protect, keep);
    const auto heads = static_cast<std::int64_t>(held.size()), total = std::accumulate(held.begin(), held.end(), std::int64_t{0});
    DeviceChoice out;
    if (plan.adaptive) {
        out.shared = true;
        out.sure = std::max(0, static_cast<std::int32_t>(keep * plan.adaptiveFloor) - safe.sinks - safe.recent);
        out.drops = total - keep * heads;
        if (*std::ranges::min_element(held) < safe.sinks + safe.recent) return std::nullopt; // protection gives way by head
    } else {
        out.drops = held.front() - keep;
        if (std::ranges::any_of(held, [&](std::int32_t n) { return n != held.front(); })) return std::nullopt;
    }
    return plan.chunk == 0 && out.drops > 0 && out.drops <= Most ? std::optional(out) : std::nullopt;
}

at::Tensor selectOnDevice(const at::Tensor& scores, const CacheLayer& entries, const at::Tensor& limits, const DeviceChoice& choice) {
    constexpr float Largest = std::numeric_limits<float>::max();
    const std::int64_t heads = entries.lengths.size(0), capacity = entries.positions.size(1);
    const at::TensorOptions ints = entries.lengths.options();
    const at::Tensor index = at::arange(capacity, ints).unsqueeze(0), held = entries.lengths.unsqueeze(1), all = at::full({heads}, capacity, ints);
    at::Tensor open = (index >= limits[1]) & (index < held - limits[2]); // [heads, C]
    // Finite, so that nothing open is mistaken for what is not.
    const at::Tensor value = scores.defined() ? at::nan_to_num(scores, -Largest, Largest, -Largest) : index.to(at::kFloat).expand({heads, capacity});
    if (choice.sure > 0)
        open.scatter_(1, ops::top_k(value.masked_fill(open.logical_not(), -INFINITY), all, choice.sure).to(at::kLong), false);
    // Who goes first ranks first: the lower score, then the older entry, then, between heads, the later head. top_k prefers the larger place.
    const at::Tensor order = value.neg().masked_fill(open.logical_not(), -INFINITY).flip(1);
    at::Tensor gone; // [heads, drops] entries, ascending behind −1, which is none
    if (choice.shared) {
        const at::Tensor places = ops::top_k(order.t().reshape({1, -1}), all.narrow(0, 0, 1) * static_cast<std::int32_t>(heads), choice.drops);
        const at::Tensor head = places.remainder(heads), entry = capacity - 1 - places.floor_divide(heads);
        gone = std::get<0>(at::where(head == at::arange(heads, ints).unsqueeze(1), entry, -1).sort(1));
    } else {
        gone = (capacity - 1 - ops::top_k(order, all, choice.drops)).flip(1);
    }
    gone = gone.to(at::kInt);
    return at::stack({entries.positions.gather(1, gone.clamp_min(0).to(at::kLong)).masked_fill(gone < 0, -1), gone});
}

} // namespace keepsight
