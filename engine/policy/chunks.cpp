#include "engine/policy/chunks.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {

at::Tensor scoreInChunks(const LayerView& view, int chunk, const HeadScores& scored) {
    constexpr std::int64_t Most = 1 << 24; // values at once: scores are made in fp32, with copies
    const CacheLayer& entries = view.entries;
    const std::int64_t heads = view.keys.size(0), capacity = entries.capacity();
    if (chunk <= 0) {
        const std::int64_t together = std::clamp<std::int64_t>(Most / std::max<std::int64_t>(1, capacity * view.keys.size(2)), 1, heads);
        std::vector<at::Tensor> parts;
        for (std::int64_t h = 0; h < heads; h += together) {
            const std::int64_t count = std::min(together, heads - h);
            parts.push_back(scored(view.keys.narrow(0, h, count), view.values.narrow(0, h, count), entries.lengths.narrow(0, h, count)));
        }
        return parts.size() == 1 ? parts.front() : at::cat(parts);
    }
    at::Tensor scores = at::zeros({heads, capacity}, view.keys.options().dtype(at::kFloat));
    for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t begin = 0, held = entries.held[static_cast<std::size_t>(h)]; begin < held; begin += chunk) {
            const std::int64_t count = std::min<std::int64_t>(chunk, held - begin);
            const auto part = [&](const at::Tensor& x) { return x.narrow(0, h, 1).narrow(1, begin, count); };
            part(scores).copy_(scored(part(view.keys), part(view.values), at::full({1}, static_cast<std::int32_t>(count), entries.lengths.options())));
        }
    return scores;
}

} // namespace keepsight
