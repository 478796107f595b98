#include "engine/cache/stored_parts.h"

#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <algorithm>

namespace keepsight {

StoredParts::StoredParts(const SideShape& shape, std::unique_ptr<PackedPart> packed, ResidualRule rule, int first)
    : m_shape(shape), m_first(shape.kvHeads, {{{shape.headDim}, shape.dtype}}, shape.device),
      m_tail(shape.kvHeads, {{{shape.headDim}, shape.dtype}}, shape.device), m_packed(std::move(packed)), m_rule(std::move(rule)),
      m_room(static_cast<std::size_t>(shape.kvHeads), first) {}

void StoredParts::append(const at::Tensor& x) { append(x, Counts(m_room.size(), static_cast<std::int32_t>(x.size(1)))); }

void StoredParts::append(const at::Tensor& x, const std::vector<std::int32_t>& counts) {
    if (x.dim() != 3 || x.size(0) != m_shape.kvHeads || x.size(2) != m_shape.headDim || counts.size() != m_room.size() ||
        longest(counts) > x.size(1))
        throw EngineError("quantizer: expected entries [" + std::to_string(m_shape.kvHeads) + ", ≥ " + std::to_string(longest(counts)) +
                          ", " + std::to_string(m_shape.headDim) + "], found " + c10::str(x.sizes()));
    m_tail.append({x.to(m_shape.dtype)}, counts);
}

void StoredParts::settle(bool afterPrefill) {
    if (!m_packed) return;
    if (longest(m_room) > 0) { // the first entries leave by the other end
        Counts move = m_room;
        for (std::size_t h = 0; h < move.size(); ++h)
            m_room[h] -= (move[h] = std::min(move[h], m_tail.held()[h]));
        if (longest(move) > 0) {
            m_first.append({m_tail.column(0)}, move);
            m_tail.drop(move);
        }
    }
    const Counts ripe = m_rule(m_tail.held(), afterPrefill);
    if (longest(ripe) == 0) return;
    m_packed->add(m_tail.column(0).narrow(1, 0, longest(ripe)).to(at::kFloat), ripe);
    m_tail.drop(ripe);
}

void StoredParts::keep(const Selection& selection) {
    const Counts &first = m_first.held(), &tail = m_tail.held(), codes = packed();
    if (selection.keep.size() != m_room.size())
        throw EngineError("quantizer: expected a selection for " + std::to_string(m_room.size()) + " heads, found " +
                          std::to_string(selection.keep.size()));
    Kept kept[3];
    for (std::size_t h = 0; h < m_room.size(); ++h) {
        const std::vector<std::int32_t>& all = selection.keep[h];
        if (!all.empty() && (all.front() < 0 || all.back() >= first[h] + codes[h] + tail[h]))
            throw EngineError("quantizer: expected entries 0 … " + std::to_string(first[h] + codes[h] + tail[h] - 1) + " of head " +
                              std::to_string(h) + ", found " + std::to_string(all.front()) + " … " + std::to_string(all.back()));
        const std::int32_t begins[] = {0, first[h], first[h] + codes[h]};
        auto from = all.begin();
        for (int part = 0; part < 3; ++part) {
            const auto end = part == 2 ? all.end() : std::lower_bound(from, all.end(), begins[part + 1]);
            std::vector<std::int32_t>& rows = kept[part].emplace_back(from, end);
            for (std::int32_t& r : rows)
                r -= begins[part];
            from = end;
        }
    }
    m_first.keep(kept[0]);
    if (m_packed) m_packed->keep(kept[1]);
    m_tail.keep(kept[2]);
}

at::Tensor StoredParts::dense(std::int64_t capacity) const {
    const Counts &first = m_first.held(), codes = packed(), behind = sum(first, codes), all = sum(behind, m_tail.held());
    if (longest(all) > capacity)
        throw EngineError("quantizer: expected room for " + std::to_string(longest(all)) + " entries, found " + std::to_string(capacity));
    at::Tensor out =
        at::empty({m_shape.kvHeads, capacity, m_shape.headDim}, at::TensorOptions().dtype(m_shape.dtype).device(m_shape.device));
    placeRows(out, m_first.column(0), first, Counts(first.size(), 0));
    if (longest(codes) > 0) m_packed->read(out, first);
    placeRows(out, m_tail.column(0), m_tail.held(), behind);
    clearBehind(out, all);
    return out;
}

std::optional<ops::PackedSide> StoredParts::packedView() const {
    ops::PackedSide side;
    if (m_packed && !m_packed->view(side)) return std::nullopt;
    if (longest(m_first.held()) > 0) side.first = m_first.column(0);
    side.tail = m_tail.column(0);
    const at::Tensor tail = m_tail.lengths();
    side.counts = at::stack({m_first.lengths(), m_packed ? m_packed->lengths() : at::zeros_like(tail), tail});
    if (longest(packed()) == 0) side.codes = side.scale = side.zero = at::Tensor();
    return side;
}

std::optional<std::string> StoredParts::nextStep() {
    ops::PackedSide side;
    if (longest(m_room) > 0 || !even(m_tail.held()) || (m_packed && !m_packed->view(side))) return std::nullopt;
    Counts tail = m_tail.held();
    for (std::int32_t& n : tail)
        ++n;
    const Counts ripe = m_packed ? m_rule(tail, false) : Counts(tail.size(), 0);
    const std::int32_t leaves = longest(ripe);
    if (leaves > 1 || !even(ripe) || (leaves == 1 && (longest(packed()) == 0 || !m_packed->reserve(1)))) return std::nullopt;
    m_tail.reserve(1);
    return leaves == 0 ? "" : "packs one of " + std::to_string(tail.front());
}

void StoredParts::countReplayed() {
    m_tail.count(1);
    const std::int32_t leaves = m_packed ? longest(m_rule(m_tail.held(), false)) : 0;
    if (leaves == 0) return;
    m_packed->countAdded(leaves);
    m_tail.count(-leaves);
}

std::uint64_t StoredParts::layout() const { return m_first.layout() + m_tail.layout() + (m_packed ? m_packed->layout() : 0); }

std::vector<std::int32_t> StoredParts::packed() const { return m_packed ? m_packed->held() : Counts(m_room.size(), 0); }
std::int64_t StoredParts::storedBytes() const {
    return m_first.storedBytes() + m_tail.storedBytes() + (m_packed ? m_packed->storedBytes() : 0);
}
std::int64_t StoredParts::allocatedBytes() const {
    return m_first.allocatedBytes() + m_tail.allocatedBytes() + (m_packed ? m_packed->allocatedBytes() : 0);
}

std::unique_ptr<StoredSide> storedPlain(const SideShape& shape) { return std::make_unique<StoredParts>(shape, nullptr, nullptr); }

} // namespace keepsight
