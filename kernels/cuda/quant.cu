// Codes to values and back, entry by entry or in columns of entries; see kernels/quant.h for their layout.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_quant.h"
#include "kernels/cuda/lists.cuh"

#include <algorithm>
#include <cfloat>
#include <type_traits>

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

__device__ __half scaleOf(float low, float high, float most, float least) {
    return __float2half_rn(fminf(fmaxf(__fdiv_rn(high - low, most), least), 65504.0f));
}
__device__ __half zeroOf(float low) { return __float2half_rn(fminf(fmaxf(low, -65504.0f), 65504.0f)); }
__device__ unsigned codeOf(float x, float step, float zero, float most) {
    return static_cast<unsigned>(fminf(fmaxf(rintf(__fdiv_rn(x - zero, step)), 0.0f), most));
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
        const __half s = scaleOf(low, high, most, a.leastScale), z = zeroOf(low);
        const float width = __half2float(s), begin = __half2float(z), step = width == 0 ? 1.0f : width;
        for (int i = thread % 32; i < group; i += 32)
            codes[g * group + i] = static_cast<std::uint8_t>(codeOf(x[g * group + i], step, begin, most));
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

// How a block packs groups that lie in columns: it takes those of `bytes` neighbouring bytes, Threads / bytes threads each, by way of
// shared memory.
struct ColumnTile {
    int group, bytes;            // values of a column; a power of two
    std::int64_t plane, columns; // bytes of a row's plane; columns that there are
    float leastScale;
    std::uint8_t* codes; // [group, rowBytes]
    std::int64_t rowBytes;
    __half *scale, *zero; // [columns]

    static constexpr int MostValues = 36 << 10; // bytes, so that all of it is within what any block may have
    template <int Bits>
    static __host__ __device__ int values(int group, int bytes) {
        return 8 / Bits * group * bytes;
    }
    template <int Bits>
    static __host__ __device__ int floats(int group, int bytes) {
        return values<Bits>(group, bytes) + 8 / Bits * 2 * Threads;
    }
    template <int Bits>
    static int bytesFor(int group) {
        int bytes = 32;
        while (bytes > 1 && values<Bits>(group, bytes) * 4 > MostValues)
            bytes /= 2;
        return bytes;
    }

    // each(column, first, step, put) calls put(i, value) for first, first + step … below the group.
    template <int Bits, class Each>
    __device__ void pack(std::int64_t firstByte, float* shared, const Each& each) const {
        constexpr int Planes = 8 / Bits;
        constexpr float Most = static_cast<float>((1 << Bits) - 1);
        const int b = static_cast<int>(threadIdx.x) % bytes, lane = static_cast<int>(threadIdx.x) / bytes, lanes = Threads / bytes;
        const std::int64_t byte = firstByte + b;
        float *lows = shared + values<Bits>(group, bytes), *highs = lows + Planes * Threads; // [Planes, lanes, bytes]
#pragma unroll
        for (int p = 0; p < Planes; ++p) {
            const std::int64_t column = p * plane + byte;
            float low = FLT_MAX, high = -FLT_MAX;
            if (byte < plane && column < columns)
                each(column, lane, lanes, [&](int i, float value) {
                    shared[(p * group + i) * bytes + b] = value;
                    low = fminf(low, value), high = fmaxf(high, value);
                });
            lows[p * Threads + threadIdx.x] = low, highs[p * Threads + threadIdx.x] = high;
        }
        __syncthreads();
        float step[Planes], begin[Planes];
#pragma unroll
        for (int p = 0; p < Planes; ++p) {
            const std::int64_t column = p * plane + byte;
            step[p] = 1, begin[p] = 0;
            if (byte >= plane || column >= columns) continue;
            float low = FLT_MAX, high = -FLT_MAX;
            for (int i = 0; i < lanes; ++i)
                low = fminf(low, lows[p * Threads + i * bytes + b]), high = fmaxf(high, highs[p * Threads + i * bytes + b]);
            const __half s = scaleOf(low, high, Most, leastScale), z = zeroOf(low);
            const float width = __half2float(s);
            step[p] = width == 0 ? 1.0f : width, begin[p] = __half2float(z);
            if (lane == 0) scale[column] = s, zero[column] = z;
        }
        if (byte < plane)
            for (int i = lane; i < group; i += lanes) {
                unsigned all = 0;
#pragma unroll
                for (int p = 0; p < Planes; ++p)
                    if (p * plane + byte < columns)
                        all |= codeOf(shared[(p * group + i) * bytes + b], step[p], begin[p], Most) << (p * Bits);
                codes[i * rowBytes + byte] = static_cast<std::uint8_t>(all);
            }
        __syncthreads(); // shared memory is another tile's
    }
};

// Blocks of [bytes of a row, groups, heads]; of a head that packs fewer groups the others end at once.
template <int Bits>
__global__ void __launch_bounds__(Threads) append_channels_kernel(const AppendChannelsArgs a, const int bytes) {
    extern __shared__ float shared[];
    const std::int64_t h = blockIdx.z, number = blockIdx.y, first = number * a.group;
    if (a.counts && a.counts[h] < first + a.group) return;
    const std::int64_t length = a.lengths[h] + first, row = a.groups[h] + number, plane = planeBytes(a.dim, Bits);
    const std::int64_t parameters = h * a.parametersHead + row * a.dim;
    const float* x = a.x + h * a.head + first * a.dim;
    const ColumnTile tile{static_cast<int>(a.group),
                          bytes,
                          plane,
                          a.dim,
                          a.leastScale,
                          a.codes + h * a.codesHead + length * plane,
                          plane,
                          static_cast<__half*>(a.scale) + parameters,
                          static_cast<__half*>(a.zero) + parameters};
    tile.pack<Bits>(static_cast<std::int64_t>(blockIdx.x) * bytes, shared, [&](std::int64_t column, int i, int step, const auto& put) {
        for (; i < tile.group; i += step)
            put(i, x[i * a.dim + column]);
    });
    if (a.ends && blockIdx.x == 0 && threadIdx.x == 0) a.ends[h * a.endsHead + row] = static_cast<std::int32_t>(length + a.group);
}

// Of each head, in shared memory.
struct AcrossHead {
    int begin, newBegin; // entries of the heads before
    int stay;            // entries that do, in front of those that come
    int firstGone, gone; // where its list of entries that go has them
    int goes;            // the first of them
};

// x / by for by > 0; inverse: (2³² − 1) / by.
__device__ unsigned quotientBy(unsigned x, unsigned by, unsigned inverse) {
    unsigned q = __umulhi(x, inverse), rest = x - q * by; // too small by 2 at most
    if (rest >= by) ++q, rest -= by;
    return q + (rest >= by);
}

template <int Bits>
__global__ void __launch_bounds__(Threads) repack_across_kernel(const RepackAcrossArgs a, const int bytes) {
    extern __shared__ float shared[];
    const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(a.heads), group = static_cast<int>(a.group);
    auto* heads =
        reinterpret_cast<AcrossHead*>(shared + ColumnTile::floats<Bits>(group, bytes)); // [heads + 1], then lengths before and after
    int *before = reinterpret_cast<int*>(heads + count + 1), *after = before + count;
    bool any = false;
    for (int h = thread; h < count; h += Threads) {
        const std::int32_t* list = a.gone + h * a.goneCount;
        const int n = static_cast<int>(a.goneCount), length = a.lengths[h], first = countBelow(list, n, 0, 0),
                  gone = countBelow(list, n, length, 0) - first;
        const int come = !a.x ? 0 : a.counts ? min(max(a.counts[h], 0), static_cast<int>(a.rows)) : static_cast<int>(a.rows);
        heads[h].stay = length - gone, heads[h].firstGone = first, heads[h].gone = gone, heads[h].goes = gone > 0 ? list[first] : 0;
        before[h] = length, after[h] = length - gone + come;
        any |= gone > 0 || come > 0;
    }
    if (!__syncthreads_or(any)) {
        if (blockIdx.x == 0 && thread == 0) a.newLengths[count] = 0;
        return;
    }
    for (int h = thread; h <= count; h += Threads) {
        int from = 0, to = 0;
        for (int i = 0; i < h; ++i)
            from += before[i], to += after[i];
        heads[h].begin = from, heads[h].newBegin = to;
        if (blockIdx.x == 0) a.newLengths[h] = h < count ? after[h] : 1;
    }
    __syncthreads();
    const auto dim = static_cast<unsigned>(a.dim);
    const unsigned oldColumns = heads[count].begin * dim / static_cast<unsigned>(group),
                   columns = min(heads[count].newBegin * dim / static_cast<unsigned>(group), static_cast<unsigned>(a.width));
    const std::int64_t plane = planeBytes(a.width, Bits);
    const ColumnTile tile{
        group, bytes, plane, columns, a.leastScale, a.newCodes, plane, static_cast<__half*>(a.newScale), static_cast<__half*>(a.newZero)};
    const auto *scale = static_cast<const __half*>(a.scale), *zero = static_cast<const __half*>(a.zero);
    const unsigned inverse = oldColumns > 0 ? 0xffffffffu / oldColumns : 0;
    const auto each = [&](std::int64_t column, int i, int step, const auto& put) {
        constexpr int Ahead = 4; // values asked for at once
        const unsigned value = i * columns + static_cast<unsigned>(column), by = step * columns, byEntries = by / dim, byChannels = by - byEntries * dim;
        unsigned entry = value / dim, channel = value - entry * dim;
        for (int h = 0; i < group; i += Ahead * step) {
            float fresh[Ahead];
            unsigned byte[Ahead], shift[Ahead];
            __half scales[Ahead], zeros[Ahead];
#pragma unroll
            for (int j = 0; j < Ahead; ++j) {
                shift[j] = 8; // no code
                if (i + j * step >= group) continue;
                while (entry >= static_cast<unsigned>(heads[h + 1].newBegin)) ++h;
                const AcrossHead& head = heads[h];
                const int r = static_cast<int>(entry) - head.newBegin;
                if (r < head.stay) {
                    const int before = head.gone == 0 ? 0 : head.gone == 1 ? head.goes <= r : countBelow(a.gone + h * a.goneCount + head.firstGone, head.gone, r + 1, 1);
                    const unsigned f = static_cast<unsigned>(head.begin + r + before) * dim + channel, row = quotientBy(f, oldColumns, inverse), c = f - row * oldColumns;
                    const auto p = static_cast<unsigned>(plane);
                    const unsigned number = Bits == 8 ? 0 : (c >= p) + (Bits == 2 ? (c >= 2 * p) + (c >= 3 * p) : 0);
                    byte[j] = a.codes[row * plane + (c - number * p)], shift[j] = number * Bits;
                    scales[j] = scale[c], zeros[j] = zero[c];
                } else {
                    fresh[j] = a.x[h * a.head + static_cast<std::int64_t>(r - head.stay) * a.dim + channel];
                }
                entry += byEntries, channel += byChannels;
                if (channel >= dim) channel -= dim, ++entry;
            }
#pragma unroll
            for (int j = 0; j < Ahead; ++j)
                if (i + j * step < group) // of a code the product is exact
                    put(i + j * step, shift[j] == 8 ? fresh[j] : __fmaf_rn(static_cast<float>(byte[j] >> shift[j] & ((1u << Bits) - 1)), __half2float(scales[j]), __half2float(zeros[j])));
        }
    };
    for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * bytes; first < plane && first < columns;
         first += static_cast<std::int64_t>(gridDim.x) * bytes)
        tile.pack<Bits>(first, shared, each);
}

