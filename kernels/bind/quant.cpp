// Entries stored as codes: schema, checks, the CPU binding and the ATen form.
#include "kernels/quant.h"

#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"
#include "kernels/bind/ops.h"
#include "kernels/bind/quantize.h"
#include "kernels/cpu_kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <algorithm>
#include <cmath>
#include <limits>

namespace keepsight::ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void checkBits(const char* op, int64_t bits) {
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8) refuse(op, "bits", "2, 3, 4 or 8", std::to_string(bits));
}

// b ∈ {1, 2, 4, 8}: [..., dim] uint8 → [..., planeBytes].
at::Tensor packPlanes(const at::Tensor& codes, int64_t bits) {
    const int64_t dim = codes.size(-1), planes = 8 / bits, bytes = planeBytes(dim, static_cast<int>(bits));
    if (planes == 1) return codes.contiguous();
    const at::Tensor padded = planes * bytes == dim ? codes : at::constant_pad_nd(codes, {0, planes * bytes - dim});
    at::Tensor out = padded.narrow(-1, 0, bytes).clone();
    for (int64_t p = 1; p < planes; ++p)
        out.bitwise_or_(padded.narrow(-1, p * bytes, bytes).bitwise_left_shift(p * bits));
    return out;
}

at::Tensor unpackPlanes(const at::Tensor& packed, int64_t bits, int64_t dim) {
    if (bits == 8) return packed;
    std::vector<at::Tensor> planes;
    for (int64_t p = 0; p < 8 / bits; ++p)
        planes.push_back(packed.bitwise_right_shift(p * bits).bitwise_and_((1 << bits) - 1));
    return at::cat(planes, -1).narrow(-1, 0, dim);
}

void dequantizeEntriesComposite(at::Tensor& out, const at::Tensor& codes, int64_t bits, const at::Tensor& scale, const at::Tensor& zero,
                                const OptionalTensor& ends, const OptionalTensor& levels, at::IntArrayRef counts, at::IntArrayRef offsets) {
    const int64_t heads = codes.size(0), dim = out.size(2), most = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
    if (most == 0) return;
    at::Tensor x = unpack_codes(codes.narrow(1, 0, most), bits, dim);
    x = levels ? levels->index_select(0, x.reshape({-1}).to(at::kLong)).view(x.sizes()) : x.to(at::kFloat);
    const auto rowsOf = [&](const at::Tensor& parameters) { // [heads, most, groups, 1] fp32
        at::Tensor rows = parameters;
        if (ends) {
            const at::Tensor entries = at::arange(most, ends->options()).unsqueeze(0).expand({heads, most}).contiguous();
            const at::Tensor row = at::searchsorted(ends->contiguous(), entries, false, true).clamp_max(ends->size(1) - 1);
            rows = parameters.gather(1, row.unsqueeze(-1).expand({heads, most, parameters.size(2)}));
        } else {
            rows = parameters.narrow(1, 0, most);
        }
        return rows.to(at::kFloat).unsqueeze(-1);
    };
    x = x.view({heads, most, scale.size(2), dim / scale.size(2)});
    x = x.mul(rowsOf(scale)).add_(rowsOf(zero)).view({heads, most, dim});
    for (int64_t h = 0; h < heads; ++h) {
        const auto i = static_cast<size_t>(h);
        out.select(0, h).narrow(0, offsets[i], counts[i]).copy_(x.select(0, h).narrow(0, 0, counts[i]));
    }
}

constexpr double LargestHalf = 65504;

std::tuple<at::Tensor, at::Tensor, at::Tensor> packGroupsComposite(const at::Tensor& x, int64_t bits, int64_t group, double leastScale) {
    const int b = static_cast<int>(bits);
    const at::Tensor grouped = x.unflatten(2, {x.size(2) / group, group}); // [H, S, D/g, g]
    const auto [low, high] = at::aminmax(grouped, -1, true);
    const Affine a = affine(low, high, b, leastScale);
    return {pack_codes(codes(grouped, a.scale, a.zero, b).flatten(2), bits), a.scale.squeeze(-1), a.zero.squeeze(-1)};
}

