#include "engine/model/last_sums.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {
namespace {

// The view of some of its queries, for which nothing is remembered.
LayerView partOf(const LayerView& view, std::int64_t begin, std::int64_t rows) {
    LayerView out = view;
    out.remembered = nullptr;
    out.queries = view.queries.narrow(1, begin, rows), out.queryPositions = view.queryPositions.narrow(0, begin, rows);
    if (view.known.logSumExp.defined()) out.known.logSumExp = view.known.logSumExp.narrow(1, begin, rows);
    return out;
}

} // namespace

LastSums::LastSums(std::int64_t queries) : m_block(std::max(SmallestBlock, (queries + Blocks - 1) / Blocks)) {}

at::Tensor LastSums::last(std::vector<at::Tensor>& sums, std::int64_t have, std::int64_t count, const Sum& sum) const {
    const std::int64_t whole = count / m_block, rest = count % m_block;
    for (auto i = static_cast<std::int64_t>(sums.size()); i < whole; ++i) {
        at::Tensor block = sum(have - (i + 1) * m_block, m_block);
        sums.push_back(i > 0 ? block.add_(sums.back()) : block);
    }
    if (rest == 0 && whole > 0) return sums[static_cast<std::size_t>(whole - 1)].clone();
    const at::Tensor older = sum(have - count, rest);
    return whole > 0 ? older + sums[static_cast<std::size_t>(whole - 1)] : older;
}

at::Tensor LastSums::weights(const LayerView& view, std::int64_t count) {
    const std::lock_guard lock(m_mutex);
    return last(m_weights, view.queries.size(1), count, [&](std::int64_t begin, std::int64_t rows) { return partOf(view, begin, rows).lastSums(rows); });
}

at::Tensor LastSums::changes(const LayerView& view, ops::OutputChange kind, std::int64_t count) {
    const std::lock_guard lock(m_mutex);
    if (kind != ops::OutputChange::value && !m_output.defined()) m_output = ops::causal_attention(view.queries, view.keys, view.values, view.entries.held.front(), view.scale);
    return last(m_changes[kind], view.queries.size(1), count, [&](std::int64_t begin, std::int64_t rows) {
        LayerView part = partOf(view, begin, rows);
        if (m_output.defined()) part.known.output = m_output.narrow(0, begin, rows);
        return part.lastChanges(kind, rows);
    });
}

} // namespace keepsight
