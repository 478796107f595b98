// The widest float vector of the instruction set a file is compiled for, and the few operations the kernels need on it.
#pragma once

#include "kernels/scratch.h"
#include "kernels/stored.h"

#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#include <new>
#include <omp.h>

namespace keepsight::KEEPSIGHT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int Lanes = 16;
#elif defined(__AVX2__)
constexpr int Lanes = 8;
#else
constexpr int Lanes = 4;
#endif
typedef float Floats __attribute__((vector_size(Lanes * 4)));
typedef std::int32_t Ints __attribute__((vector_size(Lanes * 4)));
typedef std::uint32_t Words __attribute__((vector_size(Lanes * 4)));
typedef std::uint16_t Shorts __attribute__((vector_size(Lanes * 2)));
typedef std::uint8_t Bytes __attribute__((vector_size(Lanes)));

#define KEEPSIGHT_INLINE [[gnu::always_inline]] inline

template <class V, class T>
KEEPSIGHT_INLINE V loadAs(const T* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}
KEEPSIGHT_INLINE Floats load(const float* from) { return loadAs<Floats>(from); }
KEEPSIGHT_INLINE void store(float* to, Floats v) { __builtin_memcpy(to, &v, sizeof v); }
KEEPSIGHT_INLINE Floats broadcast(float x) { return Floats{} + x; }
KEEPSIGHT_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
KEEPSIGHT_INLINE Floats toFloats(Ints v) { return __builtin_convertvector(v, Floats); }

KEEPSIGHT_INLINE Ints widen(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    return Ints{from[0], from[1], from[2], from[3]};
#endif
}
KEEPSIGHT_INLINE Ints widenSigned(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    return (widen(from) ^ 128) - 128;
#endif
}
KEEPSIGHT_INLINE Floats loadBf16(const void* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from))), 16);
#elif defined(__AVX2__)
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))), 16);
#else
    return (Floats)(__builtin_convertvector(loadAs<Shorts>(static_cast<const std::uint8_t*>(from)), Words) << 16);
#endif
}
// Round to nearest even; NaN stays NaN.
KEEPSIGHT_INLINE void storeBf16(void* to, Floats v) {
    const Words bits = (Words)v;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words isNan = (Words)(v != v);
    const Words result = (rounded & ~isNan) | (((bits >> 16) | 64) & isNan);
#if defined(__AVX512F__)
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)result));
#else
    const Shorts narrow = __builtin_convertvector(result, Shorts);
    __builtin_memcpy(to, &narrow, sizeof narrow);
#endif
}

KEEPSIGHT_INLINE float floatOfHalf(std::uint16_t half) {
#ifdef __F16C__
    return _cvtsh_ss(half);
#else
    const std::uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    std::uint32_t bits;
    if (rest >= 0x7c00u) {
        bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
    } else { // the exponent is moved by a multiplication, which also makes subnormal halves right
        const std::uint32_t shifted = rest << 13;
        float magnitude;
        __builtin_memcpy(&magnitude, &shifted, 4);
        magnitude *= 0x1p112f;
        __builtin_memcpy(&bits, &magnitude, 4);
        bits |= sign;
    }
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
#endif
}
KEEPSIGHT_INLINE float loadHalf(const std::uint8_t* from) {
    std::uint16_t half;
    __builtin_memcpy(&half, from, 2);
    return floatOfHalf(half);
}
KEEPSIGHT_INLINE Floats broadcastHalf(const std::uint8_t* from) { // the half at `from` in every lane
#if defined(__AVX512F__)
    std::int16_t half;
    __builtin_memcpy(&half, from, 2);
    return (Floats)_mm512_cvtph_ps(_mm256_set1_epi16(half));
#else
    return broadcast(loadHalf(from));
#endif
}
KEEPSIGHT_INLINE void broadcastHalves(const std::uint8_t* from, Floats& first, Floats& second) { // the half at `from` and the next one
#if defined(__F16C__) && !defined(__AVX512F__)
    std::int32_t both;
    __builtin_memcpy(&both, from, 4);
    const __m128 x = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
    first = (Floats)_mm256_broadcastss_ps(x);
    second = (Floats)_mm256_broadcastss_ps(_mm_movehdup_ps(x));
#else
    first = broadcastHalf(from);
    second = broadcastHalf(from + 2);
#endif
}
KEEPSIGHT_INLINE Floats loadHalves(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    return Floats{loadHalf(from), loadHalf(from + 2), loadHalf(from + 4), loadHalf(from + 6)};
#endif
}

