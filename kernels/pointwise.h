// The small fused operations between the matrix products; fp32 inside.
#pragma once

#include "kernels/stored.h"

namespace keepsight {

struct RmsNormArgs {
    const void* x = nullptr;       // [rows, width]
    const float* weight = nullptr; // [width]
    void* y = nullptr;             // [rows, width]
    std::int64_t rows = 0, width = 0;
    float eps = 0;
    Element element = Element::f32;
};

struct SiluMulArgs {
    const void* x = nullptr; // [rows, 2 · width]
    void* y = nullptr;       // [rows, width]
    std::int64_t rows = 0, width = 0;
    Element element = Element::f32;
};

struct RopeArgs {
    const void* x = nullptr; // [heads, rows, dim], strides below, dim dense
    std::int64_t xHead = 0, xRow = 0;
    void* y = nullptr; // [heads, rows, dim], dense
    std::int64_t heads = 0, rows = 0, dim = 0;
    const std::int32_t* positions = nullptr;
    std::int64_t positionHead = 0;             // 0: shared by all heads; else [heads, rows]
    const float* inverseFrequencies = nullptr; // [dim/2]
    float sign = 1;
    Element element = Element::f32;
};

} // namespace keepsight
