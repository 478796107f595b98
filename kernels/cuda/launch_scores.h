// Kernels of scores that policies work out of keys and values alone; see launch.h for the conventions.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/scores.h"

namespace keepsight::cuda {

bool takesLagSpread(const LagSpreadArgs& args, CudaElement element); // an even head size up to 256, pairs of elements aligned
cudaError_t launchLagSpread(const LagSpreadArgs& args, CudaElement element, cudaStream_t stream);

// In bf16, on the matrix units: a form is split into three bf16 numbers, products are summed in fp32. Other elements: not taken.
bool takesQuadraticForms(const QuadraticFormsArgs& args, CudaElement element); // head sizes 64 and 128, pairs of elements aligned
cudaError_t launchQuadraticForms(const QuadraticFormsArgs& args, cudaStream_t stream);

} // namespace keepsight::cuda
