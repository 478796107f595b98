// select() where the scores lie: ATen's calls and ops::top_k. In recorded steps none of it waits for the device; after a prefill only what stays is waited for.
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>
#include <numeric>

namespace keepsight {
namespace {

constexpr float Largest = std::numeric_limits<float>::max();

// Finite, so that nothing that may be chosen is mistaken for what may not.
at::Tensor finite(const at::Tensor& scores) { return at::nan_to_num(scores, -Largest, Largest, -Largest); }

at::Tensor hostRows(const at::Tensor& entries) { return entries.to(at::kCPU, at::kInt).contiguous(); }

} // namespace

Protect affordable(const Protect& wanted, std::int32_t keep) {
    const std::int32_t sinks = std::min(wanted.sinks, keep);
    return {sinks, std::min(wanted.recent, keep - sinks)};
}

bool selectsThere(const std::vector<std::int32_t>& held, const Plan& plan) {
    return plan.chunk == 0 && held.front() > plan.keep && std::ranges::count(held, held.front()) == std::ssize(held);
}

Selection selectThere(const at::Tensor& scores, const std::vector<std::int32_t>& held, const Plan& plan) {
    const std::int32_t keep = std::max(1, plan.keep), count = held.front();
    const Protect safe = affordable(plan.protect, keep);
    const std::int32_t open = count - safe.sinks - safe.recent, chosen = keep - safe.sinks - safe.recent;
    const auto heads = static_cast<std::int64_t>(held.size());
    const at::Tensor value = scores.narrow(1, safe.sinks, open).to(at::kFloat).contiguous();
    const at::Tensor all = at::full({heads}, open, value.options().dtype(at::kInt));
    // What every head keeps whatever the others have, and what goes to the best of all heads: their entries, interleaved so that of equal scores the newer
    // wins, then the lower head.
    const std::int32_t sure = plan.adaptive ? std::clamp(static_cast<std::int32_t>(keep * plan.adaptiveFloor) - safe.sinks - safe.recent, 0, open) : chosen;
    const at::Tensor own = ops::top_k(value, all, sure);
    const std::int64_t shared = heads * (chosen - sure);
    at::Tensor places;
    if (shared > 0) {
        const at::Tensor rest = finite(value).scatter(1, own.to(at::kLong), -INFINITY);
        places = hostRows(ops::top_k(rest.flip(0).t().reshape({1, -1}), all.narrow(0, 0, 1) * static_cast<std::int32_t>(heads), shared));
    }
    const at::Tensor ownRows = hostRows(own);

    std::vector<std::vector<std::int32_t>> won(held.size());
    for (std::int64_t i = 0; i < shared; ++i) {
        const auto place = static_cast<std::int64_t>(places.const_data_ptr<std::int32_t>()[i]);
        won[static_cast<std::size_t>(heads - 1 - place % heads)].push_back(static_cast<std::int32_t>(place / heads));
    }
    Selection out;
    out.keep.resize(held.size());
    for (std::size_t h = 0; h < held.size(); ++h) {
        std::vector<std::int32_t>& kept = out.keep[h];
        kept.resize(static_cast<std::size_t>(safe.sinks + sure + safe.recent) + won[h].size());
        const auto begin = kept.begin() + safe.sinks, end = kept.end() - safe.recent;
        const std::int32_t* row = ownRows.const_data_ptr<std::int32_t>() + static_cast<std::int64_t>(h) * sure;
        std::merge(row, row + sure, won[h].begin(), won[h].end(), begin);
        std::for_each(begin, end, [&](std::int32_t& i) { i += safe.sinks; });
        std::iota(kept.begin(), begin, 0);
        std::iota(end, kept.end(), count - safe.recent);
    }
    return out;
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
    const std::int64_t heads = entries.lengths.size(0), capacity = entries.positions.size(1);
    const at::TensorOptions ints = entries.lengths.options();
    const at::Tensor index = at::arange(capacity, ints).unsqueeze(0), held = entries.lengths.unsqueeze(1), all = at::full({heads}, capacity, ints);
    at::Tensor open = (index >= limits[1]) & (index < held - limits[2]); // [heads, C]
    const at::Tensor value = scores.defined() ? finite(scores) : index.to(at::kFloat).expand({heads, capacity});
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
