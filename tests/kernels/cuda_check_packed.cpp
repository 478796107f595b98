// Packed entries on the CUDA device: packing, unpacking, what is packed anew across heads, exact values beside codes, and attention over all of it.
#include "kernels/bind/packed.h"
#include "kernels/bind/quantize.h"
#include "tests/kernels/cuda_check.h"
#include "tests/kernels/packed_forms.h"

#include <algorithm>

namespace keepsight::check {

void checkPacked(int heads, int entries, int dim, int bits, int group, bool byChannel, bool levels, at::ScalarType type) {
    const std::string name = "packed entries " + std::to_string(entries) + " × " + std::to_string(dim) + ", " + std::to_string(bits) + " bits, groups of " + std::to_string(group) + " " + c10::toString(type);
    at::manual_seed(entries + dim + bits);
    const at::Tensor codes = ops::pack_codes(at::randint(0, 1 << bits, {heads, entries, dim}).to(at::kByte), bits);
    const int64_t rows = byChannel ? (entries + group - 1) / group : entries, groups = byChannel ? dim : dim / group;
    const at::Tensor scale = at::rand({heads, rows, groups}).to(at::kHalf), zero = at::randn({heads, rows, groups}).to(at::kHalf);
    const at::Tensor ends = (at::arange(1, rows + 1) * group).to(at::kInt).expand({heads, rows}).contiguous(), table = at::randn({1 << bits});
    const std::vector<int64_t> counts{entries, entries / 2, 0}, offsets{1, 0, 2};
    const auto run = [&](at::Device device) {
        at::Tensor out = at::zeros({heads, entries + 3, dim}, at::TensorOptions().dtype(type).device(device));
        ops::dequantize_entries(out, codes.to(device), bits, scale.to(device), zero.to(device), byChannel ? std::optional(ends.to(device)) : std::nullopt,
                                levels ? std::optional(table.to(device)) : std::nullopt, counts, offsets);
        return out;
    };
    if (levels) // a product is rounded, here once and there twice
        expectClose(name.c_str(), run(at::kCUDA), run(at::kCPU), type == at::kFloat ? 1e-6 : type == at::kHalf ? 1e-3 : 1e-2);
    else
        expectSame(name.c_str(), run(at::kCUDA), run(at::kCPU));
    if (bits == 3 || byChannel) return;
    const at::Tensor x = at::randn({heads, std::min(entries, 40), dim}) * 3;
    x[0][0].fill_(2); // a constant group
    const ops::PackedRows host = ops::pack_groups(x, bits, group, 1e-4), device = ops::pack_groups(gpu(x), bits, group, 1e-4);
    expectSame((name + ", packing").c_str(), device.codes, host.codes);
    expectSame((name + ", packing").c_str(), device.scale, host.scale);
    expectSame((name + ", packing").c_str(), device.zero, host.zero);
}

void checkAllPacked() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
        for (const int bits : {2, 3, 4, 8})
            for (const auto& [dim, group] : {std::pair(64, 32), {128, 64}, {80, 16}, {33, 11}, {4096, 4096}})
                for (const int entries : {1, 31, 33, 700})
                    for (const bool byChannel : {false, true}) checkPacked(3, entries, dim, bits, group, byChannel, byChannel && bits < 8, type);
}

