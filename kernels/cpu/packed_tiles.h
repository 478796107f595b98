// Blocks of codes against the query heads of their KV head, read as they lie (kernels/quant.h): a vector of bytes becomes a vector of codes
// for each plane. Every code is unpacked once for up to four of these heads.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/quant.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

constexpr std::int64_t Block = 64, BlockHeads = 4; // entries of a block: its codes stay in L1

// A row of codes as vectors: vector p · chunks + c holds codes of plane p. Where planes do not fill vectors each is padded, and values lie
// in another order than the row's.
struct Planes {
    std::int64_t dim = 0, bytes = 0, chunks = 0, width = 0; // width: values of all vectors
    int bits = 8;
    bool inOrder = true;
};

KEEPSIGHT_INLINE Planes planesOf(std::int64_t dim, int bits) {
    const std::int64_t bytes = planeBytes(dim, bits), chunks = (bytes + Lanes - 1) / Lanes;
    return {dim, bytes, chunks, 8 / bits * chunks * Lanes, bits, bytes % Lanes == 0};
}

// Values in the row's order to the planes', 0 between them; and back.
KEEPSIGHT_INLINE void toPlanes(const Planes& planes, const float* from, float* to) {
    std::memset(to, 0, static_cast<std::size_t>(planes.width) * 4);
    for (std::int64_t first = 0; first < planes.dim; first += planes.bytes, to += planes.chunks * Lanes)
        std::memcpy(to, from + first, static_cast<std::size_t>(least(planes.bytes, planes.dim - first)) * 4);
}
KEEPSIGHT_INLINE void fromPlanes(const Planes& planes, const float* from, float* to) {
    for (std::int64_t first = 0; first < planes.dim; first += planes.bytes, from += planes.chunks * Lanes)
        std::memcpy(to + first, from, static_cast<std::size_t>(least(planes.bytes, planes.dim - first)) * 4);
}

// Rows that whole vectors can be read of: in place, or copied to buffer [Block, chunks · Lanes].
KEEPSIGHT_INLINE const std::uint8_t* codeRows(const Planes& planes, const std::uint8_t* codes, std::int64_t count, std::uint8_t* buffer,
                                              std::int64_t& stride) {
    stride = planes.chunks * Lanes;
    if (planes.inOrder) return codes;
    std::memset(buffer, 0, static_cast<std::size_t>(count * stride));
    for (std::int64_t t = 0; t < count; ++t)
        std::memcpy(buffer + t * stride, codes + t * planes.bytes, static_cast<std::size_t>(planes.bytes));
    return buffer;
}

typedef float Quad __attribute__((vector_size(16)));
KEEPSIGHT_INLINE Quad quarter(Floats v) { // the sums of every fourth lane
#if defined(__AVX512F__)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    return (Quad)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    return (Quad)_mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
    return v;
#endif
}
KEEPSIGHT_INLINE Quad sums(Floats a, Floats b, Floats c, Floats d) {
    const Quad w = quarter(a), x = quarter(b), y = quarter(c), z = quarter(d);
    const Quad wx = __builtin_shufflevector(w, x, 0, 4, 1, 5) + __builtin_shufflevector(w, x, 2, 6, 3, 7),
               yz = __builtin_shufflevector(y, z, 0, 4, 1, 5) + __builtin_shufflevector(y, z, 2, 6, 3, 7);
    return __builtin_shufflevector(wx, yz, 0, 1, 4, 5) + __builtin_shufflevector(wx, yz, 2, 3, 6, 7);
}

template <int Bits>
KEEPSIGHT_INLINE Floats codesOf(Ints bytes, int plane) {
    if constexpr (Bits == 8) return toFloats(bytes);
    return toFloats((bytes >> (plane * Bits)) & ((1 << Bits) - 1));
}

// out[g · Block + t] = Σ code · q[g], of all codes of row t; with scales, of vector v, times scales[groupOf[v] · Block + t].
template <int Bits, int G, bool Scaled>
void codeDots(const std::uint8_t* codes, std::int64_t row, std::int64_t count, const Planes& planes, const float* q, const float* scales,
              const std::int32_t* groupOf, float* out) {
    constexpr int Rows = G == 4 ? 2 : 4; // as many sums as there are registers for
    const std::int64_t chunks = planes.chunks, width = planes.width;
    for (std::int64_t t = 0; t < count; t += Rows) {
        Floats acc[Rows][G] = {};
        std::int64_t rows[Rows];
        for (int r = 0; r < Rows; ++r)
            rows[r] = least(t + r, count - 1);
        for (std::int64_t c = 0; c < chunks; ++c)
            for (int r = 0; r < Rows; ++r) {
                const Ints bytes = widen(codes + rows[r] * row + c * Lanes);
                for (int p = 0; p < 8 / Bits; ++p) {
                    const std::int64_t v = p * chunks + c;
                    Floats x = codesOf<Bits>(bytes, p);
                    if constexpr (Scaled) x *= scales[groupOf[v] * Block + rows[r]];
                    for (int g = 0; g < G; ++g)
                        acc[r][g] += x * load(q + g * width + v * Lanes);
                }
            }
        if constexpr (Rows == 4) {
            for (int g = 0; g < G; ++g) {
                const Quad dots = sums(acc[0][g], acc[1][g], acc[2][g], acc[3][g]);
                __builtin_memcpy(out + g * Block + t, &dots, sizeof dots);
            }
        } else {
            for (int r = 0; r < Rows; ++r) {
                const Quad dots = sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
                for (int g = 0; g < G; ++g)
                    out[g * Block + t + r] = dots[g];
            }
        }
    }
}

