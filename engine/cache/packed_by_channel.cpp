#include "engine/cache/packed_groups.h"

#include "kernels/bind/ops.h"
#include "kernels/quant.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>
#include <numeric>

namespace keepsight {
namespace {

constexpr std::int32_t Never = std::numeric_limits<std::int32_t>::max(); // the end of a group that is not there

// A group's scale and zero are found by where its entries end. As long as every group has all of its entries that is known without `ends`; they are made
// when the host reads the codes, and kept up by what steps do on the device from the moment where groups may lose entries.
class ByChannel final : public PackedPart {
public:
    ByChannel(const SideShape& shape, const GroupShape& groups)
        : m_groups(groups), m_device(shape.device),
          m_codes(shape.kvHeads, {{{packedBytes(shape.headDim, groups.bits)}, at::kByte}}, shape.device),
          m_parameters(shape.kvHeads, {{{shape.headDim}, at::kHalf}, {{shape.headDim}, at::kHalf}}, shape.device),
          m_groupBytes(static_cast<std::int64_t>(shape.headDim) * 4), m_sizes(static_cast<std::size_t>(shape.kvHeads)) {}

    std::unique_ptr<PackedPart> alias() const override { return std::make_unique<ByChannel>(*this); }
    void add(const at::Tensor& x, const Counts& counts) override {
        const Encoded e = encoded(x);
        m_codes.append({e.codes}, counts);
        m_parameters.append({e.scale, e.zero}, groupsOf(counts));
        grow(counts);
        m_current = false;
    }
    void keep(const Kept& kept) override {
        Kept groups(m_sizes.size()); // that still have an entry
        for (std::size_t h = 0; h < m_sizes.size(); ++h) {
            Counts sizes;
            std::size_t next = 0;
            std::int32_t end = 0;
            for (std::size_t g = 0; g < m_sizes[h].size(); ++g) {
                end += m_sizes[h][g];
                const std::size_t begin = next;
                while (next < kept[h].size() && kept[h][next] < end)
                    ++next;
                if (next == begin) continue;
                groups[h].push_back(static_cast<std::int32_t>(g));
                sizes.push_back(static_cast<std::int32_t>(next - begin));
            }
            m_sizes[h] = std::move(sizes);
        }
        m_codes.keep(kept);
        m_parameters.keep(groups);
        m_current = false;
        describeByEnds(!whole());
    }
    void read(at::Tensor& out, const Counts& offsets) const override {
        ops::dequantize_entries(out, m_codes.column(0), m_groups.bits, m_parameters.column(0), m_parameters.column(1), ends(), {},
                                wide(held()), wide(offsets));
    }
    void view(ops::PackedSide& side) const override {
        if (m_codes.capacity() == 0 || m_parameters.capacity() == 0) return;
        side.codes = m_codes.column(0), side.scale = m_parameters.column(0), side.zero = m_parameters.column(1);
        side.bits = m_groups.bits, side.groupTokens = m_groups.group;
        if (m_byEnds) side.ends = ends();
    }
    const at::Tensor& lengths() const override { return m_codes.lengths(); }
    std::uint64_t layout() const override { return m_codes.layout() + m_parameters.layout() + m_layout; }
    const Counts& held() const override { return m_codes.held(); }
    std::int64_t storedBytes() const override { return m_codes.storedBytes() + m_parameters.storedBytes() - emptyGroups() * m_groupBytes; }
    std::int64_t allocatedBytes() const override {
        return m_codes.allocatedBytes() + m_parameters.allocatedBytes() +
               (m_ends.defined() ? static_cast<std::int64_t>(m_ends.nbytes()) : 0);
    }