// Codes across heads packed anew, and groups of channels appended: to the bit what the CPU makes.
void checkAcross(int heads, int dim, int group, int bits, int entries, int spare) {
    const std::string name = "repack_across of " + std::to_string(heads) + " heads of " + std::to_string(entries) + ", dim " + std::to_string(dim) + ", " + std::to_string(bits) + " bits by " + std::to_string(group);
    at::manual_seed(entries + dim + bits);
    const int64_t capacity = (int64_t{heads} * 2 * entries + spare) * (dim / group);
    ops::AcrossCodes host{at::zeros({1, group, packedBytes(capacity, bits)}, at::kByte), at::zeros({1, 1, capacity}, at::kHalf), at::zeros({1, 1, capacity}, at::kHalf), at::zeros({heads}, at::kInt), bits, dim, 5e-5};
    ops::AcrossCodes device = host;
    for (at::Tensor* t : {&device.codes, &device.scale, &device.zero, &device.lengths}) *t = gpu(*t);
    const auto both = [&](const char* what, const at::Tensor& gone, const at::Tensor& x, const at::Tensor& counts) {
        const auto call = [&](ops::AcrossCodes& to, at::Device where) {
            const auto there = [&](const at::Tensor& t) { return t.defined() ? std::optional(t.to(where)) : std::nullopt; };
            ops::repack_across(to, there(gone), there(x), there(counts));
        };
        call(host, at::kCPU), call(device, at::kCUDA);
        const std::string step = name + ", " + what;
        expectSame((step + ": lengths").c_str(), device.lengths, host.lengths);
        const int64_t width = host.lengths.sum().item<int64_t>() * dim / group;
        const auto used = [&](const at::Tensor& codes) { return ops::unpack_codes(codes, bits, capacity).narrow(2, 0, width); };
        expectSame((step + ": codes").c_str(), used(device.codes), used(host.codes));
        expectSame((step + ": scale").c_str(), device.scale.narrow(2, 0, width), host.scale.narrow(2, 0, width));
        expectSame((step + ": zero").c_str(), device.zero.narrow(2, 0, width), host.zero.narrow(2, 0, width));
    };
    const auto some = [&](int most) { // of each head other entries, of some none, of some beyond the last
        at::Tensor gone = at::full({heads, most}, -1, at::kInt);
        for (int h = 0; h < heads; ++h) {
            const int64_t n = (h * 5 + most) % (most + 1);
            if (n) gone[h].narrow(0, most - n, n).copy_(std::get<0>(at::randperm(2 * entries).narrow(0, 0, n).sort()).to(at::kInt));
        }
        return gone;
    };
    const at::Tensor none, x = at::randn({heads, entries, dim}) * 3, counts = at::arange(heads, at::kInt).mul_(7).remainder_(entries + 1);
    x[0].narrow(0, 0, 1).fill_(2); // a constant group, if groups are short
    both("packed", none, x, none);
    both("one gone", at::randint(0, entries, {heads, 1}, at::kInt), none, none);
    both("several gone", some(std::min(2 * entries, 40)), none, none);
    both("some came", none, x.narrow(1, 0, entries), counts);
    both("none came", none, x, at::zeros_like(counts));
    both("none gone", at::full({heads, 3}, -1, at::kInt), none, none);
    both("gone and came", some(std::min(2 * entries, 3)), x.narrow(1, 0, 1), none);
    both("many gone", some(2 * entries), none, none);
    both("all gone", at::arange(2 * entries, at::kInt).expand({heads, 2 * entries}), none, none);
    both("packed again", none, x, none);
}

