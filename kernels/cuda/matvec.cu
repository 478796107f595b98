// One row times a weight matrix, at the speed the weights come from memory; RMSNorm before and SiLU gate, bias and residual after it, in one pass.
//
// A fixed grid, two blocks a multiprocessor with equal shares of the rows: no last wave of a few blocks. A step is four rows (with a gate, two gate
// rows and their up rows); a team of warps takes it side by side, a thread 16 bytes of each row, which it copies into a ring of its own in shared
// memory, four steps ahead (cp.async): 128 KB on the way to a multiprocessor. Two blocks fill it whatever the width: with programmatic dependent
// launch the next product's blocks move in one for one as these end, never two where another waits for one, and fill their rings before the kernel
// that makes their x is done: weights do not depend on it.
// What the warps of a team found is added up once in 64 rows. Sums are fp32 in a fixed order, so that runs repeat bit for bit; the normed x is
// rounded to the element as rms_norm's output is.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_decode.h"
#include "kernels/cuda/overlap.cuh"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int Warps = 8, Threads = Warps * 32, BlocksEach = 2; // BlocksEach: to a multiprocessor
constexpr int Rows = 4, StepBytes = Rows * Threads * 16;       // of a step
constexpr int Deep = 5, Shallow = 3;                           // steps in the ring; shallow where two blocks have no more room
constexpr int Batch = Warps * 2 * Rows, Pitch = Warps + 1;     // rows between two add-ups; from one row's sums, one by each warp, to the next's

std::size_t sharedBytes(std::int64_t width, int depth) {
    return static_cast<std::size_t>(depth) * StepBytes + static_cast<std::size_t>(width) * 2 + (2 * Batch * Pitch + Warps) * sizeof(float);
}

template <class T> struct Pair;
template <> struct Pair<__nv_bfloat16> {
    static __device__ inline float2 of(std::uint32_t bits) { return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)}; }
};
template <> struct Pair<__half> {
    static __device__ inline float2 of(std::uint32_t bits) { return __half22float2(reinterpret_cast<const __half2&>(bits)); }
};

struct Eight {
    float values[8];
    template <class T> static __device__ inline Eight of(const uint4& packed) {
        const std::uint32_t* bits = &packed.x;
        Eight wide;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 p = Pair<T>::of(bits[i]);
            wide.values[2 * i] = p.x, wide.values[2 * i + 1] = p.y;
        }
        return wide;
    }
};

__device__ inline float dot8(const Eight& w, const Eight& x, float sum) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(w.values[i], x.values[i], sum);
    return sum;
}

