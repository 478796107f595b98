// What a prompt's last queries sum up to for every entry (their weights, or the changes of their outputs), remembered from the newest query back in
// blocks: a window that grows or shrinks, as those of h2o and the kvc policies do with the budget, then costs the queries of less than a block.
#pragma once

#include "engine/model/model.h"

#include <functional>
#include <map>
#include <mutex>

namespace keepsight {

class LastSums {
public:
    explicit LastSums(std::int64_t queries); // that the views have
    // LayerView::lastSums() and lastChanges() of one and the same layer, whose heads hold everything. Thread-safe.
    at::Tensor weights(const LayerView& view, std::int64_t count);
    at::Tensor changes(const LayerView& view, ops::OutputChange kind, std::int64_t count);

private:
    static constexpr std::int64_t Blocks = 24, SmallestBlock = 8; // at most that many, for they are remembered

    using Sum = std::function<at::Tensor(std::int64_t begin, std::int64_t rows)>; // of these queries
    at::Tensor last(std::vector<at::Tensor>& sums, std::int64_t have, std::int64_t count, const Sum& sum) const;

    const std::int64_t m_block;
    std::mutex m_mutex;
    at::Tensor m_output;                     // of all the view's queries, like KnownAttention's
    std::vector<at::Tensor> m_weights;       // [i]: of the last (i + 1) · m_block queries
    std::map<ops::OutputChange, std::vector<at::Tensor>> m_changes; // likewise
};

} // namespace keepsight
