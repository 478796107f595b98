// lag_spread and quadratic_forms: schemas, checks, and the same in ATen calls, right on any device; lag_spread's binding to kernels/cpu.
#include "kernels/bind/checks.h"
#include "kernels/bind/cpu.h"
#include "kernels/bind/implementations.h"
#include "kernels/scores.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace keepsight::ops {
namespace {

at::Tensor lagSpreadComposite(const at::Tensor& x, int64_t lag) {
    const at::Tensor parts = x.to(at::kFloat).unflatten(1, {-1, lag}); // [H, P, lag, D]
    const int64_t scored = parts.size(1) - 1;
    const at::Tensor behind = parts.narrow(1, 1, scored), low = behind.amin({2}, true), high = behind.amax({2}, true);
    return ((parts.narrow(1, 0, scored) - low) / (high - low).clamp_min(LagLeastRange)).std(3).flatten(1);
}

at::Tensor lagSpreadCpu(const at::Tensor& given, int64_t lag) {
    const at::Tensor x = rowsDense(given);
    const int64_t partitions = x.size(1) / lag;
    at::Tensor out = at::empty({x.size(0), (partitions - 1) * lag}, at::kFloat);
    onCpu("lag_spread", [&](const CpuKernels& kernels) {
        kernels.lagSpread({x.const_data_ptr(), x.stride(0), x.stride(1), out.mutable_data_ptr<float>(), elementOf(x), x.size(0), partitions, lag, x.size(2)});
    });
    return out;
}

at::Tensor quadraticFormsComposite(const at::Tensor& keys, const at::Tensor& forms) {
    const int64_t heads = keys.size(0), count = keys.size(1), dim = keys.size(2), group = forms.size(0) / heads;
    const at::Tensor k = keys.to(at::kFloat), side = forms.view({heads, group, dim, dim}).transpose(1, 2).reshape({heads, dim, group * dim}); // side by side
    const at::Tensor turned = at::matmul(k, side).view({heads, count, group, dim}).mul_(k.unsqueeze(2));
    return turned.sum(3).transpose(1, 2).reshape({heads * group, count});
}

} // namespace

void defineScoreOperators(torch::Library& m) {
    m.def("lag_spread(Tensor x, int lag) -> Tensor");
    m.def("quadratic_forms(Tensor keys, Tensor forms) -> Tensor");
}

void registerScoreCpu(torch::Library& library) { library.impl("lag_spread", torch::dispatch(c10::DispatchKey::CPU, lagSpreadCpu)); }

void registerScoreComposite(torch::Library& library) {
    library.impl("lag_spread", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, lagSpreadComposite));
    library.impl("quadratic_forms", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, quadraticFormsComposite));
}

at::Tensor lag_spread(const at::Tensor& x, int64_t lag) {
    checkShape("lag_spread", "x", x, {Any, Any, Any});
    checkFloat("lag_spread", "x", x);
    if (lag < 1 || x.size(1) < lag || x.size(1) % lag != 0)
        refuse("lag_spread", "rows", "whole partitions of " + std::to_string(lag) + ", at least one", std::to_string(x.size(1)));
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::lag_spread", "").typed<at::Tensor(const at::Tensor&, int64_t)>();
    return op.call(x, lag);
}

at::Tensor quadratic_forms(const at::Tensor& keys, const at::Tensor& forms) {
    checkShape("quadratic_forms", "keys", keys, {Any, Any, Any});
    checkFloat("quadratic_forms", "keys", keys);
    checkShape("quadratic_forms", "forms", forms, {Any, keys.size(2), keys.size(2)});
    checkType("quadratic_forms", "forms", forms, at::kFloat);
    checkSameDevice("quadratic_forms", "forms", forms, keys);
    if (keys.size(0) == 0 || forms.size(0) == 0 || forms.size(0) % keys.size(0) != 0)
        refuse("quadratic_forms", "forms", "a positive multiple of the " + std::to_string(keys.size(0)) + " KV heads", std::to_string(forms.size(0)));
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::quadratic_forms", "").typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
    return op.call(keys, forms.contiguous());
}

} // namespace keepsight::ops
