// Packed parts in which every entry is a row of its own: it comes and goes without the others.
#pragma once

#include "engine/cache/stored_parts.h"

namespace keepsight {

class PackedByRow : public PackedPart {
public:
    void add(const at::Tensor& x, const Counts& counts) override { m_rows.append(rowsOf(x), counts); }
    void keep(const Kept& kept) override { m_rows.keep(kept); }
    const Counts& held() const override { return m_rows.held(); }
    std::int64_t storedBytes() const override { return m_rows.storedBytes(); }
    std::int64_t allocatedBytes() const override { return m_rows.allocatedBytes(); }

    const at::Tensor& lengths() const override { return m_rows.lengths(); }
    std::uint64_t layout() const override { return m_rows.layout(); }
    void reserve(std::int64_t more, bool) override { m_rows.reserve(more); }
    void addStep(const at::Tensor& x, const StepRows& added) override { m_rows.addStep(rowsOf(x), added); }
    void dropEntries(const at::Tensor& entries) override { m_rows.dropEntries(entries); }
    void countAdded(const Counts& more) override { m_rows.count(more); }
    void countDropped(const Gone& entries) override { m_rows.count(negative(sizesOf(entries))); }

protected:
    PackedByRow(const SideShape& shape, std::vector<StoredRows::Column> columns) : m_rows(shape.kvHeads, std::move(columns), shape.device) {}
    virtual std::vector<at::Tensor> rowsOf(const at::Tensor& x) const = 0; // one for each column: [kvHeads, S, …] of x [kvHeads, S, headDim]

    StoredRows m_rows;
};

} // namespace keepsight
