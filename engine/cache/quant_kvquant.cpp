// kvquant: keys before RoPE by channel with thresholds learnt beforehand, values by token, levels where the values are, outliers exact.
//
// Paper: KVQuant, arXiv:2401.18079. Four ideas: (1) RoPE mixes pairs of channels, so a key's channels are told apart best before it: keys
// are stored unrotated and rotated when read. (2) A share p of outliers, p/2 at each end, is kept exactly, so that the range is that of
// the rest: with l and u the outlier-free ends, x̂ = (x − (u + l)/2) / ((u − l)/2) lies in [−1, 1]. Keys: l and u per head and channel,
// quantiles of a calibration text, since a single new token has no statistics of its channels. Values: per token, found by rank as it
// comes. (3) nuq: the 2^b levels on [−1, 1] are the k-means centres of x̂, one set per layer and side (quant_levels.h). (4) The first
// token draws attention whatever it says, and is left exact. x̃ = level[c] · (u − l)/2 + (u + l)/2. There is no residual: every token is
// packed when it comes.
// levels=uniform and normalfloat are the paper's comparisons; qnorm=on moves the levels so that mean and deviation come out right (2
// bits).
// Where we differ: k-means is not weighted by the Fisher diagonal (that takes gradients). A value's token is that of one KV head, not of
// all heads together, because heads evict separately; ⌈p/2 · (headDim − 1)⌉ outliers at each end are what a quantile over it gives. There
// is no cap on key outliers per token. Ends are rounded to fp16, outliers to the model's 16-bit type or fp16. "First" means the first
// entries a head is given, so with eviction the oldest that a policy kept.
#include "kernels/quant.h"
#include "engine/cache/packed_groups.h"
#include "engine/cache/packed_rows.h"
#include "engine/cache/quant_levels.h"
#include "engine/data/error.h"
#include "engine/policy/spec.h"
#include "kernels/bind/ops.h"

#include <ATen/ATen.h>
#include <cmath>
#include <limits>

namespace keepsight {
namespace {

struct Levels {
    at::Tensor bounds; // [2^bits − 1] fp32: where codes change
    at::Tensor levels; // [2^bits] fp32: what they stand for
    Levels on(at::Device device) const { return {bounds.to(device), levels.to(device)}; }
    std::int64_t bytes() const { return static_cast<std::int64_t>(bounds.nbytes() + levels.nbytes()); }
};

struct Span {
    at::Tensor middle, half; // fp16: of the outlier-free range
};
// The same as values are laid by it, fp32.
struct Ruler {
    at::Tensor middle, half, step; // step: half, and 1 where that is 0
    explicit Ruler(const Span& span) : middle(span.middle.to(at::kFloat)), half(span.half.to(at::kFloat)), step(half.masked_fill(half == 0, 1)) {}
    at::Tensor normalised(const at::Tensor& x) const { return (x - middle).div_(step); } // outliers fall outside [−1, 1]
    at::Tensor outside(const at::Tensor& x) const { return (x - middle).abs_() > half; }
    std::int64_t bytes() const { return static_cast<std::int64_t>(middle.nbytes() + half.nbytes() + step.nbytes()); }
};
Span spanOf(const at::Tensor& low, const at::Tensor& high) {
    return {exact((low + high).div_(2), at::kHalf), exact((high - low).div_(2), at::kHalf)};
}

// The q-quantile along dimension 1, between neighbours by distance, and kept as a dimension of 1.
at::Tensor quantileOf(const at::Tensor& sorted, double q) {
    const double at = q * static_cast<double>(sorted.size(1) - 1);
    const auto below = static_cast<std::int64_t>(std::floor(at)), above = std::min(below + 1, sorted.size(1) - 1);
    return at::lerp(sorted.narrow(1, below, 1), sorted.narrow(1, above, 1), at - static_cast<double>(below));
}

// Values of a token in order, its outliers at both ends.
struct Ranked {
    at::Tensor sorted, channels;    // [H, S, D]
    std::int64_t low = 0, high = 0; // outliers at each end
    Span span;                      // [H, S, 1]
    std::int64_t inner() const { return sorted.size(2) - low - high; }
};
std::pair<std::int64_t, std::int64_t> outliersOf(std::int64_t dim, double share) {
    if (share >= 1) return {dim / 2, dim - dim / 2};
    const auto each = std::min(dim / 2, static_cast<std::int64_t>(std::ceil(share / 2 * static_cast<double>(dim - 1))));
    return {each, each};
}
Ranked rank(const at::Tensor& x, double share) {
    Ranked r;
    std::tie(r.sorted, r.channels) = x.sort(/*stable=*/true, -1, /*descending=*/false);
    const std::int64_t dim = x.size(2);
    std::tie(r.low, r.high) = outliersOf(dim, share);
    const bool all = r.low + r.high == dim; // nothing is left: one value in the middle stands for the range
    const std::int64_t first = all ? dim / 2 : r.low, last = all ? dim / 2 : dim - 1 - r.high;
    r.span = spanOf(r.sorted.narrow(2, first, 1), r.sorted.narrow(2, last, 1));
    return r;
}

class NuqKeys final : public PackedByRow { // codes; outliers are stored beside
public:
    NuqKeys(const SideShape& shape, int bits, const Levels& levels, const Span& span)
        : PackedByRow(shape, {{{packedBytes(shape.headDim, bits)}, at::kByte}}), m_bits(bits), m_levels(levels), m_span(span), m_ruler(span),
          m_ends(at::full({shape.kvHeads, 1}, std::numeric_limits<std::int32_t>::max(), span.half.options().dtype(at::kInt))) {}

