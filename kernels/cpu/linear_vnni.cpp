// linear() for processors that multiply bytes (AVX512-VNNI) and weights of 4 or 8 bits, which decoding would hold up: a block of 32 values
// of x is written as 24-bit integers X with a power of two as their scale, X as three signed bytes, and meets the weights' integers as they
// are stored.
//   Σ (d·q + m)·x = d·scale·Σ q·X + m·scale·Σ X        Σ q·X = 2^16·Σ q·X₂ + 2^8·Σ q·X₁ + Σ q·X₀, exact in 32 bits
// Four blocks of a row lie in a vector, block b in the 4 numbers from 4·b on, each the sum of 8 products, and have one fp32 multiply-add by
// scale. Rows of the matrix are taken by 4, whose scales fill one vector: number 4·b + r is block b of row r.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear_pieces.h"

#ifdef __AVX512F__

namespace keepsight::KEEPSIGHT_ISA {
namespace {

#define KEEPSIGHT_VNNI [[gnu::target("avx512vnni")]]
#define KEEPSIGHT_VNNI_INLINE [[gnu::always_inline, gnu::target("avx512vnni")]] inline
#define KEEPSIGHT_VNNI_LAMBDA __attribute__((always_inline, target("avx512vnni")))

constexpr int Block = 32, Group = 4, Digits = 3; // values of a block, blocks of a group
constexpr int Ahead = 8; // rows asked for before their turn: the processor foresees little of what lies behind a short row

struct alignas(64) Fixed {             // four blocks of x; value j of block b is byte 16·b + j % 16 of half j / 16
    std::int8_t digits[Digits][2][64]; // the most significant first
    float scale[16], total[16];        // of block i / 4; total: scale · Σ X
    std::int32_t above[2][16];         // what weights 128 too high add to digits 2 and 1 together, and to digit 0
};

KEEPSIGHT_VNNI_INLINE __m512i bytes(const std::int8_t (&from)[64]) { return _mm512_load_si512(from); }

// scale·X differs from x by half of scale at most, 2^-23 of the block's largest |x| (of 2^-79 where that is smaller). A block with an
// infinity or NaN gives NaN.
KEEPSIGHT_VNNI void toFixed(const float* x, std::int64_t columns, Fixed* to) {
    const std::int64_t blocks = columns / Block, groups = (blocks + Group - 1) / Group;
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), bias = _mm512_set1_epi32(0x808080), high = _mm512_set1_epi8(-128);
    for (std::int64_t block = 0; block < groups * Group; ++block, x += Block) {
        Fixed& group = to[block / Group];
        const std::int64_t b = block % Group;
        const bool held = block < blocks;
        const __m512 values[2] = {held ? _mm512_loadu_ps(x) : _mm512_setzero_ps(), held ? _mm512_loadu_ps(x + 16) : _mm512_setzero_ps()};
        const __m512i largest = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(values[0]), magnitude),
                                                 _mm512_and_si512(_mm512_castps_si512(values[1]), magnitude));
        const std::uint32_t top = _mm512_reduce_max_epu32(largest);
        // top's exponent, one more from 0x7f7f7f.8 · 2^-22 on: the greatest number of three signed bytes
        const std::uint32_t exponent = (top + 0x10101) >> 23, used = exponent < 48 ? 48 : exponent;
        float scale = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>((used - 22) << 23))));
        const __m512 inverse = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>((276 - used) << 23)));
        if (top >= 0x7f800000) scale = __builtin_nanf("");
        const __m512i whole[2] = {_mm512_cvtps_epi32(_mm512_mul_ps(values[0], inverse)),
                                  _mm512_cvtps_epi32(_mm512_mul_ps(values[1], inverse))};
        for (int half = 0; half < 2; ++half) {
            // each byte of X + 0x808080 is its digit + 128
            const __m512i digits = _mm512_xor_si512(_mm512_add_epi32(whole[half], bias), bias);
            for (int k = 0; k < Digits; ++k)
                _mm_store_si128(reinterpret_cast<__m128i*>(group.digits[k][half] + 16 * b),
                                _mm512_cvtepi32_epi8(_mm512_srli_epi32(digits, static_cast<unsigned>(8 * (Digits - 1 - k)))));
        }
        const float total = static_cast<float>(_mm512_reduce_add_epi32(_mm512_add_epi32(whole[0], whole[1]))) * scale;
        _mm_store_ps(group.scale + 4 * b, _mm_set1_ps(held ? scale : 0));
        _mm_store_ps(group.total + 4 * b, _mm_set1_ps(held ? total : 0));
    }
    for (std::int64_t g = 0; g < groups; ++g) {
        Fixed& group = to[g];
        __m512i sums[Digits];
        for (int k = 0; k < Digits; ++k)
            sums[k] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), high, bytes(group.digits[k][0])), high,
                                          bytes(group.digits[k][1]));
        const __m512i none = _mm512_setzero_si512();
        _mm512_store_si512(group.above[0], _mm512_sub_epi32(none, _mm512_add_epi32(_mm512_slli_epi32(sums[0], 8), sums[1])));
        _mm512_store_si512(group.above[1], _mm512_sub_epi32(none, sums[2]));
    }
}

