#include "engine/cache/packed_groups.h"

#include "engine/data/error.h"
#include "kernels/bind/ops.h"
#include "kernels/quant.h"

#include <ATen/ATen.h>
#include <limits>

namespace keepsight {

double groupedBits(int headDim, const GroupShape& groups) {
    return 8.0 * static_cast<double>(packedBytes(headDim, groups.bits)) / headDim + 32.0 / groups.group;
}

std::string groupRefusal(const std::string& id, int group, int headDim) {
    if (headDim % group == 0) return {};
    return id + ": groups of " + std::to_string(group) + " values do not divide the model's head size " + std::to_string(headDim);
}

at::ScalarType exactType(at::ScalarType model) { return model == at::kBFloat16 ? at::kBFloat16 : at::kHalf; }

namespace {

class ByToken final : public PackedPart {
public:
    ByToken(const SideShape& shape, const GroupShape& groups)
        : m_groups(groups), m_perRow(shape.headDim / groups.group),
          m_rows(shape.kvHeads, {{{packedBytes(shape.headDim, groups.bits)}, at::kByte}, {{m_perRow}, at::kHalf}, {{m_perRow}, at::kHalf}},
                 shape.device) {}

    void add(const at::Tensor& x, const Counts& counts) override {
        const ops::PackedRows rows = ops::pack_groups(x, m_groups.bits, m_groups.group, m_groups.leastScale);
        m_rows.append({rows.codes, rows.scale, rows.zero}, counts);
    }
    void keep(const Kept& kept) override { m_rows.keep(kept); }
    void read(at::Tensor& out, const Counts& offsets) const override {
        ops::dequantize_entries(out, m_rows.column(0), m_groups.bits, m_rows.column(1), m_rows.column(2), {}, {}, wide(held()),
                                wide(offsets));
    }
    bool view(ops::PackedSide& side) const override {
        side.codes = m_rows.column(0), side.scale = m_rows.column(1), side.zero = m_rows.column(2);
        side.bits = m_groups.bits, side.groupTokens = 1;
        return m_groups.bits != 3;
    }
    at::Tensor lengths() const override { return m_rows.lengths(); }
    bool reserve(std::int64_t more) override {
        m_rows.reserve(more);
        return true;
    }
    void countAdded(std::int32_t more) override { m_rows.count(more); }
    std::uint64_t layout() const override { return m_rows.layout(); }
    const Counts& held() const override { return m_rows.held(); }
    std::int64_t storedBytes() const override { return m_rows.storedBytes(); }
    std::int64_t allocatedBytes() const override { return m_rows.allocatedBytes(); }

private:
    GroupShape m_groups;
    std::int64_t m_perRow;
    StoredRows m_rows; // codes, scale [D/g], zero [D/g]
};

class ByChannel final : public PackedPart {
public:
    ByChannel(const SideShape& shape, const GroupShape& groups)
        : m_groups(groups), m_device(shape.device),
          m_codes(shape.kvHeads, {{{packedBytes(shape.headDim, groups.bits)}, at::kByte}}, shape.device),
          m_parameters(shape.kvHeads, {{{shape.headDim}, at::kHalf}, {{shape.headDim}, at::kHalf}}, shape.device),
          m_sizes(static_cast<std::size_t>(shape.kvHeads)) {}

