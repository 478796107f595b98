// tokenselect: everything stays stored; each call attends to the first tokens, the best k, and the newest.
//
// Paper: TokenSelect, arXiv:2411.02886. Keys are stored before RoPE. q̄_h: mean of the call's queries, each rotated as if the candidates
// lay `local` behind it (so that the score does not know how far away a token is); u_h = softmax over the candidates of q̄_h · k;
// vote[t] = Σ_h u_h[t], optionally max-pooled over neighbours: a soft vote in which a head that is sure outweighs many that are not. The
// top k of the vote make one set for all heads of the layer. What is attended to is renumbered from 0 (rope = cache_relative).
// Selection cache: while cos(q̄, q̄ at the last selection) ≥ theta, the last set is used again; at most for `local` tokens, because later
// ones would otherwise be neither local nor candidates, and never with other shares.
// Where we differ: queries read KV head h / G (the paper's kernel takes h mod Hkv, which is wrong for contiguous groups); votes are summed
// in fp32; the local part always covers the call's own tokens, so that a chunk longer than `local` stays causal; with prefill = shared the
// prompt is read with full attention, which all lanes share, and selection begins with the first call after it; prefill = select is the
// paper's way: blocks of 512 select too, and since positions never exceed what is attended to, a prompt may be longer than the model's
// context (length extrapolation). Memory is not freed. A ratio is one of the prompt's tokens: what is attended to does not grow with what is generated.
#include "engine/policy/policy.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <limits>

namespace keepsight {
namespace {

struct LastSelection final : LayerMemory { // where the cache is; tensors stay the same from call to call, so that recorded steps find them
    at::Tensor query;   // [queryHeads · headDim] fp32, of length 1
    at::Tensor votes;   // [C] fp32; where sets may serve again
    at::Tensor entries; // [init + topK + local] int32: 0 …, the chosen ones, the newest
    at::Tensor behind;  // [local] int32: local …, where queries are turned to
    at::Tensor before;  // [local] int32: −local … −1
    at::Tensor zero;    // [1] int32: 0, the age of a set just made
    at::Tensor seen;    // [1] int32: tokens seen when it was made
    std::int64_t init = -1, local = -1, topK = -1;
};

class TokenSelect final : public Policy {
public:
    TokenSelect(const PolicyInfo& info, const PolicySpec& spec) : Policy(info, spec) {
        const Params params(info, spec);
        m_init = params.integer("init");
        m_topK = params.integer("top_k");
        m_local = params.integer("local");
        m_theta = params.real("theta");
        m_kernel = params.integer("kernel");
        m_scaled = params.choice("scale") == "sqrt_d";
        m_ownsPrefill = params.choice("prefill") == "select";
        m_rope = RopeMode::cacheRelative;
    }
    bool ownsPrefill() const override { return m_ownsPrefill; }
    Schedule schedule() const override { return {.afterPrefill = false, .everySteps = 0}; }
    std::unique_ptr<LayerMemory> remember() const override { return std::make_unique<LastSelection>(); }

    std::optional<std::string> workKey(const Place& place, const Plan&) const override {
        return attendsToAll(sharesOf(place), place) ? "all" : "chosen";
    }

    std::optional<Attended> attend(const LayerView& view, const Place& place, LayerMemory* memory) const override {
        const Shares shares = sharesOf(place);
        if (attendsToAll(shares, place)) return std::nullopt;
        const std::int64_t local = std::max<std::int64_t>(shares.local, place.fresh);
        auto& last = static_cast<LastSelection&>(*memory);
        prepare(last, shares, local, view);
        at::Tensor query = ops::rope(view.queries, last.behind.narrow(0, 0, place.fresh), view.inverseFrequencies).to(at::kFloat); // [queryHeads, S, D]
        query = place.fresh == 1 ? query.squeeze(1) : query.mean(1);
        // Whether the last set serves again is found out where the queries are. If it does there are no candidates, and nothing to be read.
        at::Tensor now, again, seen, lengths = view.entries.lengths;
        if (servesAgain()) {
            seen = view.queryPositions.narrow(0, place.fresh - 1, 1) + 1;
            now = query.view({-1}) / query.norm().clamp_min(1e-12);
            again = (at::dot(now, last.query) >= m_theta).logical_and(seen - last.seen < shares.local); // [1]
            lengths = lengths.masked_fill(again, 0);
        }
        at::Tensor vote = ops::soft_vote(query, view.keys, lengths, shares.init, local, m_scaled ? view.scale : 1.0); // [C]
        if (m_kernel > 1) vote = at::max_pool1d(vote.view({1, 1, -1}), m_kernel, 1, m_kernel / 2).view({-1});
        const at::Tensor candidates = (lengths.narrow(0, 0, 1) - static_cast<std::int32_t>(local + shares.init)).clamp_min(0); // heads hold alike: nothing is ever dropped
        const at::Tensor best = ops::top_k(vote.narrow(0, shares.init, vote.size(0) - shares.init).unsqueeze(0), candidates, shares.topK).view({-1});
        at::Tensor chosen = last.entries.narrow(0, shares.init, shares.topK), newest = last.entries.narrow(0, shares.init + shares.topK, local);
        if (again.defined()) {
            at::where_out(last.votes, again, last.votes, vote);
            at::where_out(chosen, again, chosen, best + shares.init);
            at::where_out(last.query, again, last.query, now);
            at::where_out(last.seen, again, last.seen, seen);
        } else {
            at::add_out(chosen, best, at::Scalar(shares.init));
        }
        at::add_out(newest, last.before, view.entries.lengths.narrow(0, 0, 1));
        return Attended{last.entries, again.defined() ? last.votes : vote, {shares.init, static_cast<int>(local)}, again.defined() ? seen - last.seen : last.zero};
    }

private:
    struct Shares {
        int init, topK, local;
    };
    Shares sharesOf(const Place& place) const {
        constexpr double Whole = 128 + 2048 + 512; // the paper's shares
        Shares s{128, 2048, 512};
        const bool budgeted = m_spec.budget.kind == Budget::Kind::tokens || m_spec.budget.compressionRatio > 0;
        if (budgeted) {
            const int total = budget(place.prompt);
            s.init = m_init > 0 ? m_init : std::max(1, static_cast<int>(total * 128 / Whole));
            s.local = m_local > 0 ? m_local : std::max(1, static_cast<int>(total * 512 / Whole));
            s.topK = std::max(0, total - s.init - s.local);
        }
        if (m_init > 0) s.init = m_init;
        if (m_topK > 0) s.topK = m_topK;
        if (m_local > 0) s.local = m_local;
        return s;
    }

