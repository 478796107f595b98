// Every operator on the CUDA device against the CPU or fp64, over odd sizes, dtypes and ragged heads; tests/bench/gpu_bench.cpp has the times.
// A plain program, so that it runs on a machine without Qt: exit 0 all equal within tolerance, 1 a difference, 77 no device (ctest: skipped).
//   cuda_check [--quick [PART] | --coded]   few cases, for a sanitizer (decode vote sparse change window scores drops packed beside coded top_k: of these only); packed anew, or attended to, in any form only
#include "tests/kernels/cuda_check.h"

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/InferenceMode.h>
#include <algorithm>
#include <cstdio>
#include <cstring>

using namespace keepsight;
using namespace keepsight::check;

namespace {

struct Case {
    int heads, group, dim, capacity, queries;
    at::ScalarType type;
};

void checkCase(const Case& c) {
    at::manual_seed(c.capacity * 31 + c.queries);
    const double tolerance = c.type == at::kFloat ? 2e-5 : 2e-2;
    // The CPU has no fp16: the reference is fp32 from the same rounded values.
    const at::ScalarType reference = c.type == at::kHalf ? at::kFloat : c.type;
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

// Weights of one query in fp64: [Hq, C], 0 where nothing is seen.
at::Tensor weightsOf(const at::Tensor& q, const at::Tensor& k, const at::Tensor& seen, double scale) {
    const int64_t heads = k.size(0), group = q.size(0) / heads;
    const at::Tensor hidden = seen.logical_not().repeat_interleave(group, 0);
    const at::Tensor dots = at::matmul(q.to(at::kDouble).view({heads, group, -1}), k.to(at::kDouble).transpose(1, 2)).mul(scale).reshape({q.size(0), k.size(1)});
    return at::softmax(dots.masked_fill(hidden, -INFINITY), -1).masked_fill(hidden, 0);
}

// Decode attention with ragged and empty heads, an arbitrary layout, hidden entries and the statistics of h2o and tova.
void checkDecode(int group, int dim, int capacity, at::ScalarType type, bool cut, bool strided) {
    const int heads = 4;
    at::manual_seed(capacity * 7 + group * 3 + dim);
    char label[160];
    const auto name = [&](const char* op) {
        std::snprintf(label, sizeof label, "%s group %d dim %d capacity %d %s%s%s", op, group, dim, capacity, c10::toString(type), cut ? " cut" : "", strided ? " strided" : "");
        return label;
    };
    const auto values = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(type); };
    const at::Tensor q = values({heads * group, 1, dim});
    at::Tensor k = values({heads, capacity, dim}), v = values({heads, capacity, dim});
    const at::Tensor lengths = at::tensor({capacity, capacity / 3, 0, std::min(capacity, 1 + capacity / 2)}, at::kInt);
    const at::Tensor places = at::arange(capacity, at::kInt), positions = (places * 2).expand({heads, capacity}).contiguous();
    const at::Tensor now = at::full({1}, cut ? capacity : 2 * capacity, at::kInt);
    const at::Tensor seen = (places.unsqueeze(0) < lengths.unsqueeze(1)) & (positions <= now);
    at::Tensor kGpu = gpu(k), vGpu = gpu(v);
    if (strided) { // an odd place in memory, and rows that are not neighbours
        kGpu = at::empty({heads, capacity, dim + 3}, kGpu.options()).narrow(2, 1, dim), kGpu.copy_(k);
        vGpu = at::empty({capacity, heads, 2 * dim}, vGpu.options()).narrow(2, dim, dim).transpose(0, 1), vGpu.copy_(v);
    }
    const at::Tensor behind = gpu(places.unsqueeze(0) >= lengths.unsqueeze(1)).unsqueeze(2);
    kGpu.masked_fill_(behind, NAN), vGpu.masked_fill_(behind, NAN); // what lies behind the held entries may be anything
    const at::Tensor weights = weightsOf(q, k, seen, 0.2);
    const at::Tensor out = at::matmul(weights.view({heads, group, capacity}), v.to(at::kDouble)).reshape({1, -1});
    const double tolerance = type == at::kFloat ? 1e-5 : type == at::kHalf ? 2e-3 : 1e-2;
    const auto run = [&](ops::AttentionStats* stats) { return ops::attention(gpu(q), kGpu, vGpu, gpu(positions), gpu(lengths), gpu(now), 0.2, stats); };
    const at::Tensor plain = run(nullptr);
    expectClose(name("decode"), plain, out, tolerance);
    for (int i = 0; i < 3; ++i) expectSame(name("decode again"), run(nullptr), plain);
    ops::AttentionStats stats;
    stats.columnSum = at::ones({heads * group, capacity}, at::TensorOptions().device(at::kCUDA));
    stats.lastRows = at::full({heads * group, 1, capacity}, NAN, stats.columnSum.options());
    expectSame(name("decode with statistics"), run(&stats), plain);
    expectClose(name("decode column sums"), stats.columnSum, weights + 1, 1e-5);
    expectClose(name("decode last rows"), stats.lastRows, weights.unsqueeze(1), 1e-5);
    ops::AttentionStats again;
    again.columnSum = at::ones_like(stats.columnSum);
    run(&again);
    expectSame(name("decode column sums again"), again.columnSum, stats.columnSum);
    // The same heads behind each other.
    std::vector<at::Tensor> keys, valueRows, rowPositions;
    std::vector<std::int32_t> starts;
    std::int32_t rows = 0;
    for (int h = 0; h < heads; ++h) {
        const std::int32_t n = std::min(capacity, lengths[h].item<std::int32_t>() + 2);
        keys.push_back(kGpu[h].narrow(0, 0, n)), valueRows.push_back(vGpu[h].narrow(0, 0, n)), rowPositions.push_back(gpu(positions[h].narrow(0, 0, n)));
        starts.push_back(rows), rows += n;
    }
    ops::AttentionStats beside;
    beside.columnSum = at::ones_like(stats.columnSum);
    const at::Tensor ragged = ops::ragged_attention(gpu(q), at::cat(keys), at::cat(valueRows), at::cat(rowPositions), gpu(at::tensor(starts, at::kInt)), gpu(lengths), capacity, gpu(now),
                                                    0.2, &beside);
    if (dim == 72) return expectClose(name("ragged"), ragged, plain.cpu(), tolerance); // ATen calls of other shapes
    expectSame(name("ragged"), ragged, plain);
    expectSame(name("ragged column sums"), beside.columnSum, stats.columnSum);
}

void checkDecodes() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const int dim : {32, 64, 80, 96, 128, 256})
            for (const int group : {1, 3, 4, 8})
                for (const int capacity : {1, 31, 33, 4097}) checkDecode(group, dim, capacity, type, false, false);
        for (const int dim : {32, 80, 128, 256}) checkDecode(3, dim, 4097, type, true, false), checkDecode(4, dim, 533, type, true, true);
        checkDecode(12, 64, 999, type, false, false);  // more than eight query heads a KV head
        checkDecode(2, 72, 100, type, true, false);    // a head size without a kernel
        checkDecode(4, 128, 70000, type, true, false); // positions looked up in several rounds
    }
}