// The same for the few rows of a decoded token, where each of the calls above would cost more than its work.
std::tuple<at::Tensor, at::Tensor, at::Tensor> packGroupsCpu(const at::Tensor& given, int64_t bits, int64_t group, double leastScale) {
    constexpr int64_t FewRows = 256;
    const int64_t rows = given.size(0) * given.size(1), dim = given.size(2), groups = dim / group, bytes = packedBytes(dim, static_cast<int>(bits));
    if (bits == 3 || rows > FewRows) return packGroupsComposite(given, bits, group, leastScale);
    const at::Tensor x = given.contiguous();
    at::Tensor packed = at::zeros({given.size(0), given.size(1), bytes}, x.options().dtype(at::kByte));
    at::Tensor scale = at::empty({given.size(0), given.size(1), groups}, x.options().dtype(at::kHalf)), zero = at::empty_like(scale);
    const auto most = static_cast<float>((1 << bits) - 1), least = static_cast<float>(leastScale), largest = static_cast<float>(LargestHalf);
    for (int64_t r = 0; r < rows; ++r) {
        const float* from = x.const_data_ptr<float>() + r * dim;
        uint8_t* to = packed.data_ptr<uint8_t>() + r * bytes;
        for (int64_t g = 0; g < groups; ++g) {
            const auto [low, high] = std::minmax_element(from + g * group, from + (g + 1) * group);
            const c10::Half s(std::clamp((*high - *low) / most, least, largest)), z(std::clamp(*low, -largest, largest));
            scale.data_ptr<c10::Half>()[r * groups + g] = s, zero.data_ptr<c10::Half>()[r * groups + g] = z;
            const float begin = z, step = s == 0 ? 1.0f : static_cast<float>(s);
            for (int64_t d = g * group; d < (g + 1) * group; ++d) {
                const auto code = static_cast<unsigned>(std::clamp(std::nearbyint((from[d] - begin) / step), 0.0f, most));
                to[d % bytes] = static_cast<uint8_t>(to[d % bytes] | code << (d / bytes * bits));
            }
        }
    }
    return {packed, scale, zero};
}

using AppendChannels = void(at::Tensor& codes, at::Tensor& scale, at::Tensor& zero, const OptionalTensor& ends, const at::Tensor& lengths,
                            const at::Tensor& groups, const at::Tensor& x, const OptionalTensor& counts, int64_t bits, int64_t group,
                            double leastScale);

// Behind the count of a head that adds fewer lies rubbish as before: counts are for the ends alone, and none are read on the host.
void appendChannelsComposite(at::Tensor& codesTo, at::Tensor& scaleTo, at::Tensor& zeroTo, const OptionalTensor& ends,
                             const at::Tensor& lengths, const at::Tensor& groups, const at::Tensor& x, const OptionalTensor& counts,
                             int64_t bits, int64_t group, double leastScale) {
    const int b = static_cast<int>(bits);
    const at::Tensor grouped = x.unflatten(1, {x.size(1) / group, group}); // [H, S/g, g, D]
    const auto [low, high] = at::aminmax(grouped, 2, true);
    const Affine a = affine(low, high, b, leastScale);
    append_entries(codesTo, pack_codes(codes(grouped, a.scale, a.zero, b).flatten(1, 2), bits), lengths);
    append_entries(scaleTo, a.scale.squeeze(2), groups);
    append_entries(zeroTo, a.zero.squeeze(2), groups);
    if (!ends) return;
    const at::Tensor fresh = at::arange(group, x.size(1) + 1, group, lengths.options()).unsqueeze(0); // [1, groups]
    at::Tensor end = lengths.unsqueeze(1) + fresh, to = *ends;
    if (counts) end.masked_fill_(fresh > counts->unsqueeze(1), std::numeric_limits<int32_t>::max());
    append_entries(to, end, groups);
}