    bool servesAgain() const { return m_theta <= 1; }
    static bool attendsToAll(const Shares& s, const Place& place) {
        return s.init + s.topK + std::max<std::int64_t>(s.local, place.fresh) >= place.held;
    }

    // Other shares, or none yet: the last set does not serve.
    void prepare(LastSelection& last, const Shares& shares, std::int64_t local, const LayerView& view) const {
        const auto ints = view.entries.positions.options();
        const auto floats = ints.dtype(at::kFloat);
        const bool same = last.init == shares.init && last.topK == shares.topK && last.local == shares.local;
        if (!same) {
            last.query = at::zeros({view.queries.size(0) * view.queries.size(2)}, floats);
            last.seen = at::full({1}, std::numeric_limits<std::int32_t>::min() / 2, ints);
            last.votes = at::Tensor();
            last.init = shares.init, last.topK = shares.topK, last.local = shares.local;
        }
        if (!same || last.entries.size(0) != shares.init + shares.topK + local) { // a block of the prompt is longer than `local`
            at::Tensor entries = at::zeros({shares.init + shares.topK + local}, ints);
            entries.narrow(0, 0, shares.init).copy_(at::arange(shares.init, ints));
            if (same) entries.narrow(0, shares.init, shares.topK).copy_(last.entries.narrow(0, shares.init, shares.topK));
            last.entries = entries;
            last.behind = at::arange(shares.local, shares.local + local, ints);
            last.before = at::arange(-local, 0, ints);
            last.zero = at::zeros({1}, ints);
        }
        if (servesAgain() && (!last.votes.defined() || last.votes.size(0) != view.entries.capacity())) {
            at::Tensor votes = at::zeros({view.entries.capacity()}, floats);
            if (last.votes.defined()) votes.narrow(0, 0, last.votes.size(0)).copy_(last.votes);
            last.votes = votes;
        }
    }

    int m_init = 0, m_topK = 0, m_local = 0, m_kernel = 1;
    double m_theta = 0.9;
    bool m_scaled = false, m_ownsPrefill = false;
};

} // namespace

PolicyEntry tokenselect_policy();
PolicyEntry tokenselect_policy() {
    PolicyInfo info{
        "tokenselect",
        {"token_select"},
        PolicyKind::attend,
        "Stores everything and attends, call by call, to the first, the newest and the best-voted tokens.",
        "TokenSelect, arXiv:2411.02886",
        {{"init",
          ParamInfo::Type::integer,
          "0",
          0,
          1 << 20,
          {},
          "tokens",
          "First tokens always attended to; 0: the budget's share, without one 128."},
         {"top_k",
          ParamInfo::Type::integer,
          "0",
          0,
          1 << 24,
          {},
          "tokens",
          "Tokens chosen by the vote; 0: the rest of the budget, without one 2048."},
         {"local",
          ParamInfo::Type::integer,
          "0",
          0,
          1 << 24,
          {},
          "tokens",
          "Newest tokens always attended to; 0: the budget's share, without one 512."},
         {"theta",
          ParamInfo::Type::real,
          "0.9",
          -1,
          2,
          {},
          "cosine",
          "A query at least this similar to the one of the last selection uses its set again; above 1: select every time."},
         {"kernel", ParamInfo::Type::integer, "1", 1, 255, {}, "tokens", "Width of the max pooling of the votes, odd; 1: none.", true},
         {"scale",
          ParamInfo::Type::choice,
          "1",
          0,
          0,
          {"1", "sqrt_d"},
          "",
          "Dot products as they are (the paper's code), or divided by the root of the head size."},
         {"prefill",
          ParamInfo::Type::choice,
          "shared",
          0,
          0,
          {"shared", "select"},
          "",
          "shared: the prompt is read with full attention, once for all lanes; select: by selection too, in blocks of 512, which also "
          "reads prompts longer than the "
          "model's context."}}};
    return {info, [](const PolicyInfo& i, const PolicySpec& spec) -> std::unique_ptr<const Policy> {
                return std::make_unique<TokenSelect>(i, spec);
            }};
}

} // namespace keepsight