    std::unique_ptr<PackedPart> alias() const override { return std::make_unique<NuqKeys>(*this); }
    void read(at::Tensor& out, const Counts& offsets) const override {
        ops::dequantize_entries(out, m_rows.column(0), m_bits, m_span.half, m_span.middle, m_ends, m_levels.levels, wide(held()),
                                wide(offsets));
    }
    void view(ops::PackedSide& side) const override {
        if (m_rows.capacity() == 0) return;
        side.codes = m_rows.column(0), side.scale = m_span.half, side.zero = m_span.middle, side.levels = m_levels.levels;
        side.bits = m_bits, side.groupTokens = std::int64_t{1} << 30; // one for all
    }
    std::int64_t storedBytes() const override { return m_rows.storedBytes() + constants(); }
    std::int64_t allocatedBytes() const override {
        return m_rows.allocatedBytes() + constants() + m_ruler.bytes() + static_cast<std::int64_t>(m_ends.nbytes());
    }

private:
    std::int64_t constants() const { return m_levels.bytes() + static_cast<std::int64_t>(m_span.middle.nbytes() + m_span.half.nbytes()); }
    std::vector<at::Tensor> rowsOf(const at::Tensor& x) const override {
        return {ops::pack_codes(levelCodes(m_ruler.normalised(x), m_levels.bounds), m_bits)};
    }

    int m_bits;
    Levels m_levels;
    Span m_span;       // [H, 1, D]
    Ruler m_ruler;     // of the span
    at::Tensor m_ends; // one row of the span serves every entry
};

// Codes, half, middle; outliers with their channels: the same number in every row, so that they move with it.
class NuqValues final : public PackedByRow {
public:
    NuqValues(const SideShape& shape, int bits, const Levels& levels, double share)
        : PackedByRow(shape, columns(shape, bits, share)), m_bits(bits), m_share(share), m_levels(levels), m_exact(exactType(shape.dtype)),
          m_channel(channelType(shape)) {}