using RepackAcross = void(at::Tensor& codes, at::Tensor& scale, at::Tensor& zero, at::Tensor& lengths, const OptionalTensor& gone,
                          const OptionalTensor& x, const OptionalTensor& counts, int64_t bits, int64_t dim, double leastScale);

void repackAcrossComposite(at::Tensor& codesTo, at::Tensor& scale, at::Tensor& zero, at::Tensor& lengths, const OptionalTensor& gone,
                           const OptionalTensor& x, const OptionalTensor& counts, int64_t bits, int64_t dim, double leastScale) {
    const std::optional<AcrossCodes> made = repacked_across({codesTo, scale, zero, lengths, bits, dim, leastScale}, gone, x, counts);
    if (!made) return;
    const int64_t columns = made->scale.size(2), capacity = scale.size(2);
    if (columns > capacity)
        refuse("repack_across", "entries", "at most " + std::to_string(capacity * codesTo.size(1) / dim),
               std::to_string(columns * codesTo.size(1) / dim));
    lengths.copy_(made->lengths);
    if (columns == 0) return;
    codesTo.copy_(columns == capacity
                      ? made->codes
                      : pack_codes(at::constant_pad_nd(unpack_codes(made->codes, bits, columns), {0, capacity - columns}), bits));
    scale.narrow(2, 0, columns).copy_(made->scale), zero.narrow(2, 0, columns).copy_(made->zero);
}

void dequantizeEntriesCpu(at::Tensor& out, const at::Tensor& codesIn, int64_t bits, const at::Tensor& scaleIn, const at::Tensor& zeroIn,
                          const OptionalTensor& ends, const OptionalTensor& levels, at::IntArrayRef counts, at::IntArrayRef offsets) {
    const bool direct = out.scalar_type() == at::kFloat || out.scalar_type() == at::kBFloat16;
    if (!direct || !out.is_contiguous())
        return dequantizeEntriesComposite(out, codesIn, bits, scaleIn, zeroIn, ends, levels, counts, offsets);
    const at::Tensor codes = codesIn.contiguous(), scale = scaleIn.contiguous(), zero = zeroIn.contiguous();
    const at::Tensor groupEnds = ends ? ends->contiguous() : at::Tensor(), table = levels ? levels->contiguous() : at::Tensor();
    DequantizeEntriesArgs args;
    args.codes = codes.const_data_ptr<uint8_t>(), args.codesHead = codes.stride(0), args.bits = static_cast<int>(bits);
    args.scale = scale.const_data_ptr(), args.zero = zero.const_data_ptr();
    args.parametersHead = scale.stride(0), args.groups = scale.size(2);
    if (ends) args.ends = groupEnds.const_data_ptr<int32_t>(), args.endsHead = groupEnds.size(1);
    if (levels) args.levels = table.const_data_ptr<float>();
    args.counts = counts.data(), args.offsets = offsets.data();
    args.heads = out.size(0), args.dim = out.size(2);
    args.out = out.data_ptr(), args.outHead = out.stride(0);
    args.element = out.scalar_type() == at::kFloat ? Element::f32 : Element::bf16;
    at::get_num_threads(); // threads that did not start torch take its number of threads here
    cpuKernels().dequantizeEntries(args);
}

} // namespace

at::Tensor exact(const at::Tensor& x, at::ScalarType type) {
    return type == at::kHalf ? x.clamp(-LargestHalf, LargestHalf).to(type) : x.to(type);
}

Affine affine(const at::Tensor& low, const at::Tensor& high, int bits, double leastScale) {
    const at::Tensor steps =
        at::full({1}, (1 << bits) - 1, low.options()); // not a number: CUDA would multiply by its inverse, and round otherwise than the CPU
    at::Tensor scale = (high - low).div_(steps);
    return {scale.clamp_(leastScale, LargestHalf).to(at::kHalf), exact(low, at::kHalf)};
}