template <Stored Type>
constexpr int groupBytes = Group * static_cast<int>(blockBytes(Type));

// 64 bytes from byte `from` of a group on, zeros behind the `held` bytes of one that ends early.
template <bool Whole>
KEEPSIGHT_VNNI_INLINE __m512i part(const std::uint8_t* group, int from, int held) {
    if constexpr (Whole) return _mm512_loadu_si512(group + from);
    const int words = (held - from) / 2;
    return _mm512_maskz_loadu_epi16(words >= 32 ? ~0u : words > 0 ? (1u << words) - 1 : 0u, group + from);
}

struct Indices {
    alignas(64) std::uint16_t scales[2][32]; // of d in the lower numbers, m in the upper; Q8_0: of d in either part
    alignas(64) std::uint32_t nibbles32[16];
    alignas(64) std::uint16_t nibbles16[32];
};
template <Stored Type>
constexpr Indices indices = [] {
    Indices out{};
    const int words = static_cast<int>(blockBytes(Type)) / 2;
    for (int i = 0; i < 16; ++i) {
        const int b = i / 4;
        out.scales[0][i] = static_cast<std::uint16_t>(b * words);
        out.scales[0][i + 16] = static_cast<std::uint16_t>(b * words + 1);
        if (Type == Stored::q8_0 && b >= 2) out.scales[1][i] = static_cast<std::uint16_t>((b - 2) * words);
        const int at32 = b * 5 + 1 + i % 4; // in Q4_1's group: the second part begins with number 4
        out.nibbles32[i] = static_cast<std::uint32_t>(at32 < 16 ? at32 : at32 - 4 + 16);
    }
    for (int i = 0; i < 32; ++i) {
        const int at16 = i / 8 * 9 + 1 + i % 8; // in Q4_0's
        out.nibbles16[i] = static_cast<std::uint16_t>(at16 < 32 ? at16 : at16 - 4 + 32);
    }
    return out;
}();

struct Task {
    const std::uint8_t* w;
    std::int64_t rowBytes, groups;
    int tail; // blocks of a last, partial group
    const Fixed* x;
    std::int64_t xRow;
    float* y; // y[s · yRow + r]
    std::int64_t yRow;
};

template <Stored Type, int XRows>
struct Sums {
    __m512 rows[Group][XRows], offsets[XRows]; // offsets: of number 4·b + r
};