    void add(const at::Tensor& x, const Counts& counts) override {
        Counts added = counts; // groups
        for (std::int32_t& n : added)
            n /= m_groups.group;
        const at::Tensor grouped = x.unflatten(1, {x.size(1) / m_groups.group, m_groups.group}); // [H, S/g, g, D]
        const auto [low, high] = at::aminmax(grouped, 2, true);
        const Affine a = affine(low, high, m_groups.bits, m_groups.leastScale);
        m_codes.append({ops::pack_codes(codes(grouped, a.scale, a.zero, m_groups.bits).flatten(1, 2), m_groups.bits)}, counts);
        m_parameters.append({a.scale.squeeze(2), a.zero.squeeze(2)}, added);
        for (std::size_t h = 0; h < m_sizes.size(); ++h)
            m_sizes[h].insert(m_sizes[h].end(), static_cast<std::size_t>(added[h]), m_groups.group);
        m_ends.reset();
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
                m_whole &= sizes.back() == m_groups.group;
            }
            m_sizes[h] = std::move(sizes);
        }
        m_codes.keep(kept);
        m_parameters.keep(groups);
        m_ends.reset();
    }
    void read(at::Tensor& out, const Counts& offsets) const override {
        ops::dequantize_entries(out, m_codes.column(0), m_groups.bits, m_parameters.column(0), m_parameters.column(1), ends(), {},
                                wide(held()), wide(offsets));
    }
    bool view(ops::PackedSide& side) const override {
        side.codes = m_codes.column(0), side.scale = m_parameters.column(0), side.zero = m_parameters.column(1);
        side.bits = m_groups.bits, side.groupTokens = m_groups.group;
        return m_whole && m_groups.bits != 3;
    }
    at::Tensor lengths() const override { return m_codes.lengths(); }
    std::uint64_t layout() const override { return m_codes.layout() + m_parameters.layout(); }
    const Counts& held() const override { return m_codes.held(); }
    std::int64_t storedBytes() const override { return m_codes.storedBytes() + m_parameters.storedBytes(); }
    std::int64_t allocatedBytes() const override {
        return m_codes.allocatedBytes() + m_parameters.allocatedBytes() +
               (m_ends.defined() ? static_cast<std::int64_t>(m_ends.nbytes()) : 0);
    }

private:
    const at::Tensor& ends() const { // [H, groups] int32, where each group's entries end
        if (m_ends.defined()) return m_ends;
        const auto heads = static_cast<std::int64_t>(m_sizes.size());
        at::Tensor ends = at::full({heads, longest(m_parameters.held())}, std::numeric_limits<std::int32_t>::max(), at::kInt);
        for (std::size_t h = 0; h < m_sizes.size(); ++h) {
            std::int32_t* row = ends.data_ptr<std::int32_t>() + static_cast<std::int64_t>(h) * ends.size(1);
            std::int32_t end = 0;
            for (const std::int32_t size : m_sizes[h])
                *row++ = end += size;
        }
        return m_ends = ends.to(m_device);
    }

    GroupShape m_groups;
    at::Device m_device;
    StoredRows m_codes;          // [packedBytes] an entry
    StoredRows m_parameters;     // scale [D], zero [D] a group
    std::vector<Counts> m_sizes; // per head: entries left of each group
    bool m_whole = true;         // no group has lost an entry and stayed
    mutable at::Tensor m_ends;   // made when read
};

class Across final : public PackedPart {
public:
    Across(const SideShape& shape, const GroupShape& groups)
        : m_shape(shape), m_groups(groups), m_held(static_cast<std::size_t>(shape.kvHeads), 0) {}