at::Tensor codes(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero, int bits) {
    at::Tensor step = scale.to(at::kFloat);
    step.masked_fill_(step == 0, 1); // a constant group: every code decodes to the zero
    return (x - zero.to(at::kFloat)).div_(step).round_().clamp_(0, (1 << bits) - 1).to(at::kByte);
}

PackedRows pack_groups(const at::Tensor& x, int64_t bits, int64_t group, double leastScale) {
    constexpr auto op = "pack_groups";
    checkBits(op, bits);
    checkShape(op, "x", x, {Any, Any, Any});
    checkType(op, "x", x, at::kFloat);
    if (group < 1 || x.size(2) % group != 0) refuse(op, "group", "a divisor of the head size " + std::to_string(x.size(2)), std::to_string(group));
    static const auto typed =
        c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::pack_groups", "").typed<std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, int64_t, int64_t, double)>();
    const auto [codes, scale, zero] = typed.call(x, bits, group, leastScale);
    return {codes, scale, zero};
}

void append_channels(ChannelCodes& to, const at::Tensor& x, const OptionalTensor& counts) {
    constexpr auto op = "append_channels";
    checkBits(op, to.bits);
    checkShape(op, "x", x, {Any, Any, Any});
    checkType(op, "x", x, at::kFloat);
    const int64_t heads = x.size(0), dim = x.size(2);
    if (to.group < 1 || x.size(1) % to.group != 0)
        refuse(op, "rows", "a multiple of the group " + std::to_string(to.group), std::to_string(x.size(1)));
    checkShape(op, "codes", to.codes, {heads, Any, packedBytes(dim, static_cast<int>(to.bits))});
    checkType(op, "codes", to.codes, at::kByte);
    checkShape(op, "scale", to.scale, {heads, Any, dim});
    checkShape(op, "zero", to.zero, {heads, to.scale.size(1), dim});
    for (const at::Tensor* t : {&to.scale, &to.zero})
        checkType(op, "scale and zero", *t, at::kHalf);
    const bool hasEnds = to.ends.defined(), hasCounts = counts && counts->defined();
    if (hasEnds) checkShape(op, "group ends", to.ends, {heads, to.scale.size(1)});
    for (const at::Tensor* t : std::initializer_list<const at::Tensor*>{&to.lengths, &to.groups, hasCounts ? &*counts : &to.lengths}) {
        checkShape(op, "lengths, groups and counts", *t, {heads});
        checkType(op, "lengths, groups and counts", *t, at::kInt);
    }
    for (const at::Tensor* t : std::initializer_list<const at::Tensor*>{&to.codes, &to.scale, &to.zero, &to.lengths, &to.groups,
                                                                        hasEnds ? &to.ends : &to.codes, hasCounts ? &*counts : &to.codes})
        checkSameDevice(op, "codes and counts", *t, x);
    if (x.size(1) == 0) return;
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::append_channels", "").typed<AppendChannels>();
    typed.call(to.codes, to.scale, to.zero, hasEnds ? OptionalTensor(to.ends) : OptionalTensor(), to.lengths, to.groups, x,
               hasCounts ? counts : OptionalTensor(), to.bits, to.group, to.leastScale);
}

at::Tensor decodedEntries(const AcrossCodes& across, int64_t held) {
    const int64_t group = across.codes.size(1); // one head of so many entries, each column a channel
    at::Tensor table = at::empty({1, group, across.scale.size(2)}, across.scale.options().dtype(at::kFloat));
    dequantize_entries(table, across.codes, across.bits, across.scale, across.zero, at::full({1, 1}, group, across.lengths.options()), {},
                       {group}, {0});
    return table.narrow(2, 0, held * across.dim / group).reshape({held, across.dim});
}