// Attention to chosen entries: against fp64 over keys turned as ops::rope turns them, and against attention() to the gathered set.
void checkSparse(int group, int dim, int capacity, int size, at::ScalarType type, bool cut, bool strided) {
    const int heads = 3;
    at::manual_seed(size * 7 + group * 3 + dim);
    char label[160];
    const auto name = [&](const char* op) {
        std::snprintf(label, sizeof label, "%s group %d dim %d %d of %d %s%s%s", op, group, dim, size, capacity, c10::toString(type), cut ? " cut" : "", strided ? " strided" : "");
        return label;
    };
    const at::Tensor q = gpu(at::randn({heads * group, 1, dim}).to(type)), inverse = gpu(at::pow(at::Scalar(10000.0), -at::arange(0, dim, 2, at::kFloat) / dim));
    const at::Tensor chosen = std::get<0>(at::randperm(capacity).narrow(0, 0, size).sort()).to(at::kInt), entries = gpu(chosen).to(at::kLong);
    const at::Tensor positions = gpu((at::arange(capacity, at::kInt) * 2).unsqueeze(0) + at::arange(heads, at::kInt).unsqueeze(1)), now = gpu(at::full({1}, cut ? capacity : 2 * capacity + heads, at::kInt));
    at::Tensor k = gpu(at::randn({heads, capacity, dim}).to(type)), v = gpu(at::randn({heads, capacity, dim}).to(type));
    const at::Tensor others = at::ones({capacity}, positions.options().dtype(at::kBool)).index_fill_(0, entries, false).view({1, -1, 1});
    k.masked_fill_(others, NAN), v.masked_fill_(others, NAN);
    if (strided) { // an odd place in memory
        const at::Tensor odd = at::empty({heads, capacity, dim + 3}, k.options()).narrow(2, 1, dim);
        odd.copy_(k), k = odd;
    }
    const at::Tensor keys = ops::rope(k.index_select(1, entries), gpu(at::arange(size, at::kInt)), inverse), values = v.index_select(1, entries), own = positions.index_select(1, entries);
    const at::Tensor turned = ops::rope(q, gpu(at::full({1}, size - 1, at::kInt)), inverse), lengths = gpu(at::full({heads}, size, at::kInt));
    const auto run = [&](ops::AttentionStats* stats) { return ops::sparse_attention(q, k, v, positions, gpu(chosen), inverse, now, 0.2, stats); };
    const at::Tensor found = run(nullptr), weights = weightsOf(turned.cpu(), keys.cpu(), (own <= now).cpu(), 0.2);
    const double tolerance = type == at::kFloat ? 1e-5 : type == at::kHalf ? 2e-3 : 1e-2;
    expectClose(name("sparse_attention"), found, at::matmul(weights.view({heads, group, size}), values.cpu().to(at::kDouble)).reshape({1, -1}), tolerance);
    for (int i = 0; i < 3; ++i) expectSame(name("sparse_attention again"), run(nullptr), found);
    const auto empty = [&] {
        ops::AttentionStats s;
        s.columnSum = at::ones({heads * group, size}, inverse.options());
        s.lastRows = at::full({heads * group, 1, size}, NAN, inverse.options());
        s.map = at::ones({heads, 4, capacity / 8 + 1}, inverse.options());
        s.mapRowBegin = now.item<int>() - 5, s.rowBin = 2, s.colBin = 16;
        return s;
    };
    ops::AttentionStats stats = empty(), gathered = empty();
    expectSame(name("sparse_attention with statistics"), run(&stats), found);
    expectClose(name("gathered attention"), found, ops::attention(turned, keys, values, own, lengths, now, 0.2, &gathered).cpu(), tolerance);
    // A key's rounding may go the other way, where sines differ in their last bit.
    const double rounding = type == at::kFloat ? 1e-5 : type == at::kHalf ? 1e-4 : 1e-3;
    expectClose(name("sparse_attention column sums"), stats.columnSum, weights + 1, rounding);
    expectClose(name("sparse_attention last rows"), stats.lastRows, weights.unsqueeze(1), rounding);
    expectClose(name("sparse_attention map"), stats.map, gathered.map.cpu(), rounding);
}