void checkChannels(int heads, int dim, int group, int bits, int groups) {
    const std::string name = "append_channels of " + std::to_string(heads) + " heads, dim " + std::to_string(dim) + ", " + std::to_string(bits) + " bits, " + std::to_string(groups) + " by " + std::to_string(group);
    at::manual_seed(groups + dim + bits);
    const at::Tensor x = at::randn({heads, groups * group + 3, dim}).mul_(3).narrow(1, 2, groups * group), lengths = at::arange(heads, at::kInt).mul_(3), before = at::arange(heads, at::kInt);
    for (const bool all : {false, true}) {
        const at::Tensor counts = at::arange(heads, at::kInt).remainder_(groups + 1).mul_(group);
        const auto run = [&](at::Device where) {
            const auto room = [&](std::vector<int64_t> sizes, at::ScalarType type) { return test::withRoom(at::zeros(sizes, at::TensorOptions().dtype(type).device(where))); };
            ops::ChannelCodes to{room({heads, groups * group + 3 * heads, packedBytes(dim, bits)}, at::kByte), room({heads, groups + heads, dim}, at::kHalf), room({heads, groups + heads, dim}, at::kHalf),
                                 room({heads, groups + heads}, at::kInt), lengths.to(where), before.to(where), bits, group, 5e-5};
            ops::append_channels(to, x.to(where), all ? std::optional<at::Tensor>() : counts.to(where));
            return to;
        };
        const ops::ChannelCodes host = run(at::kCPU), device = run(at::kCUDA);
        for (int h = 0; h < heads; ++h) { // what lies behind may be anything
            const int64_t n = all ? groups : counts[h].item<int>() / group, codes = lengths[h].item<int>() + n * group, rows = before[h].item<int>() + n;
            expectSame((name + ": codes").c_str(), device.codes[h].narrow(0, 0, codes), host.codes[h].narrow(0, 0, codes));
            expectSame((name + ": scale").c_str(), device.scale[h].narrow(0, 0, rows), host.scale[h].narrow(0, 0, rows));
            expectSame((name + ": zero").c_str(), device.zero[h].narrow(0, 0, rows), host.zero[h].narrow(0, 0, rows));
            expectSame((name + ": ends").c_str(), device.ends[h].narrow(0, 0, rows), host.ends[h].narrow(0, 0, rows));
        }
    }
}

void checkAllGroups() {
    for (const int bits : {2, 3, 4, 8}) {
        for (const auto& [dim, group] : {std::pair(64, 64), {128, 64}, {80, 16}, {256, 256}, {33, 11}, {6, 1}})
            for (const int entries : {1, 33, 130})
                for (const int spare : {0, 13}) checkAcross(entries == 33 ? 9 : 3, dim, group, bits, entries, spare);
        for (const auto& [dim, group] : {std::pair(64, 32), {128, 64}, {80, 16}, {33, 128}, {256, 1}})
            for (const int groups : {1, 4}) checkChannels(5, dim, group, bits, groups);
    }
    checkAcross(8, 128, 64, 4, 4097, 128), checkAcross(128, 64, 64, 2, 40, 1), checkAcross(150, 64, 32, 4, 20, 0), checkAcross(2, 1024, 1024, 2, 70, 3), checkChannels(8, 128, 1024, 2, 2);
}

// Exact values beside codes that come and go, as the CPU has them; what is nobody's may be anything.
void checkBeside(int rows, int dim, at::ScalarType type) {
    const int heads = 3, capacity = 2 * rows * dim + 1;
    at::manual_seed(rows * 3 + dim);
    char label[80];
    std::snprintf(label, sizeof label, "beside: %d rows, dim %d, %s", rows, dim, c10::toString(type));
    ops::BesideValues here{at::zeros({heads, capacity}, at::kInt), at::zeros({heads, capacity}, type), at::zeros({heads}, at::kInt)};
    ops::BesideValues there{gpu(here.places), gpu(here.values), gpu(here.counts)};
    const auto same = [&] {
        expectSame(label, there.counts, here.counts);
        for (int h = 0; h < heads; ++h)
            for (const auto& [found, expected] : {std::pair(there.places, here.places), {there.values, here.values}})
                expectSame(label, found[h].narrow(0, 0, here.counts[h].item<int>()), expected[h].narrow(0, 0, here.counts[h].item<int>()));
    };
    at::Tensor lengths = at::zeros({heads}, at::kInt);
    const auto add = [&](bool all) { // all rows, by a threshold
        const at::Tensor x = at::randn({heads, rows, dim}) * 40000, outliers = x.abs() > 60000, added = all ? at::full({heads}, rows, at::kInt) : at::tensor({rows, rows / 2, 0}, at::kInt);
        const auto counts = [&](const at::Tensor& t) { return all ? std::nullopt : std::optional(t); };
        const at::Tensor rest = ops::add_beside(here, lengths, x, outliers, 0, counts(added));
        const at::Tensor found = ops::add_beside(there, gpu(lengths), gpu(x), counts(gpu(outliers)), 60000, counts(gpu(added)));
        for (int h = 0; h < heads; ++h) expectSame(label, found[h].narrow(0, 0, added[h].item<int>()), rest[h].narrow(0, 0, added[h].item<int>()));
        lengths.add_(added);
        same();
    };
    const auto drop = [&](const at::Tensor& entries) {
        ops::drop_beside(here, entries, dim), ops::drop_beside(there, gpu(entries), dim);
        same();
    };
    add(false);
    drop(at::tensor({0, rows / 2, -5}, at::kInt).unsqueeze(1));
    drop(at::stack({at::full({4}, -1, at::kInt), at::tensor({-3, 0, 1, 2}, at::kInt), at::tensor({-2, -1, 0, rows}, at::kInt)}));
    drop(at::arange(-2, rows + 7, 3, at::kInt).expand({heads, -1}).contiguous());
    lengths.copy_(at::tensor({rows, rows, rows}, at::kInt));
    add(true);
    drop(at::full({heads, 1}, 2 * rows - 1, at::kInt));
    expectRefused("drop_beside of long entries", [&] { ops::drop_beside(there, gpu(at::zeros({heads, 1}, at::kLong)), dim); });
    ops::BesideValues wide{there.places, there.values.to(at::kFloat), there.counts};
    expectRefused("drop_beside of fp32 values", [&] { ops::drop_beside(wide, gpu(at::zeros({heads, 1}, at::kInt)), dim); });
}

