#include "engine/cache/stored_rows.h"

#include "kernels/bind/ops.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <numeric>

namespace keepsight {
namespace {

constexpr std::int64_t Step = 32;   // rows; what is allocated is a multiple of it
constexpr std::int64_t Slack = 128; // rows at least that reserve() makes room for: each time it does, recorded steps are made anew

std::int64_t rounded(std::int64_t rows) { return (rows + Step - 1) / Step * Step; }

} // namespace

std::int32_t longest(const Counts& counts) { return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end()); }
std::int64_t total(const Counts& counts) { return std::accumulate(counts.begin(), counts.end(), std::int64_t{0}); }
bool even(const Counts& counts) { return std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end(); }

Counts sum(const Counts& a, const Counts& b) {
    Counts out = a;
    for (std::size_t h = 0; h < out.size(); ++h)
        out[h] += b[h];
    return out;
}

Counts negative(Counts counts) {
    for (std::int32_t& n : counts)
        n = -n;
    return counts;
}

Counts sizesOf(const Kept& rows) {
    Counts out;
    for (const auto& head : rows)
        out.push_back(static_cast<std::int32_t>(head.size()));
    return out;
}

at::Tensor onDevice(const Counts& counts, at::Device device) {
    return at::tensor(at::ArrayRef<std::int32_t>(counts), at::TensorOptions().dtype(at::kInt)).to(device);
}

at::Tensor onDevice(const Kept& rows, at::Device device) {
    const std::int64_t most = std::max(longest(sizesOf(rows)), 1);
    at::Tensor out = at::zeros({static_cast<std::int64_t>(rows.size()), most}, at::kInt);
    for (std::size_t h = 0; h < rows.size(); ++h)
        std::copy(rows[h].begin(), rows[h].end(), out.data_ptr<std::int32_t>() + static_cast<std::int64_t>(h) * most);
    return out.to(device);
}

std::vector<std::int64_t> wide(const Counts& counts) { return {counts.begin(), counts.end()}; }

void placeRows(at::Tensor& out, const at::Tensor& rows, const Counts& counts, const Counts& offsets) {
    if (longest(counts) == 0) return;
    if (even(counts) && even(offsets)) {
        out.narrow(1, offsets.front(), counts.front()).copy_(rows.narrow(1, 0, counts.front()));
        return;
    }
    for (std::size_t h = 0; h < counts.size(); ++h) {
        const auto head = static_cast<std::int64_t>(h);
        out.select(0, head).narrow(0, offsets[h], counts[h]).copy_(rows.select(0, head).narrow(0, 0, counts[h]));
    }
}

void clearBehind(at::Tensor& out, const Counts& held) {
    if (even(held)) {
        if (held.front() < out.size(1)) out.narrow(1, held.front(), out.size(1) - held.front()).zero_();
        return;
    }
    for (std::size_t h = 0; h < held.size(); ++h)
        out.select(0, static_cast<std::int64_t>(h)).narrow(0, held[h], out.size(1) - held[h]).zero_();
}

StoredRows::StoredRows(int heads, std::vector<Column> columns, at::Device device)
    : m_lengths(at::zeros({heads}, at::TensorOptions().dtype(at::kInt).device(device))), m_held(static_cast<std::size_t>(heads), 0),
      m_slides(device.is_cpu()) {
    for (const Column& column : columns) {
        std::vector<std::int64_t> sizes{heads, 0};
        sizes.insert(sizes.end(), column.row.begin(), column.row.end());
        m_columns.push_back(at::empty(sizes, at::TensorOptions().dtype(column.type).device(device)));
        std::int64_t bytes = static_cast<std::int64_t>(c10::elementSize(column.type));
        for (const std::int64_t n : column.row)
            bytes *= n;
        m_rowBytes += bytes;
    }
}

void StoredRows::reallocate(std::int64_t capacity) {
    const std::int64_t rows = std::min<std::int64_t>(capacity, longest(m_held));
    for (at::Tensor& column : m_columns) {
        std::vector<std::int64_t> sizes = column.sizes().vec();
        sizes[1] = capacity;
        at::Tensor other = at::zeros(sizes, column.options());
        if (rows) other.narrow(1, 0, rows).copy_(column.narrow(1, m_begin, rows));
        column = other;
    }
    m_begin = 0;
    ++m_layout;
}

