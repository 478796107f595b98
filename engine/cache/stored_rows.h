// What every stored form is made of: rows of each KV head in columns that move together.
#pragma once

#include <ATen/core/Tensor.h>
#include <cstdint>
#include <vector>

namespace keepsight {

using Counts = std::vector<std::int32_t>;            // per KV head
using Kept = std::vector<std::vector<std::int32_t>>; // per KV head: rows that stay, ascending

// Row r < held()[h] of head h is real; what lies behind is rubbish.
class StoredRows {
public:
    struct Column {
        std::vector<std::int64_t> row; // shape of one row
        at::ScalarType type;
    };
    StoredRows(int heads, std::vector<Column> columns, at::Device device);

    // One tensor [heads, S, row…] for each column; the first counts[h] rows of each head are added.
    void append(const std::vector<at::Tensor>& rows, const Counts& counts);
    void keep(const Kept& kept);
    void drop(const Counts& oldest); // that many from the front of each head

    at::Tensor column(std::size_t i) const { return m_columns[i].narrow(1, m_begin, capacity() - m_begin); } // [heads, ≥ held, row…]
    const Counts& held() const { return m_held; }
    std::int64_t capacity() const { return m_columns.front().size(1); }
    std::int64_t storedBytes() const;
    std::int64_t allocatedBytes() const;

private:
    void reallocate(std::int64_t capacity);
    void setLengths();

    at::Tensor m_lengths; // [heads] int32, held() on the device
    std::vector<at::Tensor> m_columns;
    Counts m_held;
    std::int64_t m_begin = 0; // rows in front that were dropped: a sliding tail is not moved at every step
    std::int64_t m_rowBytes = 0;
};

std::int32_t longest(const Counts& counts);
std::int64_t total(const Counts& counts);
bool even(const Counts& counts); // the same for all heads
Counts sum(const Counts& a, const Counts& b);
std::vector<std::int64_t> wide(const Counts& counts); // as operators take them

// The first counts[h] rows of `rows` [heads, ≥ counts, …] go to rows offsets[h] … of `out` [heads, C, …].
void placeRows(at::Tensor& out, const at::Tensor& rows, const Counts& counts, const Counts& offsets);
void clearBehind(at::Tensor& out, const Counts& held); // rows from held[h] on become 0

} // namespace keepsight