void checkAllBeside() {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf})
        for (const int rows : {1, 31, 33, 513})
            for (const int dim : {7, 64, 128}) checkBeside(rows, dim, type);
}

// Attention of one query over entries that are codes but for some at the beginning and the end, of each head and side at places of its own.
void checkPackedAttention(int heads, int group, int dim, int entries, int bits, int shared, bool byChannel, at::ScalarType type) {
    const std::string name = "packed attention heads " + std::to_string(heads) + "×" + std::to_string(group) + " dim " + std::to_string(dim) + " entries " + std::to_string(entries) + ", " +
                             std::to_string(bits) + " bits, groups of " + std::to_string(shared) + (byChannel ? " by channel " : " ") + c10::toString(type);
    at::manual_seed(entries + dim + bits);
    const at::ScalarType reference = type == at::kHalf ? at::kFloat : type; // the CPU has no fp16
    at::Tensor lengths = at::empty({heads}, at::kInt);
    for (int h = 0; h < heads; ++h) lengths[h].fill_(h % 3 == 1 ? 0 : entries - h * entries / (2 * heads));
    const auto side = [&](bool channels, int first, int tail) {
        ops::PackedSide s;
        const int64_t rows = channels ? (entries + shared - 1) / shared : entries, groups = channels ? dim : dim / shared;
        s.first = at::randn({heads, first + 1, dim}).to(type), s.tail = at::randn({heads, tail + 1, dim}).to(type);
        s.codes = ops::pack_codes(at::randint(0, 1 << bits, {heads, entries, dim}).to(at::kByte), bits);
        s.bits = bits, s.groupTokens = channels ? shared : 1;
        s.scale = (at::rand({heads, rows, groups}) * (2.0 / (1 << bits))).to(at::kHalf), s.zero = at::randn({heads, rows, groups}).to(at::kHalf);
        const at::Tensor begin = lengths.clamp_max(first), end = (lengths - begin).clamp_max(tail);
        s.counts = at::stack({begin, lengths - begin - end, end});
        return s;
    };
    const ops::PackedSide keys = side(byChannel, 3, 50), values = side(false, 5, 17);
    const at::Tensor q = at::randn({heads * group, 1, dim}).to(type), positions = at::arange(entries, at::kInt).expand({heads, entries}).contiguous(), now = at::full({1}, entries, at::kInt);
    const auto run = [&](at::Device device, at::ScalarType as) {
        const auto there = [&](ops::PackedSide s) {
            s.first = s.first.to(device, as), s.tail = s.tail.to(device, as), s.codes = s.codes.to(device), s.scale = s.scale.to(device), s.zero = s.zero.to(device), s.counts = s.counts.to(device);
            return s;
        };
        ops::AttentionStats stats;
        stats.columnSum = at::zeros({heads * group, entries}, device), stats.lastRows = at::zeros({heads * group, 1, entries}, device);
        const auto attend = [&](ops::AttentionStats* s) {
            return ops::packed_attention(q.to(device, as), there(keys), there(values), positions.to(device), lengths.to(device), now.to(device), 0.1, s);
        };
        return std::tuple(attend(nullptr), attend(&stats), stats.columnSum, stats.lastRows);
    };
    const auto [plain, out, sums, rows] = run(at::kCUDA, type);
    const auto [_, expected, expectedSums, expectedRows] = run(at::kCPU, reference);
    expectClose(name.c_str(), out, expected, 2e-2);
    expectClose((name + ", column sums").c_str(), sums, expectedSums, 2e-2);
    expectClose((name + ", last rows").c_str(), rows, expectedRows, 2e-2);
    expectSame((name + ", with statistics and without").c_str(), plain, out.cpu());
}

