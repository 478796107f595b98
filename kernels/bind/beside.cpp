// Exact values beside codes, as steps without the host add and drop them: schemas, checks, and the form in ATen calls. CUDA: cuda/beside.cu.
#include "kernels/bind/checks.h"
#include "kernels/bind/implementations.h"
#include "kernels/bind/quantize.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace keepsight::ops {

at::Tensor goneBefore(const at::Tensor& entries, const at::Tensor& rows) {
    return at::searchsorted(entries, rows, true) - (entries < 0).sum(at::IntArrayRef{1}, true, at::kInt);
}

at::Tensor within(int64_t most, const at::Tensor& counts) { return at::arange(most, counts.options()).unsqueeze(0) < counts.unsqueeze(1); }

namespace {

at::Tensor addBesideComposite(at::Tensor& places, at::Tensor& values, at::Tensor& counts, const at::Tensor& lengths, const at::Tensor& x,
                              const std::optional<at::Tensor>& outliers, double threshold, const std::optional<at::Tensor>& added) {
    const int64_t rows = x.size(1), dim = x.size(2), nobodys = places.size(1) - 1;
    at::Tensor outlier = outliers ? *outliers : x.abs() > threshold;
    if (added) outlier = outlier.logical_and(within(rows, *added).unsqueeze(2));
    const at::Tensor flat = outlier.flatten(1), rank = flat.cumsum(1, at::kInt); // [H, S · D]
    const at::Tensor to = (rank + (counts.unsqueeze(1) - 1)).masked_fill_(flat.logical_not(), nobodys).to(at::kLong);
    places.scatter_(1, to, at::arange(rows * dim, places.options()).unsqueeze(0) + (lengths * dim).unsqueeze(1));
    values.scatter_(1, to, exact(x.flatten(1), values.scalar_type()));
    counts.add_(rank.select(1, rank.size(1) - 1));
    return x.masked_fill(outlier, 0);
}

void dropBesideComposite(at::Tensor& places, at::Tensor& values, at::Tensor& counts, const at::Tensor& entries, int64_t dim) {
    const at::Tensor entry = places.floor_divide(dim), before = goneBefore(entries, entry);
    const at::Tensor stays = (goneBefore(entries, entry + 1) == before).logical_and_(within(places.size(1), counts));
    const at::Tensor to = (stays.cumsum(1, at::kInt) - 1).masked_fill_(stays.logical_not(), places.size(1) - 1).to(at::kLong);
    places.scatter_(1, to, places - before * dim);
    values.scatter_(1, to, values.clone());
    counts.copy_(stays.sum(at::IntArrayRef{1}, false, at::kInt));
}

void checkBeside(const char* op, const BesideValues& b) {
    checkShape(op, "places", b.places, {Any, Any});
    checkType(op, "places", b.places, at::kInt);
    checkShape(op, "values", b.values, {b.places.size(0), b.places.size(1)});
    checkSameDevice(op, "values", b.values, b.places);
    checkShape(op, "counts", b.counts, {b.places.size(0)});
    checkType(op, "counts", b.counts, at::kInt);
    checkSameDevice(op, "counts", b.counts, b.places);
    if (b.values.element_size() != 2 || !b.values.is_floating_point()) refuse(op, "values", "a type of 16 bits", c10::toString(b.values.scalar_type()));
    if (b.places.size(1) == 0) refuse(op, "places", "at least one, nobody's", "none");
}

} // namespace

void defineBesideOperators(torch::Library& m) {
    m.def("add_beside(Tensor(a!) places, Tensor(b!) values, Tensor(c!) counts, Tensor lengths, Tensor x, Tensor? outliers, float threshold, Tensor? added) -> Tensor");
    m.def("drop_beside(Tensor(a!) places, Tensor(b!) values, Tensor(c!) counts, Tensor entries, int dim) -> ()");
}

void registerBesideComposite(torch::Library& m) {
    m.impl("add_beside", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, addBesideComposite));
    m.impl("drop_beside", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, dropBesideComposite));
}

at::Tensor add_beside(BesideValues& to, const at::Tensor& lengths, const at::Tensor& x, const std::optional<at::Tensor>& outliers, double threshold,
                      const std::optional<at::Tensor>& added) {
    checkBeside("add_beside", to);
    const int64_t heads = to.places.size(0);
    checkShape("add_beside", "x", x, {heads, Any, Any});
    checkType("add_beside", "x", x, at::kFloat);
    checkSameDevice("add_beside", "x", x, to.places);
    if (outliers) checkShape("add_beside", "outliers", *outliers, {heads, x.size(1), x.size(2)}), checkType("add_beside", "outliers", *outliers, at::kBool);
    checkShape("add_beside", "lengths", lengths, {heads});
    checkType("add_beside", "lengths", lengths, at::kInt);
    if (added) checkShape("add_beside", "counts of rows", *added, {heads}), checkType("add_beside", "counts of rows", *added, at::kInt);
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::add_beside", "").typed<decltype(addBesideComposite)>();
    return op.call(to.places, to.values, to.counts, lengths, x, outliers, threshold, added);
}

void drop_beside(BesideValues& from, const at::Tensor& entries, int64_t dim) {
    checkBeside("drop_beside", from);
    checkShape("drop_beside", "entries", entries, {from.places.size(0), Any});
    checkType("drop_beside", "entries", entries, at::kInt);
    checkSameDevice("drop_beside", "entries", entries, from.places);
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::drop_beside", "").typed<decltype(dropBesideComposite)>();
    op.call(from.places, from.values, from.counts, entries, dim);
}

} // namespace keepsight::ops
