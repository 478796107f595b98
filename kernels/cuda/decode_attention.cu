// Attention of one new query over ragged entries: o = softmax(q·Kᵀ·scale over visible entries)·V, online softmax in fp32.
//
// Grid (query heads, splits): a block takes one slice of the head's entries, its warps every fourth entry of it; a lane holds D/32 values.
// Each block leaves (max, sum, Σ p·v) per split; a second kernel folds the splits in order, so that runs repeat bit for bit.
// Visible entries are a prefix: positions ascend, so the first one beyond the query ends the head.
#include "kernels/cuda/element.cuh"

#include <algorithm>
#include <cfloat>

namespace keepsight::cuda {
namespace {

constexpr int Warps = 4;

template <class T, int Values> __global__ void decode_attention_kernel(AttentionArgs a, float* partial) {
    constexpr int Dim = Values * 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t qHead = blockIdx.x, head = qHead / (a.queryHeads / a.kvHeads), split = blockIdx.y, splits = gridDim.y;
    const std::int32_t held = a.lengths[head];
    const std::int64_t slice = (held + splits - 1) / splits, begin = split * slice, end = min(begin + slice, static_cast<std::int64_t>(held));
    const T* keys = static_cast<const T*>(a.k.data) + head * a.k.head;
    const T* values = static_cast<const T*>(a.v.data) + head * a.v.head;
    const std::int32_t* positions = a.positions + head * a.capacity;
    const std::int32_t now = a.queryPositions[0];

    float q[Values], acc[Values] = {};
    for (int i = 0; i < Values; ++i) q[i] = wide(static_cast<const T*>(a.q.data)[qHead * a.q.head + i * 32 + lane]) * a.scale;
    float top = -FLT_MAX, sum = 0;
    for (std::int64_t t = begin + warp; t < end && positions[t] <= now; t += Warps) {
        float score = 0;
        for (int i = 0; i < Values; ++i) score += q[i] * wide(keys[t * a.k.row + i * 32 + lane]);
        for (int offset = 16; offset > 0; offset /= 2) score += __shfl_xor_sync(0xffffffffu, score, offset);
        const float newTop = fmaxf(top, score), shrink = expf(top - newTop), weight = expf(score - newTop);
        sum = sum * shrink + weight;
        for (int i = 0; i < Values; ++i) acc[i] = acc[i] * shrink + weight * wide(values[t * a.v.row + i * 32 + lane]);
        top = newTop;
    }
    __shared__ float tops[Warps], sums[Warps], accs[Warps][Dim];
    if (lane == 0) tops[warp] = top, sums[warp] = sum;
    for (int i = 0; i < Values; ++i) accs[warp][i * 32 + lane] = acc[i];
    __syncthreads();
    if (warp != 0) return;
    float all = -FLT_MAX, total = 0;
    for (int w = 0; w < Warps; ++w) all = fmaxf(all, tops[w]);
    float out[Values] = {};
    for (int w = 0; w < Warps; ++w) {
        const float shrink = sums[w] > 0 ? expf(tops[w] - all) : 0.0f;
        total += sums[w] * shrink;
        for (int i = 0; i < Values; ++i) out[i] += accs[w][i * 32 + lane] * shrink;
    }
    float* p = partial + (qHead * splits + split) * (Dim + 2);
    for (int i = 0; i < Values; ++i) p[i * 32 + lane] = out[i];
    if (lane == 0) p[Dim] = all, p[Dim + 1] = total;
}

template <class T> __global__ void combine_splits_kernel(AttentionArgs a, const float* partial, std::int64_t splits) {
    const std::int64_t qHead = blockIdx.x, dim = a.dim;
    const float* p = partial + qHead * splits * (dim + 2);
    float all = -FLT_MAX;
    for (std::int64_t s = 0; s < splits; ++s)
        if (p[s * (dim + 2) + dim + 1] > 0) all = fmaxf(all, p[s * (dim + 2) + dim]);
    for (std::int64_t i = threadIdx.x; i < dim; i += blockDim.x) {
        float total = 0, out = 0;
        for (std::int64_t s = 0; s < splits; ++s) {
            const float* slice = p + s * (dim + 2);
            const float shrink = slice[dim + 1] > 0 ? expf(slice[dim] - all) : 0.0f;
            total += slice[dim + 1] * shrink;
            out += slice[i] * shrink;
        }
        static_cast<T*>(a.out)[qHead * dim + i] = narrow<T>(total > 0 ? out / total : 0.0f); // nothing visible: 0
    }
}

} // namespace

bool decodesHeadSize(std::int64_t dim) { return dim == 32 || dim == 64 || dim == 128 || dim == 256; }

std::int64_t decodeSplits(std::int64_t queryHeads, std::int64_t capacity, int multiprocessors) {
    const std::int64_t wanted = 4 * multiprocessors / std::max<std::int64_t>(1, queryHeads); // four blocks a multiprocessor
    return std::clamp<std::int64_t>(std::min(wanted, capacity / 64), 1, 256);
}

cudaError_t launchDecodeAttention(const AttentionArgs& args, CudaElement element, float* partial, std::int64_t splits, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(args.queryHeads), static_cast<unsigned>(splits));
    return forElement(element, [&](auto zero) {
        using T = decltype(zero);
        switch (args.dim) {
        case 32:
            decode_attention_kernel<T, 1><<<grid, Warps * 32, 0, stream>>>(args, partial);
            break;
        case 64:
            decode_attention_kernel<T, 2><<<grid, Warps * 32, 0, stream>>>(args, partial);
            break;
        case 128:
            decode_attention_kernel<T, 4><<<grid, Warps * 32, 0, stream>>>(args, partial);
            break;
        case 256:
            decode_attention_kernel<T, 8><<<grid, Warps * 32, 0, stream>>>(args, partial);
            break;
        default:
            return cudaErrorNotSupported;
        }
        if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
        combine_splits_kernel<T><<<static_cast<unsigned>(args.queryHeads), 128, 0, stream>>>(args, partial, splits);
        return cudaGetLastError();
    });
}

} // namespace keepsight::cuda