void checkPackedAttentions() {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf})
        for (const int dim : {64, 128})
            for (const int bits : {2, 4, 8})
                for (const int entries : {1, 31, 33, 130, 4097})
                    for (const bool byChannel : {false, true})
                        for (const int shared : {32, 64}) checkPackedAttention(3, shared == 32 ? 4 : 9, dim, entries, bits, shared, byChannel, type);
    checkPackedAttention(40, 2, 128, 400, 4, 32, true, at::kBFloat16), checkPackedAttention(8, 4, 128, 30000, 2, 64, false, at::kBFloat16);
}

// The same over entries in any other form; keys turned by position (1) or by rank (2). The CPU's values are those of attention() over dense entries.
static void checkCoded(const char* what, int heads, int group, int dim, int64_t entries, const test::PackedForm& keyForm, const test::PackedForm& valueForm, int turned, at::ScalarType type) {
    const std::string name = std::string("coded attention, ") + what + ", heads " + std::to_string(heads) + "×" + std::to_string(group) + " dim " + std::to_string(dim) + " entries " + std::to_string(entries) +
                             ", " + std::to_string(keyForm.bits) + " and " + std::to_string(valueForm.bits) + " bits " + c10::toString(type);
    at::manual_seed(static_cast<uint64_t>(entries + dim + keyForm.bits));
    std::vector<int64_t> held;
    for (int h = 0; h < heads; ++h) held.push_back(h % 3 == 1 ? 0 : entries - h * entries / (2 * heads));
    const test::MadeSide keys = test::makePackedSide(held, dim, keyForm, 1, turned == 2 ? 0 : 20, type), values = test::makePackedSide(held, dim, valueForm, 2, 5, type);
    const int64_t capacity = keys.dense.size(1);
    const at::Tensor lengths = at::tensor(held, at::kInt), q = at::randn({heads * group, 1, dim}).to(type), positions = (at::arange(capacity, at::kInt) * 5).expand({heads, capacity}).contiguous(),
                     now = at::full({1}, 5 * entries, at::kInt), inverse = at::pow(at::Scalar(500000.0), -at::arange(0, dim, 2, at::kFloat) / dim);
    const auto there = [](ops::PackedSide s) {
        for (at::Tensor* t : {&s.first, &s.tail, &s.codes, &s.scale, &s.zero, &s.counts, &s.ends, &s.levels, &s.exact, &s.places, &s.exactCounts, &s.rowExact, &s.rowChannels})
            if (t->defined()) *t = t->dim() < 2 || t->size(1) == 0 ? gpu(*t) : test::withRoom(gpu(*t));
        s.counts = s.counts.contiguous();
        return s;
    };
    const ops::PackedSide deviceKeys = there(keys.side), deviceValues = there(values.side);
    const auto attend = [&](ops::AttentionStats* s) {
        return ops::packed_attention(gpu(q), deviceKeys, deviceValues, gpu(positions), gpu(lengths), gpu(now), 0.1, s, {turned ? gpu(inverse) : at::Tensor(), turned == 2});
    };
    ops::AttentionStats stats, expected;
    stats.columnSum = at::zeros({heads * group, capacity}, at::kCUDA), stats.lastRows = at::zeros({heads * group, 1, capacity}, at::kCUDA);
    expected.columnSum = at::zeros({heads * group, capacity}), expected.lastRows = at::zeros({heads * group, 1, capacity});
    const at::Tensor plain = attend(nullptr), out = attend(&stats);
    const at::Tensor dense = turned ? test::turnedKeys(keys.dense, turned == 2 ? at::arange(capacity, at::kInt) : positions, inverse) : keys.dense;
    expectClose(name.c_str(), out, ops::attention(q.to(at::kFloat), dense, values.dense, positions, lengths, now, 0.1, &expected), 2e-2);
    expectClose((name + ", column sums").c_str(), stats.columnSum, expected.columnSum, 2e-2);
    expectClose((name + ", last rows").c_str(), stats.lastRows, expected.lastRows, 2e-2);
    expectSame((name + ", with statistics and without").c_str(), plain, out.cpu());
    expectClose((name + ", unpacked").c_str(), ops::denseEntries(deviceKeys, capacity, at::kFloat), keys.dense.nan_to_num(0), 1e-6);
}