void checkAllSparse() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const int dim : {32, 64, 80, 96, 128, 256}) {
            for (const int group : {1, 3, 4, 8})
                for (const auto& [size, capacity] : {std::pair(1, 1), {1, 40}, {31, 40}, {33, 33}, {2688, 4000}}) checkSparse(group, dim, capacity, size, type, false, false);
            checkSparse(4, dim, 9000, 4097, type, true, false);
        }
        checkSparse(12, 64, 2000, 999, type, false, false);       // more than eight query heads a KV head
        checkSparse(4, 128, 70000, 60000, type, true, false);     // many tiles a warp, far ranks
        checkSparse(2, 72, 300, 100, type, true, false);          // a head size without a kernel
        checkSparse(2, 64, 300, 100, type, false, true);          // and a layout
    }
}

// What a window of queries gives to each entry, and its votes: ragged and empty heads, gaps between positions, entries hidden from the older queries.
void checkWindow(int group, int dim, int capacity, int window, at::ScalarType type, bool strided) {
    const int heads = 4;
    at::manual_seed(capacity * 3 + group * 7 + dim + window);
    char label[160];
    std::snprintf(label, sizeof label, "attention_sums group %d dim %d capacity %d window %d %s%s", group, dim, capacity, window, c10::toString(type), strided ? " strided" : "");
    const at::Tensor all = at::randn({heads * group, window + 3, dim}).to(type), q = all.narrow(1, 2, window), k = at::randn({heads, capacity, dim}).to(type);
    const at::Tensor lengths = at::tensor({capacity, capacity / 3, 0, std::min(capacity, 1 + capacity / 2)}, at::kInt), places = at::arange(capacity, at::kInt);
    const at::Tensor positions = (places * 2).unsqueeze(0) + at::arange(heads, at::kInt).unsqueeze(1), now = at::arange(2 * capacity - window, 2 * capacity, at::kInt);
    at::Tensor keys = gpu(k);
    if (strided) keys = at::empty({capacity, heads, 2 * dim}, keys.options()).narrow(2, dim, dim).transpose(0, 1), keys.copy_(k);
    keys.masked_fill_(gpu(places.unsqueeze(0) >= lengths.unsqueeze(1)).unsqueeze(2), NAN);
    const auto run = [&] { return ops::attention_sums(gpu(all).narrow(1, 2, window), keys, gpu(positions), gpu(lengths), gpu(now), 0.2); };
    const at::Tensor found = run();
    expectClose(label, found, ops::attention_sums(q.to(at::kFloat), k.to(at::kFloat), positions, lengths, now, 0.2), 2e-5);
    for (int i = 0; i < 2; ++i) expectSame(label, run(), found);
}

void checkPooled(int group, int capacity, int kernel, bool largest, ops::GroupVote of) {
    const at::Tensor sums = at::rand({3 * group, capacity + 5}).narrow(1, 2, capacity), lengths = at::tensor({capacity, capacity / 3, 0}, at::kInt);
    const auto votes = [&](const at::Tensor& x, const at::Tensor& held) { return ops::pooled_votes(x, held, 64, 16, kernel, largest, of); };
    expectClose("pooled_votes", votes(gpu(sums), gpu(lengths)), votes(sums, lengths), 2e-6);
    expectRefused("pooled_votes over an even number", [&] { ops::pooled_votes(gpu(sums), gpu(lengths), 64, 16, kernel + 1, largest, of); });
    expectRefused("pooled_votes of more rows than heads share", [&] { ops::pooled_votes(gpu(sums).narrow(0, 0, group), gpu(lengths), 64, 16, kernel, largest, of); });
}

