#include "engine/cache/packed_groups.h"

#include "engine/data/error.h"

#include <ATen/ATen.h>
#include <limits>

namespace keepsight {
namespace {

// Outliers of each head in the order of their places, entry · headDim + channel. What steps add and take off only the device counts; the host asks when
// it must know. The last place of a row is nobody's: steps write there what is no outlier.
class Beside final : public PackedPart {
public:
    Beside(const SideShape& shape, std::unique_ptr<PackedPart> rest, OutlierTest isOutlier)
        : m_dim(shape.headDim), m_rest(std::move(rest)), m_isOutlier(std::move(isOutlier)),
          m_places(at::empty({shape.kvHeads, 0}, at::TensorOptions().dtype(at::kInt).device(shape.device))),
          m_values(at::empty({shape.kvHeads, 0}, m_places.options().dtype(exactType(shape.dtype)))),
          m_counts(at::zeros({shape.kvHeads}, m_places.options())), m_known(static_cast<std::size_t>(shape.kvHeads), 0) {}
    Beside(const Beside& other)
        : m_dim(other.m_dim), m_rest(other.m_rest->alias()), m_isOutlier(other.m_isOutlier), m_places(other.m_places), m_values(other.m_values),
          m_counts(other.m_counts), m_known(other.m_known), m_exact(other.m_exact), m_unknown(other.m_unknown), m_layout(other.m_layout) {}

    std::unique_ptr<PackedPart> alias() const override { return std::make_unique<Beside>(*this); }
    void add(const at::Tensor& x, const Counts& counts) override {
        checkRoom(x.size(1));
        at::Tensor outlier = m_isOutlier(x);
        if (!even(counts)) outlier.logical_and_(within(x.size(1), onDevice(counts, x.device())).unsqueeze(2));
        const Counts found = asked(outlier.sum(at::IntArrayRef{1, 2}, false, at::kInt));
        makeRoom(sum(this->counts(), found), 0);
        append(placesOf(x).masked_select(outlier), exact(x.masked_select(outlier), m_values.scalar_type()), found);
        m_rest->add(x.masked_fill(outlier, 0), counts);
    }
    void keep(const Kept& kept) override {
        if (longest(counts()) > 0) {
            const std::int64_t heads = m_places.size(0);
            at::Tensor moved = at::full({heads, longest(held())}, -1, at::kInt); // entry → its place among the kept
            for (std::size_t h = 0; h < kept.size(); ++h)
                for (std::size_t i = 0; i < kept[h].size(); ++i)
                    moved.data_ptr<std::int32_t>()[static_cast<std::int64_t>(h) * moved.size(1) + kept[h][i]] = static_cast<std::int32_t>(i);
            const at::Tensor places = m_places.narrow(1, 0, longest(m_known)), real = within(places.size(1), m_counts);
            const at::Tensor entry = moved.to(places.device()).gather(1, places.floor_divide(m_dim).masked_fill_(real.logical_not(), 0).to(at::kLong));
            const at::Tensor stays = (entry >= 0).logical_and_(real);
            const at::Tensor left = (entry * m_dim + places.remainder(m_dim)).masked_select(stays),
                             values = m_values.narrow(1, 0, places.size(1)).masked_select(stays);
            const Counts found = asked(stays.sum(at::IntArrayRef{1}, false, at::kInt));
            m_known.assign(m_known.size(), 0);
            if (roomFor(longest(found)) * 4 <= m_places.size(1) * 3) reallocate(0), makeRoom(found, 0);
            append(left, values, found);
        }
        m_rest->keep(kept);
    }
    void read(at::Tensor& out, const Counts& offsets) const override {
        m_rest->read(out, offsets);
        const std::int64_t most = longest(counts());
        if (most == 0) return;
        std::vector<std::int64_t> begins = wide(offsets); // value of out where a head's codes begin
        for (std::size_t h = 0; h < begins.size(); ++h)
            begins[h] = (begins[h] + static_cast<std::int64_t>(h) * out.size(1)) * m_dim;
        const at::Tensor begin = at::tensor(at::IntArrayRef(begins), at::kLong).to(out.device()).unsqueeze(1), real = within(most, m_counts);
        const at::Tensor to = (m_places.narrow(1, 0, most) + begin).masked_select(real);
        out.view({-1}).index_copy_(0, to, m_values.narrow(1, 0, most).masked_select(real).to(out.scalar_type()));
    }
    void view(ops::PackedSide& side) const override {
        m_rest->view(side);
        if (m_places.size(1) > 0) side.exact = m_values, side.places = m_places, side.exactCounts = m_counts;
    }
    bool acrossHeads() const override { return m_rest->acrossHeads(); }
    const at::Tensor& lengths() const override { return m_rest->lengths(); }
    std::uint64_t layout() const override { return m_rest->layout() + m_layout; }
    const Counts& held() const override { return m_rest->held(); }
    std::int64_t storedBytes() const override {
        return m_rest->storedBytes() + total(counts()) * static_cast<std::int64_t>(m_places.element_size() + m_values.element_size());
    }
    std::int64_t allocatedBytes() const override {
        return m_rest->allocatedBytes() + static_cast<std::int64_t>(m_places.nbytes() + m_values.nbytes());
    }

