// Inputs and plain fp64 references shared by the kernel tests.
#pragma once

#include "engine/data/error.h"
#include "kernels/bind/implementations.h"
#include "kernels/bind/ops.h"
#include "kernels/cpu_kernels.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <QtTest>
#include <cmath>
#include <random>
#include <vector>

TORCH_LIBRARY(keepsight_composite, m) { // the ATen forms under a name of their own, so that they can be called on the CPU
    keepsight::ops::defineOperators(m);
    keepsight::ops::registerComposite(m);
}

namespace keepsight::test {

inline const std::vector<const char*> implementations = {"baseline", "avx2", "avx512", "composite"};

// A CPU table by name; false if this processor lacks it.
inline bool choose(const QString& name) { return name == "composite" || useCpuKernels(name.toStdString()); }

template <class Signature>
auto composite(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("keepsight_composite::") + name).c_str(), "").typed<Signature>();
}

inline at::Tensor random(std::vector<int64_t> sizes, unsigned seed, at::ScalarType type = at::kFloat, float scale = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0, scale);
    at::Tensor t = at::empty(sizes, at::kFloat);
    for (int64_t i = 0; i < t.numel(); ++i)
        t.data_ptr<float>()[i] = normal(generator);
    return t.to(type);
}

// A call of attention.
struct AttentionCase {
    at::Tensor q, k, v, positions, lengths, queryPositions;
    double scale = 0.125;
};

// `held` entries per head at most; ragged: each head holds fewer, with gaps between positions. Queries are the newest `queries` positions.
inline AttentionCase makeAttentionCase(int queryHeads, int kvHeads, int queries, int held, int capacity, int dim, at::ScalarType type, bool ragged, unsigned seed) {
    AttentionCase c;
    std::mt19937 generator(seed);
    c.q = random({queries, queryHeads, dim}, seed, type).transpose(0, 1); // as the model has it: not dense
    c.k = random({kvHeads, capacity, dim}, seed + 1, type);
    c.v = random({kvHeads, capacity, dim}, seed + 2, type);
    c.positions = at::zeros({kvHeads, capacity}, at::kInt);
    c.lengths = at::zeros({kvHeads}, at::kInt);
    for (int h = 0; h < kvHeads; ++h) {
        int length = 0;
        for (int p = 0; p < held; ++p)
            if (!ragged || generator() % static_cast<unsigned>(h + 2) != 0) c.positions[h][length++] = p;
        c.lengths[h] = length;
        if (length < capacity) { // must never be read
            c.k[h].narrow(0, length, capacity - length).fill_(NAN);
            c.v[h].narrow(0, length, capacity - length).fill_(NAN);
        }
    }
    c.queryPositions = at::arange(held - queries, held, at::kInt);
    return c;
}

// Random stored rows with small finite scales: [rows, rowBytes] uint8.
inline at::Tensor packedRows(Stored type, int64_t rows, int64_t columns, unsigned seed) {
    std::mt19937 generator(seed);
    const int64_t bytes = columns / blockValues(type) * blockBytes(type);
    at::Tensor packed = at::empty({rows, bytes}, at::kByte);
    auto* data = packed.data_ptr<uint8_t>();
    for (int64_t i = 0; i < packed.numel(); ++i)
        data[i] = static_cast<uint8_t>(generator());
    const at::Tensor plain = random({rows, columns}, seed, at::kFloat, 0.1f);
    if (type == Stored::f32) return plain.view(at::kByte).contiguous();
    if (type == Stored::f16) return plain.to(at::kHalf).view(at::kByte).contiguous();
    if (type == Stored::bf16) return plain.to(at::kBFloat16).view(at::kByte).contiguous();
    for (int64_t block = 0; block < packed.numel() / blockBytes(type); ++block)
        for (int k = 0; k < (type == Stored::q4_1 ? 2 : 1); ++k) {
            const c10::Half scale(static_cast<float>(static_cast<int>(generator() % 2001) - 1000) * (type == Stored::q8_0 ? 2e-6f : 1e-5f));
            std::memcpy(data + block * blockBytes(type) + 2 * k, &scale.x, 2);
        }
    return packed;
}

// The format's definition, value by value.
inline std::vector<double> unpacked(const at::Tensor& packed, Stored type, int64_t columns) {
    std::vector<double> out;
    for (int64_t row = 0; row < packed.size(0); ++row)
        for (int64_t i = 0; i < columns; ++i) {
            const uint8_t* bytes = packed.const_data_ptr<uint8_t>() + row * packed.size(1);
            const auto half = [](const uint8_t* p) {
                uint16_t x;
                std::memcpy(&x, p, 2);
                return static_cast<double>(static_cast<float>(c10::Half(x, c10::Half::from_bits())));
            };
            const uint8_t* block = bytes + i / 32 * blockBytes(type);
            const int64_t j = i % 32;
            const auto nibble = [&](int first) { return static_cast<double>(j < 16 ? block[first + j] & 15 : block[first + j - 16] >> 4); };
            double value = 0;
            if (type == Stored::f32) {
                float x;
                std::memcpy(&x, bytes + 4 * i, 4);
                value = static_cast<double>(x);
            } else if (type == Stored::f16)
                value = half(bytes + 2 * i);
            else if (type == Stored::bf16) {
                const uint32_t x = static_cast<uint32_t>(bytes[2 * i] | bytes[2 * i + 1] << 8) << 16;
                float f;
                std::memcpy(&f, &x, 4);
                value = static_cast<double>(f);
            } else if (type == Stored::q8_0)
                value = half(block) * static_cast<int8_t>(block[2 + j]);
            else if (type == Stored::q4_0)
                value = half(block) * (nibble(2) - 8);
            else
                value = static_cast<double>(
                    static_cast<float>(half(block) * nibble(4) + half(block + 2))); // fp32 is what the format's users see
            out.push_back(value);
        }
    return out;
}

inline std::vector<double> doubles(const at::Tensor& t) {
    const at::Tensor wide = t.to(at::kDouble).contiguous();
    return {wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + wide.numel()};
}

// Largest |a − b| / (1 + |b|); infinite when sizes differ or a value is not finite.
inline double difference(const std::vector<double>& found, const std::vector<double>& expected) {
    if (found.size() != expected.size()) return INFINITY;
    double worst = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        const double d = std::abs(found[i] - expected[i]) / (1 + std::abs(expected[i]));
        worst = std::isfinite(d) ? std::max(worst, d) : INFINITY;
    }
    return worst;
}

inline bool sameBits(const at::Tensor& a, const at::Tensor& b) {
    const at::Tensor x = a.contiguous(), y = b.contiguous();
    return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
           (x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), static_cast<size_t>(x.nbytes())) == 0);
}

} // namespace keepsight::test

#define KEEPSIGHT_VERIFY_DIFFERENCE(found, expected, limit)                                                                                \
    do {                                                                                                                                   \
        const double worst_ = keepsight::test::difference(found, expected);                                                                \
        QVERIFY2(worst_ <= (limit), qPrintable(QString("difference %1, limit %2").arg(worst_).arg(limit)));                                \
    } while (false)