void checkWindows() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const int dim : {32, 64, 80, 96, 128, 256})
            for (const int group : {1, 3, 4, 8})
                for (const auto& [capacity, window] : {std::pair(1, 1), {1, 64}, {31, 64}, {33, 33}, {4097, 64}, {533, 129}, {200, 2}}) checkWindow(group, dim, capacity, window, type, false);
        checkWindow(3, 64, 4097, 4096, type, false), checkWindow(2, 128, 3000, 513, type, true);
        checkWindow(12, 128, 999, 64, type, false); // more than eight query heads a KV head
        checkWindow(1, 128, 70000, 64, type, false);
        checkWindow(2, 72, 100, 64, type, false); // a head size without a kernel
    }
    for (const int capacity : {1, 31, 33, 4097})
        for (const int kernel : {1, 5, 255, 301})
            for (const bool largest : {false, true})
                for (const auto of : {ops::GroupVote::mean, ops::GroupVote::largest, ops::GroupVote::sum}) checkPooled(kernel > 5 ? 1 : 4, capacity, kernel, largest, of);
}

constexpr ops::OutputChange ChangeKinds[] = {ops::OutputChange::value, ops::OutputChange::key, ops::OutputChange::joint, ops::OutputChange::independent};

// The four sums of the kvc policies by their definition, in fp64: queries [Hq, S, D], seen [Hkv, S, C].
at::Tensor changeOf(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& seen, double scale, ops::OutputChange kind) {
    const auto each = [&](const at::Tensor& x) { return x.to(at::kDouble).repeat_interleave(q.size(0) / k.size(0), 0); };
    const at::Tensor keys = each(k), values = each(v), hidden = seen.logical_not().repeat_interleave(q.size(0) / k.size(0), 0);
    const at::Tensor s = at::matmul(q.to(at::kDouble), keys.transpose(1, 2)).mul(scale);
    const at::Tensor a = at::softmax(s.masked_fill(hidden, -INFINITY), -1).masked_fill(hidden, 0), o = at::matmul(a, values);
    const at::Tensor n = values.square().sum(-1).unsqueeze(1), ov = at::matmul(o, values.transpose(1, 2)), oo = o.square().sum(-1).unsqueeze(2);
    const at::Tensor byValue = a.square() * n, byKey = (a * s).square() * (n + oo - 2 * ov), cross = 2 * a.square() * s * (n - ov);
    switch (kind) {
    case ops::OutputChange::value:
        return byValue.sum(1);
    case ops::OutputChange::key:
        return byKey.sum(1);
    case ops::OutputChange::joint:
        return (byValue + byKey + cross).sum(1);
    default:
        return (byValue + byKey).sum(1);
    }
}

// Relative to the largest, or to the largest by value: of an entry that is all that is seen the others are 0, as a difference of such sizes.
void expectChange(const char* what, const at::Tensor& found, const at::Tensor& expected, const at::Tensor& byValue, double tolerance) {
    const double top = std::max(expected.max().item<double>(), byValue.max().item<double>());
    expectClose(what, found / top, expected / top, tolerance);
}

// Of one query, over ragged and empty heads, hidden entries and an arbitrary layout.
void checkChange(int group, int dim, int capacity, at::ScalarType type, bool cut, bool strided) {
    const int heads = 4;
    at::manual_seed(capacity * 5 + group * 3 + dim);
    char label[160];
    const auto values = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(type); };
    const at::Tensor q = values({heads * group, 1, dim}), k = values({heads, capacity, dim}), v = values({heads, capacity, dim});
    const at::Tensor lengths = at::tensor({capacity, capacity / 3, 0, std::min(capacity, 1 + capacity / 2)}, at::kInt), places = at::arange(capacity, at::kInt);
    const at::Tensor positions = (places * 2).expand({heads, capacity}).contiguous(), now = at::full({1}, cut ? capacity : 2 * capacity, at::kInt);
    const at::Tensor seen = (places.unsqueeze(0) < lengths.unsqueeze(1)) & (positions <= now);
    at::Tensor kGpu = gpu(k), vGpu = gpu(v);
    const at::Tensor behind = gpu(places.unsqueeze(0) >= lengths.unsqueeze(1)).unsqueeze(2);
    if (strided) { // an odd place in memory
        kGpu = at::empty({heads, capacity, dim + 3}, kGpu.options()).narrow(2, 1, dim), kGpu.copy_(k);
        vGpu = at::empty({capacity, heads, 2 * dim}, vGpu.options()).narrow(2, dim, dim).transpose(0, 1), vGpu.copy_(v);
    }
    kGpu.masked_fill_(behind, NAN), vGpu.masked_fill_(behind, NAN);
    const at::Tensor byValue = changeOf(q, k, v, seen.unsqueeze(1), 0.2, ops::OutputChange::value);
    for (const ops::OutputChange kind : ChangeKinds) {
        std::snprintf(label, sizeof label, "output_change %d group %d dim %d capacity %d %s%s%s", static_cast<int>(kind), group, dim, capacity, c10::toString(type),
                      cut ? " cut" : "", strided ? " strided" : "");
        const auto run = [&] { return ops::output_change(gpu(q), kGpu, vGpu, gpu(positions), gpu(lengths), gpu(now), 0.2, kind); };
        const at::Tensor found = run();
        expectChange(label, found, changeOf(q, k, v, seen.unsqueeze(1), 0.2, kind), byValue, type == at::kFloat ? 2e-5 : 1e-3);
        expectSame(label, found.masked_select(gpu(seen.logical_not().repeat_interleave(group, 0))).count_nonzero(), at::zeros({}, at::kLong));
        for (int i = 0; i < 2; ++i) expectSame(label, run(), found);
    }
}

