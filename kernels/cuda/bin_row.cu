// A decoded token's weights added to its row of a map: one warp a cell; a column's entries are a run, since positions ascend.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_decode.h"

namespace keepsight::cuda {
namespace {

constexpr int Warps = 4;

__device__ int firstAtLeast(const std::int32_t* positions, int count, std::int64_t wanted) {
    int low = 0, high = count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (positions[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

__global__ void bin_row_kernel(BinRowArgs a) {
    const int lane = threadIdx.x % 32;
    const std::int64_t cell = static_cast<std::int64_t>(blockIdx.x) * Warps + threadIdx.x / 32, column = cell % a.mapColumns, mapHead = cell / a.mapColumns;
    const std::int64_t distance = a.queryPosition[0] - a.mapRowBegin, row = distance / a.rowBin;
    if (mapHead >= a.mapHeads || distance < 0 || row >= a.mapRows) return;
    const std::int64_t heads = a.queryHeads / a.mapHeads, firstHead = mapHead * heads, kvHead = firstHead / (a.queryHeads / a.kvHeads); // of the mean: all of one KV head
    const std::int32_t* positions = a.positions + (a.starts ? a.starts[kvHead] : kvHead * a.capacity);
    const int held = a.lengths[kvHead], begin = firstAtLeast(positions, held, column * a.columnBin), end = firstAtLeast(positions, held, (column + 1) * a.columnBin);
    float sum = 0;
    for (std::int64_t h = 0; h < heads; ++h)
        for (int t = begin + lane; t < end; t += 32) sum += a.weights[(firstHead + h) * a.capacity + t];
    sum = warpSum(sum);
    if (lane == 0) a.map[(mapHead * a.mapRows + row) * a.mapColumns + column] += sum / static_cast<float>(heads);
}

} // namespace

cudaError_t launchBinRow(const BinRowArgs& args, cudaStream_t stream) {
    const std::int64_t cells = args.mapHeads * args.mapColumns;
    if (cells == 0 || args.mapRows == 0) return cudaSuccess;
    bin_row_kernel<<<static_cast<unsigned>((cells + Warps - 1) / Warps), Warps * 32, 0, stream>>>(args);
    return cudaGetLastError();
}

} // namespace keepsight::cuda