// One group of four rows: w[r] points to it.
template <Stored Type, int XRows, bool Whole>
KEEPSIGHT_VNNI_INLINE void addGroup(const std::uint8_t* w, const std::int64_t (&row)[4], int held, const Fixed* x, std::int64_t xRow,
                                    Sums<Type, XRows>& sums) {
    const Indices& index = indices<Type>;
    const __m512i low = _mm512_set1_epi8(15);
    __m512i halves = _mm512_setzero_si512();
    for (int r = 0; r < 4; ++r) {
        const auto mine = static_cast<__mmask32>(0x11111111u << r);
        if constexpr (Type == Stored::q8_0) {
            halves =
                _mm512_mask_permutexvar_epi16(halves, mine & 0xff, _mm512_load_si512(index.scales[0]), part<Whole>(w + row[r], 0, held));
            halves =
                _mm512_mask_permutexvar_epi16(halves, mine & 0xff00, _mm512_load_si512(index.scales[1]), part<Whole>(w + row[r], 68, held));
        } else {
            halves = _mm512_mask_permutexvar_epi16(halves, mine, _mm512_load_si512(index.scales[0]), part<Whole>(w + row[r], 0, held));
        }
    }
    const __m512 d = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
    __m512 scales[XRows];
    for (int s = 0; s < XRows; ++s) {
        scales[s] = _mm512_mul_ps(d, _mm512_load_ps(x[s * xRow].scale));
        if constexpr (Type == Stored::q4_1)
            sums.offsets[s] =
                _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)), _mm512_load_ps(x[s * xRow].total), sums.offsets[s]);
        if constexpr (Type == Stored::q4_0)
            sums.offsets[s] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(-8)), _mm512_load_ps(x[s * xRow].total), sums.offsets[s]);
    }
    const auto addRow = [&]<int R>() KEEPSIGHT_VNNI_LAMBDA {
        const std::uint8_t* group = w + row[R];
        __m512i q[2];
        if constexpr (Type == Stored::q8_0) {
            const auto values = [&](int b, int half) KEEPSIGHT_VNNI_LAMBDA { // those of a missing block meet zeros
                const int at = Whole || b * 34 < held ? b * 34 : 0;
                return _mm_loadu_si128(reinterpret_cast<const __m128i*>(group + at + 2 + 16 * half));
            };
            for (int half = 0; half < 2; ++half) {
                q[half] = _mm512_castsi128_si512(values(0, half));
                q[half] = _mm512_inserti32x4(q[half], values(1, half), 1);
                q[half] = _mm512_inserti32x4(q[half], values(2, half), 2);
                q[half] = _mm512_inserti32x4(q[half], values(3, half), 3);
                q[half] = _mm512_xor_si512(q[half], _mm512_set1_epi8(-128));
            }
        } else {
            const int second = Type == Stored::q4_1 ? 16 : 8;
            const __m512i a = part<Whole>(group, 0, held), b = part<Whole>(group, second, held);
            const __m512i nibbles = Type == Stored::q4_1 ? _mm512_permutex2var_epi32(a, _mm512_load_si512(index.nibbles32), b)
                                                         : _mm512_permutex2var_epi16(a, _mm512_load_si512(index.nibbles16), b);
            q[0] = _mm512_and_si512(nibbles, low);
            q[1] = _mm512_and_si512(_mm512_srli_epi32(nibbles, 4), low);
        }
        for (int s = 0; s < XRows; ++s) {
            const Fixed& with = x[s * xRow];
            const auto add = [&](__m512i sum, int digit) KEEPSIGHT_VNNI_LAMBDA {
                return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, q[0], bytes(with.digits[digit][0])), q[1],
                                           bytes(with.digits[digit][1]));
            };
            __m512 sum;
            if constexpr (Type == Stored::q8_0) { // 34 bits: digits 2 and 1, then 0
                const __m512i upper = _mm512_slli_epi32(add(_mm512_setzero_si512(), 0), 8);
                const __m512i both = add(_mm512_add_epi32(upper, _mm512_load_si512(with.above[0])), 1);
                sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), _mm512_set1_ps(256),
                                      _mm512_cvtepi32_ps(add(_mm512_load_si512(with.above[1]), 2)));
            } else {
                __m512i all = _mm512_slli_epi32(add(_mm512_setzero_si512(), 0), 8);
                all = _mm512_slli_epi32(add(all, 1), 8);
                sum = _mm512_cvtepi32_ps(add(all, 2));
            }
            sums.rows[R][s] = _mm512_fmadd_ps(sum, _mm512_permute_ps(scales[s], R * 0x55), sums.rows[R][s]);
        }
    };
    addRow.template operator()<0>();
    addRow.template operator()<1>();
    addRow.template operator()<2>();
    addRow.template operator()<3>();
}