    std::unique_ptr<PackedPart> alias() const override { return std::make_unique<NuqValues>(*this); }
    void read(at::Tensor& out, const Counts& offsets) const override {
        ops::dequantize_entries(out, m_rows.column(0), m_bits, m_rows.column(1), m_rows.column(2), {}, m_levels.levels, wide(held()),
                                wide(offsets));
        if (!hasOutliers()) return;
        const auto scatter = [&](at::Tensor to, const at::Tensor& values, const at::Tensor& channels, std::int64_t from,
                                 std::int64_t count) {
            const std::int64_t entries = to.dim() - 2; // [.., entries, D]
            to.narrow(entries, from, count)
                .scatter_(-1, channels.narrow(entries, 0, count).to(at::kLong), values.narrow(entries, 0, count).to(out.scalar_type()));
        };
        if (even(held()) && even(offsets)) return scatter(out, m_rows.column(3), m_rows.column(4), offsets.front(), held().front());
        for (std::size_t h = 0; h < offsets.size(); ++h) {
            const auto head = static_cast<std::int64_t>(h);
            scatter(out.select(0, head), m_rows.column(3).select(0, head), m_rows.column(4).select(0, head), offsets[h], held()[h]);
        }
    }
    void view(ops::PackedSide& side) const override {
        if (m_rows.capacity() == 0) return;
        side.codes = m_rows.column(0), side.scale = m_rows.column(1), side.zero = m_rows.column(2), side.levels = m_levels.levels;
        side.bits = m_bits;
        if (hasOutliers()) side.rowExact = m_rows.column(3), side.rowChannels = m_rows.column(4);
    }
    std::int64_t storedBytes() const override { return m_rows.storedBytes() + m_levels.bytes(); }
    std::int64_t allocatedBytes() const override { return m_rows.allocatedBytes() + m_levels.bytes(); }

private:
    static at::ScalarType channelType(const SideShape& shape) { return shape.headDim <= 256 ? at::kByte : at::kShort; }
    static std::vector<StoredRows::Column> columns(const SideShape& shape, int bits, double share) {
        std::vector<StoredRows::Column> out{{{packedBytes(shape.headDim, bits)}, at::kByte}, {{1}, at::kHalf}, {{1}, at::kHalf}};
        const auto [low, high] = outliersOf(shape.headDim, share);
        if (low + high > 0) {
            out.push_back({{low + high}, exactType(shape.dtype)});
            out.push_back({{low + high}, channelType(shape)});
        }
        return out;
    }
    bool hasOutliers() const { return m_share > 0; }
    std::vector<at::Tensor> rowsOf(const at::Tensor& x) const override {
        const Ranked r = rank(x, m_share);
        std::vector<at::Tensor> rows{ops::pack_codes(levelCodes(Ruler(r.span).normalised(x), m_levels.bounds), m_bits), r.span.half,
                                     r.span.middle};
        if (r.low + r.high > 0) {
            const auto ends = [&](const at::Tensor& t) {
                return at::cat({t.narrow(2, 0, r.low), t.narrow(2, t.size(2) - r.high, r.high)}, 2);
            };
            rows.push_back(exact(ends(r.sorted), m_exact));
            rows.push_back(ends(r.channels).to(m_channel));
        }
        return rows;
    }

    int m_bits;
    double m_share;
    Levels m_levels;
    at::ScalarType m_exact, m_channel;
};

class KvQuant final : public Quantizer {
public:
    KvQuant(const QuantInfo& info, const QuantSpec& given) : Quantizer(given) {
        const Params params(info, given);
        m_bits = params.integer("bits");
        m_outliers = params.real("outliers");
        m_first = params.integer("first");
        m_kind = params.choice("levels");
        m_qnorm = params.flag("qnorm");
        m_file = params.choice("calibration");
        m_equalMemory = params.flag("equal_memory");
    }

    std::unique_ptr<StoredSide> make(Side side, LayerIndex layer, const SideShape& shape) const override {
        const auto i = static_cast<std::size_t>(layer.value);
        if (i >= m_layers.size())
            throw EngineError("kvquant: expected a calibration of layer " + std::to_string(i) + ", found one of " +
                              std::to_string(m_layers.size()) + " layers");
        const Constants& c = m_layers[i];
        const std::int64_t copies = shape.kvHeads / c.keySpan.half.size(0); // of each KV head's entries
        if (copies * c.keySpan.half.size(0) != shape.kvHeads || c.keySpan.half.size(2) != shape.headDim)
            throw EngineError("kvquant: expected a calibration of " + std::to_string(shape.kvHeads) + " heads of " +
                              std::to_string(shape.headDim) + ", found " + std::to_string(c.keySpan.half.size(0)) + " of " +
                              std::to_string(c.keySpan.half.size(2)));
        std::unique_ptr<PackedPart> packed;
        if (side == Side::values) {
            packed = std::make_unique<NuqValues>(shape, m_bits, c.values.on(shape.device), m_outliers);
        } else {
            const Span span{c.keySpan.middle.repeat_interleave(copies, 0).to(shape.device), c.keySpan.half.repeat_interleave(copies, 0).to(shape.device)};
            packed = std::make_unique<NuqKeys>(shape, m_bits, c.keys.on(shape.device), span);
            if (m_outliers > 0) packed = packedBeside(shape, std::move(packed), {[ruler = Ruler(span)](const at::Tensor& x) { return ruler.outside(x); }});
        }
        return std::make_unique<StoredParts>(shape, std::move(packed), ResidualRule{ResidualRule::When::always}, m_first);
    }
    bool plainKeys() const override { return true; }
    double effectiveBits(LayerIndex, const ModelConfig& config) const override {
        const double codes = 8.0 * static_cast<double>(packedBytes(config.headDim, m_bits)) / config.headDim;
        return codes + 32.0 / config.headDim / 2; // a value token's range; keys have theirs once per layer
    }