// Of a prompt's newest queries: entries lie at their own positions, or not (gap), where ATen's calls take over.
void checkPromptChange(int group, int dim, int held, int queries, int spare, at::ScalarType type, bool gap) {
    const int heads = 2, capacity = held + spare;
    at::manual_seed(held * 5 + group * 3 + dim + queries);
    char label[160];
    const auto values = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(type); };
    const at::Tensor q = values({queries, heads * group, dim}).transpose(0, 1), k = values({heads, capacity, dim}), v = values({heads, capacity, dim}); // as the model hands them over
    const at::Tensor lengths = at::full({heads}, held, at::kInt), places = at::arange(capacity, at::kInt), now = at::arange(held - queries, held, at::kInt);
    at::Tensor positions = places.expand({heads, capacity}).clone();
    positions.masked_fill_(places >= held, -1);
    if (gap) positions[0][held - 1] = held; // nobody sees it
    const at::Tensor seen = (places < held).view({1, 1, -1}) & (positions.unsqueeze(1) <= now.view({1, -1, 1}));
    at::Tensor kGpu = gpu(k), vGpu = gpu(v);
    kGpu.narrow(1, held, spare).fill_(NAN), vGpu.narrow(1, held, spare).fill_(NAN);
    const at::Tensor byValue = changeOf(q, k, v, seen, 0.1, ops::OutputChange::value);
    for (const ops::OutputChange kind : ChangeKinds) {
        std::snprintf(label, sizeof label, "output_change %d of a prompt, group %d dim %d held %d queries %d %s%s", static_cast<int>(kind), group, dim, held, queries,
                      c10::toString(type), gap ? " gap" : "");
        const auto run = [&] { return ops::output_change(gpu(q), kGpu, vGpu, gpu(positions), gpu(lengths), gpu(now), 0.1, kind); };
        const at::Tensor found = run();
        const at::Tensor expected = changeOf(q, k, v, seen, 0.1, kind);
        expectChange(label, found, expected, byValue, type == at::kFloat ? 2e-5 : 1e-3);
        expectSame(label, run(), found);
        if (gap) continue;
        ops::AttentionStats stats;
        const at::Tensor output = ops::causal_attention(gpu(q), kGpu, vGpu, held, 0.1, &stats);
        const ops::KnownAttention known{output, stats.logSumExp};
        const at::Tensor again = ops::output_change(gpu(q), kGpu, vGpu, gpu(positions), gpu(lengths), gpu(now), 0.1, kind, &known);
        std::strncat(label, " known", sizeof label - std::strlen(label) - 1);
        expectChange(label, again, expected, byValue, type == at::kFloat ? 2e-5 : 1e-3);
        expectChange(label, again, found.cpu(), byValue, type == at::kFloat ? 2e-5 : 1e-3);
    }
}

void checkChanges() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const int dim : {32, 64, 80, 96, 128, 256})
            for (const int group : {1, 3, 4, 8})
                for (const int capacity : {1, 2, 31, 33, 4097}) checkChange(group, dim, capacity, type, false, false);
        for (const int dim : {64, 80, 256}) checkChange(3, dim, 4097, type, true, false), checkChange(4, dim, 533, type, true, true);
        checkChange(12, 64, 999, type, false, false);   // more than eight query heads a KV head
        checkChange(2, 72, 100, type, true, false);     // a head size without a kernel
        checkChange(4, 128, 40000, type, true, false);  // several tiles a warp
        for (const int dim : {64, 80, 128, 256})
            for (const auto& [held, queries] : {std::pair(33, 33), {100, 31}, {999, 999}, {1500, 130}, {1537, 577}}) checkPromptChange(3, dim, held, queries, dim == 64 ? 0 : 7, type, false);
        checkPromptChange(1, 128, 700, 700, 5, type, false), checkPromptChange(4, 64, 700, 300, 5, type, true);
    }
}

