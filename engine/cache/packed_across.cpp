#include "engine/cache/packed_groups.h"

#include "kernels/quant.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {
namespace {

constexpr std::int64_t Slack = 128; // entries of a head at least that reserve() makes room for, as StoredRows does

// How many values there are decides how many of the columns that there is room for are in use, and with it where every value lies
// (ops::AcrossCodes): whoever reads them reckons that from the lengths, so that steps pack anew without the host.
class Across final : public PackedPart {
public:
    Across(const SideShape& shape, const GroupShape& groups)
        : m_shape(shape), m_perEntry(shape.headDim / groups.group), m_group(groups.group), m_tight(shape.device.is_cpu()),
          m_held(static_cast<std::size_t>(shape.kvHeads), 0) {
        m_across.lengths = at::zeros({shape.kvHeads}, at::TensorOptions().dtype(at::kInt).device(shape.device));
        m_across.bits = groups.bits, m_across.dim = shape.headDim, m_across.leastScale = groups.leastScale;
        reallocate(0);
    }

    std::unique_ptr<PackedPart> alias() const override { return std::make_unique<Across>(*this); }
    void add(const at::Tensor& x, const Counts& counts) override {
        const std::int64_t held = total(m_held), needed = held + total(counts);
        if (!m_tight && columnsOf(needed) > width())
            reallocate(columnsOf(held ? needed + needed / 8 : needed)); // amortised growth, but no slack on a prompt
        repack({}, x, onDevice(counts, m_shape.device));
        m_held = sum(m_held, counts);
    }
    void keep(const Kept& kept) override {
        const Counts counts = sizesOf(kept);
        if (counts == m_held) return;
        std::int64_t most = 0;
        for (std::size_t h = 0; h < m_held.size(); ++h)
            most = std::max<std::int64_t>(most, m_held[h] - counts[h]);
        at::Tensor gone = at::full({m_shape.kvHeads, most}, -1, at::kInt);
        for (std::size_t h = 0; h < m_held.size(); ++h) {
            std::int32_t* to = gone.data_ptr<std::int32_t>() + static_cast<std::int64_t>(h + 1) * most - (m_held[h] - counts[h]);
            for (std::int32_t i = 0; i < m_held[h]; ++i)
                if (!std::ranges::binary_search(kept[h], i)) *to++ = i;
        }
        repack(gone.to(m_shape.device), {}, {});
        m_held = counts;
        if (const std::int64_t tight = columnsOf(total(m_held)); tight * 4 <= width() * 3)
            reallocate(tight); // eviction must free memory, not only forget
    }
    void read(at::Tensor& out, const Counts& offsets) const override {
        const std::int64_t all = total(m_held);
        if (all == 0) return;
        const at::Tensor rows = ops::decodedEntries(m_across, all);
        if (even(m_held)) return placeRows(out, rows.view({m_shape.kvHeads, m_held.front(), m_shape.headDim}), m_held, offsets);
        std::int64_t begin = 0;
        for (std::size_t h = 0; h < m_held.size(); ++h) {
            out.select(0, static_cast<std::int64_t>(h)).narrow(0, offsets[h], m_held[h]).copy_(rows.narrow(0, begin, m_held[h]));
            begin += m_held[h];
        }
    }
    void view(ops::PackedSide& side) const override {
        if (!acrossHeads()) return;
        side.codes = m_across.codes, side.scale = m_across.scale, side.zero = m_across.zero;
        side.bits = m_across.bits, side.across = true;
    }
    bool acrossHeads() const override { return width() > 0; }
    const at::Tensor& lengths() const override { return m_across.lengths; }
    std::uint64_t layout() const override { return m_layout; }
    const Counts& held() const override { return m_held; }
    std::int64_t storedBytes() const override { return bytesOf(columnsOf(total(m_held))); }
    std::int64_t allocatedBytes() const override { return bytesOf(width()); }

    void reserve(std::int64_t more, bool) override {
        const std::int64_t held = total(m_held), needed = held + more * m_shape.kvHeads;
        if (columnsOf(needed) > width()) reallocate(columnsOf(needed + std::max(Slack * m_shape.kvHeads, needed / 8)));
    }
    void addStep(const at::Tensor& x, const StepRows& added) override {
        ops::repack_across(m_across, {}, x, added.counts.defined() ? std::optional(added.counts) : std::nullopt);
    }
    void dropEntries(const at::Tensor& entries) override { ops::repack_across(m_across, entries, {}, {}); }
    void countAdded(const Counts& more) override { m_held = sum(m_held, more); }
    void countDropped(const Gone& entries) override { m_held = sum(m_held, negative(sizesOf(entries))); }

private:
    std::int64_t width() const { return m_across.scale.size(2); }
    std::int64_t columnsOf(std::int64_t entries) const { return entries * m_perEntry; }
    std::int64_t bytesOf(std::int64_t columns) const {
        return m_group * packedBytes(columns, static_cast<int>(m_across.bits)) + 4 * columns;
    }
    // What the host does. In place: recorded steps go on.
    void repack(const std::optional<at::Tensor>& gone, const std::optional<at::Tensor>& x, const std::optional<at::Tensor>& counts) {
        if (!m_tight) return ops::repack_across(m_across, gone, x, counts);
        if (std::optional<ops::AcrossCodes> made = ops::repacked_across(m_across, gone, x, counts)) m_across = *std::move(made), ++m_layout;
    }
    // To `columns`, at least those in use.
    void reallocate(std::int64_t columns) {
        constexpr std::int64_t Step = 128;
        if (!m_tight) columns = (columns + Step - 1) / Step * Step; // whole words
        const int bits = static_cast<int>(m_across.bits);
        const auto options = at::TensorOptions().device(m_shape.device);
        at::Tensor codes = at::zeros({1, m_group, packedBytes(columns, bits)}, options.dtype(at::kByte)),
                   scale = at::zeros({1, 1, columns}, options.dtype(at::kHalf)), zero = at::zeros_like(scale);
        if (const std::int64_t used = columnsOf(total(m_held)); used > 0) { // rows lie in planes: where a code is depends on the width
            const at::Tensor old = ops::unpack_codes(m_across.codes, bits, width()).narrow(2, 0, used);
            codes.copy_(ops::pack_codes(columns > used ? at::constant_pad_nd(old, {0, columns - used}) : old, bits));
            scale.narrow(2, 0, used).copy_(m_across.scale.narrow(2, 0, used)),
                zero.narrow(2, 0, used).copy_(m_across.zero.narrow(2, 0, used));
        }
        m_across.codes = codes, m_across.scale = scale, m_across.zero = zero;
        ++m_layout;
    }

    SideShape m_shape;
    std::int64_t m_perEntry, m_group; // columns that an entry takes, values of a column
    bool m_tight; // no columns but those in use, unless steps want them: the CPU unpacks the array as a whole, and so without a copy
    ops::AcrossCodes m_across;
    Counts m_held;
    std::uint64_t m_layout = 0;
};

} // namespace

std::unique_ptr<PackedPart> packedAcross(const SideShape& shape, const GroupShape& groups) {
    return std::make_unique<Across>(shape, groups);
}

} // namespace keepsight
