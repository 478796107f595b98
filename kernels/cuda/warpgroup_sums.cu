// The sums of attention_sums.cu for compute capability 9.0, whose matrix units are fed by groups of four warps from shared memory.
//
// A block takes 256 keys of one query head, 64 for each of four groups (192 with outputs), which hold them in registers. One more warp copies 64 queries at a time (and their
// outputs) into a ring, with their norms. A group multiplies its keys with a tile and sums up the weights while the other groups' products run: exponentials
// take about as long as products. As there, a key's sum stays in the registers of four neighbouring threads, added to in one fixed order.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch_change.h"
#include "kernels/cuda/map_cells.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <algorithm>
#include <cmath>

namespace keepsight::cuda {
namespace {

#ifdef KEEPSIGHT_WARPGROUPS // also built for 9.0a (cuda.cmake)

constexpr int GroupKeys = 64, Queries = 64;

enum class Form { sums, map, key, joint, independent }; // sums: of weights or their squares; map: and cells; the last three as ops::OutputChange

template <int Dim, Form What> struct Ring {
    static constexpr bool Changes = What != Form::sums && What != Form::map;
    static constexpr int Groups = Changes ? 3 : 4, Keys = Groups * GroupKeys, Consumers = Groups * 128, Threads = Consumers + 128, Registers = Changes ? 160 : 112; // of what a block starts with: 128, 96
    static constexpr bool Turns = Changes; // groups begin their products one after another: with much to do for each of them they would all wait for the same unit else
    static constexpr int Box = 64 * 64, Boxes = Dim / 64, Tile = Queries * Dim, Operands = Changes ? 2 : 1; // in elements; a tile is Boxes boxes side by side
    static constexpr int Values = Changes ? Keys * Dim : 0, Stages = Changes ? 5 : 6;
    static constexpr int TileBytes = Operands * Tile * 2, Norms = Operands * Queries;
    static constexpr int Bytes = 1024 + Values * 2 + Stages * (TileBytes + Norms * 4 + 16);
};

struct Maps {
    CUtensorMap q, v, o; // [heads, rows, Dim]; the last two for changes
};

// Norms of a tile's queries lie as threads want them: the four that a thread meets in 16 columns of a product side by side.
__device__ inline int normPlace(int query) { return query / 16 * 16 + query % 8 / 2 * 4 + query % 16 / 8 * 2 + query % 2; }

template <class T, int Dim, Form What>
__global__ void __launch_bounds__(Ring<Dim, What>::Threads, 1) warpgroup_sums_kernel(const ChangeSumsArgs args, const float unit, const __grid_constant__ Maps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using R = Ring<Dim, What>;
    constexpr bool Changes = R::Changes;
    constexpr int Groups = R::Groups, Keys = R::Keys, Consumers = R::Consumers;
    constexpr int Depth = Dim / 16;
    const AttentionSumsArgs& a = args.sums;
    extern __shared__ unsigned char memory[];
    T* const valueTiles = reinterpret_cast<T*>(memory + (1024 - sharedPlace(memory) % 1024) % 1024); // of each group
    T* const tiles = valueTiles + R::Values;
    float* const norms = reinterpret_cast<float*>(tiles + R::Stages * R::Operands * R::Tile); // of the queries, of their outputs
    std::uint64_t* const full = reinterpret_cast<std::uint64_t*>(norms + R::Stages * R::Norms);
    std::uint64_t* const empty = full + R::Stages;
    if (threadIdx.x == 0) {
        for (int i = 0; i < R::Stages; ++i) initBarrier(full + i, 1), initBarrier(empty + i, Consumers / 32);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int head = static_cast<int>(blockIdx.y), kvHead = static_cast<int>(head / (a.queryHeads / a.kvHeads)), queries = static_cast<int>(a.queries), held = static_cast<int>(a.held);
    const int keyBegin = static_cast<int>(blockIdx.x) * Keys, past = held - queries, first = max(keyBegin - past, 0); // the first query that sees the first key
    const int count = (queries - first + Queries - 1) / Queries;

    if (warp >= Consumers / 32) { // registers go to those who multiply
        giveRegisters<24>();
        if (warp > Consumers / 32) return;
        const float *logSumExp = a.logSumExp + static_cast<std::int64_t>(head) * queries, *squares = Changes ? args.outputNorms + static_cast<std::int64_t>(head) * queries : nullptr;
        float next[2], nextOutput[2] = {};
        const auto fetch = [&](int begin) {
            for (int i = 0; i < 2; ++i) {
                const int query = begin + i * 32 + lane;
                next[i] = query < queries ? logSumExp[query] * unit : INFINITY; // no such query: weight 0
                if constexpr (Changes) nextOutput[i] = query < queries ? squares[query] : 0.0f;
            }
        };
        fetch(first);
        for (int t = 0; t < count; ++t) {
            const int stage = t % R::Stages, begin = first + t * Queries;
            if (t >= R::Stages) waitFor(empty + stage, (t / R::Stages - 1) & 1);
            for (int i = 0; i < 2; ++i) {
                norms[stage * R::Norms + normPlace(i * 32 + lane)] = next[i];
                if constexpr (Changes) norms[stage * R::Norms + Queries + normPlace(i * 32 + lane)] = nextOutput[i];
            }
            __syncwarp();
            if (lane == 0) {
                arriveExpecting(full + stage, R::TileBytes + (t == 0 ? R::Values * 2 : 0));
                T* to = tiles + stage * R::Operands * R::Tile;
                for (int box = 0; box < R::Boxes; ++box) {
                    copyTile(to + box * R::Box, maps.q, full + stage, box * 64, begin, head);
                    if constexpr (Changes) {
                        copyTile(to + R::Tile + box * R::Box, maps.o, full + stage, box * 64, begin, head);
                        for (int group = 0; group < Groups && t == 0; ++group)
                            copyTile(valueTiles + (group * R::Boxes + box) * R::Box, maps.v, full, box * 64, keyBegin + group * GroupKeys, kvHead);
                    }
                }
            }
            fetch(begin + Queries);
        }
        return;
    }

    takeRegisters<R::Registers>();
    const int key = keyBegin + warp * 16 + lane / 4; // of the thread, and the one 8 later
    std::uint32_t keys[Depth][4];
    const T* k = static_cast<const T*>(a.k) + kvHead * a.kHead;
    for (int half = 0; half < 2; ++half)
        for (int d = 0; d < Depth * 2; ++d)
            keys[d / 2][d % 2 * 2 + half] = key + half * 8 < held ? *reinterpret_cast<const std::uint32_t*>(k + (key + half * 8) * a.kRow + d * 8 + lane % 4 * 2) : 0;
    float valueNorms[2] = {};
    if constexpr (Changes)
        for (int half = 0; half < 2; ++half) valueNorms[half] = key + half * 8 < held ? args.valueNorms[kvHead * a.held + key + half * 8] : 0.0f;
    const std::uint64_t value = Changes ? operandAt(valueTiles + warp / 4 * R::Boxes * R::Box) : 0;

    const MapPart<1> cells(a, head, keyBegin + warp * 16);
    const std::int64_t begun = past + first - a.mapRowBegin; // queries of the map before the first one
    std::int64_t row = begun < 0 ? -1 : begun / a.rowBin, left = begun < 0 ? -begun : a.rowBin - begun % a.rowBin; // of the map's row that the next query belongs to
    float total[2] = {}, bin[2][1][2] = {}; // bin: of that row, and of the one before
    std::int64_t ended = -1;                 // that one, if it is not added yet
    if constexpr (R::Turns)
        if (warp / 4 == Groups - 1) giveTurn(0);
    Product scores = {}, products = {}; // products: ⟨v, o⟩
    const float scale = a.scale * unit; // a weight, or its square, is 2^(score · scale − norm)
    for (int t = 0; t < count; ++t) {
        const int stage = t % R::Stages, begin = first + t * Queries;
        waitFor(full + stage, t / R::Stages & 1);
        const T* tile = tiles + stage * R::Operands * R::Tile;
        const std::uint64_t query = operandAt(tile), output = operandAt(tile + R::Tile);
        const auto at = [](int d) { return d / 4 * (R::Box * 2 / 16) + d % 4 * 2; }; // 16 columns of a tile
        if constexpr (R::Turns) awaitTurn(warp / 4);
        beginProducts();
#pragma unroll
        for (int d = 0; d < Depth; ++d) multiplyGroup<T>(scores, keys[d], query + at(d), d > 0);
        if constexpr (Changes)
#pragma unroll
            for (int d = 0; d < Depth; ++d) multiplyGroup<T>(products, value + at(d), output + at(d), d > 0);
        commitProducts();
        if constexpr (R::Turns)
            if (warp / 4 < Groups - 1 || t + 1 < count) giveTurn((warp / 4 + 1) % Groups);
        if constexpr (What == Form::map)
            if (ended >= 0) cells.add(a, ended, bin[1]), ended = -1; // while products run
        const float4* near = reinterpret_cast<const float4*>(norms + stage * R::Norms) + lane % 4;
        float4 norm[Changes ? 1 : Queries / 16];
        if constexpr (!Changes)
            for (int p = 0; p < Queries / 16; ++p) norm[p] = near[p * 4];
        waitForProducts<0>(scores);
        if constexpr (Changes) waitForProducts<0>(products);
        const auto release = [&] {
            __syncwarp();
            if (lane == 0) arrive(empty + stage);
        };
        if constexpr (!Changes) release();

        float sums[2] = {};
        const auto addUp = [&](auto masked) {
            const int sees = past + begin - key; // the tile's first query, of the thread's first key on
#pragma unroll
            for (int p = 0; p < Queries / 16; ++p) {
                const float4 ofRows = Changes ? near[p * 4] : norm[Changes ? 0 : p];
                const float rowNorms[4] = {ofRows.x, ofRows.y, ofRows.z, ofRows.w};
                [[maybe_unused]] float outputNorms[4] = {};
                if constexpr (Changes) {
                    const float4 ofOutputs = near[Queries / 4 + p * 4];
                    outputNorms[0] = ofOutputs.x, outputNorms[1] = ofOutputs.y, outputNorms[2] = ofOutputs.z, outputNorms[3] = ofOutputs.w;
                }
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int n = p * 2 + i / 2, c = half * 2 + i % 2;
                        float weight = power2(fmaf(scores[n][c], scale, -rowNorms[i]));
                        if (decltype(masked)::value && half * 8 > sees + n * 8 + lane % 4 * 2 + i % 2) weight = 0;
                        if constexpr (What == Form::map) scores[n][c] = weight;
                        if constexpr (Changes) {
                            const float s = What == Form::key ? scores[n][c] : scores[n][c] * a.scale, size = valueNorms[half], ov = products[n][c], away = fmaxf(fmaf(-2.0f, ov, size + outputNorms[i]), 0.0f); // ‖v − o‖²
                            float change = s * s * away;
                            if constexpr (What == Form::joint) change = fmaxf(fmaf(s, fmaf(s, away, fmaf(-2.0f, ov, 2 * size)), size), 0.0f);
                            if constexpr (What == Form::independent) change += size;
                            sums[half] = fmaf(weight, change, sums[half]);
                        } else {
                            sums[half] += weight;
                        }
                    }
            }
        };
        if (past + begin < keyBegin + warp * 16 + 15) // some query of the tile does not see some key
            addUp(std::true_type{});
        else
            addUp(std::false_type{});
        if constexpr (Changes) release();
        for (int half = 0; half < 2; ++half) total[half] += sums[half]; // long sums in three stages lose less
        if constexpr (What == Form::map) {
            const auto rowEnds = [&] {
                for (int half = 0; half < 2; ++half) bin[1][0][half] = bin[0][0][half], bin[0][0][half] = 0;
                ended = row, ++row, left = a.rowBin;
            };
            if (left >= Queries) {
                for (int half = 0; half < 2; ++half) bin[0][0][half] += sums[half];
                left -= Queries;
                if (left == 0) rowEnds();
            } else {
                for (int from = 0; from < Queries;) {
                    const int to = static_cast<int>(min(from + left, std::int64_t{Queries}));
#pragma unroll
                    for (int n = 0; n < Queries / 8; ++n)
#pragma unroll
                        for (int c = 0; c < 4; ++c)
                            if (const int column = n * 8 + lane % 4 * 2 + c % 2; column >= from && column < to) bin[0][0][c / 2] += scores[n][c];
                    left -= to - from, from = to;
                    if (left > 0) continue;
                    if (ended >= 0) cells.add(a, ended, bin[1]);
                    rowEnds();
                }
            }
        }
    }
    if constexpr (What == Form::map) {
        if (ended >= 0) cells.add(a, ended, bin[1]);
        cells.add(a, row, bin[0]);
    }
    if (!a.columnSum) return;
    for (int half = 0; half < 2; ++half) {
        const float sum = quadSum(total[half]) * (What == Form::key ? a.scale * a.scale : 1.0f);
        if (lane % 4 == 0 && key + half * 8 < held) a.columnSum[head * a.columnSumHead + key + half * 8] += sum;
    }
#endif
}

bool describe(CUtensorMap& map, CudaElement element, const void* data, std::int64_t dim, std::int64_t rows, std::int64_t heads, std::int64_t row, std::int64_t head) {
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static const Encode encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result{};
        const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
        return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
    }();
    if (!encode) return false;
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(heads)};
    const cuuint64_t strides[] = {static_cast<cuuint64_t>(row) * 2, static_cast<cuuint64_t>(head) * 2};
    const cuuint32_t box[] = {64, 64, 1}, steps[] = {1, 1, 1};
    return encode(&map, element == CudaElement::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, const_cast<void*>(data), sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class T, int Dim, Form What> cudaError_t launch(const ChangeSumsArgs& args, float unit, const Maps& maps, cudaStream_t stream) {
    using R = Ring<Dim, What>;
    static const cudaError_t allowed = cudaFuncSetAttribute(warpgroup_sums_kernel<T, Dim, What>, cudaFuncAttributeMaxDynamicSharedMemorySize, R::Bytes);
    if (allowed != cudaSuccess) return allowed;
    const dim3 grid(static_cast<unsigned>((args.sums.held + R::Keys - 1) / R::Keys), static_cast<unsigned>(args.sums.queryHeads));
    warpgroup_sums_kernel<T, Dim, What><<<grid, R::Threads, R::Bytes, stream>>>(args, unit, maps);
    return cudaGetLastError();
}

template <Form What> cudaError_t launchForm(const ChangeSumsArgs& args, float unit, const Maps& maps, CudaElement element, cudaStream_t stream) {
    const auto sized = [&](auto zero) {
        using T = decltype(zero);
        return args.sums.dim == 64 ? launch<T, 64, What>(args, unit, maps, stream) : launch<T, 128, What>(args, unit, maps, stream);
    };
    return element == CudaElement::bf16 ? sized(__nv_bfloat16{}) : sized(__half{});
}

bool ofThisDevice() {
    int device = 0, major = 0, minor = 0;
    return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 && minor == 0;
}

#endif

} // namespace

cudaError_t launchWarpgroupSums([[maybe_unused]] const ChangeSumsArgs& args, [[maybe_unused]] Sum kind, [[maybe_unused]] CudaElement element,
                                [[maybe_unused]] cudaStream_t stream) {
#ifdef KEEPSIGHT_WARPGROUPS
    const AttentionSumsArgs& a = args.sums;
    constexpr std::int64_t FewQueries = 256; // not worth it
    if (a.queries < FewQueries || a.held > std::int64_t{1} << 30 || !ofThisDevice()) return cudaErrorNotSupported;
    Maps maps{};
    if (!describe(maps.q, element, a.q, a.dim, a.queries, a.queryHeads, a.qRow, a.qHead)) return cudaErrorNotSupported;
    constexpr float Log2e = 1.4426950408889634f;
    if (kind != Sum::changes) {
        const float unit = kind == Sum::squares ? 2 * Log2e : Log2e;
        return a.map ? launchForm<Form::map>(args, unit, maps, element, stream) : launchForm<Form::sums>(args, unit, maps, element, stream);
    }
    if (!describe(maps.v, element, args.v, a.dim, a.held, a.kvHeads, args.vRow, args.vHead) || !describe(maps.o, element, args.o, a.dim, a.queries, a.queryHeads, args.oRow, args.oHead))
        return cudaErrorNotSupported;
    return args.kind == 1   ? launchForm<Form::key>(args, 2 * Log2e, maps, element, stream)
           : args.kind == 2 ? launchForm<Form::joint>(args, 2 * Log2e, maps, element, stream)
                            : launchForm<Form::independent>(args, 2 * Log2e, maps, element, stream);
#else
    return cudaErrorNotSupported;
#endif
}

} // namespace keepsight::cuda