void checkTopK() {
    const auto options = at::TensorOptions().dtype(at::kFloat);
    for (const int capacity : {1, 31, 33, 4097, 16385, 131072, 300001})
        for (const int k : {0, 1, 7, 2048, 20000, 90000})
            for (const char* kind : {"normal", "few values", "special", "votes", "constant", "narrow"}) {
                if (k > 2048 && (capacity == 1 || k > capacity)) continue;
                at::manual_seed(capacity + k);
                const std::string what = std::string("top_k ") + kind + " " + std::to_string(k) + " of " + std::to_string(capacity);
                at::Tensor x = at::randn({4, capacity}, options);
                if (kind[0] == 'f') x = at::floor(x * 2);
                if (kind[0] == 's') // NaN, infinities, both zeros
                    x = at::where(x > 1, at::full_like(x, NAN), at::where(x > 0.5, at::full_like(x, -INFINITY), at::where(x > 0, at::full_like(x, -0.0), at::where(x > -2, at::zeros_like(x), at::full_like(x, INFINITY)))));
                if (kind[0] == 'v') x = at::softmax(x * 6, 1);
                if (kind[0] == 'c') x.fill_(0.25);
                if (kind[0] == 'n' && kind[1] == 'a') x = x * 0.02 + 1.05; // first digits equal
                const at::Tensor counts = at::tensor({capacity, capacity / 2, 0, std::min(capacity, 3)}, at::kInt);
                const at::Tensor found = ops::top_k(gpu(x), gpu(counts), k);
                expectSame(what.c_str(), found, ops::top_k(x, counts, k));
                expectSame((what + " again").c_str(), ops::top_k(gpu(x), gpu(counts), k), found);
                if (k != 7) continue;
                const at::Tensor wide = gpu(at::cat({x, x}, 1)).narrow(1, 1, capacity); // rows at odd places
                expectSame((what + " strided").c_str(), ops::top_k(wide, gpu(counts), k), ops::top_k(wide.cpu(), counts, k));
            }
    // The composite against a plain sort.
    const at::Tensor x = at::floor(at::randn({1, 500}) * 3);
    std::vector<std::int32_t> order(500);
    for (int i = 0; i < 500; ++i) order[static_cast<std::size_t>(i)] = i;
    const float* v = x.const_data_ptr<float>();
    std::sort(order.begin(), order.end(), [v](int a, int b) { return v[a] > v[b] || (v[a] == v[b] && a > b); });
    order.resize(100);
    std::sort(order.begin(), order.end());
    expectSame("top_k against a sort", ops::top_k(x, at::full({1}, 500, at::kInt), 100), at::tensor(order, at::kInt).unsqueeze(0));
    expectRefused("top_k of bf16 scores", [&] { ops::top_k(gpu(x).to(at::kBFloat16), gpu(at::zeros({1}, at::kInt)), 1); });
    expectRefused("top_k with two counts", [&] { ops::top_k(gpu(x), gpu(at::zeros({2}, at::kInt)), 1); });
    expectRefused("top_k of less than nothing", [&] { ops::top_k(gpu(x), gpu(at::zeros({1}, at::kInt)), -1); });
}

void checkVote(int group, int dim, int capacity, at::ScalarType type, bool wideQueries) {
    const int heads = 4;
    at::manual_seed(capacity + group * 5 + dim);
    char label[160];
    std::snprintf(label, sizeof label, "soft_vote group %d dim %d capacity %d %s%s", group, dim, capacity, c10::toString(type), wideQueries ? ", fp32 queries" : "");
    const at::Tensor q = at::randn({heads * group, dim}).to(wideQueries ? at::kFloat : type), k = at::randn({heads, capacity, dim}).to(type);
    const at::Tensor lengths = at::tensor({capacity, capacity, 0, 1 + capacity / 2}, at::kInt);
    const int64_t begin = capacity / 8, newest = capacity / 16;
    const at::Tensor places = at::arange(capacity, at::kInt).unsqueeze(0), seen = (places < (lengths - newest).unsqueeze(1)) & (places >= begin);
    const at::Tensor vote = weightsOf(q, k, seen, 0.6).sum(0);
    at::Tensor keys = gpu(k);
    keys.masked_fill_(gpu(places >= lengths.unsqueeze(1)).unsqueeze(2), NAN);
    const auto run = [&](const at::Tensor& from) { return ops::soft_vote(gpu(q), from, gpu(lengths), begin, newest, 0.6); };
    const at::Tensor found = run(keys);
    const double top = std::max(1e-30, vote.numel() ? vote.max().item<double>() : 1.0);
    expectClose(label, found / top, vote / top, 2e-5);
    expectSame(label, run(keys), found);
    const at::Tensor odd = at::empty({heads, capacity, dim + 3}, keys.options()).narrow(2, 1, dim);
    odd.copy_(keys);
    expectSame(label, run(odd), found);
}

