// Every operator on the CUDA device against the CPU, over odd sizes, dtypes and ragged heads; then times against the device's copy bandwidth.
// A plain program, so that it runs on a machine without Qt: exit 0 all equal within tolerance, 1 a difference, 77 no device (ctest: skipped).
//   cuda_check [--bench]
#include "kernels/bind/ops.h"

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/InferenceMode.h>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>

using namespace keepsight;

namespace {

int failures = 0, checks = 0;

void expectClose(const char* what, const at::Tensor& onDevice, const at::Tensor& expected, double tolerance) {
    ++checks;
    const at::Tensor a = onDevice.to(at::kCPU, at::kFloat), b = expected.to(at::kFloat);
    const double error = a.numel() == 0 ? 0.0 : (a - b).abs().max().item<double>(), scale = b.numel() == 0 ? 1.0 : std::max(1e-6, b.abs().max().item<double>());
    if (a.sizes() == b.sizes() && error <= tolerance * std::max(1.0, scale)) return;
    ++failures;
    std::printf("FAIL %s: max error %.3g at scale %.3g, allowed %.3g\n", what, error, scale, tolerance);
}

struct Case {
    int heads, group, dim, capacity, queries;
    at::ScalarType type;
};

void checkCase(const Case& c) {
    at::manual_seed(c.capacity * 31 + c.queries);
    const double tolerance = c.type == at::kFloat ? 2e-5 : 2e-2;
    // The CPU has no fp16: the reference is fp32 from the same rounded values.
    const at::ScalarType reference = c.type == at::kHalf ? at::kFloat : c.type;
    const auto gpu = [](const at::Tensor& t) { return t.to(at::kCUDA); };
    const auto values = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(c.type); };
    char label[160];
    const auto name = [&](const char* op) {
        std::snprintf(label, sizeof label, "%s heads %d×%d dim %d capacity %d queries %d %s", op, c.heads, c.group, c.dim, c.capacity, c.queries, c10::toString(c.type));
        return label;
    };
    const at::Tensor k = values({c.heads, c.capacity, c.dim}), v = values({c.heads, c.capacity, c.dim}), q = values({c.heads * c.group, c.queries, c.dim});
    at::Tensor lengths = at::empty({c.heads}, at::kInt), positions = at::zeros({c.heads, c.capacity}, at::kInt);
    for (int h = 0; h < c.heads; ++h) { // ragged, with gaps between positions
        const int held = std::max(1, c.capacity - h * (c.capacity / (c.heads + 1)));
        lengths[h].fill_(held);
        for (int t = 0; t < held; ++t) positions.data_ptr<std::int32_t>()[h * c.capacity + t] = 2 * t + h % 2;
    }
    const at::Tensor queryPositions = at::arange(2 * c.capacity - c.queries, 2 * c.capacity, at::kInt);
    const at::Tensor inverse = at::pow(at::Scalar(10000.0), -at::arange(0, c.dim, 2, at::kFloat) / c.dim);

    const at::Tensor out = ops::attention(q.to(reference), k.to(reference), v.to(reference), positions, lengths, queryPositions, 0.1);
    const at::Tensor device = ops::attention(gpu(q), gpu(k), gpu(v), gpu(positions), gpu(lengths), gpu(queryPositions), 0.1);
    expectClose(name("attention"), device, out, tolerance);
    const at::Tensor again = ops::attention(gpu(q), gpu(k), gpu(v), gpu(positions), gpu(lengths), gpu(queryPositions), 0.1);
    ++checks;
    if (!at::equal(device, again)) ++failures, std::printf("FAIL %s: two runs differ\n", name("attention"));

    ops::AttentionStats cpu, cuda;
    cpu.columnSum = at::zeros({c.heads * c.group, c.capacity});
    cpu.lastRows = at::zeros({c.heads * c.group, 1, c.capacity});
    cpu.map = at::zeros({c.heads, 8, 8});
    cuda.columnSum = gpu(cpu.columnSum), cuda.lastRows = gpu(cpu.lastRows), cuda.map = gpu(cpu.map);
    cpu.mapRowBegin = cuda.mapRowBegin = 2 * c.capacity - c.queries;
    cpu.rowBin = cuda.rowBin = c.queries / 8 + 1, cpu.colBin = cuda.colBin = c.capacity / 4 + 1;
    ops::attention(q.to(reference), k.to(reference), v.to(reference), positions, lengths, queryPositions, 0.1, &cpu);
    ops::attention(gpu(q), gpu(k), gpu(v), gpu(positions), gpu(lengths), gpu(queryPositions), 0.1, &cuda);
    expectClose(name("column sums"), cuda.columnSum, cpu.columnSum, tolerance);
    expectClose(name("last rows"), cuda.lastRows, cpu.lastRows, tolerance);
    expectClose(name("map"), cuda.map, cpu.map, tolerance);
    expectClose(name("attention_rows"), ops::attention_rows(gpu(q), gpu(k), gpu(positions), gpu(lengths), gpu(queryPositions), 0.1),
                ops::attention_rows(q.to(reference), k.to(reference), positions, lengths, queryPositions, 0.1), tolerance);

