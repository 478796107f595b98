// The plug-in's part for scores of policies. Arguments were checked by the operators; what has no kernel runs in ATen calls (bind/scores.cpp).
#include "kernels/cuda/launch_scores.h"
#include "kernels/cuda/plugin.h"

#include <torch/library.h>

namespace keepsight::cuda {
namespace {

at::Tensor lagSpread(const at::Tensor& x, int64_t lag) {
    const c10::cuda::CUDAGuard guard(x.device());
    LagSpreadArgs a;
    a.x = x.const_data_ptr();
    a.xHead = x.stride(0), a.xRow = x.stride(1);
    a.heads = x.size(0), a.partitions = x.size(1) / lag, a.lag = lag, a.dim = x.size(2);
    if (x.stride(2) != 1 || !takesLagSpread(a, elementOf(x))) return composite<decltype(lagSpread)>("lag_spread", x, lag);
    at::Tensor out = at::empty({a.heads, (a.partitions - 1) * lag}, x.options().dtype(at::kFloat));
    a.out = out.mutable_data_ptr<float>();
    check(launchLagSpread(a, elementOf(x), stream()), "lag_spread");
    return out;
}

at::Tensor quadraticForms(const at::Tensor& keys, const at::Tensor& forms) {
    const c10::cuda::CUDAGuard guard(keys.device());
    QuadraticFormsArgs a;
    a.keys = keys.const_data_ptr();
    a.keyHead = keys.stride(0), a.keyRow = keys.stride(1);
    a.forms = forms.const_data_ptr<float>();
    a.queryHeads = forms.size(0), a.kvHeads = keys.size(0), a.count = keys.size(1), a.dim = keys.size(2);
    if (keys.stride(2) != 1 || !takesQuadraticForms(a, elementOf(keys))) return composite<decltype(quadraticForms)>("quadratic_forms", keys, forms);
    at::Tensor out = at::empty({a.queryHeads, a.count}, forms.options());
    a.out = out.mutable_data_ptr<float>();
    check(launchQuadraticForms(a, stream()), "quadratic_forms");
    return out;
}

} // namespace

TORCH_LIBRARY_IMPL(keepsight, CUDA, m) {
    m.impl("lag_spread", lagSpread);
    m.impl("quadratic_forms", quadraticForms);
}

} // namespace keepsight::cuda
