// The rows of a matrix in pieces, shared by the forms of linear().
#pragma once

#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

// Calls run<n>() for rows of x by Most, …, 4, 2 and 1 at a time; task.x and task.y stand at the first of them.
template <int Most, class Task, class Run>
void byRowsOfX(Task& task, std::int64_t xRows, const Run& run) {
    const auto take = [&]<int Rows>() {
        run.template operator()<Rows>();
        xRows -= Rows;
        task.x += Rows * task.xRow;
        task.y += Rows * task.yRow;
    };
    if constexpr (Most >= 8)
        while (xRows >= 8)
            take.template operator()<8>();
    while (xRows >= 4)
        take.template operator()<4>();
    if (xRows >= 2) take.template operator()<2>();
    if (xRows > 0) take.template operator()<1>();
}

// run(first, n, y) sets y[s · rows + r] for rows first + r < first + n of the matrix and every row s of x, in parallel; then come bias and
// type.
template <class Run>
void inPieces(const LinearArgs& args, const Run& run) {
    const StoredMatrix& w = args.weights;
    Buffer<float> wide(args.element == Element::f32 ? 0 : args.count * w.rows);
    float* y = args.element == Element::f32 ? static_cast<float*>(args.y) : wide.data();

    // Pieces of rows that stay in the first cache level between the groups of x rows, equally many and equally long ones for every thread.
    const auto shares = [](std::int64_t n, std::int64_t size) { return (n + size - 1) / size; };
    const std::int64_t threads = omp_get_max_threads(), longest = most(4, least(64, 24576 / w.rowBytes / 4 * 4));
    const std::int64_t piece = roundUp(shares(w.rows, threads * shares(w.rows, threads * longest)), 4), pieces = shares(w.rows, piece);
#pragma omp parallel for schedule(static)
    for (std::int64_t p = 0; p < pieces; ++p) {
        const std::int64_t first = p * piece, n = least(piece, w.rows - first);
        run(first, n, y + first);
        if (args.bias)
            for (std::int64_t s = 0; s < args.count; ++s)
                for (std::int64_t r = first; r < first + n; ++r)
                    y[s * w.rows + r] += args.bias[r];
    }
    if (args.element != Element::f32) fromFp32(y, args.count * w.rows, args.y, args.element);
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