// Sums over the warp of four values at once: lanes 8r … 8r + 7 get that of sum[r].
__device__ inline float warpSums(const float (&sum)[Rows]) {
    static_assert(Rows == 4);
    const bool late = threadIdx.x & 16, odd = threadIdx.x & 8;
    const float a = (late ? sum[2] : sum[0]) + __shfl_xor_sync(0xffffffffu, late ? sum[0] : sum[2], 16);
    const float b = (late ? sum[3] : sum[1]) + __shfl_xor_sync(0xffffffffu, late ? sum[1] : sum[3], 16);
    float v = (odd ? b : a) + __shfl_xor_sync(0xffffffffu, odd ? a : b, 8);
    for (int offset = 4; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// A thread's 16 bytes of each row of its team's steps, in the order in which they are used.
template <bool Gated, int Depth> struct WeightStream {
    static constexpr int Outputs = Gated ? Rows / 2 : Rows; // of a step
    const char *weight, *next;                              // next: of the first row of the step to copy
    std::int64_t rowBytes, upBytes, back;                   // upBytes: from a gate row to its up row; back: from behind a row to the next step's
    char* ring;
    int words, column, stride, outputsOfRound, across, left; // across: word of the row to copy; left: outputs from there on
    int filled = 0, used = 0;                                // bytes into the ring

    __device__ WeightStream(const MatvecArgs& a, int begin, int end, int words, int column, int stride, int outputsOfRound, char* ring)
        : weight(static_cast<const char*>(a.weight)), rowBytes(std::int64_t{16} * words), upBytes(a.rows * rowBytes),
          ring(ring + threadIdx.x * 16), words(words), column(column), stride(stride), outputsOfRound(outputsOfRound), across(column),
          left(end - begin) {
        next = weight + begin * rowBytes + column * 16;
        back = outputsOfRound * rowBytes - (words + stride - 1) / stride * stride * std::int64_t{16};
#pragma unroll 1
        for (int i = 0; i < Depth - 1; ++i) fetch();
    }
    __device__ void fetch() {
        if (left > 0) {
            const char* from = next;
            const auto to = static_cast<unsigned>(__cvta_generic_to_shared(ring + filled));
#pragma unroll
            for (int r = 0; r < Rows; ++r) {
                if (r == Outputs) from = next + upBytes;
                const bool any = across < words && r % Outputs < left; // else zeros
                asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to + r * Threads * 16), "l"(any ? from : weight),
                             "r"(any ? 16 : 0)
                             : "memory");
                from += rowBytes;
            }
            next += stride * 16, across += stride;
            if (across - column >= words) next += back, across = column, left -= outputsOfRound;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        filled = filled == (Depth - 1) * StepBytes ? 0 : filled + StepBytes;
    }
    __device__ const uint4* current() { // of row r: [r · Threads]
        fetch();
        asm volatile("cp.async.wait_group %0;" ::"n"(Depth - 1) : "memory");
        const char* now = ring + used;
        used = used == (Depth - 1) * StepBytes ? 0 : used + StepBytes;
        return reinterpret_cast<const uint4*>(now);
    }
};

template <class T, bool Gated, int Depth> __global__ void __launch_bounds__(Threads, BlocksEach) matvec_kernel(MatvecArgs a, int team) {
    using Stream = WeightStream<Gated, Depth>;
    constexpr int Outputs = Stream::Outputs;
    extern __shared__ uint4 shared[];
    const int words = static_cast<int>(a.width / 8), lane = threadIdx.x % 32, warp = threadIdx.x / 32; // words: of 16 bytes, of a row
    uint4* x = shared + Depth * StepBytes / 16;
    float *allSums = reinterpret_cast<float*>(x + words), *squares = allSums + 2 * Batch * Pitch; // [2][Batch][Pitch], [Warps]
    const int begin = static_cast<int>(a.rows * blockIdx.x / gridDim.x), end = static_cast<int>(a.rows * (blockIdx.x + 1) / gridDim.x);
    const int teams = Warps / team, own = warp / team, column = warp % team * 32 + lane, stride = team * 32;
    const int outputsOfRound = teams * Outputs, rounds = (end - begin + outputsOfRound - 1) / outputsOfRound;

    Stream weights(a, begin + own * Outputs, end, words, column, stride, outputsOfRound, reinterpret_cast<char*>(shared));
    const auto* norm = reinterpret_cast<const float4*>(a.norm);
    float4 early[2] = {}; // the norm's weights for this thread's first word of x
    if (norm && threadIdx.x < words) early[0] = norm[threadIdx.x * 2], early[1] = norm[threadIdx.x * 2 + 1];
    letLaterKernelsStart();
    waitForEarlierKernels();

    const uint4* from = static_cast<const uint4*>(a.x);
    if (norm) {
        float sum = 0;
        for (int i = threadIdx.x; i < words; i += Threads) {
            const uint4 packed = from[i];
            x[i] = packed;
            const Eight v = Eight::of<T>(packed);
            sum = dot8(v, v, sum);
        }
        sum = warpSum(sum);
        if (lane == 0) squares[warp] = sum;
        __syncthreads();
        float total = 0;
        for (int w = 0; w < Warps; ++w) total += squares[w];
        const float scale = rsqrtf(total / static_cast<float>(a.width) + a.eps);
        for (int i = threadIdx.x; i < words; i += Threads) { // the words this thread wrote
            if (i >= Threads) early[0] = norm[i * 2], early[1] = norm[i * 2 + 1];
            const float* by = &early[0].x;
            T* values = reinterpret_cast<T*>(x + i);
#pragma unroll
            for (int j = 0; j < 8; ++j) values[j] = narrow<T>(wide(values[j]) * scale * by[j]);
        }
    } else {
        for (int i = threadIdx.x; i < words; i += Threads) x[i] = from[i];
    }
    __syncthreads();

    const T *bias = static_cast<const T*>(a.bias), *residual = static_cast<const T*>(a.residual);
    float* sums = allSums;
#pragma unroll 1
    for (int first = 0; first < rounds; first += Warps * 2 / teams) {
        const int batch = min(Warps * 2 / teams, rounds - first), output = begin + first * outputsOfRound + static_cast<int>(threadIdx.x);
        const bool finishes = threadIdx.x < batch * outputsOfRound && output < end; // output
        const float offset = finishes && bias ? wide(bias[output]) : 0.0f, upOffset = Gated && finishes && bias ? wide(bias[output + a.rows]) : 0.0f;
        const float added = finishes && residual ? wide(residual[output]) : 0.0f;
#pragma unroll 1
        for (int round = 0; round < batch; ++round) {
            float sum[Rows] = {};
#pragma unroll 1
            for (int at = column; at - column < words; at += stride) {
                const uint4* rows = weights.current();
                const Eight v = Eight::of<T>(at < words ? x[at] : uint4{0, 0, 0, 0});
#pragma unroll
                for (int r = 0; r < Rows; ++r) sum[r] = dot8(Eight::of<T>(rows[r * Threads]), v, sum[r]);
            }
            const float whole = warpSums(sum);
            if (lane % 8 == 0) sums[((round * teams + own) * Rows + lane / 8) * Pitch + warp % team] = whole;
        }
        __syncthreads();
        if (finishes) {
            const float* of = sums + (threadIdx.x / Outputs * Rows + threadIdx.x % Outputs) * Pitch;
            float value = 0, up = 0;
            for (int w = 0; w < team; ++w) value += of[w];
            value += offset;
            if (Gated) {
                for (int w = 0; w < team; ++w) up += of[Outputs * Pitch + w];
                const float gate = wide(narrow<T>(value));
                value = gate / (1.0f + expf(-gate)) * wide(narrow<T>(up + upOffset));
            }
            if (residual) value = wide(narrow<T>(value)) + added; // as a product and a sum of their own round
            static_cast<T*>(a.y)[output] = narrow<T>(value);
        }
        sums = sums == allSums ? allSums + Batch * Pitch : allSums; // the other half: these are still being read
    }
}

template <class T, bool Gated, int Depth> cudaError_t launch(const MatvecArgs& args, const CudaDevice& device, cudaStream_t stream) {
    const auto kernel = matvec_kernel<T, Gated, Depth>;
    int team = 1; // warps that take a step side by side
    while (team < Warps && team * 32 < args.width / 8) team *= 2;
    const std::int64_t outputsOfRound = Warps / team * WeightStream<Gated, Depth>::Outputs;
    const auto blocks = std::min<std::int64_t>(BlocksEach * device.multiprocessors, (args.rows + outputsOfRound - 1) / outputsOfRound);
    cudaLaunchAttribute early;
    const std::size_t bytes = sharedBytes(args.width, Depth);
    const cudaLaunchConfig_t config = overlapping(dim3(static_cast<unsigned>(blocks)), dim3(Threads), bytes, stream, early);
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess)
        return error;
    // A multiprocessor takes a kernel that divides its memory in another way only once it is empty: two such kernels would not overlap.
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
        error != cudaSuccess)
        return error;
    return cudaLaunchKernelEx(&config, kernel, args, team);
}

