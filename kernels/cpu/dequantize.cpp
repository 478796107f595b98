// Stored rows to fp32 or bf16 (rounded to nearest even), one task per run of rows.
#include "kernels/cpu/decode.h"
#include "kernels/cpu/isa.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

template <Stored Type>
void decodeRow(const std::uint8_t* row, std::int64_t columns, void* out, Element element) {
    const std::int64_t units = columns / Unit;
    const int tail = static_cast<int>(columns % Unit);
    Floats values[UnitVectors];
    for (std::int64_t unit = 0; unit < units; ++unit) {
        decodeUnit<Type>(row, unit, values);
        for (int k = 0; k < UnitVectors; ++k) {
            const std::int64_t i = unit * Unit + k * Lanes;
            if (element == Element::f32)
                store(static_cast<float*>(out) + i, values[k]);
            else
                storeBf16(static_cast<std::uint16_t*>(out) + i, values[k]);
        }
    }
    if constexpr (blockValues(Type) == 1) {
        if (tail == 0) return;
        decodeTail<Type>(row, units, tail, values);
        float wide[Unit];
        for (int k = 0; k < UnitVectors; ++k)
            store(wide + k * Lanes, values[k]);
        fromFp32(wide, tail, at(out, element, units * Unit), element);
    }
}

} // namespace

void dequantize(const DequantizeArgs& args) {
    const StoredMatrix& w = args.weights;
    void (*decode)(const std::uint8_t*, std::int64_t, void*, Element) = nullptr;
    KEEPSIGHT_FOR_STORED(w.type, Type, decode = decodeRow<Type>)
    each(args.count, args.count > 1, [&](std::int64_t i) {
        const std::int64_t row = args.ids ? args.ids[i] : args.first + i;
        decode(w.data + row * w.rowBytes, w.columns, at(args.out, args.element, i * w.columns), args.element);
    });
}

} // namespace keepsight::KEEPSIGHT_ISA