std::optional<AcrossCodes> repacked_across(const AcrossCodes& across, const OptionalTensor& gone, const OptionalTensor& x,
                                           const OptionalTensor& counts) {
    const auto onHost = [](const at::Tensor& t) { return t.to(at::kCPU).contiguous(); };
    const int64_t heads = across.lengths.size(0), group = across.codes.size(1), dim = across.dim;
    const int bits = static_cast<int>(across.bits);
    const at::Tensor old = onHost(across.lengths), leave = gone ? onHost(*gone) : at::Tensor(),
                     come = x && counts ? onHost(*counts) : at::Tensor();
    std::vector<int64_t> index, stay, fresh; // rows that stay, all heads' behind each other; of each head how many do, and how many come
    std::vector<int32_t> held;
    int64_t before = 0, all = 0;
    for (int64_t h = 0; h < heads; ++h) {
        const int32_t n = old.const_data_ptr<int32_t>()[h];
        const int32_t *next = gone ? leave.const_data_ptr<int32_t>() + h * leave.size(1) : nullptr,
                      *end = gone ? next + leave.size(1) : nullptr;
        const size_t from = index.size();
        for (int32_t i = 0; i < n; ++i) {
            while (next != end && *next < i)
                ++next;
            if (next == end || *next != i) index.push_back(before + i);
        }
        before += n;
        stay.push_back(static_cast<int64_t>(index.size() - from));
        fresh.push_back(!x ? 0 : come.defined() ? come.const_data_ptr<int32_t>()[h] : x->size(1));
        held.push_back(static_cast<int32_t>(stay.back() + fresh.back()));
        all += held.back();
    }
    const bool whole = static_cast<int64_t>(index.size()) == before;
    if (whole && all == before) return {};
    at::Tensor rows = at::empty({0, dim}, across.scale.options().dtype(at::kFloat)); // [entries, D]
    if (before > 0) {
        rows = decodedEntries(across, before);
        if (!whole) rows = rows.index_select(0, at::tensor(at::IntArrayRef(index), at::kLong).to(rows.device()));
    }
    if (x) {
        std::vector<at::Tensor> parts;
        int64_t begin = 0;
        for (int64_t h = 0; h < heads; ++h) {
            const auto i = static_cast<size_t>(h);
            parts.push_back(rows.narrow(0, begin, stay[i])), parts.push_back(x->select(0, h).narrow(0, 0, fresh[i]));
            begin += stay[i];
        }
        rows = at::cat(parts, 0);
    }
    AcrossCodes made = across;
    made.lengths = at::tensor(at::ArrayRef<int32_t>(held), at::kInt).to(across.lengths.device());
    const at::Tensor table = rows.reshape({1, group, all * dim / group});
    if (all == 0) {
        made.codes = at::empty_like(table, table.options().dtype(at::kByte)), made.scale = at::empty({1, 1, 0}, across.scale.options()),
        made.zero = at::empty_like(made.scale);
        return made;
    }
    const auto [low, high] = at::aminmax(table, 1, true);
    const Affine a = affine(low, high, bits, across.leastScale);
    made.codes = pack_codes(codes(table, a.scale, a.zero, bits), bits), made.scale = a.scale, made.zero = a.zero;
    return made;
}