void checkVotes() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const int dim : {32, 64, 80, 96, 128, 256})
            for (const int group : {1, 3, 4, 8})
                for (const int capacity : {1, 31, 33, 4097}) checkVote(group, dim, capacity, type, group != 3);
        checkVote(12, 64, 999, type, true);
        checkVote(2, 72, 100, type, true);
    }
    const at::Tensor q = gpu(at::randn({8, 64})), k = gpu(at::randn({4, 50, 64})), n = gpu(at::full({4}, 50, at::kInt));
    expectRefused("soft_vote beyond the entries", [&] { ops::soft_vote(q, k, n, 51, 0, 1); });
    expectRefused("soft_vote of less than nothing", [&] { ops::soft_vote(q, k, n, 5, -1, 1); });
    expectRefused("soft_vote of another head size", [&] { ops::soft_vote(q.narrow(1, 0, 32), k, n, 0, 50, 1); });
    expectRefused("soft_vote with 3 query heads", [&] { ops::soft_vote(q.narrow(0, 0, 3), k, n, 0, 50, 1); });
    expectRefused("soft_vote with lengths of another device", [&] { ops::soft_vote(q, k, n.cpu(), 0, 50, 1); });
}

void checkDrop(int heads, int capacity, int dim, at::ScalarType type, bool scored) {
    const std::string name = "drop_lowest of " + std::to_string(capacity) + " × " + std::to_string(dim) + " " + c10::toString(type) + (scored ? "" : ", the oldest");
    at::manual_seed(capacity + dim);
    const at::Tensor lengths = at::full({heads}, capacity, at::kInt), keep = at::tensor({capacity - 1, capacity / 5, capacity / 4}, at::kInt);
    lengths[heads - 1] = capacity / 2;
    lengths[heads / 2] = capacity - 1;
    const at::Tensor scores = at::floor(at::randn({heads, capacity}) * 20), positions = at::arange(capacity, at::kInt).mul(2).expand({heads, capacity}).contiguous();
    at::Tensor hostLengths = lengths.clone(), deviceLengths = gpu(lengths);
    const std::vector<at::Tensor> host{positions.clone(), at::randn({heads, capacity, dim}).to(type), at::randn({heads, capacity, dim}).to(type), at::randn({2 * heads, capacity}),
                                       at::randn({heads, capacity, 1}).to(at::kHalf), at::randint(0, 256, {heads, capacity, 3}).to(at::kByte)};
    std::vector<at::Tensor> device;
    for (const at::Tensor& t : host) device.push_back(gpu(t));
    const at::Tensor found = ops::drop_lowest(scored ? std::optional(gpu(scores)) : std::nullopt, deviceLengths, gpu(keep), device);
    const at::Tensor expected = ops::drop_lowest(scored ? std::optional(scores) : std::nullopt, hostLengths, keep, host);
    expectSame(name.c_str(), found, expected);
    const auto compare = [&] {
        expectSame(name.c_str(), deviceLengths, hostLengths);
        for (std::size_t i = 0; i < host.size(); ++i)
            for (int h = 0; h < heads; ++h) {
                const int64_t n = hostLengths[h].item<int>(), group = host[i].size(0) / heads;
                for (int64_t g = 0; g < group; ++g) expectSame(name.c_str(), device[i][h * group + g].narrow(0, 0, n), host[i][h * group + g].narrow(0, 0, n));
            }
    };
    compare();
    at::Tensor entries = at::randint(-1, capacity, {heads}).to(at::kInt); // of some heads behind the last one
    const at::Tensor several = (at::arange(5, at::kInt) * (capacity / 6 + 1) - 1).expand({heads, 5}).contiguous();
    for (const at::Tensor& which : {entries, several}) {
        ops::drop_entries(gpu(which), deviceLengths, device);
        ops::drop_entries(which, hostLengths, host);
        compare();
    }
}

void checkSpread(int heads, int partitions, int lag, int dim, at::ScalarType type) {
    const at::Tensor cache = at::randn({heads, 4 + partitions * lag + 3, dim}).to(type);
    const auto spread = [&](const at::Tensor& x) { return ops::lag_spread(x.narrow(1, 4, partitions * lag), lag); };
    const at::Tensor found = spread(gpu(cache));
    expectClose("lag_spread", found, spread(type == at::kHalf ? cache.to(at::kFloat) : cache), 2e-6);
    expectSame("lag_spread, again", found, spread(gpu(cache)).to(at::kCPU));
}

void checkForms(int heads, int group, int count, int dim, at::ScalarType type) {
    const at::Tensor cache = at::randn({heads, count + 4, dim}).to(type), roots = at::randn({heads * group, dim, dim}), forms = at::bmm(roots, roots.transpose(1, 2));
    const at::Tensor keys = cache.narrow(1, 4, count), wide = keys.to(at::kDouble).repeat_interleave(group, 0);
    const at::Tensor found = ops::quadratic_forms(gpu(cache).narrow(1, 4, count), gpu(forms));
    expectClose("quadratic_forms", found, (at::bmm(wide, forms.to(at::kDouble)) * wide).sum(2), 2e-6);
    expectSame("quadratic_forms, again", found, ops::quadratic_forms(gpu(cache).narrow(1, 4, count), gpu(forms)).to(at::kCPU));
}

