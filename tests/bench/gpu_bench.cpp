// Times the CUDA kernels of decode against torch's own on the same data, one after the other, and prints a table, and JSON with --json
// FILE.
//
// Llama-3-8B shape: 32 query and 8 KV heads of 128, bf16, batch 1. Every run finds a cold L2: a buffer larger than it is written first, and
// another one read, so that no written lines are left (--dirty: only written; what it left is then written back during the run). Median of
// many, from device events. floor: the bytes that must be read, at this run's copy bandwidth.
//   gpu_bench [--json FILE] [--dirty] [decode] [ragged] [packed] [coded] [statistics] [prefill] [sparse] [change] [top_k] [vote] [window] [drop] [matvec]
#include "kernels/bind/ops.h"
#include "kernels/quant.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <algorithm>
#include <c10/core/Event.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string_view>

namespace {

using namespace keepsight;
using Work = std::function<void()>;

constexpr int64_t QueryHeads = 32, KvHeads = 8, HeadSize = 128;

at::TensorOptions on(at::ScalarType type) { return at::TensorOptions().dtype(type).device(at::kCUDA); }

class Bench {
public:
    explicit Bench(bool dirty)
        : m_dirty(dirty), m_written(at::empty({256 << 20}, on(at::kByte))), m_read(at::ones({64 << 20}, on(at::kFloat))) {
        const at::Tensor from = at::ones({1 << 30}, on(at::kByte));
        at::Tensor to = at::empty_like(from);
        m_copy = 2.0 * static_cast<double>(from.nbytes()) / median({[&] { to.copy_(from); }}, 11)[0]; // bytes per µs
        std::printf("copy bandwidth %.2f TB/s, L2 %s\n", m_copy * 1e-6, dirty ? "cold and dirty" : "cold");
        std::printf("%-58s %9s %9s %9s %7s %7s\n", "", "ours µs", "peer µs", "floor µs", "peer/", "ours/");
    }