void repack_across(AcrossCodes& across, const OptionalTensor& gone, const OptionalTensor& x, const OptionalTensor& counts) {
    constexpr auto op = "repack_across";
    checkBits(op, across.bits);
    checkShape(op, "codes", across.codes, {1, Any, Any});
    checkType(op, "codes", across.codes, at::kByte);
    checkShape(op, "scale", across.scale, {1, 1, Any});
    checkShape(op, "zero", across.zero, {1, 1, across.scale.size(2)});
    checkShape(op, "codes", across.codes, {1, Any, packedBytes(across.scale.size(2), static_cast<int>(across.bits))});
    for (const at::Tensor* t : {&across.scale, &across.zero})
        checkType(op, "scale and zero", *t, at::kHalf);
    const int64_t group = across.codes.size(1);
    if (group < 1 || across.dim < 1 || across.dim % group != 0)
        refuse(op, "rows of codes", "a divisor of the head size " + std::to_string(across.dim), std::to_string(group));
    if (group * across.scale.size(2) > std::numeric_limits<int32_t>::max())
        refuse(op, "values of all heads", "fewer than 2^31", std::to_string(group * across.scale.size(2)));
    checkShape(op, "lengths", across.lengths, {Any});
    const int64_t heads = across.lengths.size(0);
    const bool hasGone = gone && gone->defined() && gone->size(-1) > 0, hasX = x && x->defined() && x->size(1) > 0,
               hasCounts = hasX && counts && counts->defined();
    if (hasGone) checkShape(op, "entries that go", *gone, {heads, Any});
    if (hasX) checkShape(op, "x", *x, {heads, Any, across.dim}), checkType(op, "x", *x, at::kFloat);
    if (hasCounts) checkShape(op, "counts", *counts, {heads});
    for (const at::Tensor* t : std::initializer_list<const at::Tensor*>{&across.lengths, hasGone ? &*gone : &across.lengths,
                                                                        hasCounts ? &*counts : &across.lengths})
        checkType(op, "lengths, counts and entries", *t, at::kInt);
    for (const at::Tensor* t :
         std::initializer_list<const at::Tensor*>{&across.scale, &across.zero, &across.lengths, hasGone ? &*gone : &across.codes,
                                                  hasX ? &*x : &across.codes, hasCounts ? &*counts : &across.codes})
        checkSameDevice(op, "codes and entries", *t, across.codes);
    if (!hasGone && !hasX) return;
    static const auto typed = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::repack_across", "").typed<RepackAcross>();
    typed.call(across.codes, across.scale, across.zero, across.lengths, hasGone ? gone : OptionalTensor(), hasX ? x : OptionalTensor(),
               hasCounts ? counts : OptionalTensor(), across.bits, across.dim, across.leastScale);
}

at::Tensor pack_codes(const at::Tensor& codes, int64_t bits) {
    checkBits("pack_codes", bits);
    checkType("pack_codes", "codes", codes, at::kByte);
    if (bits != 3) return packPlanes(codes, bits);
    return at::cat({packPlanes(codes.bitwise_and(3), 2), packPlanes(codes.bitwise_right_shift(2), 1)}, -1);
}

at::Tensor unpack_codes(const at::Tensor& packed, int64_t bits, int64_t dim) {
    checkBits("unpack_codes", bits);
    checkType("unpack_codes", "packed codes", packed, at::kByte);
    const int64_t bytes = packedBytes(dim, static_cast<int>(bits));
    if (packed.dim() < 1 || packed.size(-1) != bytes)
        refuse("unpack_codes", "row", std::to_string(bytes) + " bytes", packed.dim() < 1 ? "no row" : std::to_string(packed.size(-1)));
    if (bits != 3) return unpackPlanes(packed, bits, dim);
    const int64_t low = planeBytes(dim, 2);
    return unpackPlanes(packed.narrow(-1, 0, low), 2, dim)
        .bitwise_or(unpackPlanes(packed.narrow(-1, low, bytes - low), 1, dim).bitwise_left_shift(2));
}

