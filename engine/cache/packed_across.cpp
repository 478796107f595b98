#include "engine/cache/packed_groups.h"

#include "kernels/bind/ops.h"

#include <ATen/ATen.h>

namespace keepsight {
namespace {

class Across final : public PackedPart {
public:
    Across(const SideShape& shape, const GroupShape& groups)
        : m_shape(shape), m_groups(groups), m_held(static_cast<std::size_t>(shape.kvHeads), 0),
          m_lengths(at::zeros({shape.kvHeads}, at::TensorOptions().dtype(at::kInt).device(shape.device))) {}

    std::unique_ptr<PackedPart> alias() const override { return std::make_unique<Across>(*this); }
    void add(const at::Tensor& x, const Counts& counts) override {
        const at::Tensor old = rows();
        std::vector<at::Tensor> parts;
        std::int64_t begin = 0;
        for (std::size_t h = 0; h < m_held.size(); ++h) {
            if (m_held[h]) parts.push_back(old.narrow(0, begin, m_held[h]));
            if (counts[h]) parts.push_back(x.select(0, static_cast<std::int64_t>(h)).narrow(0, 0, counts[h]));
            begin += m_held[h];
        }
        count(sum(m_held, counts));
        encode(at::cat(parts, 0));
    }
    void keep(const Kept& kept) override {
        std::vector<std::int64_t> index;
        std::int64_t begin = 0;
        Counts counts;
        for (std::size_t h = 0; h < m_held.size(); ++h) {
            for (const std::int32_t r : kept[h])
                index.push_back(begin + r);
            counts.push_back(static_cast<std::int32_t>(kept[h].size()));
            begin += m_held[h];
        }
        if (counts == m_held) return;
        const at::Tensor old = rows();
        count(counts);
        encode(old.index_select(0, at::tensor(at::IntArrayRef(index), at::kLong).to(m_shape.device)));
    }
    void read(at::Tensor& out, const Counts& offsets) const override {
        const at::Tensor all = rows();
        if (even(m_held)) return placeRows(out, all.view({m_shape.kvHeads, m_held.front(), m_shape.headDim}), m_held, offsets);
        std::int64_t begin = 0;
        for (std::size_t h = 0; h < m_held.size(); ++h) {
            out.select(0, static_cast<std::int64_t>(h)).narrow(0, offsets[h], m_held[h]).copy_(all.narrow(0, begin, m_held[h]));
            begin += m_held[h];
        }
    }
    void view(ops::PackedSide& side) const override {
        side.codes = m_codes, side.scale = m_scale, side.zero = m_zero;
        side.bits = m_groups.bits, side.across = acrossHeads();
    }
    bool acrossHeads() const override { return m_codes.defined(); }
    const at::Tensor& lengths() const override { return m_lengths; }
    std::uint64_t layout() const override { return m_layout; }
    // How many values there are decides which share a group and where all of them lie: the host has to know what came and went.
    bool reserve(std::int64_t more, bool drops) override { return more == 0 && !drops; }
    const Counts& held() const override { return m_held; }
    std::int64_t storedBytes() const override {
        return m_codes.defined() ? static_cast<std::int64_t>(m_codes.nbytes() + m_scale.nbytes() + m_zero.nbytes()) : 0;
    }
    std::int64_t allocatedBytes() const override { return storedBytes(); }

private:
    void count(const Counts& held) {
        m_held = held;
        m_lengths.copy_(onDevice(held, m_shape.device));
    }
    // The values as [group, numel/group]: a column is a group, and the operator sees one head with `group` entries and one row of scales.
    void encode(const at::Tensor& rows) { // [entries, D] fp32
        m_codes = m_scale = m_zero = at::Tensor();
        ++m_layout;
        if (rows.numel() == 0) return;
        const at::Tensor table = rows.reshape({1, m_groups.group, rows.numel() / m_groups.group});
        const auto [low, high] = at::aminmax(table, 1, true);
        const Affine a = affine(low, high, m_groups.bits, m_groups.leastScale);
        m_codes = ops::pack_codes(codes(table, a.scale, a.zero, m_groups.bits), m_groups.bits);
        m_scale = a.scale, m_zero = a.zero;
    }
    at::Tensor rows() const { // [entries, D] fp32
        const auto options = at::TensorOptions().dtype(at::kFloat).device(m_shape.device);
        if (!m_codes.defined()) return at::empty({0, m_shape.headDim}, options);
        at::Tensor out = at::empty({1, m_groups.group, total(m_held) * m_shape.headDim / m_groups.group}, options);
        ops::dequantize_entries(out, m_codes, m_groups.bits, m_scale, m_zero, at::full({1, 1}, m_groups.group, options.dtype(at::kInt)), {},
                                {m_groups.group}, {0});
        return out.view({total(m_held), m_shape.headDim});
    }

    SideShape m_shape;
    GroupShape m_groups;
    at::Tensor m_codes;         // [1, group, packedBytes(numel/group)]
    at::Tensor m_scale, m_zero; // [1, 1, numel/group]
    Counts m_held;
    at::Tensor m_lengths; // [kvHeads] int32, held() on the device
    std::uint64_t m_layout = 0;
};

} // namespace

std::unique_ptr<PackedPart> packedAcross(const SideShape& shape, const GroupShape& groups) {
    return std::make_unique<Across>(shape, groups);
}

} // namespace keepsight
