// How weights and values lie in memory. Numbers of Stored are GGUF's tensor types (engine: WeightType).
#pragma once

#include <cstdint>

namespace keepsight {

enum class Stored : int { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, bf16 = 30 };
enum class Element : int { f32, bf16 }; // activations and cache on the CPU

// Blocks of 32 values: q4_0 {half d, 16 bytes}: d·(q − 8); q4_1 {half d, half m, 16 bytes}: d·q + m; q8_0 {half d, 32 int8}: d·q.
// A nibble byte j holds value j (low) and value j + 16 (high).
constexpr std::int64_t blockValues(Stored type) { return type == Stored::q4_0 || type == Stored::q4_1 || type == Stored::q8_0 ? 32 : 1; }

// 0: unknown type.
constexpr std::int64_t blockBytes(Stored type) {
    switch (type) {
    case Stored::f32:
        return 4;
    case Stored::f16:
    case Stored::bf16:
        return 2;
    case Stored::q4_0:
        return 18;
    case Stored::q4_1:
        return 20;
    case Stored::q8_0:
        return 34;
    }
    return 0;
}

} // namespace keepsight
