// Times the operators on the shapes of the default model (SmolLM2-135M: 30 layers, hidden 576, ff 1536, 9/3 heads of 64) and prints a
// table, and JSON with --json FILE. Weights and caches of a step are cycled through all layers, so they come from memory as in a real run.
#include "kernels/bind/ops.h"
#include "kernels/cpu_kernels.h"
#include "kernels/stored.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

namespace {

using namespace keepsight;

struct Bench {
    std::vector<std::string> wanted;
    double copyGBs = 0;
    nlohmann::json rows = nlohmann::json::array();

    static double seconds(const std::function<void()>& work) {
        const auto start = std::chrono::steady_clock::now();
        work();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

    // Median of at least 5 runs and 0.3 s. bytes moved and floating-point operations of one run; 0: not shown.
    void time(const std::string& name, double bytes, double flops, const std::function<void()>& work) {
        if (!wanted.empty() &&
            std::none_of(wanted.begin(), wanted.end(), [&](const std::string& w) { return name.find(w) != std::string::npos; }))
            return;
        work();
        std::vector<double> times;
        for (double total = 0; times.size() < 5 || (total < 0.3 && times.size() < 500); total += times.back())
            times.push_back(seconds(work));
        std::sort(times.begin(), times.end());
        const double median = times[times.size() / 2], spread = times[times.size() * 3 / 4] - times[times.size() / 4];
        std::printf("%-44s %10.3f ms ±%6.3f", name.c_str(), median * 1e3, spread * 1e3);
        nlohmann::json row = {{"name", name}, {"ms", median * 1e3}, {"iqr_ms", spread * 1e3}};
        if (bytes > 0) {
            const double rate = bytes / median * 1e-9;
            std::printf("  %7.2f GB/s", rate);
            row["gb_per_s"] = rate;
            if (copyGBs > 0) std::printf(" (%3.0f %% of copy)", 100 * rate / copyGBs);
        }
        if (flops > 0) {
            std::printf("  %7.1f GFLOP/s", flops / median * 1e-9);
            row["gflop_per_s"] = flops / median * 1e-9;
        }
        std::printf("\n");
        std::fflush(stdout);
        rows.push_back(row);
    }
};

at::Tensor packed(Stored type, int64_t rows, int64_t columns) {
    const int64_t bytes = columns / blockValues(type) * blockBytes(type);
    if (blockValues(type) == 1)
        return at::randn({rows, columns})
            .to(type == Stored::f32   ? at::kFloat
                : type == Stored::f16 ? at::kHalf
                                      : at::kBFloat16)
            .view(at::kByte)
            .contiguous();
    at::Tensor t = at::randint(0, 128, {rows, bytes}, at::kByte);
    const uint16_t half = 0x2000; // about 0.008
    for (int64_t block = 0; block < t.numel() / blockBytes(type); ++block)
        for (int k = 0; k < (type == Stored::q4_1 ? 2 : 1); ++k)
            std::memcpy(t.data_ptr<uint8_t>() + block * blockBytes(type) + 2 * k, &half, 2);
    return t;
}

constexpr int64_t Layers = 30, Hidden = 576, FeedForward = 1536, Vocabulary = 49152, QueryHeads = 9, KvHeads = 3, HeadSize = 64;

struct Matrix {
    at::Tensor data;
    Stored type;
    int64_t in;
    at::Tensor operator()(const at::Tensor& x) const { return ops::linear(x, data, static_cast<int64_t>(type), in); }
};

void linears(Bench& bench, at::ScalarType dtype, const char* suffix) {
    for (Stored type : {Stored::q4_1, Stored::q8_0, Stored::bf16}) {
        const std::string name = std::string(type == Stored::q4_1 ? "Q4_1" : type == Stored::q8_0 ? "Q8_0" : "BF16") + suffix;
        std::vector<std::vector<Matrix>> model;
        double bytes = 0;
        for (int64_t layer = 0; layer < Layers; ++layer) {
            auto& m = model.emplace_back();
            for (auto [out, in] : {std::pair{Hidden, Hidden},
                                   {KvHeads * HeadSize, Hidden},
                                   {KvHeads * HeadSize, Hidden},
                                   {Hidden, Hidden},
                                   {2 * FeedForward, Hidden},
                                   {Hidden, FeedForward}})
                m.push_back({packed(type, out, in), type, in});
            for (const Matrix& matrix : m)
                bytes += static_cast<double>(matrix.data.nbytes());
        }
        const Matrix head{packed(Stored::q8_0, Vocabulary, Hidden), Stored::q8_0, Hidden};
        for (int64_t count : {1, 2, 4, 8, 16, 64, 512}) {
            const at::Tensor x = at::randn({count, Hidden}).to(dtype), wide = at::randn({count, FeedForward}).to(dtype);
            const double values =
                static_cast<double>(Layers) * (2 * Hidden * Hidden + 2 * KvHeads * HeadSize * Hidden + 3 * Hidden * FeedForward);
            bench.time("linear " + name + " all layers, rows " + std::to_string(count), bytes, 2 * values * static_cast<double>(count),
                       [&] {
                           for (const auto& layer : model)
                               for (const Matrix& m : layer)
                                   m(m.in == Hidden ? x : wide);
                       });
        }
        if (type != Stored::q8_0) continue;
        for (int64_t count : {1, 4, 64, 512}) {
            const at::Tensor x = at::randn({count, Hidden}).to(dtype);
            bench.time("linear " + name + " vocabulary, rows " + std::to_string(count), static_cast<double>(head.data.nbytes()),
                       2.0 * Vocabulary * Hidden * static_cast<double>(count), [&] { head(x); });
        }
    }
}

void attentions(Bench& bench, at::ScalarType dtype, const std::string& suffix) {
    const double item = dtype == at::kFloat ? 4 : 2;
    for (int64_t length : {512, 4000, 8192}) {
        const at::Tensor q = at::randn({length, QueryHeads, HeadSize}).to(dtype).transpose(0, 1);
        const at::Tensor k = at::randn({KvHeads, length, HeadSize}).to(dtype), v = at::randn({KvHeads, length, HeadSize}).to(dtype);
        const at::Tensor positions = at::arange(length, at::kInt).expand({KvHeads, length}).contiguous(),
                         lengths = at::full({KvHeads}, length, at::kInt);
        const at::Tensor queries = at::arange(length, at::kInt);
        const double flops = 2.0 * QueryHeads * HeadSize * static_cast<double>(length) * static_cast<double>(length + 1);
        const std::string name = "attention prefill " + std::to_string(length) + suffix;
        bench.time(name, 0, flops, [&] { ops::attention(q, k, v, positions, lengths, queries, 0.125); });
        ops::AttentionStats stats;
        stats.columnSum = at::zeros({QueryHeads, length});
        bench.time(name + " + column sums", 0, flops, [&] { ops::attention(q, k, v, positions, lengths, queries, 0.125, &stats); });
        stats.map = at::zeros({KvHeads, 128, 128});
        stats.rowBin = stats.colBin = (length + 127) / 128;
        bench.time(name + " + sums + map", 0, flops, [&] { ops::attention(q, k, v, positions, lengths, queries, 0.125, &stats); });
        const at::Tensor window = q.narrow(1, length - 64, 64);
        bench.time("attention rows 64 of " + std::to_string(length) + suffix, 0,
                   2.0 * QueryHeads * HeadSize * 64 * static_cast<double>(length),
                   [&] { ops::attention_rows(window, k, positions, lengths, queries.narrow(0, length - 64, 64), 0.125); });

        std::vector<std::pair<at::Tensor, at::Tensor>> layers;
        for (int64_t layer = 0; layer < Layers; ++layer)
            layers.emplace_back(k.clone(), v.clone());
        const at::Tensor one = q.narrow(1, length - 1, 1), last = queries.narrow(0, length - 1, 1);
        const double bytes = 2.0 * Layers * KvHeads * static_cast<double>(length) * HeadSize * item;
        bench.time("attention step at " + std::to_string(length) + suffix + ", 30 layers", bytes, 0, [&] {
            for (const auto& [keys, values] : layers)
                ops::attention(one, keys, values, positions, lengths, last, 0.125);
        });
        ops::AttentionStats sums;
        sums.columnSum = at::zeros({QueryHeads, length});
        bench.time("attention step at " + std::to_string(length) + suffix + " + sums, 30 layers", bytes, 0, [&] {
            for (const auto& [keys, values] : layers)
                ops::attention(one, keys, values, positions, lengths, last, 0.125, &sums);
        });
    }
}

// A prompt in bf16 by our tiles and, where useCpuKernels takes a table without them, by torch's fused attention; the latter has no statistics, so ours
// in fp32 vectors stands beside them.
void prompts(Bench& bench) {
    const std::string best = cpuKernels().name;
    for (int64_t length : {512, 2048, 4096}) {
        const at::Tensor q = at::randn({length, QueryHeads, HeadSize}).to(at::kBFloat16).transpose(0, 1);
        const at::Tensor k = at::randn({KvHeads, length, HeadSize}).to(at::kBFloat16), v = at::randn({KvHeads, length, HeadSize}).to(at::kBFloat16);
        const double flops = 2.0 * QueryHeads * HeadSize * static_cast<double>(length) * static_cast<double>(length + 1);
        ops::AttentionStats none, sums;
        sums.columnSum = at::zeros({QueryHeads, length});
        for (const std::string& kernels : {best, std::string("avx512vnni")}) {
            if (!useCpuKernels(kernels)) continue;
            const std::string name = "prompt bf16 " + std::to_string(length) + ", ";
            bench.time(name + kernels + (cpuKernels().bf16Attention || !multipliesBf16() ? "" : " (torch)"), 0, flops, [&] { ops::causal_attention(q, k, v, length, 0.125, &none); });
            bench.time(name + kernels + " + column sums", 0, flops, [&] { ops::causal_attention(q, k, v, length, 0.125, &sums); });
        }
        useCpuKernels(best);
    }
}

// One new query over 32 exact entries behind codes, keys by channel and values by token in groups of 64, beside our own attention over as many
// exact ones: of several layers, so that entries come from memory.
void packedAttentions(Bench& bench, int64_t queryHeads, int64_t kvHeads, int64_t dim, int64_t length) {
    constexpr int64_t Group = 64, Exact = 32;
    const double values = 2.0 * static_cast<double>(kvHeads * length * dim);
    const auto layers = std::clamp(static_cast<int64_t>(256e6 / (4 * values)), int64_t{4}, Layers);
    const std::string name = " step at " + std::to_string(length) + ", " + std::to_string(queryHeads) + "/" + std::to_string(kvHeads) + " x " + std::to_string(dim);
    const at::Tensor q = at::randn({queryHeads, 1, dim}), positions = at::arange(length, at::kInt).expand({kvHeads, length}).contiguous(),
                     lengths = at::full({kvHeads}, length, at::kInt), last = at::full({1}, length - 1, at::kInt);
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        const at::Tensor random = at::randn({kvHeads, length, dim}).to(dtype);
        std::vector<at::Tensor> entries;
        for (int64_t layer = 0; layer < 2 * layers; ++layer)
            entries.push_back(random.clone());
        bench.time(std::string(dtype == at::kFloat ? "fp32" : "bf16") + name, static_cast<double>(layers) * values * (dtype == at::kFloat ? 4 : 2), 0, [&] {
            for (size_t layer = 0; layer < entries.size(); layer += 2)
                ops::attention(q.to(dtype), entries[layer], entries[layer + 1], positions, lengths, last, 0.125);
        });
    }
    for (const int64_t bits : {8, 4, 2}) {
        const int64_t coded = length - Exact;
        const at::Tensor codes = at::randint(0, 256, {kvHeads, coded, dim * bits / 8}, at::kByte), tail = at::randn({kvHeads, Exact, dim});
        std::vector<ops::PackedSide> sides;
        for (int64_t layer = 0; layer < 2 * layers; ++layer) {
            const bool keys = layer % 2 == 0;
            ops::PackedSide& side = sides.emplace_back();
            side.codes = codes.clone(), side.bits = bits, side.groupTokens = keys ? Group : 1;
            side.scale = at::full({kvHeads, keys ? (coded + Group - 1) / Group : coded, keys ? dim : dim / Group}, 1.0 / static_cast<double>(1 << bits), at::kHalf);
            side.zero = at::full_like(side.scale, -0.5);
            side.tail = tail;
            side.counts = at::tensor({int64_t{0}, coded, Exact}, at::kInt).unsqueeze(1).expand({3, kvHeads}).contiguous();
        }
        const double bytes = static_cast<double>(layers * (sides[0].codes.nbytes() + sides[1].codes.nbytes() + 2 * (sides[0].scale.nbytes() + sides[1].scale.nbytes())));
        bench.time(std::to_string(bits) + " bits" + name, bytes, 0, [&] {
            for (size_t layer = 0; layer < sides.size(); layer += 2)
                ops::packed_attention(q, sides[layer], sides[layer + 1], positions, lengths, last, 0.125);
        });
        if (bits != 4) continue;
        for (ops::PackedSide& side : sides)
            side.levels = at::randn({16});
        bench.time("4 bits, learnt levels," + name, bytes, 0, [&] {
            for (size_t layer = 0; layer < sides.size(); layer += 2)
                ops::packed_attention(q, sides[layer], sides[layer + 1], positions, lengths, last, 0.125);
        });
        const ops::KeyTurn turn{at::pow(1e5, at::arange(0, dim, 2, at::kFloat) / -dim)};
        bench.time("4 bits, learnt levels, keys before RoPE," + name, bytes, 0, [&] {
            for (size_t layer = 0; layer < sides.size(); layer += 2)
                ops::packed_attention(q, sides[layer], sides[layer + 1], positions, lengths, last, 0.125, nullptr, turn);
        });
    }
}

void others(Bench& bench) {
    for (int64_t rows : {1, 4000}) {
        const double n = static_cast<double>(rows);
        const at::Tensor x = at::randn({rows, Hidden}), weight = at::ones({Hidden}), gateUp = at::randn({rows, 2 * FeedForward});
        const std::string suffix = ", rows " + std::to_string(rows);
        bench.time("rms_norm" + suffix, n * Hidden * 8, 0, [&] { ops::rms_norm(x, weight, 1e-5); });
        bench.time("silu_mul" + suffix, n * FeedForward * 12, 0, [&] { ops::silu_mul(gateUp); });
        const at::Tensor q = at::randn({rows, QueryHeads, HeadSize}).transpose(0, 1),
                         frequencies = at::pow(1e5, at::arange(0, HeadSize, 2, at::kFloat) / -HeadSize);
        bench.time("rope" + suffix, n * QueryHeads * HeadSize * 8, 0, [&] { ops::rope(q, at::arange(rows, at::kInt), frequencies); });
    }
    const int64_t length = 4000;
    at::Tensor keys = at::randn({KvHeads, length, HeadSize});
    const double bytes = static_cast<double>(keys.nbytes());
    const at::Tensor one = at::arange(length, at::kInt)
                               .index_select(0, at::arange(length, at::kLong).masked_select(at::arange(length) != 4))
                               .expand({KvHeads, length - 1})
                               .contiguous();
    bench.time("compact, one of 4000 evicted", 2 * bytes, 0,
               [&] { ops::compact_entries(keys, one, at::full({KvHeads}, length - 1, at::kInt)); });
    const at::Tensor half = at::arange(0, length, 2, at::kInt).expand({KvHeads, length / 2}).contiguous(),
                     counts = at::full({KvHeads}, length / 2, at::kInt);
    bench.time("gather, every second of 4000", bytes, 0, [&] { ops::gather_entries(keys, half, counts, length / 2); });
    const at::Tensor entry = at::randn({KvHeads, 1, HeadSize});
    bench.time("append, one entry", 0, 0, [&] { ops::append_entries(keys, entry, counts); });
}

} // namespace