    void add(const at::Tensor& x, const Counts& counts) override {
        const at::Tensor old = rows();
        std::vector<at::Tensor> parts;
        std::int64_t begin = 0;
        for (std::size_t h = 0; h < m_held.size(); ++h) {
            if (m_held[h]) parts.push_back(old.narrow(0, begin, m_held[h]));
            if (counts[h]) parts.push_back(x.select(0, static_cast<std::int64_t>(h)).narrow(0, 0, counts[h]));
            begin += m_held[h];
        }
        m_held = sum(m_held, counts);
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
        m_held = counts;
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
    const Counts& held() const override { return m_held; }
    std::int64_t storedBytes() const override {
        return m_codes.defined() ? static_cast<std::int64_t>(m_codes.nbytes() + m_scale.nbytes() + m_zero.nbytes()) : 0;
    }
    std::int64_t allocatedBytes() const override { return storedBytes(); }

private:
    // The values as [group, numel/group]: a column is a group, and the operator sees one head with `group` entries and one row of scales.
    void encode(const at::Tensor& rows) { // [entries, D] fp32
        m_codes = m_scale = m_zero = at::Tensor();
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
};

class Beside final : public PackedPart {
public:
    Beside(const SideShape& shape, std::unique_ptr<PackedPart> rest, OutlierTest isOutlier)
        : m_shape(shape), m_rest(std::move(rest)), m_isOutlier(std::move(isOutlier)),
          m_places(at::empty({0}, at::TensorOptions().dtype(at::kInt).device(shape.device))),
          m_values(at::empty({0}, m_places.options().dtype(exactType(shape.dtype)))) {}

    void add(const at::Tensor& x, const Counts& counts) override {
        const std::int64_t heads = m_shape.kvHeads, dim = m_shape.headDim;
        if ((longest(held()) + x.size(1)) * heads * dim > std::numeric_limits<std::int32_t>::max())
            throw EngineError("quantizer: expected fewer than 2^31 values in a layer, found " +
                              std::to_string((longest(held()) + x.size(1)) * heads * dim) + "; use a shorter text");
        at::Tensor outlier = m_isOutlier(x);
        if (!even(counts)) { // rows behind a head's count are rubbish
            const at::Tensor row = at::arange(x.size(1), x.options().dtype(at::kLong)).view({1, -1, 1});
            outlier.logical_and_(row < at::tensor(at::IntArrayRef(wide(counts)), at::kLong).to(x.device()).view({-1, 1, 1}));
        }
        const at::Tensor found = outlier.nonzero(); // [n, 3]: head, entry, channel
        const at::Tensor head = found.select(1, 0), behind = at::tensor(at::IntArrayRef(wide(held())), at::kLong).to(x.device());
        const at::Tensor entry = found.select(1, 1) + behind.index_select(0, head);
        m_places = at::cat({m_places, ((entry * heads + head) * dim + found.select(1, 2)).to(at::kInt)});
        m_values = at::cat({m_values, exact(x.masked_select(outlier), m_values.scalar_type())}); // the same order as nonzero
        m_rest->add(x.masked_fill(outlier, 0), counts);
    }
    void keep(const Kept& kept) override {
        const std::int64_t heads = m_shape.kvHeads, most = longest(held());
        if (m_places.numel() > 0) {
            at::Tensor moved = at::full({most, heads}, -1, at::kLong); // entry → its place among the kept
            auto to = moved.accessor<std::int64_t, 2>();
            for (std::size_t h = 0; h < kept.size(); ++h)
                for (std::size_t i = 0; i < kept[h].size(); ++i)
                    to[kept[h][i]][static_cast<std::int64_t>(h)] = static_cast<std::int64_t>(i);
            const at::Tensor row = m_places.floor_divide(m_shape.headDim).to(at::kLong); // entry · heads + head
            const at::Tensor entry = moved.to(m_shape.device).view({-1}).index_select(0, row), stays = entry >= 0;
            const at::Tensor places = (entry * heads + row.remainder(heads)) * m_shape.headDim + m_places.remainder(m_shape.headDim);
            m_places = places.masked_select(stays).to(at::kInt);
            m_values = m_values.masked_select(stays);
        }
        m_rest->keep(kept);
    }
    void read(at::Tensor& out, const Counts& offsets) const override {
        m_rest->read(out, offsets);
        if (m_places.numel() == 0) return;
        const at::Tensor places = m_places.to(at::kLong), row = places.floor_divide(m_shape.headDim), head = row.remainder(m_shape.kvHeads);
        std::vector<std::int64_t> begins = wide(offsets); // row of out, all heads behind each other, where a head's codes begin
        for (std::size_t h = 0; h < begins.size(); ++h)
            begins[h] += static_cast<std::int64_t>(h) * out.size(1);
        const at::Tensor to =
            row.floor_divide(m_shape.kvHeads) + at::tensor(at::IntArrayRef(begins), at::kLong).to(out.device()).index_select(0, head);
        out.view({-1}).index_copy_(0, to * m_shape.headDim + places.remainder(m_shape.headDim), m_values.to(out.scalar_type()));
    }
    const Counts& held() const override { return m_rest->held(); }
    std::int64_t storedBytes() const override {
        return m_rest->storedBytes() + static_cast<std::int64_t>(m_places.nbytes() + m_values.nbytes());
    }
    std::int64_t allocatedBytes() const override {
        return m_rest->allocatedBytes() + static_cast<std::int64_t>(m_places.nbytes() + m_values.nbytes());
    }

private:
    SideShape m_shape;
    std::unique_ptr<PackedPart> m_rest;
    OutlierTest m_isOutlier;
    at::Tensor m_places; // [n] int32: (entry · kvHeads + head) · headDim + channel
    at::Tensor m_values; // [n]
};

} // namespace

std::unique_ptr<PackedPart> packedByToken(const SideShape& shape, const GroupShape& groups) {
    return std::make_unique<ByToken>(shape, groups);
}
std::unique_ptr<PackedPart> packedByChannel(const SideShape& shape, const GroupShape& groups) {
    return std::make_unique<ByChannel>(shape, groups);
}
std::unique_ptr<PackedPart> packedAcross(const SideShape& shape, const GroupShape& groups) {
    return std::make_unique<Across>(shape, groups);
}
std::unique_ptr<PackedPart> packedBeside(const SideShape& shape, std::unique_ptr<PackedPart> rest, OutlierTest isOutlier) {
    return std::make_unique<Beside>(shape, std::move(rest), std::move(isOutlier));
}

} // namespace keepsight
