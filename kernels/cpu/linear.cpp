// y[s, o] = Σ_i W[o, i] · x[s, i] for a few rows s: each weight is read and decoded once, 4 rows of W at a time, and meets up to
// 8 rows of x in registers. Every (o, s) has one accumulator that takes its columns in order, so its value does not depend on how
// rows are grouped. Bound by memory: the aim is the speed at which the blocks can be read. Rows are mostly too short for the processor to foresee
// what comes behind each, so the next ones are asked for, where there is little to do meanwhile.
#include "kernels/cpu/decode.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear_pieces.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

struct Task {
    const std::uint8_t* w;
    std::int64_t rowBytes, units;
    int tail;       // values of the last, partial unit
    const float* x; // [rows of x, xRow], zero-padded to whole units
    std::int64_t xRow;
    float* y; // y[s · yRow + r]
    std::int64_t yRow;
};

template <Stored Type, int WRows, int XRows>
void dot(const Task& task) {
    Floats acc[WRows][XRows] = {};
    for (std::int64_t unit = 0; unit < task.units; ++unit) {
        const float* x = task.x + unit * Unit;
        for (int r = 0; r < WRows; ++r) {
            Floats values[UnitVectors];
            if constexpr (XRows <= 2 || blockValues(Type) == 1) prefetchUnit<Type>(task.w + (r + WRows) * task.rowBytes, unit);
            decodeUnit<Type>(task.w + r * task.rowBytes, unit, values);
            for (int s = 0; s < XRows; ++s)
                for (int k = 0; k < UnitVectors; ++k)
                    acc[r][s] += values[k] * load(x + s * task.xRow + k * Lanes);
        }
    }
    if constexpr (blockValues(Type) == 1)
        if (task.tail) {
            const float* x = task.x + task.units * Unit;
            for (int r = 0; r < WRows; ++r) {
                Floats values[UnitVectors];
                decodeTail<Type>(task.w + r * task.rowBytes, task.units, task.tail, values);
                for (int s = 0; s < XRows; ++s)
                    for (int k = 0; k < UnitVectors; ++k)
                        acc[r][s] += values[k] * load(x + s * task.xRow + k * Lanes);
            }
        }
    for (int r = 0; r < WRows; ++r)
        for (int s = 0; s < XRows; ++s)
            task.y[s * task.yRow + r] = sum(acc[r][s]);
}

// Rows of x are taken by 8, 4, 2, 1 (8 where 32 registers hold the accumulators), rows of W by 4 or 2, then 1.
template <Stored Type, int XRows>
void rows(Task task, std::int64_t wRows) {
    constexpr int Group = XRows >= 4 ? 2 : 4;
    for (; wRows >= Group; wRows -= Group, task.w += Group * task.rowBytes, task.y += Group)
        dot<Type, Group, XRows>(task);
    for (; wRows > 0; --wRows, task.w += task.rowBytes, ++task.y)
        dot<Type, 1, XRows>(task);
}

template <Stored Type>
void block(Task task, std::int64_t wRows, std::int64_t xRows) {
    byRowsOfX<Lanes == 16 ? 8 : 4>(task, xRows, [&]<int Rows>() { rows<Type, Rows>(task, wRows); });
}

} // namespace

void linear(const LinearArgs& args) {
    const StoredMatrix& w = args.weights;
    const std::int64_t padded = roundUp(w.columns, Unit), count = args.count;
    Buffer<float> x(count * padded);
    for (std::int64_t s = 0; s < count; ++s) {
        toFp32(at(args.x, args.element, s * w.columns), args.element, w.columns, x.data() + s * padded);
        std::memset(x.data() + s * padded + w.columns, 0, static_cast<std::size_t>(padded - w.columns) * 4);
    }
    void (*run)(Task, std::int64_t, std::int64_t) = nullptr;
    KEEPSIGHT_FOR_STORED(w.type, Type, run = block<Type>)
    inPieces(args, [&](std::int64_t first, std::int64_t n, float* y) {
        run({w.data + first * w.rowBytes, w.rowBytes, w.columns / Unit, static_cast<int>(w.columns % Unit), x.data(), padded, y, w.rows}, n, count);
    });
}

} // namespace keepsight::KEEPSIGHT_ISA