    void reserve(std::int64_t more, bool drops) override {
        const std::int64_t groups = more / m_groups.group;
        if (longest(m_parameters.held()) + groups > m_parameters.capacity() && emptyGroups() > 0) dropEmptyGroups();
        m_codes.reserve(more);
        m_parameters.reserve(groups);
        if (drops) describeByEnds(true);
        if (m_byEnds) ends(); // the host's last turn to make them
    }
    void addStep(const at::Tensor& x, const StepRows& added) override {
        ops::ChannelCodes to{m_codes.column(0),  m_parameters.column(0), m_parameters.column(1), m_byEnds ? m_ends : at::Tensor(),
                             lengths(),          m_parameters.lengths(), m_groups.bits,          m_groups.group,
                             m_groups.leastScale};
        ops::append_channels(to, x, added.counts.defined() ? std::optional(added.counts) : std::nullopt);
        StepRows groups{added.most / m_groups.group, {}};
        if (added.counts.defined()) groups.counts = added.counts.div(m_groups.group, "floor");
        m_codes.countStep(added);
        m_parameters.countStep(groups);
    }
    void dropEntries(const at::Tensor& entries) override {
        if (m_ends.defined()) m_ends.sub_(goneBefore(entries, m_ends)); // those behind the codes move no end but Never, of which enough is left
        m_codes.dropEntries(entries);
    }
    void countAdded(const Counts& more) override {
        m_codes.count(more);
        m_parameters.count(groupsOf(more));
        grow(more);
        m_current &= m_byEnds;
    }
    void countDropped(const Gone& entries) override {
        m_codes.count(negative(sizesOf(entries)));
        for (std::size_t h = 0; h < m_sizes.size(); ++h) {
            std::size_t group = 0;
            std::int32_t end = m_sizes[h].empty() ? 0 : m_sizes[h].front(); // before any went
            for (const std::int32_t entry : entries[h]) {
                while (entry >= end)
                    end += m_sizes[h][++group];
                --m_sizes[h][group];
            }
        }
    }

private:
    struct Encoded {
        at::Tensor codes, scale, zero; // [H, S, packedBytes], [H, S/g, D]
    };
    Encoded encoded(const at::Tensor& x) const {
        const at::Tensor grouped = x.unflatten(1, {x.size(1) / m_groups.group, m_groups.group}); // [H, S/g, g, D]
        const auto [low, high] = at::aminmax(grouped, 2, true);
        const Affine a = affine(low, high, m_groups.bits, m_groups.leastScale);
        return {ops::pack_codes(codes(grouped, a.scale, a.zero, m_groups.bits).flatten(1, 2), m_groups.bits), a.scale.squeeze(2), a.zero.squeeze(2)};
    }
    Counts groupsOf(Counts entries) const {
        for (std::int32_t& n : entries)
            n /= m_groups.group;
        return entries;
    }
    void grow(const Counts& entries) {
        for (std::size_t h = 0; h < m_sizes.size(); ++h)
            m_sizes[h].insert(m_sizes[h].end(), static_cast<std::size_t>(entries[h] / m_groups.group), m_groups.group);
    }
    bool whole() const {
        for (const Counts& sizes : m_sizes)
            for (const std::int32_t size : sizes)
                if (size != m_groups.group) return false;
        return true;
    }
    std::int64_t emptyGroups() const { // that steps left behind
        std::int64_t empty = 0;
        for (const Counts& sizes : m_sizes)
            empty += std::count(sizes.begin(), sizes.end(), 0);
        return empty;
    }
    void dropEmptyGroups() {
        Kept kept(m_sizes.size());
        for (std::size_t h = 0; h < m_sizes.size(); ++h) {
            for (std::size_t g = 0; g < m_sizes[h].size(); ++g)
                if (m_sizes[h][g] > 0) kept[h].push_back(static_cast<std::int32_t>(g));
            std::erase(m_sizes[h], 0);
        }
        m_parameters.keep(kept);
        m_current = false;
    }
    void describeByEnds(bool byEnds) {
        m_layout += byEnds != m_byEnds;
        m_byEnds = byEnds;
    }
    const at::Tensor& ends() const { // [H, capacity of the parameters] int32, where each group's entries end
        const std::int64_t capacity = m_parameters.capacity();
        if (m_current && m_ends.size(1) == capacity) return m_ends;
        at::Tensor ends = at::full({static_cast<std::int64_t>(m_sizes.size()), capacity}, Never, at::kInt);
        for (std::size_t h = 0; h < m_sizes.size(); ++h)
            std::partial_sum(m_sizes[h].begin(), m_sizes[h].end(), ends.data_ptr<std::int32_t>() + static_cast<std::int64_t>(h) * capacity);
        if (m_ends.defined() && m_ends.size(1) == capacity) {
            m_ends.copy_(ends);
        } else {
            m_ends = ends.to(m_device);
            ++m_layout;
        }
        m_current = true;
        return m_ends;
    }

    GroupShape m_groups;
    at::Device m_device;
    StoredRows m_codes;          // [packedBytes] an entry
    StoredRows m_parameters;     // scale [D], zero [D] a group
    std::int64_t m_groupBytes;   // of these
    std::vector<Counts> m_sizes; // per head: entries left of each group
    bool m_byEnds = false;       // groups may be smaller than they were
    mutable at::Tensor m_ends;
    mutable bool m_current = false; // m_ends tells of all groups
    mutable std::uint64_t m_layout = 0;
};

} // namespace

std::unique_ptr<PackedPart> packedByChannel(const SideShape& shape, const GroupShape& groups) {
    return std::make_unique<ByChannel>(shape, groups);
}

} // namespace keepsight