// What was made beside the old array takes its place. Blocks of [pieces, rows of codes and then scale and zero].
template <class Unit>
__global__ void __launch_bounds__(Threads) replace_across_kernel(const RepackAcrossArgs a) {
    if (a.newLengths[a.heads] == 0) return;
    std::int64_t all = 0;
    for (std::int64_t h = 0; h < a.heads; ++h)
        all += a.newLengths[h];
    const std::int64_t columns = all * a.dim / a.group, plane = planeBytes(a.width, a.bits), row = blockIdx.y;
    const bool parameters = row >= a.group;
    const std::int64_t bytes = parameters ? 2 * columns : columns < plane ? columns : plane;
    const void* from = row == a.group ? a.newScale : parameters ? a.newZero : static_cast<const void*>(a.newCodes + row * plane);
    void* to = row == a.group ? a.scale : parameters ? a.zero : static_cast<void*>(a.codes + row * plane);
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * Threads + threadIdx.x,
                       step = static_cast<std::int64_t>(gridDim.x) * Threads;
    for (std::int64_t i = first; i * static_cast<std::int64_t>(sizeof(Unit)) < bytes; i += step)
        static_cast<Unit*>(to)[i] = static_cast<const Unit*>(from)[i];
    if (row == 0)
        for (std::int64_t h = first; h < a.heads; h += step)
            a.lengths[h] = a.newLengths[h];
}

