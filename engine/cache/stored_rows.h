// What every stored form is made of: rows of each KV head in columns that move together.
#pragma once

#include <ATen/core/Tensor.h>
#include <cstdint>
#include <limits>
#include <vector>

namespace keepsight {

using Counts = std::vector<std::int32_t>;            // per KV head
using Kept = std::vector<std::vector<std::int32_t>>; // per KV head: rows that stay, ascending
using Gone = Kept;                                   // or that go

// Rows that a step adds to each head, or takes off its front, without the host: `most` of every head, or as many as counts say.
struct StepRows {
    std::int64_t most = 0;
    at::Tensor counts; // [heads] int32 on the device, at most `most`; undefined: all heads alike
};

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

    // What a step does on the device, so that it can be recorded: it neither asks the host for counts nor replaces a tensor. count() is the host's part.
    // Room for that many more of every head; made so that it lasts for a while, but not beyond the `most` that a head ever holds.
    void reserve(std::int64_t more, std::int64_t most = std::numeric_limits<std::int32_t>::max());
    void addStep(const std::vector<at::Tensor>& rows, const StepRows& added); // the first rows of [heads, most, row…]
    void countStep(const StepRows& added);                                    // of rows that an operator wrote behind the others
    void dropStep(const StepRows& oldest, bool leavesRows);  // false: a head that loses rows loses all it has
    void dropEntries(const at::Tensor& entries);             // as ops::drop_entries takes them
    void count(const Counts& more);                          // or, negative, fewer
    const at::Tensor& lengths() const { return m_lengths; }  // [heads] int32 on the device
    std::uint64_t layout() const { return m_layout; }        // changes when a tensor does

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
    std::int64_t m_begin = 0; // rows in front that were dropped: on the CPU a sliding tail is not moved at every step,
    bool m_slides;            // unless steps are to find the rows where they were
    std::uint64_t m_layout = 0;
    std::int64_t m_rowBytes = 0;
};

std::int32_t longest(const Counts& counts);
std::int64_t total(const Counts& counts);
bool even(const Counts& counts); // the same for all heads
Counts sum(const Counts& a, const Counts& b);
Counts negative(Counts counts);
Counts sizesOf(const Kept& rows);
at::Tensor onDevice(const Counts& counts, at::Device device); // [heads] int32
at::Tensor onDevice(const Kept& rows, at::Device device);     // [heads, the most of a head, at least 1] int32, 0 behind each head's last
std::vector<std::int64_t> wide(const Counts& counts); // as operators take them

// The first counts[h] rows of `rows` [heads, ≥ counts, …] go to rows offsets[h] … of `out` [heads, C, …].
void placeRows(at::Tensor& out, const at::Tensor& rows, const Counts& counts, const Counts& offsets);
void clearBehind(at::Tensor& out, const Counts& held); // rows from held[h] on become 0

} // namespace keepsight