// out[g] of V vectors += Σ p[g · head + groups[v] + t] · code: of planes first … first + V − 1 of a chunk, or (8 bits) of V chunks.
template <int Bits, int First, int V, int G>
KEEPSIGHT_INLINE void addVectors(const std::uint8_t* codes, std::int64_t row, std::int64_t count, const float* p, std::int64_t head,
                                 const std::int64_t (&groups)[V], float* const (&out)[V], std::int64_t width) {
    Floats acc[G][V];
    for (int g = 0; g < G; ++g)
        for (int v = 0; v < V; ++v)
            acc[g][v] = load(out[v] + g * width);
    for (std::int64_t t = 0; t < count; ++t) {
        const Ints bytes = widen(codes + t * row);
        for (int v = 0; v < V; ++v) {
            const Floats x = Bits == 8 && v ? toFloats(widen(codes + t * row + v * Lanes)) : codesOf<Bits>(bytes, First + v);
            for (int g = 0; g < G; ++g)
                acc[g][v] += p[g * head + groups[v] + t] * x;
        }
    }
    for (int g = 0; g < G; ++g)
        for (int v = 0; v < V; ++v)
            store(out[v] + g * width, acc[g][v]);
}

// The vectors of a chunk, or (8 bits) of the chunks, from plane First on; groupOf null: one weight a row.
template <int Bits, int First, int V, int G>
KEEPSIGHT_INLINE void addChunk(const std::uint8_t* codes, std::int64_t row, std::int64_t count, const Planes& planes, std::int64_t chunk,
                               const float* p, std::int64_t head, const std::int32_t* groupOf, float* out) {
    std::int64_t groups[V];
    float* to[V];
    for (int v = 0; v < V; ++v) {
        const std::int64_t vector = Bits == 8 ? chunk + v : (First + v) * planes.chunks + chunk;
        groups[v] = groupOf ? groupOf[vector] * Block : 0;
        to[v] = out + vector * Lanes;
    }
    addVectors<Bits, First, V, G>(codes + chunk * Lanes, row, count, p, head, groups, to, planes.width);
}

// out[g · width], in the planes' order, += Σ over the rows of p[g · head + groupOf[vector] · Block + t] · code.
template <int Bits, int G>
void addCodes(const std::uint8_t* codes, std::int64_t row, std::int64_t count, const Planes& planes, const float* p, std::int64_t head,
              const std::int32_t* groupOf, float* out) {
    constexpr int Step = Bits == 8 ? 2 : 1;
    std::int64_t c = 0;
    for (; c + Step <= planes.chunks; c += Step) {
        addChunk<Bits, 0, 2, G>(codes, row, count, planes, c, p, head, groupOf, out);
        if constexpr (Bits == 2) addChunk<Bits, 2, 2, G>(codes, row, count, planes, c, p, head, groupOf, out);
    }
    if constexpr (Bits == 8)
        if (c < planes.chunks) addChunk<Bits, 0, 1, G>(codes, row, count, planes, c, p, head, groupOf, out);
}

using CodeDots = void (*)(const std::uint8_t*, std::int64_t, std::int64_t, const Planes&, const float*, const float*, const std::int32_t*,
                          float*);
using AddCodes = void (*)(const std::uint8_t*, std::int64_t, std::int64_t, const Planes&, const float*, std::int64_t, const std::int32_t*,
                          float*);
template <int Bits, bool Scaled>
constexpr CodeDots DotsOf[] = {nullptr, codeDots<Bits, 1, Scaled>, codeDots<Bits, 2, Scaled>, codeDots<Bits, 3, Scaled>,
                               codeDots<Bits, 4, Scaled>};
template <int Bits>
constexpr AddCodes AddOf[] = {nullptr, addCodes<Bits, 1>, addCodes<Bits, 2>, addCodes<Bits, 3>, addCodes<Bits, 4>};

KEEPSIGHT_INLINE const CodeDots* dotsOf(int bits, bool scaled) {
    if (scaled) return bits == 2 ? DotsOf<2, true> : bits == 4 ? DotsOf<4, true> : DotsOf<8, true>;
    return bits == 2 ? DotsOf<2, false> : bits == 4 ? DotsOf<4, false> : DotsOf<8, false>;
}
KEEPSIGHT_INLINE const AddCodes* addOf(int bits) { return bits == 2 ? AddOf<2> : bits == 4 ? AddOf<4> : AddOf<8>; }

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