template <class F>
cudaError_t forBits(int bits, const F& f) {
    return bits == 2   ? f(std::integral_constant<int, 2>{})
           : bits == 4 ? f(std::integral_constant<int, 4>{})
                       : f(std::integral_constant<int, 8>{});
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

cudaError_t launchAppendChannels(const AppendChannelsArgs& args, cudaStream_t stream) {
    if (args.heads == 0 || args.rows == 0 || args.dim == 0) return cudaSuccess;
    return forBits(args.bits, [&](auto bits) {
        constexpr int Bits = decltype(bits)::value;
        const int group = static_cast<int>(args.group), bytes = ColumnTile::bytesFor<Bits>(group);
        const dim3 grid(static_cast<unsigned>((planeBytes(args.dim, Bits) + bytes - 1) / bytes),
                        static_cast<unsigned>(args.rows / args.group), static_cast<unsigned>(args.heads));
        append_channels_kernel<Bits>
            <<<grid, Threads, static_cast<std::size_t>(ColumnTile::floats<Bits>(group, bytes)) * 4, stream>>>(args, bytes);
        return cudaGetLastError();
    });
}

cudaError_t launchRepackAcross(const RepackAcrossArgs& args, const CudaDevice& device, cudaStream_t stream) {
    const std::int64_t plane = planeBytes(args.width, args.bits);
    if (plane == 0) return cudaSuccess;
    const cudaError_t error = forBits(args.bits, [&](auto bits) {
        constexpr int Bits = decltype(bits)::value;
        const int group = static_cast<int>(args.group), bytes = ColumnTile::bytesFor<Bits>(group);
        const std::int64_t tiles = (plane + bytes - 1) / bytes, blocks = std::min<std::int64_t>(tiles, 4 * device.multiprocessors);
        const std::size_t shared = static_cast<std::size_t>(ColumnTile::floats<Bits>(group, bytes)) * 4 +
                                   static_cast<std::size_t>(args.heads + 1) * sizeof(AcrossHead) + static_cast<std::size_t>(args.heads) * 8;
        repack_across_kernel<Bits><<<static_cast<unsigned>(blocks), Threads, shared, stream>>>(args, bytes);
        return cudaGetLastError();
    });
    if (error != cudaSuccess) return error;
    const auto inUnits = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
    const bool wide = plane % 16 == 0 && args.width % 8 == 0 && inUnits(args.codes) && inUnits(args.scale) && inUnits(args.zero);
    const std::int64_t unit = wide ? 16 : 1, longest = std::max(plane, 2 * args.width), rows = args.group + 2;
    const std::int64_t pieces =
        std::clamp<std::int64_t>(4 * device.multiprocessors / rows, 1, (longest / unit + Threads - 1) / Threads + 1);
    const dim3 grid(static_cast<unsigned>(pieces), static_cast<unsigned>(rows));
    if (wide)
        replace_across_kernel<uint4><<<grid, Threads, 0, stream>>>(args);
    else
        replace_across_kernel<std::uint8_t><<<grid, Threads, 0, stream>>>(args);
    return cudaGetLastError();
}

} // namespace keepsight::cuda
