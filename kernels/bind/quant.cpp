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
}
void registerQuantCpu(torch::Library& m) {
    m.impl("dequantize_entries", torch::dispatch(c10::DispatchKey::CPU, dequantizeEntriesCpu));
    m.impl("pack_groups", torch::dispatch(c10::DispatchKey::CPU, packGroupsCpu));
}
void registerQuantComposite(torch::Library& m) {
    m.impl("dequantize_entries", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, dequantizeEntriesComposite));
    m.impl("pack_groups", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, packGroupsComposite));
}

} // namespace keepsight::ops
