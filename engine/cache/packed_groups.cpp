#include "engine/cache/packed_groups.h"

#include "engine/cache/packed_rows.h"
#include "kernels/bind/ops.h"
#include "kernels/quant.h"

#include <ATen/ATen.h>

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

class ByToken final : public PackedByRow { // codes, scale [D/g], zero [D/g]
public:
    ByToken(const SideShape& shape, const GroupShape& groups)
        : PackedByRow(shape, {{{packedBytes(shape.headDim, groups.bits)}, at::kByte},
                              {{shape.headDim / groups.group}, at::kHalf},
                              {{shape.headDim / groups.group}, at::kHalf}}),
          m_groups(groups) {}

    std::unique_ptr<PackedPart> alias() const override { return std::make_unique<ByToken>(*this); }
    void read(at::Tensor& out, const Counts& offsets) const override {
        ops::dequantize_entries(out, m_rows.column(0), m_groups.bits, m_rows.column(1), m_rows.column(2), {}, {}, wide(held()),
                                wide(offsets));
    }
    void view(ops::PackedSide& side) const override {
        if (m_rows.capacity() == 0) return;
        side.codes = m_rows.column(0), side.scale = m_rows.column(1), side.zero = m_rows.column(2);
        side.bits = m_groups.bits;
    }

private:
    std::vector<at::Tensor> rowsOf(const at::Tensor& x) const override {
        const ops::PackedRows rows = ops::pack_groups(x, m_groups.bits, m_groups.group, m_groups.leastScale);
        return {rows.codes, rows.scale, rows.zero};
    }

    GroupShape m_groups;
};

} // namespace

std::unique_ptr<PackedPart> packedByToken(const SideShape& shape, const GroupShape& groups) {
    return std::make_unique<ByToken>(shape, groups);
}

} // namespace keepsight