    bool wantsCalibration() const override { return true; }
    std::string calibrationFile() const override { return m_file; }
    void calibrate(const CalibrationSample& sample) override {
        m_layers.clear();
        for (std::size_t l = 0; l < sample.keys.size(); ++l) {
            const at::Tensor keys = sample.keys[l].to(at::kCPU, at::kFloat), values = sample.values.at(l).to(at::kCPU, at::kFloat);
            if (keys.dim() != 3 || keys.size(1) < 1 || values.dim() != 3 || values.size(1) < 1)
                throw EngineError("kvquant: expected a calibration text of at least one token, found none; choose another file");
            Constants& c = m_layers.emplace_back();
            const at::Tensor sorted = std::get<0>(keys.sort(1));
            c.keySpan = spanOf(quantileOf(sorted, m_outliers / 2), quantileOf(sorted, 1 - m_outliers / 2));
            const Ruler ruler(c.keySpan);
            c.keys = levelsFor(ruler.normalised(keys).masked_select(ruler.outside(keys).logical_not()));
            const Ranked r = rank(values, m_outliers);
            c.values = levelsFor(Ruler(r.span).normalised(r.sorted.narrow(2, r.low, r.inner())));
        }
    }

private:
    struct Constants {
        Levels keys, values;
        Span keySpan; // [kvHeads, 1, headDim]
    };

    Levels levelsFor(const at::Tensor& normalised) const {
        const at::Tensor levels = m_kind == "nuq"       ? nuqLevels(normalised, m_bits)
                                  : m_kind == "uniform" ? uniformLevels(m_bits)
                                                        : normalFloatLevels(m_bits);
        return {levelBounds(levels), m_qnorm ? matchMoments(levels, normalised) : levels};
    }

    int m_bits = 4, m_first = 1;
    double m_outliers = 0.01;
    std::string m_kind = "nuq", m_file;
    bool m_qnorm = false;
    std::vector<Constants> m_layers; // on the CPU
};

} // namespace

QuantEntry kvquant_quantizer();
QuantEntry kvquant_quantizer() {
    using Type = ParamInfo::Type;
    return {
        {"kvquant",
         {},
         "Packs keys before RoPE and values by token with learnt levels, and stores outliers exactly.",
         "KVQuant, arXiv:2401.18079",
         {{"bits", Type::choice, "4", 0, 0, {"2", "3", "4", "8"}, "bits", "Bits of a code."},
          {"outliers", Type::real, "0.01", 0, 1, {}, "", "Share of the values that is stored exactly, half of it at each end."},
          {"first", Type::integer, "1", 0, 1024, {}, "tokens", "First tokens left in full precision."},
          {"levels",
           Type::choice,
           "nuq",
           0,
           0,
           {"nuq", "uniform", "normalfloat"},
           "",
           "What the codes stand for: learnt levels, even ones, or quantiles of a normal distribution."},
          flagParam("qnorm", false, "Whether the levels are moved so that mean and deviation come out right; for 2 bits."),
          {"calibration", Type::file, "", 0, 0, {}, "", "Text from which thresholds and levels are learnt; empty: the shipped one."},
          equalMemoryParam()}},
        [](const QuantInfo& info, const QuantSpec& spec) -> std::unique_ptr<Quantizer> { return std::make_unique<KvQuant>(info, spec); }};
}

} // namespace keepsight
