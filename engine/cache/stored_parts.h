// A stored side in three parts, oldest to newest: exact first entries, codes, and a tail in full precision.
#pragma once

#include "engine/cache/quantizer.h"
#include "engine/cache/stored_rows.h"

#include <functional>

namespace keepsight {

// The entries held as codes: what a quantizer's file implements.
class PackedPart {
public:
    virtual ~PackedPart() = default;
    virtual void add(const at::Tensor& x, const Counts& counts) = 0; // [kvHeads, S, headDim] fp32, the first counts[h] rows of each head
    virtual void keep(const Kept& kept) = 0;
    virtual void read(at::Tensor& out, const Counts& offsets) const = 0; // writes entry i of head h to row offsets[h] + i of out
    virtual const Counts& held() const = 0;
    virtual std::int64_t storedBytes() const = 0;
    virtual std::int64_t allocatedBytes() const = 0;

    // Codes, scale, zero and their shape as attention reads them; false: it cannot. With it go lengths [kvHeads] int32 on the device, and layout(),
    // which changes when a tensor does.
    virtual bool view(ops::PackedSide&) const { return false; }
    virtual at::Tensor lengths() const { return {}; }
    virtual std::uint64_t layout() const { return 0; }
    // Room for that many more of every head; then add() of them can be recorded, and countAdded() is what a replay does on the host. false: it cannot.
    virtual bool reserve(std::int64_t) { return false; }
    virtual void countAdded(std::int32_t) {}
};

// How many of the tail's oldest rows each head packs now; `tail`: what it holds.
using ResidualRule = std::function<Counts(const Counts& tail, bool afterPrefill)>;

class StoredParts final : public StoredSide {
public:
    // first: entries of each head, the first it is ever given, that are never packed.
    StoredParts(const SideShape& shape, std::unique_ptr<PackedPart> packed, ResidualRule rule, int first = 0);

    void append(const at::Tensor& x) override;
    void append(const at::Tensor& x, const std::vector<std::int32_t>& counts) override;
    void settle(bool afterPrefill) override;
    void keep(const Selection& selection) override;
    at::Tensor dense(std::int64_t capacity) const override;
    std::vector<std::int32_t> packed() const override;
    std::int64_t storedBytes() const override;
    std::int64_t allocatedBytes() const override;
    std::optional<ops::PackedSide> packedView() const override;
    std::optional<std::string> nextStep() override;
    void countReplayed() override;
    std::uint64_t layout() const override;

private:
    SideShape m_shape;
    StoredRows m_first, m_tail;           // one column: [headDim] in the model's type
    std::unique_ptr<PackedPart> m_packed; // null: nothing is ever packed
    ResidualRule m_rule;
    Counts m_room; // [kvHeads] first entries still to come
};

std::unique_ptr<StoredSide> storedPlain(const SideShape& shape); // nothing is packed

} // namespace keepsight
