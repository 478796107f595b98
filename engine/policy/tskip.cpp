// tskip: a token is stored only if its key is long enough, and only while its layer's quota lasts.
//
// Source: TokenSkipping (no paper found). Nothing that was stored is dropped later: a policy of admission. n_t = mean over the KV heads of
// ‖k_t‖₂, one decision for all heads, f_l = start + (end − start) · l / (L − 1) the share of the tokens that layer l stores.
//   A block of S > 1 tokens (the prompt is one): anchors (position < anchors) stay, and of the rest the round(f_l·S) − |anchors| longest keys.
//   A single token: an anchor stays; else it stays iff the layer has stored fewer than round(f_l·(processed − anchors)) other tokens and
//   n_t ≥ θ, θ the (1 − f_l) quantile of a reservoir: a uniform sample (algorithm R) of all norms so far; fewer than 32 seen: no threshold.
// start = end = 0 takes f = 1 − c from the budget (a budget of tokens: its share of the prompt), the same in every layer.
//
// Where we differ from the original: a block attends to itself before tokens are dropped (there, queries see later keys), a token to itself;
// the reservoir draws from a counter, SplitMix64 of (seed, layer, item), so that runs repeat; a budget that holds everything stores
// everything, while start = end = 1 admits single tokens as the original does, down to the reservoir's shortest; norm = low turns the order round;
// force_recent = r leaves the newest r tokens undecided: each is judged when it leaves this window.
#include "engine/policy/policy.h"
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>
#include <numeric>