    void reserve(std::int64_t more, bool drops) override {
        m_rest->reserve(more, drops);
        checkRoom(more);
        const std::int64_t fresh = more * m_dim;
        if (roomFor(longest(m_known) + m_unknown + fresh) > m_places.size(1)) makeRoom(counts(), fresh);
    }
    void addStep(const at::Tensor& x, const StepRows& added) override {
        ops::BesideValues beside{m_places, m_values, m_counts};
        const std::optional<at::Tensor> outliers = m_isOutlier.of ? std::optional(m_isOutlier.of(x)) : std::nullopt;
        m_rest->addStep(ops::add_beside(beside, lengths(), x, outliers, m_isOutlier.threshold, added.counts.defined() ? std::optional(added.counts) : std::nullopt), added);
    }
    void dropEntries(const at::Tensor& entries) override {
        if (m_places.size(1) > 0) {
            ops::BesideValues beside{m_places, m_values, m_counts};
            ops::drop_beside(beside, entries, m_dim);
        }
        m_rest->dropEntries(entries);
    }
    void countAdded(const Counts& more) override {
        m_rest->countAdded(more);
        m_unknown += longest(more) * m_dim;
        m_exact = false;
    }
    void countDropped(const Gone& entries) override {
        m_rest->countDropped(entries);
        m_exact = false;
    }

private:
    static constexpr std::int64_t SlackRows = 32; // of nothing but outliers: steps until the host must ask

    void checkRoom(std::int64_t more) const {
        if ((longest(held()) + more) * m_dim <= std::numeric_limits<std::int32_t>::max()) return;
        throw EngineError("quantizer: expected fewer than 2^31 values in a head, found " + std::to_string((longest(held()) + more) * m_dim) +
                          "; use a shorter text");
    }
    static Counts asked(const at::Tensor& counts) {
        const at::Tensor host = counts.to(at::kCPU).contiguous();
        return {host.const_data_ptr<std::int32_t>(), host.const_data_ptr<std::int32_t>() + host.size(0)};
    }
    const Counts& counts() const {
        if (!m_exact) m_known = asked(m_counts), m_unknown = 0, m_exact = true;
        return m_known;
    }
    // [H, S, D] int32: places of entries to come; rows behind a head's count are rubbish.
    at::Tensor placesOf(const at::Tensor& x) const {
        const at::Tensor fresh = at::arange(x.size(1) * m_dim, m_places.options()).view({1, x.size(1), m_dim});
        return (lengths() * m_dim).view({-1, 1, 1}) + fresh;
    }
    static std::int64_t roomFor(std::int64_t outliers) { return outliers == 0 ? 0 : outliers + 1; }
    void makeRoom(const Counts& held, std::int64_t fresh) {
        const std::int64_t needed = longest(held) + fresh, slack = fresh > 0 ? SlackRows * m_dim : 0;
        if (roomFor(needed) > m_places.size(1)) reallocate(roomFor(needed + longest(m_known) / 8 + slack));
    }
    void reallocate(std::int64_t capacity) {
        for (at::Tensor* t : {&m_places, &m_values}) {
            at::Tensor other = at::zeros({t->size(0), capacity}, t->options());
            if (const std::int64_t most = longest(m_known); most > 0) other.narrow(1, 0, most).copy_(t->narrow(1, 0, most));
            *t = other;
        }
        ++m_layout;
    }
    // Those of all heads behind each other.
    void append(const at::Tensor& places, const at::Tensor& values, const Counts& found) {
        std::int64_t begin = 0;
        for (std::size_t h = 0; h < found.size(); ++h) {
            const auto head = static_cast<std::int64_t>(h);
            m_places[head].narrow(0, m_known[h], found[h]).copy_(places.narrow(0, begin, found[h]));
            m_values[head].narrow(0, m_known[h], found[h]).copy_(values.narrow(0, begin, found[h]));
            begin += found[h];
        }
        m_known = sum(m_known, found);
        m_counts.copy_(onDevice(m_known, m_counts.device()));
    }

    std::int64_t m_dim;
    std::unique_ptr<PackedPart> m_rest;
    OutlierTest m_isOutlier;
    at::Tensor m_places, m_values;      // [H, capacity]
    at::Tensor m_counts;                // [H] int32 on the device: how many there are
    mutable Counts m_known;             // the same on the host, if
    mutable bool m_exact = true;        // no step has changed it since; else, at most, with
    mutable std::int64_t m_unknown = 0; // that many of a head besides
    std::uint64_t m_layout = 0;
};

} // namespace

std::unique_ptr<PackedPart> packedBeside(const SideShape& shape, std::unique_ptr<PackedPart> rest, OutlierTest isOutlier) {
    return std::make_unique<Beside>(shape, std::move(rest), std::move(isOutlier));
}

} // namespace keepsight