template <class T, bool Gated> cudaError_t launch(const MatvecArgs& args, const CudaDevice& device, cudaStream_t stream) {
    constexpr std::size_t Reserved = 1024; // of a block, by the system; one block alone may have all the rest
    const bool deep = BlocksEach * (sharedBytes(args.width, Deep) + Reserved) <= static_cast<std::size_t>(device.sharedPerBlock) + Reserved;
    return deep ? launch<T, Gated, Deep>(args, device, stream) : launch<T, Gated, Shallow>(args, device, stream);
}

} // namespace

bool takesMatvec(const MatvecArgs& args, CudaElement element, const CudaDevice& device) {
    const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
    return element != CudaElement::f32 && args.rows > 0 && args.rows < (1 << 30) && args.width > 0 && args.width % 8 == 0 &&
           sharedBytes(args.width, Shallow) <= static_cast<std::size_t>(device.sharedPerBlock) && aligned(args.x) && aligned(args.weight) &&
           aligned(args.norm);
}

cudaError_t launchMatvec(const MatvecArgs& args, CudaElement element, const CudaDevice& device, cudaStream_t stream) {
    if (!takesMatvec(args, element, device)) return cudaErrorNotSupported;
    using Bf16 = __nv_bfloat16;
    if (element == CudaElement::bf16) return args.gated ? launch<Bf16, true>(args, device, stream) : launch<Bf16, false>(args, device, stream);
    return args.gated ? launch<__half, true>(args, device, stream) : launch<__half, false>(args, device, stream);
}

} // namespace keepsight::cuda
