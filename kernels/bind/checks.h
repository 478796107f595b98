// What every operator demands of its tensors; violations are EngineErrors that name operator, argument, expectation and finding.
#pragma once

#include "engine/data/error.h"
#include "kernels/stored.h"

#include <ATen/core/Tensor.h>
#include <initializer_list>
#include <string>

namespace keepsight::ops {

constexpr int64_t Any = -1; // a size that may be anything

std::string shapeText(c10::IntArrayRef sizes); // "[3, Any, 64]"
[[noreturn]] void refuse(const char* op, const char* argument, const std::string& expected, const std::string& found);

void checkShape(const char* op, const char* argument, const at::Tensor& tensor, std::initializer_list<int64_t> sizes);
void checkType(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType type);
void checkFloat(const char* op, const char* argument, const at::Tensor& tensor); // fp32 or bf16; fp16 except on the CPU
void checkSameDevice(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& reference);
Stored checkStored(const char* op, const at::Tensor& packed, int64_t weightType, int64_t columns); // uint8 [rows, rowBytes]

} // namespace keepsight::ops
