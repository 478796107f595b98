// Codes to values and back, entry by entry; see kernels/quant.h for their layout.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_quant.h"

#include <cfloat>

namespace keepsight::cuda {
namespace {

constexpr int Threads = 256;

// The row of scale and zero that holds entry t: the first whose end lies behind it, or the last.
__device__ std::int64_t parameterRow(const std::int32_t* ends, std::int64_t count, std::int64_t t) {
    std::int64_t low = 0, high = count - 1;
    while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (ends[middle] <= t)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// A thread takes Bytes neighbouring bytes of an entry's planes: Bytes values in each of them, which lie side by side in the output.
template <class T, int Bits, int Bytes>
__global__ void __launch_bounds__(Threads) dequantize_kernel(const DequantizeEntriesArgs a, const HeadSpans spans) {
    constexpr int Low = Bits == 3 ? 2 : Bits, Planes = 8 / Low; // 3 bits: two planes of the low ones, then one byte plane of the high bits
    const int h = static_cast<int>(blockIdx.y), count = spans.count[h];
    const std::int64_t plane = planeBytes(a.dim, Low), pieces = (plane + Bytes - 1) / Bytes, highBytes = planeBytes(a.dim, 1), rowBytes = packedBytes(a.dim, Bits);
    const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * Threads + threadIdx.x, t = number / pieces, first = number % pieces * Bytes;
    if (t >= count) return;
    const std::uint8_t* row = a.codes + h * a.codesHead + t * rowBytes;
    const std::int64_t parameters = h * a.parametersHead + (a.ends ? parameterRow(a.ends + h * a.endsHead, a.endsHead, t) : t) * a.groups;
    const __half *scale = static_cast<const __half*>(a.scale) + parameters, *zero = static_cast<const __half*>(a.zero) + parameters;
    T* out = static_cast<T*>(a.out) + h * a.outHead + (spans.offset[h] + t) * a.dim;
    const std::int64_t group = a.dim / a.groups;
    unsigned bytes[Bytes];
#pragma unroll
    for (int i = 0; i < Bytes; ++i)
        bytes[i] = first + i < plane ? row[first + i] : 0;
#pragma unroll
    for (int p = 0; p < Planes; ++p)
#pragma unroll
        for (int i = 0; i < Bytes; ++i) {
            const std::int64_t d = p * plane + first + i;
            if (first + i >= plane || d >= a.dim) continue;
            unsigned code = bytes[i] >> (p * Low) & ((1u << Low) - 1);
            if constexpr (Bits == 3) code |= (row[plane + d % highBytes] >> (d / highBytes) & 1u) << 2;
            const float value = a.levels ? a.levels[code] : static_cast<float>(code);
            const std::int64_t g = group == 1 ? d : d / group;
            out[d] = narrow<T>(__fmaf_rn(value, __half2float(scale[g]), __half2float(zero[g]))); // of whole codes the product is exact
        }
}

// One row of [heads · rows]: a block of `dim` threads, or fewer that go round.
__global__ void __launch_bounds__(Threads) pack_groups_kernel(const PackGroupsArgs a) {
    extern __shared__ float x[]; // [dim], then the codes
    std::uint8_t* codes = reinterpret_cast<std::uint8_t*>(x + a.dim);
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x), dim = static_cast<int>(a.dim), group = static_cast<int>(a.group), groups = dim / group;
    const std::int64_t row = blockIdx.x;
    const float* from = a.x + row / a.rows * a.head + row % a.rows * a.dim;
    for (int d = thread; d < dim; d += threads)
        x[d] = from[d];
    __syncthreads();
    __half *scale = static_cast<__half*>(a.scale) + row * groups, *zero = static_cast<__half*>(a.zero) + row * groups;
    const float most = static_cast<float>((1 << a.bits) - 1);
    // The lanes of a warp share a group.
    for (int g = thread / 32; g < groups; g += threads / 32) {
        float low = FLT_MAX, high = -FLT_MAX;
        for (int i = thread % 32; i < group; i += 32)
            low = fminf(low, x[g * group + i]), high = fmaxf(high, x[g * group + i]);
        for (int step = 16; step > 0; step /= 2)
            low = fminf(low, __shfl_xor_sync(0xffffffffu, low, step)), high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step));
        const __half s = __float2half_rn(fminf(fmaxf(__fdiv_rn(high - low, most), a.leastScale), 65504.0f)), z = __float2half_rn(fminf(fmaxf(low, -65504.0f), 65504.0f));
        const float width = __half2float(s), begin = __half2float(z), step = width == 0 ? 1.0f : width;
        for (int i = thread % 32; i < group; i += 32)
            codes[g * group + i] = static_cast<std::uint8_t>(fminf(fmaxf(rintf(__fdiv_rn(x[g * group + i] - begin, step)), 0.0f), most));
        if (thread % 32 == 0) scale[g] = s, zero[g] = z;
    }
    __syncthreads();
    const int plane = static_cast<int>(planeBytes(a.dim, a.bits)), planes = 8 / a.bits;
    for (int i = thread; i < plane; i += threads) {
        unsigned byte = 0;
        for (int p = 0; p < planes; ++p)
            if (p * plane + i < dim) byte |= static_cast<unsigned>(codes[p * plane + i]) << (p * a.bits);
        a.codes[row * plane + i] = static_cast<std::uint8_t>(byte);
    }
}

template <class T, int Bits> cudaError_t launch(const DequantizeEntriesArgs& args, const HeadSpans& spans, int longest, cudaStream_t stream) {
    constexpr int Bytes = 4;
    const std::int64_t pieces = (planeBytes(args.dim, Bits == 3 ? 2 : Bits) + Bytes - 1) / Bytes, work = pieces * longest;
    const dim3 grid(static_cast<unsigned>((work + Threads - 1) / Threads), static_cast<unsigned>(args.heads));
    dequantize_kernel<T, Bits, Bytes><<<grid, Threads, 0, stream>>>(args, spans);
    return cudaGetLastError();
}

} // namespace

cudaError_t launchDequantize(const DequantizeEntriesArgs& args, CudaElement element, const HeadSpans& spans, cudaStream_t stream) {
    int longest = 0;
    for (std::int64_t h = 0; h < args.heads; ++h)
        longest = spans.count[h] > longest ? spans.count[h] : longest;
    if (longest == 0) return cudaSuccess;
    return forElement(element, [&](auto zero) {
        using T = decltype(zero);
        switch (args.bits) {
        case 2:
            return launch<T, 2>(args, spans, longest, stream);
        case 3:
            return launch<T, 3>(args, spans, longest, stream);
        case 4:
            return launch<T, 4>(args, spans, longest, stream);
        default:
            return launch<T, 8>(args, spans, longest, stream);
        }
    });
}

cudaError_t launchPackGroups(const PackGroupsArgs& args, cudaStream_t stream) {
    const std::int64_t rows = args.heads * args.rows;
    if (rows == 0) return cudaSuccess;
    const int threads = args.dim >= Threads ? Threads : static_cast<int>((args.dim + 31) / 32 * 32);
    pack_groups_kernel<<<static_cast<unsigned>(rows), static_cast<unsigned>(threads), static_cast<std::size_t>(args.dim) * 5, stream>>>(args);
    return cudaGetLastError();
}

} // namespace keepsight::cuda