    at::Tensor index = at::zeros({c.heads, std::max(1, c.capacity / 2)}, at::kInt), counts = at::empty({c.heads}, at::kInt);
    for (int h = 0; h < c.heads; ++h) {
        const int keep = std::max(1, lengths[h].item<int>() / (h + 2));
        counts[h].fill_(keep);
        for (int i = 0; i < keep && i < index.size(1); ++i) index.data_ptr<std::int32_t>()[h * index.size(1) + i] = i * (h + 2);
        counts[h].fill_(std::min<int>(keep, static_cast<int>(index.size(1))));
    }
    for (const at::Tensor& x : {k, positions}) {
        expectClose(name("gather_entries"), ops::gather_entries(gpu(x), gpu(index), gpu(counts), c.capacity + 3),
                    ops::gather_entries(x, index, counts, c.capacity + 3), 0);
        at::Tensor here = x.clone(), there = gpu(x);
        ops::compact_entries(here, index, counts);
        ops::compact_entries(there, gpu(index), gpu(counts));
        for (int h = 0; h < c.heads; ++h) {
            const int n = counts[h].item<int>();
            expectClose(name("compact_entries"), there[h].narrow(0, 0, n), here[h].narrow(0, 0, n), 0);
        }
    }
    at::Tensor dst = at::zeros({c.heads, c.capacity + c.queries, c.dim}, k.options()), dstGpu = gpu(dst);
    const at::Tensor fresh = values({c.queries, c.heads, c.dim}).transpose(0, 1); // not dense, as the model hands it over
    ops::append_entries(dst, fresh, lengths);
    ops::append_entries(dstGpu, gpu(fresh), gpu(lengths));
    expectClose(name("append_entries"), dstGpu, dst, 0);

    const at::Tensor turns = at::randint(0, 100000, {c.capacity}, at::kInt);
    expectClose(name("rope"), ops::rope(gpu(k), gpu(turns), gpu(inverse)), ops::rope(k.to(reference), turns, inverse), c.type == at::kFloat ? 2e-4 : 2e-2);
    const at::Tensor rows = values({c.queries, c.dim * 6}), weight = at::randn({c.dim * 6});
    expectClose(name("rms_norm"), ops::rms_norm(gpu(rows), gpu(weight), 1e-5), ops::rms_norm(rows.to(reference), weight, 1e-5), tolerance);
    expectClose(name("silu_mul"), ops::silu_mul(gpu(rows)), ops::silu_mul(rows.to(reference)), tolerance);
}

void synchronize() { at::ones({1}, at::kCUDA).item<float>(); }

double microseconds(const std::function<void()>& run) {
    std::vector<double> times;
    at::Tensor flush = at::empty({256 << 20}, at::TensorOptions().dtype(at::kByte).device(at::kCUDA));
    for (int i = 0; i < 15; ++i) {
        flush.fill_(i); // cold L2
        synchronize();
        const auto begin = std::chrono::steady_clock::now();
        run();
        synchronize();
        times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

void bench() {
    const auto options = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
    const at::Tensor big = at::empty({std::int64_t{1} << 30}, at::TensorOptions().dtype(at::kByte).device(at::kCUDA)), other = at::empty_like(big);
    const double copy = microseconds([&] { at::Tensor(other).copy_(big); }), idle = microseconds([] {});
    const double bandwidth = 2.0 * static_cast<double>(big.numel()) / (copy - idle) * 1e-6; // TB/s
    std::printf("copy %.2f TB/s; empty launch and synchronise %.1f us (taken off below)\n", bandwidth, idle);
    for (const int context : {4096, 32768, 131072}) {
        const at::Tensor k = at::randn({8, context, 128}, options), v = at::randn({8, context, 128}, options), q = at::randn({32, 1, 128}, options);
        const at::Tensor positions = at::arange(context, at::TensorOptions().dtype(at::kInt).device(at::kCUDA)).expand({8, context}).contiguous();
        const at::Tensor lengths = at::full({8}, context, positions.options()), now = at::full({1}, context, positions.options());
        const double own = microseconds([&] { ops::attention(q, k, v, positions, lengths, now, 0.088); }) - idle;
        const double sdpa = microseconds([&] {
                                at::scaled_dot_product_attention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), {}, 0.0, false, std::nullopt, true);
                            }) - idle;
        const double bytes = 2.0 * static_cast<double>(k.nbytes());
        std::printf("decode attention bf16 32/8 heads D 128 context %6d: %7.1f us (%.2f TB/s, %.0f %% of copy); torch SDPA %7.1f us\n", context, own, bytes / own * 1e-6,
                    100 * bytes / own * 1e-6 / bandwidth, sdpa);
        const at::Tensor index = at::arange(0, context, 2, positions.options()).expand({8, context / 2}).contiguous(), counts = at::full({8}, context / 2, positions.options());
        const double gather = microseconds([&] { ops::gather_entries(k, index, counts, context / 2); }) - idle;
        std::printf("gather_entries half of %6d: %7.1f us (%.2f TB/s)\n", context, gather, static_cast<double>(k.nbytes()) / gather * 1e-6);
    }
}

} // namespace

int main(int argc, char** argv) {
    const c10::InferenceMode guard;
    std::string why;
    if (!ops::loadCuda(&why) || !at::hasCUDA() || at::detail::getCUDAHooks().getNumGPUs() == 0) {
        std::printf("skipped: %s\n", why.empty() ? "the driver shows no device" : why.c_str());
        return 77;
    }
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
        for (const int dim : {32, 64, 80, 128, 256})
            for (const int capacity : {1, 31, 33, 4097})
                for (const int queries : {1, 7, 130})
                    if (capacity <= 33 || dim == 64) checkCase({3, 3, dim, capacity, queries, type});
    std::printf("%d checks, %d failed\n", checks, failures);
    if (argc > 1 && std::strcmp(argv[1], "--bench") == 0) bench();
    return failures ? 1 : 0;
}