void dequantize_entries(at::Tensor& out, const at::Tensor& codes, int64_t bits, const at::Tensor& scale, const at::Tensor& zero,
                        const OptionalTensor& ends, const OptionalTensor& levels, at::IntArrayRef counts, at::IntArrayRef offsets) {
    constexpr auto op = "dequantize_entries";
    checkBits(op, bits);
    checkShape(op, "out", out, {Any, Any, Any});
    if (!at::isFloatingType(out.scalar_type())) refuse(op, "out", "a floating-point type", c10::toString(out.scalar_type()));
    const int64_t heads = out.size(0), dim = out.size(2);
    checkShape(op, "codes", codes, {heads, Any, packedBytes(dim, static_cast<int>(bits))});
    checkType(op, "codes", codes, at::kByte);
    checkShape(op, "scale", scale, {heads, Any, Any});
    checkShape(op, "zero", zero, {heads, scale.size(1), scale.size(2)});
    if (scale.size(2) == 0 || dim % scale.size(2) != 0)
        refuse(op, "groups of a row", "a divisor of the head size " + std::to_string(dim), std::to_string(scale.size(2)));
    for (const at::Tensor* t : {&scale, &zero}) {
        checkType(op, "scale and zero", *t, at::kHalf);
        checkSameDevice(op, "scale and zero", *t, out);
    }
    checkSameDevice(op, "codes", codes, out);
    const bool hasEnds = ends && ends->defined(), hasLevels = levels && levels->defined();
    if (hasEnds) {
        checkShape(op, "group ends", *ends, {heads, Any});
        checkType(op, "group ends", *ends, at::kInt);
        checkSameDevice(op, "group ends", *ends, out);
    }
    if (hasLevels) {
        checkShape(op, "levels", *levels, {1 << bits});
        checkType(op, "levels", *levels, at::kFloat);
        checkSameDevice(op, "levels", *levels, out);
    }
    if (static_cast<int64_t>(counts.size()) != heads || static_cast<int64_t>(offsets.size()) != heads)
        refuse(op, "counts and offsets", std::to_string(heads) + " numbers",
               std::to_string(counts.size()) + " and " + std::to_string(offsets.size()));
    for (size_t h = 0; h < counts.size(); ++h) {
        if (counts[h] < 0 || counts[h] > codes.size(1) || offsets[h] < 0 || offsets[h] + counts[h] > out.size(1))
            refuse(op, "count", "within codes and out",
                   std::to_string(counts[h]) + " from " + std::to_string(offsets[h]) + " at head " + std::to_string(h));
        if (counts[h] > 0 && (hasEnds ? ends->size(1) == 0 || ends->size(1) > scale.size(1) : counts[h] > scale.size(1)))
            refuse(op, "rows of scale", "enough for the entries", std::to_string(scale.size(1)));
    }
    static const auto typed = c10::Dispatcher::singleton()
                                  .findSchemaOrThrow("keepsight::dequantize_entries", "")
                                  .typed<void(at::Tensor&, const at::Tensor&, int64_t, const at::Tensor&, const at::Tensor&,
                                              const OptionalTensor&, const OptionalTensor&, at::IntArrayRef, at::IntArrayRef)>();
    typed.call(out, codes, bits, scale, zero, hasEnds ? ends : OptionalTensor(), hasLevels ? levels : OptionalTensor(), counts, offsets);
}

void defineQuantOperators(torch::Library& m) {
    m.def(
        "dequantize_entries(Tensor(a!) out, Tensor codes, int bits, Tensor scale, Tensor zero, Tensor? ends, Tensor? levels, int[] counts, "
        "int[] offsets) -> ()");
    m.def("pack_groups(Tensor x, int bits, int group, float least_scale) -> (Tensor, Tensor, Tensor)");
    m.def("append_channels(Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) zero, Tensor(d!)? ends, Tensor lengths, Tensor groups, Tensor x, "
          "Tensor? counts, int bits, "
          "int group, float least_scale) -> ()");
    m.def("repack_across(Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) zero, Tensor(d!) lengths, Tensor? gone, Tensor? x, Tensor? counts, "
          "int bits, int dim, "
          "float least_scale) -> ()");
}
void registerQuantCpu(torch::Library& m) {
    m.impl("dequantize_entries", torch::dispatch(c10::DispatchKey::CPU, dequantizeEntriesCpu));
    m.impl("pack_groups", torch::dispatch(c10::DispatchKey::CPU, packGroupsCpu));
}
void registerQuantComposite(torch::Library& m) {
    m.impl("dequantize_entries", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, dequantizeEntriesComposite));
    m.impl("pack_groups", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, packGroupsComposite));
    m.impl("append_channels", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, appendChannelsComposite));
    m.impl("repack_across", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, repackAcrossComposite));
}

} // namespace keepsight::ops