int main(int argc, char** argv) {
    Bench bench;
    std::string jsonFile;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument == "--json" && i + 1 < argc)
            jsonFile = argv[++i];
        else if (argument == "--threads" && i + 1 < argc)
            at::set_num_threads(std::atoi(argv[++i]));
        else if (argument == "--isa" && i + 1 < argc) {
            if (!useCpuKernels(argv[++i]))
                return std::fprintf(stderr, "kernels_bench: instruction set %s is not available here\n", argv[i]), 2;
        } else
            bench.wanted.push_back(argument);
    }
    std::printf("%s kernels, %d threads\n", cpuKernels().name, at::get_num_threads());
    const at::Tensor from = at::ones({64 << 20}), to = at::zeros({64 << 20});
    std::vector<double> copies;
    for (int i = 0; i < 5; ++i)
        copies.push_back(Bench::seconds([&] { to.copy_(from); }));
    std::sort(copies.begin(), copies.end());
    bench.copyGBs = 2.0 * static_cast<double>(from.nbytes()) / copies[2] * 1e-9;
    std::printf("copy floor: %.2f GB/s, read and written\n", bench.copyGBs);
    linears(bench, at::kFloat, "");
    linears(bench, at::kBFloat16, " x bf16");
    attentions(bench, at::kFloat, "");
    attentions(bench, at::kBFloat16, " bf16");
    prompts(bench);
    for (int64_t length : {2048, 16384}) {
        packedAttentions(bench, QueryHeads, KvHeads, HeadSize, length);
        packedAttentions(bench, 32, 8, 128, length);
    }
    others(bench);
    if (!jsonFile.empty())
        std::ofstream(jsonFile) << nlohmann::json{{"schema", "keepsight.kernels_bench/1"},
                                                  {"isa", cpuKernels().name},
                                                  {"threads", at::get_num_threads()},
                                                  {"copy_gb_per_s", bench.copyGBs},
                                                  {"rows", bench.rows}}
                                       .dump(1)
                                << "\n";
}