    // Medians in µs of all works, run in turn.
    std::vector<double> median(const std::vector<Work>& works, int repeats = 41) {
        std::vector<std::vector<double>> times(works.size());
        const c10::impl::VirtualGuardImpl device(at::kCUDA);
        for (int i = -3; i < repeats; ++i)
            for (std::size_t w = 0; w < works.size(); ++w) {
                m_written.fill_(i & 127);
                if (!m_dirty) m_read.sum();
                c10::Event begin(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT), end(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
                begin.record(device.getStream({at::kCUDA, 0}));
                works[w]();
                end.record(device.getStream({at::kCUDA, 0}));
                end.synchronize();
                if (i >= 0) times[w].push_back(begin.elapsedTime(end) * 1e3);
            }
        std::vector<double> medians;
        for (auto& t : times) {
            std::sort(t.begin(), t.end());
            medians.push_back(t[t.size() / 2]);
        }
        return medians;
    }

    // peers: the best one counts. bytes: what must be read.
    void row(const std::string& name, double bytes, const Work& ours, const std::vector<Work>& peers = {}) {
        std::vector<Work> all{ours};
        all.insert(all.end(), peers.begin(), peers.end());
        const std::vector<double> times = median(all);
        const double floor = bytes / m_copy, peer = peers.empty() ? NAN : *std::min_element(times.begin() + 1, times.end());
        std::printf("%-58s %9.1f %9.1f %9.1f %7.2f %7.2f\n", name.c_str(), times[0], peer, floor, peer / times[0], times[0] / floor);
        std::fflush(stdout);
        nlohmann::json row{{"name", name}, {"ours_us", times[0]}, {"floor_us", floor}};
        if (!peers.empty()) row["peer_us"] = peer;
        m_rows.push_back(row);
    }

    void save(const std::string& file) const {
        std::ofstream(file) << nlohmann::json{{"schema", "keepsight.gpu_bench/1"},
                                              {"copy_gb_per_s", m_copy * 1e-3},
                                              {"dirty_l2", m_dirty},
                                              {"rows", m_rows}}
                                   .dump(1)
                            << "\n";
    }

private:
    bool m_dirty;
    at::Tensor m_written, m_read;
    double m_copy = 1;
    nlohmann::json m_rows = nlohmann::json::array();
};

struct Cache {
    at::Tensor q, k, v, positions, lengths, now;
    explicit Cache(int64_t capacity, at::ScalarType type = at::kBFloat16) {
        q = at::randn({QueryHeads, 1, HeadSize}, on(type));
        k = at::randn({KvHeads, capacity, HeadSize}, on(type)), v = at::randn({KvHeads, capacity, HeadSize}, on(type));
        positions = at::arange(capacity, on(at::kInt)).expand({KvHeads, capacity}).contiguous();
        lengths = at::full({KvHeads}, capacity, on(at::kInt)), now = at::full({1}, capacity, on(at::kInt));
    }
    double bytes() const { return 2.0 * HeadSize * static_cast<double>(k.element_size()) * lengths.sum().item<double>(); }
    Work attention(ops::AttentionStats* stats = nullptr) const {
        return [this, stats] { ops::attention(q, k, v, positions, lengths, now, 0.0884, stats); };
    }
    Work sdpa(bool cudnn) const { // torch takes the first of its forms that can
        return [this, cudnn, Q = q.unsqueeze(0), K = k.unsqueeze(0), V = v.unsqueeze(0)] {
            at::globalContext().setSDPUseCuDNN(cudnn), at::globalContext().setSDPUseFlash(!cudnn);
            at::scaled_dot_product_attention(Q, K, V, {}, 0.0, false, std::nullopt, true);
        };
    }
};

void decode(Bench& bench) {
    for (const int64_t context : {4096, 32768, 131072}) {
        const Cache cache(context);
        bench.row("decode attention, bf16, " + std::to_string(context) + "; peer: SDPA (flash or cuDNN)", cache.bytes(), cache.attention(),
                  {cache.sdpa(true), cache.sdpa(false)});
    }
    for (const at::ScalarType type : {at::kHalf, at::kFloat}) {
        const Cache cache(32768, type);
        bench.row(std::string("decode attention, ") + (type == at::kHalf ? "fp16" : "fp32") + ", 32768", cache.bytes(), cache.attention());
    }
}

void ragged(Bench& bench) { // mean 10 % of 128k, max/mean 4; peer: the same number of entries, all heads alike
    const std::vector<int64_t> held{52428, 4000, 9000, 2000, 13000, 18000, 5000, 1428};
    Cache uneven(131072), even(131072);
    uneven.lengths.copy_(at::tensor(held, at::kInt));
    even.lengths.copy_(at::full({KvHeads}, 13107, at::kInt));
    bench.row("decode attention, ragged 10 % of 131072; peer: ours, uniform", uneven.bytes(), uneven.attention(), {even.attention()});
    std::vector<std::int32_t> starts;
    int64_t rows = 0;
    for (const int64_t n : held) starts.push_back(static_cast<std::int32_t>(rows)), rows += n;
    const at::Tensor k = at::randn({rows, HeadSize}, on(at::kBFloat16)), v = at::randn({rows, HeadSize}, on(at::kBFloat16)), first = at::tensor(starts, at::kInt).to(at::kCUDA);
    const at::Tensor positions = at::arange(rows, on(at::kInt)).remainder(1000); // all of them seen
    bench.row("decode attention, the same heads behind each other; peer: ours, uniform", uneven.bytes(),
              [&] { ops::ragged_attention(uneven.q, k, v, positions, first, uneven.lengths, 52428, uneven.now, 0.0884); }, {even.attention()});
}

// KIVI's layout: keys by channel in groups of 32 tokens, values by token in groups of 32 channels, the newest exact; and keys by token in groups of 64.
void packed(Bench& bench) {
    constexpr int64_t Tail = 128;
    for (const int64_t context : {4096, 32768, 131072}) {
        const Cache plain(context);
        for (const int bits : {8, 4, 2})
            for (const bool byChannel : {true, false}) {
                const int64_t coded = context - Tail, group = byChannel ? 32 : 64;
                const auto side = [&](bool channels) {
                    ops::PackedSide s;
                    s.codes = at::randint(0, 256, {KvHeads, coded, packedBytes(HeadSize, bits)}, on(at::kByte));
                    s.bits = bits, s.groupTokens = channels ? group : 1;
                    const int64_t rows = channels ? coded / group : coded, groups = channels ? HeadSize : HeadSize / group;
                    s.scale = at::rand({KvHeads, rows, groups}, on(at::kHalf)) * 0.1, s.zero = at::randn({KvHeads, rows, groups}, on(at::kHalf)) * 0.1;
                    s.tail = at::randn({KvHeads, Tail, HeadSize}, on(at::kBFloat16));
                    s.counts = at::tensor({int64_t{0}, coded, Tail}, at::kInt).unsqueeze(1).expand({3, KvHeads}).contiguous().to(at::kCUDA);
                    return s;
                };
                const ops::PackedSide keys = side(byChannel), values = side(false);
                double bytes = 0;
                for (const ops::PackedSide* s : {&keys, &values}) bytes += static_cast<double>(s->codes.nbytes() + s->scale.nbytes() + s->zero.nbytes() + s->tail.nbytes());
                bench.row(std::to_string(bits) + "-bit decode attention, keys by " + (byChannel ? "channel, " : "token, ") + std::to_string(context) + "; peer: ours, bf16", bytes,
                          [&] { ops::packed_attention(plain.q, keys, values, plain.positions, plain.lengths, plain.now, 0.0884); }, {plain.attention()});
            }
    }
}

// KVQuant's layout: keys before RoPE with learnt levels, one span a channel and 1 % exact values, values by token with two exact ones; HQQ's axis 0, groups
// of 64 over all heads; 3 bits by channel in groups of 32 tokens; groups that lost entries.
void coded(Bench& bench) {
    for (const int64_t context : {4096, 32768, 131072}) {
        const Cache plain(context);
        const int64_t n = context - 1;
        const at::Tensor counts = at::tensor({int64_t{1}, n, int64_t{0}}, at::kInt).unsqueeze(1).expand({3, KvHeads}).contiguous().to(at::kCUDA);
        const auto side = [&](int bits, int64_t rows, int64_t groups, int64_t tokens) {
            ops::PackedSide s;
            s.codes = at::randint(0, 256, {KvHeads, n, packedBytes(HeadSize, bits)}, on(at::kByte));
            s.bits = bits, s.groupTokens = tokens, s.counts = counts, s.first = at::randn({KvHeads, 1, HeadSize}, on(at::kBFloat16));
            s.scale = at::rand({KvHeads, rows, groups}, on(at::kHalf)) * 0.1, s.zero = at::randn({KvHeads, rows, groups}, on(at::kHalf)) * 0.1;
            return s;
        };
        const auto across = [&] {
            ops::PackedSide s;
            const int64_t width = KvHeads * n * HeadSize / 64;
            s.codes = at::randint(0, 256, {1, 64, packedBytes(width, 4)}, on(at::kByte));
            s.bits = 4, s.across = true, s.counts = counts, s.first = at::randn({KvHeads, 1, HeadSize}, on(at::kBFloat16));
            s.scale = at::rand({1, 1, width}, on(at::kHalf)) * 0.1, s.zero = at::randn({1, 1, width}, on(at::kHalf)) * 0.1;
            return s;
        };
        const auto row = [&](const std::string& name, const ops::PackedSide& keys, const ops::PackedSide& values, const ops::KeyTurn& turn) {
            double bytes = 0;
            for (const ops::PackedSide* s : {&keys, &values})
                for (const at::Tensor* t : {&s->codes, &s->scale, &s->zero, &s->exact, &s->places, &s->rowExact, &s->rowChannels})
                    if (t->defined()) bytes += static_cast<double>(t->nbytes());
            bench.row(name + ", " + std::to_string(context) + "; peer: ours, bf16", bytes,
                      [&] { ops::packed_attention(plain.q, keys, values, plain.positions, plain.lengths, plain.now, 0.0884, nullptr, turn); }, {plain.attention()});
        };
        const ops::KeyTurn turn{at::pow(at::Scalar(500000.0), -at::arange(0, HeadSize, 2, on(at::kFloat)) / HeadSize)};
        for (const int bits : {4, 3}) {
            ops::PackedSide keys = side(bits, 1, HeadSize, 1 << 30), values = side(bits, n, 1, 1);
            keys.levels = at::randn({1 << bits}, on(at::kFloat)), values.levels = at::randn({1 << bits}, on(at::kFloat));
            const int64_t exact = n * HeadSize / 100;
            keys.places = (at::arange(exact, on(at::kInt)) * 100 + at::arange(exact, on(at::kInt)) * 37 % 100).expand({KvHeads, exact}).contiguous();
            keys.exact = at::randn({KvHeads, exact}, on(at::kBFloat16)), keys.exactCounts = at::full({KvHeads}, exact, on(at::kInt));
            values.rowExact = at::randn({KvHeads, n, 2}, on(at::kBFloat16)), values.rowChannels = at::randint(0, HeadSize, {KvHeads, n, 2}, on(at::kByte));
            row("kvquant, " + std::to_string(bits) + " bits", keys, values, turn);
            if (bits == 4) row("kvquant, 4 bits, keys after RoPE", keys, values, {});
        }
        row("hqq axis 0, 4 bits", across(), across(), {});
        row("kivi, 3 bits", side(3, (n + 31) / 32, HeadSize, 32), side(3, n, 4, 1), {});
        ops::PackedSide keys = side(4, (n + 19) / 20, HeadSize, 1);
        keys.ends = (at::arange((n + 19) / 20, on(at::kInt)) * 20 + 20).expand({KvHeads, (n + 19) / 20}).contiguous();
        row("kivi, 4 bits, groups that lost entries", keys, side(4, n, 4, 1), {});
    }
}

// A prompt's forward pass of cuDNN alone, each query head with keys and values of its own.
Work cudnnForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    const auto copied = [](const at::Tensor& x) { return x.repeat_interleave(QueryHeads / KvHeads, 0).unsqueeze(0); };
    return [Q = q.unsqueeze(0), K = copied(k), V = copied(v)] { at::_scaled_dot_product_cudnn_attention(Q, K, V, {}, true, 0.0, true, false, 0.0884); };
}

// What a prompt's attention costs with its statistics, column sums and maps of 256² bins; peer: cuDNN's forward alone, so "peer/" is the reverse of
// the two together.
void prefill(Bench& bench) {
    for (const int64_t context : {16384, 32768}) {
        const at::Tensor q = at::randn({QueryHeads, context, HeadSize}, on(at::kBFloat16)), k = at::randn({KvHeads, context, HeadSize}, on(at::kBFloat16)), v = at::randn_like(k);
        const Work plain = cudnnForward(q, k, v);
        ops::AttentionStats sums, maps;
        sums.columnSum = at::zeros({QueryHeads, context}, on(at::kFloat));
        maps.map = at::zeros({KvHeads, 256, 256}, on(at::kFloat));
        maps.rowBin = maps.colBin = context / 256;
        const double bytes = 2.0 * static_cast<double>(q.nbytes() + k.nbytes());
        bench.row("causal attention, " + std::to_string(context) + "; peer: cuDNN alone", bytes, [&] { ops::causal_attention(q, k, v, context, 0.0884); }, {plain});
        bench.row("causal attention + column sums, " + std::to_string(context) + "; peer: cuDNN alone", bytes, [&] { ops::causal_attention(q, k, v, context, 0.0884, &sums); }, {plain});
        bench.row("causal attention + maps, " + std::to_string(context) + "; peer: cuDNN alone", bytes, [&] { ops::causal_attention(q, k, v, context, 0.0884, &maps); }, {plain});
    }
}

void drop(Bench& bench) {
    for (const int64_t held : {2048, 16384}) {
        Cache cache(held);
        const at::Tensor scores = at::rand({KvHeads, held}, on(at::kFloat)), statistic = at::rand({QueryHeads, held}, on(at::kFloat));
        const at::Tensor limits = at::tensor({held - 1, int64_t{4}, held / 2}, at::kInt).to(at::kCUDA), full = at::full({KvHeads}, held, on(at::kInt));
        bench.row("drop_lowest, of " + std::to_string(held) + " (half of them may go)", 0.75 * cache.bytes(), [&] {
            cache.lengths.copy_(full);
            ops::drop_lowest(scores, cache.lengths, limits, {cache.positions, cache.k, cache.v, statistic});
        });
    }
}

void matvec(Bench& bench) { // a layer's four products and the head, each with what goes with it
    using Case = std::tuple<int64_t, int64_t, const char*>;
    for (const auto& [rows, width, with] : {Case{6144, 4096, "norm"}, {4096, 4096, "residual"}, {28672, 4096, "norm and gate"}, {4096, 14336, "residual"}, {128256, 4096, "norm"}}) {
        const at::Tensor x = at::randn({1, width}, on(at::kBFloat16)), w = at::randn({rows, width}, on(at::kBFloat16));
        ops::MatvecOptions options{.eps = 1e-5, .gated = std::string_view(with).ends_with("gate")};
        if (std::string_view(with).starts_with("norm"))
            options.norm = at::ones({width}, on(at::kFloat));
        else
            options.residual = at::randn({1, rows}, on(at::kBFloat16));
        bench.row("matvec " + std::to_string(rows) + " × " + std::to_string(width) + " with " + with + "; peer: cuBLAS, the product alone", static_cast<double>(w.nbytes()),
                  [&] { ops::matvec(x, w, options); }, {[&] { at::linear(x, w); }});
    }
}

void statistics(Bench& bench) {
    const Cache cache(32768);
    ops::AttentionStats sums, rows;
    sums.columnSum = at::zeros({QueryHeads, 32768}, on(at::kFloat));
    rows.lastRows = at::zeros({QueryHeads, 1, 32768}, on(at::kFloat));
    bench.row("decode attention + column sums, 32768; peer: without", cache.bytes(), cache.attention(&sums), {cache.attention()});
    bench.row("decode attention + last rows, 32768; peer: without", cache.bytes(), cache.attention(&rows), {cache.attention()});
}

// TokenSelect's set, 128 first, 2048 scattered and 512 newest entries, keys before RoPE; peer: copied out, turned, and attended to.
void sparse(Bench& bench) {
    for (const int64_t context : {32768, 131072}) {
        const Cache cache(context);
        const int64_t size = 2688;
        const at::Tensor scattered = std::get<0>(at::randperm(context - 640).narrow(0, 0, 2048).sort()) + 128;
        const at::Tensor chosen = at::cat({at::arange(128), scattered, at::arange(context - 512, context)}).to(at::kCUDA, at::kInt);
        const at::Tensor inverse = at::pow(at::Scalar(500000.0), -at::arange(0, HeadSize, 2, on(at::kFloat)) / HeadSize);
        const at::Tensor index = chosen.expand({KvHeads, size}).contiguous(), lengths = at::full({KvHeads}, size, on(at::kInt)), ranks = at::arange(size, on(at::kInt));
        const Work gathered = [&] {
            const auto ofSet = [&](const at::Tensor& x) { return ops::gather_entries(x, index, lengths, size); };
            const at::Tensor keys = ops::rope(ofSet(cache.k), ranks, inverse), values = ofSet(cache.v), positions = ofSet(cache.positions);
            ops::attention(ops::rope(cache.q, ranks.narrow(0, size - 1, 1), inverse), keys, values, positions, lengths, cache.now, 0.0884);
        };
        bench.row("sparse attention, 2688 of " + std::to_string(context) + "; peer: gathered", 2.0 * KvHeads * HeadSize * 2 * static_cast<double>(size),
                  [&] { ops::sparse_attention(cache.q, cache.k, cache.v, cache.positions, chosen, inverse, cache.now, 0.0884); }, {gathered});
    }
}

// The kvc policies' sums, of a decoded token and, with its forward pass, of a prompt; peers: ATen's calls, cuDNN's forward alone.
void change(Bench& bench) {
    const std::pair<ops::OutputChange, const char*> kinds[] = {{ops::OutputChange::value, "value"}, {ops::OutputChange::key, "key"}, {ops::OutputChange::joint, "joint"}};
    const auto inAtenCalls = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("keepsight::output_change", "")
                                 .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double, int64_t,
                                                   const std::optional<at::Tensor>&, const std::optional<at::Tensor>&)>();
    for (const int64_t held : {2048, 16384}) {
        const Cache c(held);
        for (const auto& [kind, name] : kinds)
            bench.row(std::string("output_change, ") + name + ", one query, " + std::to_string(held) + "; peer: ATen's calls", c.bytes(),
                      [&, kind = kind] { ops::output_change(c.q, c.k, c.v, c.positions, c.lengths, c.now, 0.0884, kind); }, {[&, kind = kind] {
                          inAtenCalls.redispatch(c10::DispatchKeySet(c10::DispatchKey::CompositeExplicitAutograd), c.q, c.k, c.v, c.positions, c.lengths, c.now, 0.0884,
                                                 static_cast<int64_t>(kind), {}, {});
                      }});
    }
    for (const int64_t context : {16384, 32768}) {
        const Cache c(context);
        const at::Tensor q = at::randn({QueryHeads, context, HeadSize}, on(at::kBFloat16)), now = at::arange(context, on(at::kInt));
        for (const auto& [kind, name] : kinds)
            bench.row(std::string("causal attention + output_change, ") + name + ", " + std::to_string(context) + "; peer: cuDNN alone", 2.0 * static_cast<double>(q.nbytes() + c.k.nbytes()),
                      [&, kind = kind] {
                          ops::AttentionStats stats;
                          const at::Tensor output = ops::causal_attention(q, c.k, c.v, context, 0.0884, &stats);
                          const ops::KnownAttention known{output, stats.logSumExp};
                          ops::output_change(q, c.k, c.v, c.positions, c.lengths, now, 0.0884, kind, &known);
                      },
                      {cudnnForward(q, c.k, c.v)});
    }
}

