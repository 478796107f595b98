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
    void reserve(std::int64_t more); // append() of that many replaces no tensor
    void count(std::int32_t more);   // a recorded append (or, negative, drop) of that many was replayed: the device knows already
    const at::Tensor& lengths() const { return m_lengths; }    // [heads] int32 on the device
    std::uint64_t layout() const { return m_layout; }          // changes when a tensor does

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
    std::int64_t m_begin = 0; // rows in front that were dropped: on the CPU a sliding tail is not moved at every step
    std::uint64_t m_layout = 0;
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
