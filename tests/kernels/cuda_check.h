// What the parts of cuda_check share.
#pragma once

#include "engine/data/error.h"
#include "kernels/bind/ops.h"

#include <ATen/ATen.h>
#include <cstdio>
#include <functional>

namespace keepsight::check {

inline int failures = 0, checks = 0;

inline at::Tensor gpu(const at::Tensor& t) { return t.to(at::kCUDA); }

inline void expectClose(const char* what, const at::Tensor& onDevice, const at::Tensor& expected, double tolerance) {
    ++checks;
    const at::Tensor a = onDevice.to(at::kCPU, at::kFloat), b = expected.to(at::kFloat);
    const double error = a.numel() == 0 ? 0.0 : (a - b).abs().max().item<double>(), scale = b.numel() == 0 ? 1.0 : std::max(1e-6, b.abs().max().item<double>());
    if (a.sizes() == b.sizes() && error <= tolerance * std::max(1.0, scale)) return;
    ++failures;
    std::printf("FAIL %s: max error %.3g at scale %.3g, allowed %.3g\n", what, error, scale, tolerance);
}

inline void expectSame(const char* what, const at::Tensor& found, const at::Tensor& expected) {
    ++checks;
    if (at::equal(found.to(at::kCPU), expected.to(at::kCPU))) return;
    ++failures;
    std::printf("FAIL %s: differs\n", what);
}

inline void expectRefused(const char* what, const std::function<void()>& call) {
    ++checks;
    try {
        call();
    } catch (const EngineError&) {
        return;
    }
    ++failures;
    std::printf("FAIL %s: not refused\n", what);
}

// Packed entries, cuda_check_packed.cpp.
void checkPacked(int heads, int entries, int dim, int bits, int group, bool byChannel, bool levels, at::ScalarType type);
void checkAllPacked();
void checkAcross(int heads, int dim, int group, int bits, int entries, int spare);
void checkChannels(int heads, int dim, int group, int bits, int groups);
void checkAllGroups();
void checkBeside(int rows, int dim, at::ScalarType type);
void checkAllBeside();
void checkPackedAttention(int heads, int group, int dim, int entries, int bits, int shared, bool byChannel, at::ScalarType type);
void checkPackedAttentions();
void checkCodedForms(int heads, int group, int dim, std::int64_t entries, int bits, at::ScalarType type);
void checkAllCoded();

} // namespace keepsight::check