void topK(Bench& bench) {
    for (const int64_t count : {131072, 1 << 20}) {
        const at::Tensor scores = at::randn({1, count}, on(at::kFloat)), counts = at::full({1}, count, on(at::kInt));
        bench.row("top_k, 2048 of " + std::to_string(count) + "; peer: torch.topk (not sorted by index)",
                  static_cast<double>(scores.nbytes()), [&] { ops::top_k(scores, counts, 2048); }, {[&] { at::topk(scores, 2048); }});
    }
}

void vote(Bench& bench) {
    for (const auto& [queryHeads, kvHeads] : {std::pair<int64_t, int64_t>{32, 8}, {28, 4}})
        for (const int64_t count : {131072, 1 << 20}) {
            const at::Tensor q = at::randn({queryHeads, HeadSize}, on(at::kFloat)) * 0.1,
                             k = at::randn({kvHeads, count, HeadSize}, on(at::kBFloat16));
            const at::Tensor lengths = at::full({kvHeads}, count, on(at::kInt)), counts = at::full({1}, count, on(at::kInt));
            const at::Tensor grouped = q.to(at::kBFloat16).view({kvHeads, -1, HeadSize});
            const std::string name = std::to_string(queryHeads) + "/" + std::to_string(kvHeads) + " heads, " + std::to_string(count);
            bench.row("soft_vote, " + name + "; peer: bmm, softmax, sum in torch", static_cast<double>(k.nbytes()),
                      [&] { ops::soft_vote(q, k, lengths, 0, 0, 1); }, {[&] {
                          at::softmax(at::matmul(grouped, k.transpose(1, 2)), -1, at::kFloat).sum(at::IntArrayRef{0, 1});
                      }});
            bench.row("soft_vote + top_k 2048, " + name + "; peer: the same + torch.topk", static_cast<double>(k.nbytes()),
                      [&] { ops::top_k(ops::soft_vote(q, k, lengths, 0, 0, 1).unsqueeze(0), counts, 2048); }, {[&] {
                          at::topk(at::softmax(at::matmul(grouped, k.transpose(1, 2)), -1, at::kFloat).sum(at::IntArrayRef{0, 1}), 2048);
                      }});
        }
}

