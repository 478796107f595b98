// A stored side in three parts, oldest to newest: exact first entries, codes, and a tail in full precision.
#pragma once

#include "engine/cache/quantizer.h"
#include "engine/cache/stored_rows.h"

namespace keepsight {

// The entries held as codes: what a quantizer's file implements.
class PackedPart {
public:
    virtual ~PackedPart() = default;
    virtual std::unique_ptr<PackedPart> alias() const = 0; // the same tensors, counted by itself
    virtual void add(const at::Tensor& x, const Counts& counts) = 0; // [kvHeads, S, headDim] fp32, the first counts[h] rows of each head
    virtual void keep(const Kept& kept) = 0;
    virtual void read(at::Tensor& out, const Counts& offsets) const = 0; // writes entry i of head h to row offsets[h] + i of out
    virtual const Counts& held() const = 0;
    virtual std::int64_t storedBytes() const = 0;
    virtual std::int64_t allocatedBytes() const = 0;

    // All of ops::PackedSide that tells of codes, as attention reads them; with it go lengths [kvHeads] int32 on the device, and layout(), which changes
    // when a tensor does.
    virtual void view(ops::PackedSide& side) const = 0;
    virtual bool acrossHeads() const { return false; } // view() makes it so
    virtual const at::Tensor& lengths() const = 0;
    virtual std::uint64_t layout() const = 0;

    // What a step does without the host (see StoredRows): before it reserve(), room for `more` of every head and, if it drops, for dropEntries().
    // addStep(): x [kvHeads, most, headDim] fp32. dropEntries(): as ops::drop_entries takes them, [kvHeads, n]. What the step did is counted on the
    // host at any time afterwards.
    virtual void reserve(std::int64_t more, bool drops) = 0;
    virtual void addStep(const at::Tensor& /*x*/, const StepRows& /*added*/) {}
    virtual void dropEntries(const at::Tensor& /*entries*/) {}
    virtual void countAdded(const Counts& /*more*/) {}
    virtual void countDropped(const Gone& /*entries*/) {}
};

// How many of the tail's oldest rows each head packs when the side is settled.
struct ResidualRule {
    enum class When {
        always,   // all
        prompt,   // all of the prompt, later none
        gathered, // all of the prompt; later all heads' as soon as one has gathered `residual`
        blocks,   // `residual` together, as often as they are there
        older,    // all but the `residual` newest
    } when = When::prompt;
    std::int32_t residual = 0;

    Counts operator()(Counts tail, bool afterPrefill) const;
    at::Tensor operator()(const at::Tensor& tail) const; // the same on the device, not after the prompt: [kvHeads] int32
    // Where tokens come one by one and each time the side is settled:
    std::int32_t mostAtOnce() const;  // rows that a head packs
    std::int32_t longestTail() const; // that a head has before
};

class StoredParts final : public StoredSide {
public:
    // first: entries of each head, the first it is ever given, that are never packed.
    StoredParts(const SideShape& shape, std::unique_ptr<PackedPart> packed, const ResidualRule& rule, int first = 0);

    void append(const at::Tensor& x) override;
    void append(const at::Tensor& x, const std::vector<std::int32_t>& counts) override;
    void settle(bool afterPrefill) override;
    void keep(const Selection& selection) override;
    at::Tensor dense(std::int64_t capacity) const override;
    std::vector<std::int32_t> packed() const override;
    std::int64_t storedBytes() const override;
    std::int64_t allocatedBytes() const override;
    ops::PackedSide packedView() const override;
    bool acrossHeads() const override { return m_packed && m_packed->acrossHeads(); }
    std::optional<std::string> nextStep(bool drops) override;
    void countReplayed() override;
    void dropEntries(const at::Tensor& entries) override;
    void countDropped(const Gone& entries) override;
    std::uint64_t layout() const override;

    // The same tensors, counted by itself: what a recorded step goes on to see while the side it was recorded of goes on. For tests.
    std::unique_ptr<StoredParts> alias() const;

private:
    struct Step { // that nextStep() announced
        std::int64_t packs = 0;                   // rows of a head at most
        bool alike = true;                        // all heads pack that many
        bool leavesRows = false;                  // a head that packs may have more
        bool drops = false;                       // what it packs is counted by countDropped(),
        bool dropped = false;                     // now that entries have gone
    };
    void settleStep();
    void countSettled();

    SideShape m_shape;
    StoredRows m_first, m_tail;           // one column: [headDim] in the model's type
    std::unique_ptr<PackedPart> m_packed; // null: nothing is ever packed
    ResidualRule m_rule;
    Counts m_room; // [kvHeads] first entries still to come
    bool m_evicts = false; // steps have entries go
    std::optional<Step> m_step;
};

std::unique_ptr<StoredSide> storedPlain(const SideShape& shape); // nothing is packed

} // namespace keepsight