void checkCodedForms(int heads, int group, int dim, int64_t entries, int bits, at::ScalarType type) {
    const test::PackedForm token{bits, 1, 1}, channel{bits, dim, 32};
    const auto check = [&](const char* what, int turned, const std::function<void(test::PackedForm&, test::PackedForm&)>& change) {
        test::PackedForm keys = channel, values = token;
        change(keys, values);
        checkCoded(what, heads, group, dim, entries, keys, values, turned, type);
    };
    check("turned", 1, [](auto&, auto&) {});
    check("groups that lost entries", 2, [&](auto& k, auto& v) { k.ends = true, v = {bits == 4 ? 8 : 4, dim / 16, 7}, v.ends = true; });
    check("levels and exact values", 0, [&](auto& k, auto& v) { k = {bits, dim / 32, 1}, k.levels = v.levels = true, k.exact = 0.03, v.exact = 0.2, v.exactType = at::kBFloat16; });
    check("exact values of each code", 2, [](auto& k, auto& v) { k.rowExact = 5, v.rowExact = 3, v.exactType = at::kBFloat16; });
    check("kvquant", 1, [&](auto& k, auto& v) { k = {bits, dim, 1 << 30}, k.levels = v.levels = true, k.exact = 0.01, v.rowExact = 2; });
    check("all exact, turned", 2, [](auto& k, auto&) { k.exact = 1; });
    check("across heads", 0, [&](auto& k, auto& v) { k.across = 64, v.across = 7, v.levels = true; });
    check("across heads, turned", 1, [&](auto& k, auto& v) { k.across = 32, k.exact = 0.02, v.groups = dim / 4; });
}

void checkAllCoded() {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
        for (const int dim : {64, 80, 96, 128, 256})
            for (const int bits : {2, 3, 4, 8})
                for (const int64_t entries : {1, 33, 130})
                    if (entries > 1 || dim == 64) checkCodedForms(3, dim == 80 ? 9 : dim == 96 ? 1 : 4, dim, entries, bits, type);
        checkCodedForms(4, 3, 128, 4097, 4, type), checkCodedForms(8, 8, 64, 2080, 3, type);
    }
    checkCodedForms(3, 2, 32, 130, 4, at::kBFloat16), checkCodedForms(3, 2, 64, 130, 3, at::kFloat); // in ATen's calls
}

} // namespace keepsight::check