void checkScores() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const int dim : {7, 30, 64, 80, 128, 256})
            for (const int lag : {1, 31, 128}) checkSpread(3, 4, lag, dim, type);
        for (const int dim : {64, 80, 128})
            for (const int count : {1, 31, 33, 4097})
                for (const int group : {1, 3, 4}) checkForms(2, group, count, dim, type);
    }
}

void checkDrops() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
        for (const int dim : {30, 64, 80, 128, 256})
            for (const int capacity : {2, 31, 33, 4097})
                for (const bool scored : {true, false}) checkDrop(3, capacity, dim, type, scored);
}

} // namespace

int main(int argc, char** argv) {
    const c10::InferenceMode guard;
    std::string why;
    if (!ops::loadCuda(&why) || !at::hasCUDA() || at::detail::getCUDAHooks().getNumGPUs() == 0) {
        std::printf("skipped: %s\n", why.empty() ? "the driver shows no device" : why.c_str());
        return 77;
    }
    if (argc > 1 && std::strcmp(argv[1], "--quick") == 0) {
        const auto part = [&](const char* name) { return argc < 3 || std::strcmp(argv[2], name) == 0; };
        for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
            if (part("decode")) {
                for (const int dim : {80, 128}) checkDecode(4, dim, 700, type, true, dim == 80);
                checkDecode(12, 64, 5000, type, false, false);
            }
            if (part("vote"))
                for (const int dim : {80, 128}) checkVote(3, dim, 333, type, true);
            if (part("sparse")) checkSparse(4, 128, 5000, 2688, type, false, false), checkSparse(3, 80, 900, 333, type, true, false);
            if (part("change")) {
                checkChange(4, 128, 700, type, true, false), checkChange(12, 80, 5000, type, false, true);
                checkPromptChange(2, 128, 300, 300, 7, type, false), checkPromptChange(3, 64, 500, 77, 0, type, false);
                checkPromptChange(3, 64, 1000, 300, 0, type, false), checkPromptChange(2, 128, 600, 600, 7, type, false);
            }
            if (part("window")) {
                checkWindow(4, 128, 700, 64, type, false), checkWindow(3, 80, 333, 129, type, true), checkWindow(1, 256, 100, 31, type, false);
                checkPooled(4, 700, 5, type == at::kFloat, ops::GroupVote::mean);
            }
            if (part("scores")) checkSpread(2, 3, 33, 128, type), checkForms(2, 2, 333, 128, type), checkForms(1, 3, 300, 64, type);
            if (part("drops")) checkDrop(3, 700, 80, type, true), checkDrop(3, 700, 128, type, false);
            if (part("packed")) {
                checkAcross(9, 80, 16, 4, 70, 13), checkAcross(3, 128, 64, 2, 130, 128), checkChannels(5, 80, 16, 4, 3);
                checkPacked(3, 33, 80, 4, 16, false, false, type), checkPacked(3, 33, 33, 3, 11, true, true, type);
                for (const int bits : {2, 4, 8}) checkPackedAttention(3, 4, 128, 333, bits, 32, bits < 8, type);
            }
            if (part("beside") && type == at::kBFloat16) checkBeside(33, 80, type), checkBeside(1, 128, at::kHalf);
            if (part("coded") && type == at::kBFloat16)
                checkCodedForms(3, 4, 128, 333, 4, type), checkCodedForms(2, 1, 80, 130, 3, type), checkCodedForms(2, 2, 256, 70, 8, type);
        }
        if (part("top_k")) {
            const at::Tensor scores = at::floor(at::randn({2, 140000}) * 100), few = at::tensor({140000, 20000}, at::kInt);
            expectSame("top_k", ops::top_k(gpu(scores), gpu(few), 64), ops::top_k(scores, few, 64));
            expectSame("top_k", ops::top_k(gpu(scores.narrow(1, 0, 17000)), gpu(few), 64), ops::top_k(scores.narrow(1, 0, 17000), few, 64));
        }
    } else if (argc > 1 && std::strcmp(argv[1], "--coded") == 0) {
        checkAllGroups();
        checkAllCoded();
    } else {
        for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
            for (const int dim : {32, 64, 80, 128, 256})
                for (const int capacity : {1, 31, 33, 4097})
                    for (const int queries : {1, 7, 130})
                        if (capacity <= 33 || dim == 64) checkCase({3, 3, dim, capacity, queries, type});
        checkDecodes();
        checkAllSparse();
        checkChanges();
        checkWindows();
        checkTopK();
        checkVotes();
        checkScores();
        checkDrops();
        checkAllPacked();
        checkAllGroups();
        checkAllBeside();
        checkPackedAttentions();
        checkAllCoded();
    }
    std::printf("%d checks, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