KEEPSIGHT_INLINE float sum(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float parts[Lanes];
    store(parts, v);
    float total = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    if constexpr (Lanes == 8) total += (parts[4] + parts[5]) + (parts[6] + parts[7]);
    return total;
#endif
}
KEEPSIGHT_INLINE float largest(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float parts[Lanes], best;
    store(parts, v);
    best = parts[0];
    for (float p : parts)
        best = p > best ? p : best;
    return best;
#endif
}

// 2^x for x < 128, relative error below 1e-7; 0 where the result would be subnormal.
KEEPSIGHT_INLINE Floats exp2(Floats x) {
    const Floats magic = broadcast(12582912.f), shifted = x + magic; // adds 1.5·2^23: the integer part lands in the low bits
    const Floats f = x - (shifted - magic);
    Floats p = broadcast(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.f;
    const Floats power = (Floats)((Words)p + ((Words)shifted << 23));
    return x < -126.f ? Floats{} : power;
}
constexpr float Log2E = 1.44269504088896340736f;

KEEPSIGHT_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
KEEPSIGHT_INLINE std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
KEEPSIGHT_INLINE std::int64_t roundUp(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

KEEPSIGHT_INLINE std::int64_t bytesOf(Element element) { return element == Element::f32 ? 4 : 2; }
KEEPSIGHT_INLINE const std::uint8_t* at(const void* data, Element element, std::int64_t index) {
    return static_cast<const std::uint8_t*>(data) + index * bytesOf(element);
}
KEEPSIGHT_INLINE std::uint8_t* at(void* data, Element element, std::int64_t index) {
    return static_cast<std::uint8_t*>(data) + index * bytesOf(element);
}

// Any count; tails go through a small buffer.
KEEPSIGHT_INLINE void toFp32(const void* from, Element element, std::int64_t count, float* to) {
    if (element == Element::f32) {
        std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
        return;
    }
    const auto* in = static_cast<const std::uint8_t*>(from);
    std::int64_t i = 0;
    for (; i + Lanes <= count; i += Lanes)
        store(to + i, loadBf16(in + 2 * i));
    if (i < count) {
        std::uint16_t tail[Lanes] = {};
        float wide[Lanes];
        std::memcpy(tail, in + 2 * i, static_cast<std::size_t>(count - i) * 2);
        store(wide, loadBf16(tail));
        std::memcpy(to + i, wide, static_cast<std::size_t>(count - i) * 4);
    }
}
KEEPSIGHT_INLINE void fromFp32(const float* from, std::int64_t count, void* to, Element element) {
    if (element == Element::f32) {
        std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
        return;
    }
    auto* out = static_cast<std::uint8_t*>(to);
    std::int64_t i = 0;
    for (; i + Lanes <= count; i += Lanes)
        storeBf16(out + 2 * i, load(from + i));
    if (i < count) {
        float tail[Lanes] = {};
        std::uint16_t narrow[Lanes];
        std::memcpy(tail, from + i, static_cast<std::size_t>(count - i) * 4);
        storeBf16(narrow, load(tail));
        std::memcpy(out + 2 * i, narrow, static_cast<std::size_t>(count - i) * 2);
    }
}

// Scratch memory, aligned for vectors. Allocate before a parallel region: nothing may be thrown inside one.
template <class T>
class Buffer {
public:
    explicit Buffer(std::int64_t count) : m_data(static_cast<T*>(takeScratch(bytes(count)))) {
        if (!m_data) throw std::bad_alloc();
    }
    ~Buffer() { giveScratch(m_data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* data() const { return m_data; }
    T& operator[](std::int64_t i) const { return m_data[i]; }
    void clear(std::int64_t count) { std::memset(m_data, 0, static_cast<std::size_t>(count) * sizeof(T)); }

private:
    static std::size_t bytes(std::int64_t count) {
        return static_cast<std::size_t>(roundUp(count * static_cast<std::int64_t>(sizeof(T)) + 64, 64));
    }
    T* m_data;
};

// run(i) for each i below `tasks`, in parallel if that is worth it: even a region of one thread would set up a team.
template <class Run>
void each(std::int64_t tasks, bool parallel, const Run& run) {
    if (!parallel) {
        for (std::int64_t i = 0; i < tasks; ++i)
            run(i);
        return;
    }
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < tasks; ++i)
        run(i);
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
