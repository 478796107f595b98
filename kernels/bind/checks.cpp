#include "kernels/bind/checks.h"

namespace keepsight::ops {

std::string shapeText(c10::IntArrayRef sizes) {
    std::string text = "[";
    for (size_t i = 0; i < sizes.size(); ++i)
        text += (i ? ", " : "") + (sizes[i] == Any ? std::string("any") : std::to_string(sizes[i]));
    return text + "]";
}

void refuse(const char* op, const char* argument, const std::string& expected, const std::string& found) {
    throw EngineError(std::string(op) + ": " + argument + " should be " + expected + ", found " + found + ".");
}

void checkShape(const char* op, const char* argument, const at::Tensor& tensor, std::initializer_list<int64_t> sizes) {
    const c10::IntArrayRef expected(sizes.begin(), sizes.size());
    if (!tensor.defined()) refuse(op, argument, shapeText(expected), "no tensor");
    bool fits = tensor.dim() == static_cast<int64_t>(expected.size());
    for (size_t i = 0; fits && i < expected.size(); ++i)
        fits = expected[i] == Any || tensor.size(static_cast<int64_t>(i)) == expected[i];
    if (!fits) refuse(op, argument, shapeText(expected), shapeText(tensor.sizes()));
}

void checkType(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType type) {
    if (tensor.scalar_type() != type) refuse(op, argument, c10::toString(type), c10::toString(tensor.scalar_type()));
}

void checkFloat(const char* op, const char* argument, const at::Tensor& tensor) {
    const auto type = tensor.scalar_type();
    if (type == at::kFloat || type == at::kBFloat16 || (type == at::kHalf && !tensor.is_cpu())) return;
    refuse(op, argument, tensor.is_cpu() ? "fp32 or bf16 on the CPU" : "fp32, bf16 or fp16", c10::toString(type));
}

void checkSameDevice(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& reference) {
    if (tensor.device() != reference.device()) refuse(op, argument, "on " + reference.device().str(), tensor.device().str());
}

Stored checkStored(const char* op, const at::Tensor& packed, int64_t weightType, int64_t columns) {
    const auto type = static_cast<Stored>(weightType);
    const int64_t bytes = blockBytes(type);
    if (bytes == 0) refuse(op, "weight type", "0 (F32), 1 (F16), 2 (Q4_0), 3 (Q4_1), 8 (Q8_0) or 30 (BF16)", std::to_string(weightType));
    if (columns <= 0 || columns % blockValues(type) != 0)
        refuse(op, "row length", "a positive multiple of " + std::to_string(blockValues(type)), std::to_string(columns));
    checkShape(op, "packed weights", packed, {Any, columns / blockValues(type) * bytes});
    checkType(op, "packed weights", packed, at::kByte);
    return type;
}

} // namespace keepsight::ops