namespace keepsight {
namespace {

constexpr double Start = 0.75, End = 0.50; // of the original
constexpr std::int64_t Warm = 32;          // norms seen before there is a threshold

std::uint64_t splitMix(std::uint64_t x) { // SplitMix64's step from state x
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

struct Admission final : LayerMemory {
    double fraction = -1;           // f_l, fixed by the first call
    bool everything = false;        // the budget holds the whole sequence
    std::int64_t storedOthers = 0;  // beside the anchors
    std::int64_t processed = 0;     // tokens judged
    std::int64_t undecided = 0;     // newest entries that are still in the window of force_recent
    std::int64_t norms = 0;         // ever fed to the reservoir
    std::vector<float> reservoir;
    // While single tokens are judged on a device, the sample and storedOthers live there; the same tensors from step to step, so that recorded steps
    // find them.
    bool onDevice = false;
    at::Tensor deviceReservoir, deviceStored; // [m_reservoir + 1] fp32, unused places +inf, the last a place for what is not sampled; [1] int32

    // The place in the sample that the next norm takes, or the one behind it.
    std::size_t slot(std::size_t size, std::uint64_t stream) {
        ++norms;
        if (norms <= static_cast<std::int64_t>(size)) return static_cast<std::size_t>(norms - 1);
        return std::min<std::size_t>(size, splitMix(stream + static_cast<std::uint64_t>(norms)) % static_cast<std::uint64_t>(norms));
    }
    std::size_t sampled(std::size_t size) const { return std::min<std::size_t>(size, static_cast<std::size_t>(norms)); }
    std::size_t rank(std::size_t size) const { // of the threshold, in a sample of that size
        return static_cast<std::size_t>((1.0 - fraction) * static_cast<double>(size - 1));
    }
    void toDevice(std::size_t size, at::Device device) {
        if (onDevice) return;
        std::vector<float> padded = reservoir;
        padded.resize(size + 1, std::numeric_limits<float>::infinity());
        const at::Tensor sample = at::tensor(padded, at::kFloat).to(device), stored = at::full({1}, storedOthers, at::TensorOptions().dtype(at::kInt).device(device));
        if (deviceReservoir.defined())
            deviceReservoir.copy_(sample), deviceStored.copy_(stored);
        else
            deviceReservoir = sample, deviceStored = stored;
        onDevice = true;
    }
    void toHost(std::size_t size) {
        if (!onDevice) return;
        const at::Tensor sample = deviceReservoir.to(at::kCPU);
        reservoir.assign(sample.const_data_ptr<float>(), sample.const_data_ptr<float>() + sampled(size));
        storedOthers = deviceStored.item<std::int32_t>();
        onDevice = false;
    }

    void feed(float norm, std::size_t size, std::uint64_t stream) {
        const std::size_t place = slot(size, stream);
        if (place == reservoir.size() && place < size) reservoir.push_back(norm);
        else if (place < size) reservoir[place] = norm;
    }
    float threshold() const { // of a non-empty reservoir
        std::vector<float> sorted = reservoir;
        std::sort(sorted.begin(), sorted.end());
        return sorted[rank(sorted.size())];
    }
};

class TSkip final : public Policy {
public:
    TSkip(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_anchors = params.integer("anchors");
        m_reservoir = params.integer("reservoir");
        m_start = params.real("start");
        m_end = params.real("end");
        m_explicit = m_start > 0 || m_end > 0;
        if (m_explicit && m_start <= 0) m_start = Start;
        if (m_explicit && m_end <= 0) m_end = End;
        m_high = params.choice("norm") == "high";
        m_forceRecent = params.integer("force_recent");
        m_seed = static_cast<std::uint64_t>(params.integer("seed"));
        m_schedule = {.afterPrefill = true, .everySteps = 1};
    }
    int budget(std::int64_t seen) const override {
        return m_explicit ? std::max(1, static_cast<int>(roundHalfEven((m_start + m_end) / 2 * static_cast<double>(seen)))) : Policy::budget(seen);
    }
    bool decides(const Place&, const Plan&, std::int64_t, int, const LayerMemory*) const override { return true; } // every token is judged
    std::unique_ptr<LayerMemory> remember() const override { return std::make_unique<Admission>(); }

    Selection choose(const LayerView& view, const Place& place, const Plan&, const at::Tensor&, LayerMemory* memory, std::string* notice) const override {
        Admission forgotten;
        Admission& state = memory ? static_cast<Admission&>(*memory) : forgotten;
        state.toHost(static_cast<std::size_t>(m_reservoir));
        if (state.fraction < 0) begin(state, place);
        const std::int64_t held = view.entries.held.front();
        const auto [open, judged] = opened(state, held, place.fresh);
        const std::int64_t first = held - open;

        const std::vector<float> norms = lengths(view, first, judged);
        const std::int64_t firstPosition = place.seen - open;
        const std::int64_t anchors = std::clamp<std::int64_t>(m_anchors - firstPosition, 0, judged);
        std::vector<char> stays(static_cast<std::size_t>(judged), 0);
        std::fill_n(stays.begin(), anchors, 1);
        state.processed += judged;
        if (state.everything) {
            std::ranges::fill(stays, 1);
        } else if (place.fresh > 1) {
            takeLongest(stays, norms, anchors, roundHalfEven(state.fraction * static_cast<double>(judged)) - anchors);
            if (notice && anchors > roundHalfEven(state.fraction * static_cast<double>(judged)))
                *notice = "the " + std::to_string(anchors) + " anchors are more than the tokens asked for";
        } else if (judged > anchors) {
            stays[0] = state.storedOthers < quota(state) && (state.norms < Warm || norms[0] >= state.threshold());
        }
        state.storedOthers += std::accumulate(stays.begin() + anchors, stays.end(), std::int64_t{0});
        for (const float norm : norms) state.feed(norm, static_cast<std::size_t>(m_reservoir), streamOf(view.layer));

        std::vector<std::int32_t> keep;
        for (std::int64_t i = 0; i < held; ++i)
            if (i < first || i >= first + judged || stays[static_cast<std::size_t>(i - first)]) keep.push_back(static_cast<std::int32_t>(i));
        return {std::vector<std::vector<std::int32_t>>(view.entries.held.size(), keep)};
    }
    // One token on a device: its norm meets the threshold there, and joins the sample there.
    bool stepsOnDevice() const override { return true; }
    std::vector<std::int32_t> stepNumbers(const Place& place, LayerMemory& memory, at::Device device) const override {
        auto& state = static_cast<Admission&>(memory);
        const auto size = static_cast<std::size_t>(m_reservoir);
        if (state.fraction < 0) begin(state, place);
        state.toDevice(size, device);
        const auto [open, judged] = opened(state, place.held, 1);
        const bool anchor = place.seen - open < m_anchors;
        state.processed += judged;
        const bool warm = state.norms >= Warm;
        const std::size_t rank = state.norms > 0 ? state.rank(state.sampled(size)) : 0;
        const std::size_t slot = judged ? state.slot(size, streamOf(place.layer)) : size;
        const auto number = [](auto n) { return static_cast<std::int32_t>(std::min<std::int64_t>(static_cast<std::int64_t>(n), std::numeric_limits<std::int32_t>::max())); };
        return {number(open), judged == 0 || anchor || state.everything, judged == 1 && !anchor, number(quota(state)), !warm, number(rank), number(slot)};
    }
    at::Tensor stepLimits(const LayerView& view, const at::Tensor& numbers, LayerMemory& memory) const override {
        auto& state = static_cast<Admission&>(memory);
        const auto number = [&](Number n) { return numbers.narrow(0, n, 1); };
        const at::Tensor entry = view.entries.lengths.narrow(0, 0, 1) - number(Open); // the entry that is judged; all heads hold alike
        at::Tensor norm = view.keys.index_select(1, entry.clamp_min(0)).to(at::kFloat).norm(2, -1).mean(0); // [1]
        if (!m_high) norm = -norm;
        const at::Tensor sorted = std::get<0>(state.deviceReservoir.narrow(0, 0, m_reservoir).sort()), threshold = sorted.index_select(0, number(Rank));
        const at::Tensor wanted = (state.deviceStored < number(Quota)).logical_and((norm >= threshold).logical_or(number(Cold)));
        const at::Tensor stays = wanted.logical_or(number(Stays));
        state.deviceStored.add_(stays.logical_and(number(Counts)));
        state.deviceReservoir.index_copy_(0, number(Slot).to(at::kLong), norm);
        const at::Tensor newest = number(Open) - 1;
        return at::cat({(entry + newest).masked_fill(stays, std::numeric_limits<std::int32_t>::max()), entry, newest});
    }

    void amend(Explanation& e, const LayerView&, const Place&, const Plan&) const override {
        constexpr double None = std::numeric_limits<double>::quiet_NaN();
        e.protectedBy = e.kept ? "rule" : "";
        e.score = e.cutoff = e.margin = None;
        e.rank = e.candidates = e.slots = 0;
        e.lastKept = -1;
        e.note = "Decided once, when the token came: by the length of its key, and by how many tokens the layer had stored.";
    }

protected:
    Plan plan(const Place& place, int budget) const override {
        const int keep = m_explicit ? static_cast<int>(roundHalfEven(fraction(place) * static_cast<double>(place.seen))) : budget;
        const int anchors = static_cast<int>(std::min<std::int64_t>(m_anchors, place.seen));
        return {.keep = std::max({1, keep, anchors}), .protect = {.sinks = m_anchors, .recent = m_forceRecent}, .window = 0, .notice = {}};
    }

private:
    enum Number : std::int64_t { Open, Stays, Counts, Quota, Cold, Rank, Slot }; // what stepNumbers() gives
    struct Opened {
        std::int64_t open, judged; // newest entries not judged yet, and how many of them are now, the oldest first
    };
    Opened opened(Admission& state, std::int64_t held, std::int64_t fresh) const {
        const std::int64_t open = std::min(held, state.undecided + fresh), judged = std::max<std::int64_t>(0, open - m_forceRecent);
        state.undecided = open - judged;
        return {open, judged};
    }
    std::int64_t quota(const Admission& state) const { return roundHalfEven(state.fraction * static_cast<double>(state.processed - m_anchors)); }
    std::uint64_t streamOf(LayerIndex layer) const { return splitMix(splitMix(m_seed) + static_cast<std::uint64_t>(layer.value)); }
    double fraction(const Place& place) const { // f_l
        return place.layers > 1 ? m_start + (m_end - m_start) * place.layer.value / (place.layers - 1) : m_start;
    }
    void begin(Admission& state, const Place& place) const {
        const Budget& b = m_spec.budget;
        const double kept = b.kind == Budget::Kind::ratio ? 1.0 - b.compressionRatio : static_cast<double>(b.tokens) / static_cast<double>(place.seen);
        double room = 1.0; // a quantizer may make room for more
        if (const int wanted = budget(place.seen); place.quantizer && place.config)
            room = static_cast<double>(place.quantizer->tokensFor(std::min(wanted, 1 << 26), place.layer, *place.config)) / wanted;
        state.fraction = std::clamp((m_explicit ? fraction(place) : kept) * room, 0.0, 1.0);
        state.everything = !m_explicit && kept * room >= 1.0;
    }
    // n_t of entries first, first + 1, …; negated for norm = low, so that more is better either way.
    std::vector<float> lengths(const LayerView& view, std::int64_t first, std::int64_t count) const {
        if (count == 0) return {};
        const at::Tensor norms = view.keys.narrow(1, first, count).to(at::kFloat).norm(2, -1).mean(0).to(at::kCPU).contiguous();
        std::vector<float> out(norms.const_data_ptr<float>(), norms.const_data_ptr<float>() + count);
        if (!m_high)
            for (float& n : out) n = -n;
        return out;
    }
    // The `count` largest of those behind the anchors; of equals the later one.
    static void takeLongest(std::vector<char>& stays, const std::vector<float>& norms, std::int64_t anchors, std::int64_t count) {
        const std::int64_t others = std::ssize(norms) - anchors;
        if (count < 1 || others < 1) return;
        const at::Tensor scores = at::from_blob(const_cast<float*>(norms.data()) + anchors, {1, others}, at::kFloat); // only read
        const Plan plan{.keep = static_cast<int>(std::min(count, others)), .protect = {}, .window = 0, .notice = {}};
        const Selection best = select(scores, {static_cast<std::int32_t>(others)}, plan);
        for (const std::int32_t i : best.keep.front()) stays[static_cast<std::size_t>(anchors + i)] = 1;
    }

    int m_anchors = 8, m_reservoir = 64, m_forceRecent = 0;
    double m_start = 0, m_end = 0;
    bool m_explicit = false, m_high = true;
    std::uint64_t m_seed = 0;
};

} // namespace

PolicyEntry tskip_policy();
PolicyEntry tskip_policy() {
    PolicyInfo info{
        "tskip",
        {"tokenskipping"},
        PolicyKind::admit,
        "Stores only tokens with long keys, as far as each layer's share allows, and never drops them again.",
        "",
        {{"anchors", ParamInfo::Type::integer, "8", 0, 1 << 20, {}, "tokens", "First tokens that are always stored."},
         {"start", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "Share of the tokens stored in the first layer; 0: from the budget, or 0.75 if 'end' is given."},
         {"end", ParamInfo::Type::real, "0", 0, 1, {}, "kept", "Share of the tokens stored in the last layer; 0: from the budget, or 0.5 if 'start' is given."},
         {"reservoir", ParamInfo::Type::integer, "64", 1, 1 << 16, {}, "norms", "Sample of key lengths from which the threshold for single tokens is read."},
         {"norm", ParamInfo::Type::choice, "high", 0, 0, {"high", "low"}, "", "Which keys are stored: long ones (the original) or short ones."},
         {"force_recent", ParamInfo::Type::integer, "0", 0, 1 << 20, {}, "tokens", "Newest tokens that are stored until they leave this window, and judged then."},
         {"seed", ParamInfo::Type::integer, "0", 0, (1u << 31) - 1.0, {}, "", "Start of the random numbers that fill the sample."}}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> { return std::make_unique<TSkip>(i, spec); }};
}

} // namespace keepsight