// Of `rows` rows, up to 4; what stands for missing ones is the last.
template <Stored Type, int XRows>
KEEPSIGHT_VNNI void dot(const Task& task, int rows) {
    Sums<Type, XRows> sums;
    for (int s = 0; s < XRows; ++s) {
        sums.offsets[s] = _mm512_setzero_ps();
        for (int r = 0; r < 4; ++r)
            sums.rows[r][s] = _mm512_setzero_ps();
    }
    std::int64_t row[4];
    for (int r = 0; r < 4; ++r)
        row[r] = least(r, rows - 1) * task.rowBytes;
    const std::uint8_t* w = task.w;
    const Fixed* x = task.x;
    for (std::int64_t g = 0; g < task.groups; ++g, w += groupBytes<Type>, ++x) {
        for (int r = 0; r < 4; ++r)
            for (int line = 0; line < groupBytes<Type>; line += 64)
                __builtin_prefetch(w + Ahead * task.rowBytes + row[r] + line, 0, 2);
        addGroup<Type, XRows, true>(w, row, 0, x, task.xRow, sums);
    }
    if (task.tail) addGroup<Type, XRows, false>(w, row, task.tail * static_cast<int>(blockBytes(Type)), x, task.xRow, sums);

    for (int s = 0; s < XRows; ++s) { // the same sums for every r, side by side
        const auto& a = sums.rows;
        const __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(a[0][s], a[1][s]), _mm512_unpackhi_ps(a[0][s], a[1][s]));
        const __m512 second = _mm512_add_ps(_mm512_unpacklo_ps(a[2][s], a[3][s]), _mm512_unpackhi_ps(a[2][s], a[3][s]));
        const __m512 all =
            _mm512_add_ps(_mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xee)), sums.offsets[s]);
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
        const __m128 y = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        _mm_mask_storeu_ps(task.y + s * task.yRow, static_cast<__mmask8>((1 << rows) - 1), y);
    }
}

template <Stored Type, int XRows>
void rows(Task task, std::int64_t wRows) {
    for (; wRows > 0; wRows -= 4, task.w += 4 * task.rowBytes, task.y += 4)
        dot<Type, XRows>(task, static_cast<int>(least(4, wRows)));
}

template <Stored Type>
void piece(Task task, std::int64_t wRows, std::int64_t xRows) {
    byRowsOfX<4>(task, xRows, [&]<int Rows>() { rows<Type, Rows>(task, wRows); });
}

} // namespace

void linearVnni(const LinearArgs& args) {
    const StoredMatrix& w = args.weights;
    const auto run = w.type == Stored::q4_0   ? piece<Stored::q4_0>
                     : w.type == Stored::q4_1 ? piece<Stored::q4_1>
                     : w.type == Stored::q8_0 ? piece<Stored::q8_0>
                                              : nullptr;
    if (!run) return linear(args);
    const std::int64_t blocks = w.columns / Block, groups = (blocks + Group - 1) / Group;
    Buffer<Fixed> fixed(args.count * groups);
    const std::int64_t padded = roundUp(w.columns, Lanes);
    Buffer<float> x(args.element == Element::f32 ? 0 : args.count * padded);
    each(args.count, args.count > 3, [&](std::int64_t s) {
        const float* row = static_cast<const float*>(args.x) + s * w.columns;
        if (args.element != Element::f32) {
            toFp32(at(args.x, args.element, s * w.columns), args.element, w.columns, x.data() + s * padded);
            row = x.data() + s * padded;
        }
        toFixed(row, w.columns, fixed.data() + s * groups);
    });
    inPieces(args, [&](std::int64_t first, std::int64_t n, float* y) {
        run({w.data + first * w.rowBytes, w.rowBytes, blocks / Group, static_cast<int>(blocks % Group), fixed.data(), groups, y, w.rows}, n,
            args.count);
    });
}

} // namespace keepsight::KEEPSIGHT_ISA

#endif
