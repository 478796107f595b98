#include "engine/cache/stored_parts.h"

#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>

namespace keepsight {
namespace {

constexpr std::int32_t MostForNone = 256; // rows that a step gets ready to pack though it may be no head's turn

} // namespace

Counts ResidualRule::operator()(Counts tail, bool afterPrefill) const {
    const bool all = when == When::always || (afterPrefill && (when == When::prompt || when == When::gathered)) ||
                     (when == When::gathered && longest(tail) >= residual);
    for (std::int32_t& n : tail)
        n = all ? n : when == When::blocks ? n - n % residual : when == When::older ? std::max(0, n - residual) : 0;
    return tail;
}

at::Tensor ResidualRule::operator()(const at::Tensor& tail) const {
    switch (when) {
    case When::always:
        return tail.clone();
    case When::prompt:
        return at::zeros_like(tail);
    case When::gathered:
        return tail * (tail.max() >= residual);
    case When::blocks:
        return tail - tail.remainder(residual);
    case When::older:
        break;
    }
    return (tail - residual).clamp_min_(0);
}

std::int32_t ResidualRule::mostAtOnce() const {
    return when == When::always || when == When::older ? 1 : when == When::prompt ? 0 : residual;
}

std::int32_t ResidualRule::longestTail() const {
    return when == When::always ? 1 : when == When::prompt ? std::numeric_limits<std::int32_t>::max() : when == When::older ? residual + 1 : residual;
}

StoredParts::StoredParts(const SideShape& shape, std::unique_ptr<PackedPart> packed, const ResidualRule& rule, int first)
    : m_shape(shape), m_first(shape.kvHeads, {{{shape.headDim}, shape.dtype}}, shape.device),
      m_tail(shape.kvHeads, {{{shape.headDim}, shape.dtype}}, shape.device), m_packed(std::move(packed)), m_rule(rule),
      m_room(static_cast<std::size_t>(shape.kvHeads), first) {}

void StoredParts::append(const at::Tensor& x) { append(x, Counts(m_room.size(), static_cast<std::int32_t>(x.size(1)))); }

void StoredParts::append(const at::Tensor& x, const std::vector<std::int32_t>& counts) {
    if (x.dim() != 3 || x.size(0) != m_shape.kvHeads || x.size(2) != m_shape.headDim || counts.size() != m_room.size() ||
        longest(counts) > x.size(1))
        throw EngineError("quantizer: expected entries [" + std::to_string(m_shape.kvHeads) + ", ≥ " + std::to_string(longest(counts)) +
                          ", " + std::to_string(m_shape.headDim) + "], found " + c10::str(x.sizes()));
    if (m_step && (x.size(1) != 1 || !even(counts))) m_step.reset(); // not the step that was announced
    m_tail.append({x.to(m_shape.dtype)}, counts);
}

void StoredParts::settle(bool afterPrefill) {
    if (m_step && !afterPrefill) return settleStep();
    m_step.reset();
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
    m_step.reset(); // the host evicts
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

ops::PackedSide StoredParts::packedView() const {
    ops::PackedSide side;
    if (m_packed) m_packed->view(side);
    if (m_first.capacity() > 0) side.first = m_first.column(0);
    side.tail = m_tail.column(0);
    const at::Tensor& tail = m_tail.lengths();
    side.counts = at::stack({m_first.lengths(), m_packed ? m_packed->lengths() : at::zeros_like(tail), tail});
    return side;
}

std::optional<std::string> StoredParts::nextStep(bool drops) {
    m_step.reset();
    m_evicts |= drops;
    Counts tail = m_tail.held();
    for (std::int32_t& n : tail)
        ++n;
    if (longest(m_room) > 0 || longest(tail) > m_rule.longestTail()) return std::nullopt;
    const Counts ripe = m_packed ? m_rule(tail, false) : Counts(tail.size(), 0);
    Step step{longest(ripe), !drops && even(ripe), m_rule.when == ResidualRule::When::older, drops, false};
    // Uneven heads pack at different steps, and those of other layers again at others; where entries go, heads are even now and then. If each were a kind
    // of its own, few steps would ever be replayed: all do the work, for the heads whose turn it is.
    const std::int32_t most = m_rule.mostAtOnce();
    if (m_packed && (m_evicts || !even(tail)) && most <= MostForNone) step.packs = most, step.alike = false;
    if (m_packed) m_packed->reserve(step.packs, drops);
    m_first.reserve(0);
    m_tail.reserve(std::max<std::int64_t>(1, step.packs - longest(m_tail.held())), m_rule.longestTail());
    m_step = step;
    std::string key = drops ? "drops " : "";
    if (step.packs > 0) key += (step.alike ? "packs " : "packs up to ") + std::to_string(step.packs);
    return key;
}

// What settle() does, by the device's counts.
void StoredParts::settleStep() {
    const Step step = *m_step;
    if (step.packs > 0) {
        const StepRows ripe{step.packs, step.alike ? at::Tensor() : m_rule(m_tail.lengths())};
        m_packed->addStep(m_tail.column(0).narrow(1, 0, step.packs).to(at::kFloat), ripe);
        m_tail.dropStep(ripe, step.leavesRows);
    }
    if (!step.dropped) countSettled();
}

// The same on the host.
void StoredParts::countSettled() {
    m_step.reset();
    if (!m_packed) return;
    const Counts ripe = m_rule(m_tail.held(), false);
    if (longest(ripe) == 0) return;
    m_packed->countAdded(ripe);
    m_tail.count(negative(ripe));
}

void StoredParts::countReplayed() {
    m_tail.count(Counts(m_room.size(), 1));
    if (!m_step || !m_step->drops) countSettled();
}

void StoredParts::dropEntries(const at::Tensor& entries) {
    if (!m_step || !m_step->drops) throw EngineError("quantizer: expected nextStep() to announce that entries go without the host");
    m_step->dropped = true;
    const at::Tensor behindFirst = entries - m_first.lengths().unsqueeze(1), behindCodes = m_packed ? behindFirst - m_packed->lengths().unsqueeze(1) : behindFirst;
    m_first.dropEntries(entries);
    if (m_packed) m_packed->dropEntries(behindFirst);
    m_tail.dropEntries(behindCodes);
}

void StoredParts::countDropped(const Gone& entries) {
    if (!m_step) return; // the host chose after all
    Counts first(entries.size(), 0), tail(entries.size(), 0);
    Gone codes(entries.size());
    const Counts packed = this->packed();
    for (std::size_t h = 0; h < entries.size(); ++h)
        for (const std::int32_t entry : entries[h]) {
            const std::int32_t behindFirst = entry - m_first.held()[h], behindCodes = behindFirst - packed[h];
            if (entry < 0 || behindCodes >= m_tail.held()[h]) continue;
            if (behindFirst < 0)
                --first[h];
            else if (behindCodes < 0)
                codes[h].push_back(behindFirst);
            else
                --tail[h];
        }
    m_first.count(first);
    if (m_packed) m_packed->countDropped(codes);
    m_tail.count(tail);
    countSettled();
}

std::uint64_t StoredParts::layout() const { return m_first.layout() + m_tail.layout() + (m_packed ? m_packed->layout() : 0); }

std::vector<std::int32_t> StoredParts::packed() const { return m_packed ? m_packed->held() : Counts(m_room.size(), 0); }
std::int64_t StoredParts::storedBytes() const {
    return m_first.storedBytes() + m_tail.storedBytes() + (m_packed ? m_packed->storedBytes() : 0);
}
std::int64_t StoredParts::allocatedBytes() const {
    return m_first.allocatedBytes() + m_tail.allocatedBytes() + (m_packed ? m_packed->allocatedBytes() : 0);
}

std::unique_ptr<StoredParts> StoredParts::alias() const {
    auto other = std::make_unique<StoredParts>(m_shape, m_packed ? m_packed->alias() : nullptr, m_rule);
    other->m_first = m_first, other->m_tail = m_tail;
    other->m_room = m_room, other->m_evicts = m_evicts, other->m_step = m_step;
    return other;
}

std::unique_ptr<StoredSide> storedPlain(const SideShape& shape) { return std::make_unique<StoredParts>(shape, nullptr, ResidualRule{}); }

} // namespace keepsight