void StoredRows::setLengths() { m_lengths.copy_(onDevice(m_held, m_lengths.device())); } // in place: recorded steps go on

void StoredRows::reserve(std::int64_t more, std::int64_t most) {
    m_slides = false;
    const std::int64_t needed = longest(m_held) + more;
    if (needed > capacity())
        reallocate(rounded(std::max(needed, std::min(most, needed + std::max(Slack, needed / 8)))));
    else if (m_begin > 0)
        reallocate(capacity());
}

void StoredRows::addStep(const std::vector<at::Tensor>& rows, const StepRows& added) {
    for (std::size_t i = 0; i < m_columns.size(); ++i) // behind the count of a head that adds fewer lies rubbish as before
        ops::append_entries(m_columns[i], rows[i], m_lengths);
    countStep(added);
}

void StoredRows::countStep(const StepRows& added) {
    if (added.counts.defined())
        m_lengths.add_(added.counts);
    else
        m_lengths.add_(added.most);
}

void StoredRows::dropStep(const StepRows& oldest, bool leavesRows) {
    const at::Tensor& counts = oldest.counts;
    if (leavesRows) { // one row at most: entry 0, or −1 for none
        dropEntries(counts.defined() ? counts - 1 : at::zeros_like(m_lengths));
    } else if (counts.defined()) {
        m_lengths.sub_(counts);
    } else {
        m_lengths.sub_(oldest.most);
    }
}

void StoredRows::dropEntries(const at::Tensor& entries) {
    if (capacity() > 0) ops::drop_entries(entries, m_lengths, m_columns);
}

void StoredRows::count(const Counts& more) { m_held = sum(m_held, more); }

void StoredRows::append(const std::vector<at::Tensor>& rows, const Counts& counts) {
    const std::int64_t added = longest(counts), before = longest(m_held), needed = before + added;
    if (added == 0) return;
    if (m_begin + needed > capacity())
        reallocate(rounded(before ? needed + needed / 8 : needed)); // amortised growth, but no slack on a prompt
    for (std::size_t i = 0; i < m_columns.size(); ++i) {
        at::Tensor column = this->column(i);
        ops::append_entries(column, rows[i].narrow(1, 0, added), m_lengths);
    }
    m_held = sum(m_held, counts);
    if (even(counts))
        m_lengths.add_(static_cast<std::int32_t>(added));
    else
        setLengths();
}

void StoredRows::keep(const Kept& kept) {
    const Counts counts = sizesOf(kept);
    if (counts == m_held) return;
    const std::int64_t most = longest(counts), tight = rounded(most + 1);
    if (most > 0) {
        const at::Tensor index = onDevice(kept, m_lengths.device()), lengths = onDevice(counts, m_lengths.device());
        for (std::size_t i = 0; i < m_columns.size(); ++i) {
            at::Tensor column = this->column(i);
            ops::compact_entries(column, index, lengths);
        }
    }
    m_held = counts;
    setLengths();
    if (tight * 4 <= capacity() * 3) reallocate(most ? tight : 0); // eviction must free memory, not only forget
}

void StoredRows::drop(const Counts& oldest) {
    if (longest(oldest) == 0) return;
    if (even(oldest)) {
        const std::int32_t gone = oldest.front();
        for (std::int32_t& n : m_held)
            n -= gone;
        m_lengths.sub_(gone);
        const std::int64_t rest = longest(m_held);
        if (m_slides) {
            m_begin = rest ? m_begin + gone : 0;
            ++m_layout;
        } else {
            for (at::Tensor& column : m_columns)
                if (rest) column.narrow(1, 0, rest).copy_(column.narrow(1, gone, rest).clone());
        }
        if (const std::int64_t most = longest(m_held), tight = rounded(most + most / 8 + 1); tight * 4 <= capacity() * 3)
            reallocate(most ? tight : 0);
        return;
    }
    Kept kept(m_held.size());
    for (std::size_t h = 0; h < m_held.size(); ++h) {
        kept[h].resize(static_cast<std::size_t>(m_held[h] - oldest[h]));
        std::iota(kept[h].begin(), kept[h].end(), oldest[h]);
    }
    keep(kept);
}

std::int64_t StoredRows::storedBytes() const { return total(m_held) * m_rowBytes; }
std::int64_t StoredRows::allocatedBytes() const { return static_cast<std::int64_t>(m_held.size()) * capacity() * m_rowBytes; }

} // namespace keepsight