// A window of 64 queries, as snapkv votes while it decodes.
void window(Bench& bench) {
    for (const int64_t count : {2049, 8192, 32768}) {
        const at::Tensor q = at::randn({QueryHeads, 64, HeadSize}, on(at::kBFloat16)), k = at::randn({KvHeads, count, HeadSize}, on(at::kBFloat16));
        const at::Tensor lengths = at::full({KvHeads}, count, on(at::kInt)), positions = at::arange(count, on(at::kInt)).expand({KvHeads, count}).contiguous(), now = at::arange(count - 64, count, on(at::kInt));
        bench.row("attention_sums of 64 queries, " + std::to_string(count) + "; peer: bmm, softmax, sum in torch", static_cast<double>(k.nbytes()), [&] { ops::attention_sums(q, k, positions, lengths, now, 0.1); },
                  {[&] { at::softmax(at::matmul(q.view({KvHeads, -1, HeadSize}), k.transpose(1, 2)), -1, at::kFloat).view({QueryHeads, 64, count}).sum(1); }});
    }
}

} // namespace

int main(int argc, char** argv) {
    const c10::InferenceMode guard;
    std::string json, why;
    bool dirty = false;
    std::vector<std::string> wanted;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument == "--json" && i + 1 < argc)
            json = argv[++i];
        else if (argument == "--dirty")
            dirty = true;
        else
            wanted.push_back(argument);
    }
    if (!ops::loadCuda(&why) || !at::hasCUDA() || at::detail::getCUDAHooks().getNumGPUs() == 0)
        return std::fprintf(stderr, "gpu_bench: no CUDA device: %s\n", why.empty() ? "the driver shows none" : why.c_str()), 2;
    Bench bench(dirty);
    const std::pair<const char*, void (*)(Bench&)> parts[] = {
        {"decode", decode}, {"ragged", ragged}, {"packed", packed}, {"coded", coded}, {"statistics", statistics}, {"prefill", prefill}, {"sparse", sparse}, {"change", change}, {"top_k", topK}, {"vote", vote}, {"window", window}, {"drop", drop}, {"matvec", matvec}};
    for (const auto& [name, part] : parts)
        if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end()) part(bench);
    if (!json.empty()) bench.save(json);
}
