// The sums of attention_sums.cu for compute capability 9.0, whose matrix units are fed by groups of four warps from shared memory.
//
// A block takes 256 keys of one query head, 64 for each of four groups, which hold them in registers; where outputs count, 192 keys and their values.
// One more warp copies 64 queries at a time (and their outputs) into a ring, with their norms. A group multiplies its keys with a tile and sums up the
// weights while the other groups' products run: exponentials take about as long as products. As there, a key's sum stays in the registers of four
// neighbouring threads, added to in one fixed order.
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
#pragma nv_diag_suppress 177 // in the build for plain 9.0 the kernel is empty and uses nothing

constexpr int GroupKeys = 64, Queries = 64;

enum class Form { sums, map, key, joint, independent }; // sums: of weights or their squares; map: and cells; the last three as ops::OutputChange

template <int Dim, Form What> struct Ring {
    static constexpr bool Changes = What != Form::sums && What != Form::map;
    static constexpr int Groups = Changes ? 3 : 4, Keys = Groups * GroupKeys, Consumers = Groups * 128, Threads = Consumers + 128;
    static constexpr int Registers = Changes ? 160 : 112; // of a thread that multiplies; all of a block have no more than it starts with, 128 or 96 each
    static constexpr bool Turns = Changes; // groups begin their products one after another: they would all wait for the same unit else. 6 % faster with outputs, slower without
    static constexpr int Box = 64 * 64, Boxes = Dim / 64, Tile = Queries * Dim, Operands = Changes ? 2 : 1; // in elements; a tile is Boxes boxes side by side
    static constexpr int Stages = Changes ? 5 : 6;
    static constexpr int TileBytes = Operands * Tile * 2, Norms = Operands * Queries;
    static constexpr int Bytes = 1024 + Stages * (TileBytes + Norms * 4 + 16);
};

struct Maps {
    CUtensorMap q, o; // [heads, rows, Dim]; the latter for changes
};

// The queries, tile by tile. Tiles cross rows of a map once at most: of short rows they take one each.
template <Form What> struct Walk {
    int begin, queries;         // the tile's first query; all of them
    int row = -1, left = 0;     // of the map: the row of that query, −1 before the first; queries until it ends
    int rowSize = 0;

    __device__ Walk(const AttentionSumsArgs& a, int first, int past) : begin(first), queries(static_cast<int>(a.queries)) {
        if constexpr (What == Form::map) {
            constexpr std::int64_t Most = 1 << 30;
            const std::int64_t before = past + first - a.mapRowBegin; // queries of the map before this one
            rowSize = static_cast<int>(min(a.rowBin, Most));
            row = before < 0 ? -1 : static_cast<int>(min(before / a.rowBin, Most));
            left = static_cast<int>(min(before < 0 ? -before : a.rowBin - before % a.rowBin, Most));
        }
    }
    __device__ bool more() const { return begin < queries; }
    __device__ int end() const { return min(What == Form::map && rowSize < Queries ? min(begin + left, begin + Queries) : begin + Queries, queries); }
    __device__ void next() {
        const int size = end() - begin;
        if constexpr (What == Form::map) {
            left -= size;
            if (left <= 0) left += rowSize, ++row;
        }
        begin += size;
    }
};

// What a warp's 16 keys add to a map whose columns are as many keys at least: to one column, or to two neighbouring ones.
class MapColumns {
public:
    __device__ MapColumns(const AttentionSumsArgs& a, int head, int first) : m_rows(static_cast<int>(a.mapRows)), m_columns(a.mapColumns) {
        const int lane = threadIdx.x % 32, bin = static_cast<int>(min(a.columnBin, std::int64_t{1} << 30)), column = first / bin, next = (column + 1) * bin - first; // that column's first key
        for (int half = 0; half < 2; ++half) m_second[half] = half * 8 + lane / 4 >= next;
        m_writes = lane % 16 == 0 && (lane == 0 || next < 16) && column + lane / 16 < m_columns;
        m_cell = a.map + head * a.mapHeads / a.queryHeads * a.mapRows * a.mapColumns + column + lane / 16;
        m_unit = static_cast<float>(MapScale * static_cast<double>(a.mapHeads) / static_cast<double>(a.queryHeads)); // cells hold the mean of a map head's query heads
    }
    // A thread's sums are its part, one of four, of key first + lane/4 and the one 8 later; keys that are not held, or not seen, have 0.
    __device__ void add(int row, const float (&sums)[2]) const {
        const bool upper = threadIdx.x % 32 >= 16; // these add up what goes to the second column
        float own = 0, other = 0;
        for (int half = 0; half < 2; ++half) (m_second[half] == upper ? own : other) += sums[half];
        own += __shfl_xor_sync(0xffffffffu, other, 16);
        for (int step = 8; step > 0; step /= 2) own += __shfl_xor_sync(0xffffffffu, own, step);
        if (m_writes && row >= 0 && row < m_rows) atomicAdd(m_cell + row * m_columns, __float2ull_rn(own * m_unit));
    }

private:
    unsigned long long* m_cell; // of row 0
    int m_rows;
    std::int64_t m_columns;
    float m_unit;
    bool m_second[2], m_writes;
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
    T* const tiles = reinterpret_cast<T*>(memory + (1024 - sharedPlace(memory) % 1024) % 1024);
    float* const norms = reinterpret_cast<float*>(tiles + R::Stages * R::Operands * R::Tile); // of the queries, of their outputs
    std::uint64_t* const full = reinterpret_cast<std::uint64_t*>(norms + R::Stages * R::Norms);
    std::uint64_t* const empty = full + R::Stages;
    if (threadIdx.x == 0) {
        // Every thread arrives for itself: behind a __syncwarp one of a warp could do it, but racecheck does not follow that, and it is not faster.
        for (int i = 0; i < R::Stages; ++i) initBarrier(full + i, 32), initBarrier(empty + i, Consumers);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int head = static_cast<int>(blockIdx.y), kvHead = static_cast<int>(head / (a.queryHeads / a.kvHeads)), queries = static_cast<int>(a.queries), held = static_cast<int>(a.held);
    const int keyBegin = static_cast<int>(blockIdx.x) * Keys, past = held - queries, first = max(keyBegin - past, 0); // the first query that sees the first key
    Walk<What> walk(a, first, past);

    if (warp >= Consumers / 32) { // registers go to those who multiply
        giveRegisters<24>();
        if (warp > Consumers / 32) return;
        const float *logSumExp = a.logSumExp + static_cast<std::int64_t>(head) * queries, *squares = Changes ? args.outputNorms + static_cast<std::int64_t>(head) * queries : nullptr;
        float next[2], nextOutput[2] = {};
        const auto fetch = [&] {
            const int end = walk.end();
            for (int i = 0; i < 2; ++i) {
                const int query = walk.begin + i * 32 + lane;
                next[i] = query < end ? logSumExp[query] * unit : INFINITY; // no such query: weight 0
                if constexpr (Changes) nextOutput[i] = query < end ? squares[query] : 0.0f;
            }
        };
        fetch();
        for (int t = 0; walk.more(); ++t) {
            const int stage = t % R::Stages;
            if (t >= R::Stages) waitFor(empty + stage, (t / R::Stages - 1) & 1);
            for (int i = 0; i < 2; ++i) {
                norms[stage * R::Norms + normPlace(i * 32 + lane)] = next[i];
                if constexpr (Changes) norms[stage * R::Norms + Queries + normPlace(i * 32 + lane)] = nextOutput[i];
            }
            if (lane > 0) {
                arrive(full + stage);
            } else {
                arriveExpecting(full + stage, R::TileBytes);
                T* to = tiles + stage * R::Operands * R::Tile;
                for (int box = 0; box < R::Boxes; ++box) {
                    copyTile(to + box * R::Box, maps.q, full + stage, box * 64, walk.begin, head);
                    if constexpr (Changes) copyTile(to + R::Tile + box * R::Box, maps.o, full + stage, box * 64, walk.begin, head);
                }
            }
            walk.next();
            fetch();
        }
        return;
    }

    takeRegisters<R::Registers>();
    const int key = keyBegin + warp * 16 + lane / 4; // of the thread, and the one 8 later
    const auto read = [&](std::uint32_t(&to)[Depth][4], const void* head, std::int64_t row) {
        const T* from = static_cast<const T*>(head) + lane % 4 * 2;
        for (int half = 0; half < 2; ++half)
            for (int d = 0; d < Depth * 2; ++d)
                to[d / 2][d % 2 * 2 + half] = key + half * 8 < held ? *reinterpret_cast<const std::uint32_t*>(from + (key + half * 8) * row + d * 8) : 0;
    };
    std::uint32_t keys[Depth][4];
    [[maybe_unused]] std::uint32_t values[Depth][4]; // from shared memory both operands of their products would be read at its full bandwidth
    read(keys, static_cast<const T*>(a.k) + kvHead * a.kHead, a.kRow);
    if constexpr (Changes) read(values, static_cast<const T*>(args.v) + kvHead * args.vHead, args.vRow);
    float valueNorms[2] = {};
    if constexpr (Changes)
        for (int half = 0; half < 2; ++half) valueNorms[half] = key + half * 8 < held ? args.valueNorms[kvHead * a.held + key + half * 8] : 0.0f;
    // Changes are summed up in units of scale²: s is then the plain product.
    const float perScale = Changes ? 1 / a.scale : 0.0f, twice = -2 * perScale;
    float unitNorms[2], twiceNorms[2];
    for (int half = 0; half < 2; ++half) twiceNorms[half] = 2 * valueNorms[half] * perScale, unitNorms[half] = valueNorms[half] * perScale * perScale;

    const MapColumns cells(a, head, keyBegin + warp * 16);
    float total[2] = {}, bin[2] = {}, ended[2] = {}; // bin: of the map's row; ended: of the one before, while it is not added yet
    int endedRow = -1;
    if constexpr (R::Turns)
        if (warp / 4 == Groups - 1) giveTurn(0);
    Product scores = {}, products = {}; // products: ⟨v, o⟩
    const float scale = a.scale * unit; // a weight, or its square, is 2^(score · scale − norm)
    for (int t = 0; walk.more(); ++t) {
        const int stage = t % R::Stages, begin = walk.begin;
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
            for (int d = 0; d < Depth; ++d) multiplyGroup<T>(products, values[d], output + at(d), d > 0);
        commitProducts();
        if constexpr (R::Turns)
            if (warp / 4 < Groups - 1 || walk.end() < queries) giveTurn((warp / 4 + 1) % Groups);
        if constexpr (What == Form::map)
            if (endedRow >= 0) cells.add(endedRow, ended), endedRow = -1; // while products run
        const float4* near = reinterpret_cast<const float4*>(norms + stage * R::Norms) + lane % 4;
        float4 norm[Changes ? 1 : Queries / 16];
        if constexpr (!Changes)
            for (int p = 0; p < Queries / 16; ++p) norm[p] = near[p * 4];
        waitForProducts<0>(scores);
        if constexpr (Changes) waitForProducts<0>(products);
        if constexpr (!Changes) arrive(empty + stage);

        float sums[2] = {}, early[2] = {}; // early: of the queries before the next row of the map
        const bool crosses = What == Form::map && walk.left < Queries && walk.rowSize >= Queries;
        const auto addUp = [&](auto masked, auto split) {
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
                        if constexpr (Changes) {
                            const float s = scores[n][c], ov = products[n][c];
                            const float away = fmaf(-2.0f, ov, valueNorms[half] + outputNorms[i]); // ‖v − o‖²
                            float change = s * (What == Form::joint ? fmaf(s, away, fmaf(twice, ov, twiceNorms[half])) : s * away);
                            if constexpr (What != Form::key) change += unitNorms[half];
                            sums[half] = fmaf(weight, change, sums[half]);
                        } else if (decltype(split)::value && n * 8 + lane % 4 * 2 + i % 2 < walk.left) {
                            early[half] += weight;
                        } else {
                            sums[half] += weight;
                        }
                    }
            }
        };
        const bool hides = past + begin < keyBegin + warp * 16 + 15; // some key from some query of the tile
        if (crosses)
            addUp(std::true_type{}, std::bool_constant<What == Form::map>{});
        else if (hides)
            addUp(std::true_type{}, std::false_type{});
        else
            addUp(std::false_type{}, std::false_type{});
        if constexpr (Changes) arrive(empty + stage);
        if constexpr (What == Form::map) {
            const bool ends = walk.left <= (walk.rowSize < Queries ? walk.end() - begin : Queries);
            for (int half = 0; half < 2; ++half) {
                total[half] += early[half];
                bin[half] += crosses ? early[half] : sums[half];
                if (ends) ended[half] = bin[half], bin[half] = crosses ? sums[half] : 0.0f;
            }
            if (ends) endedRow = walk.row;
        }
        for (int half = 0; half < 2; ++half) total[half] += sums[half]; // long sums in three stages lose less
        walk.next();
    }
    if constexpr (What == Form::map) {
        if (endedRow >= 0) cells.add(endedRow, ended);
        cells.add(walk.row, bin);
    }
    if (!a.columnSum) return;
    for (int half = 0; half < 2; ++half) {
        const float sum = Changes ? fmaxf(quadSum(total[half]), 0.0f) * a.scale * a.scale : quadSum(total[half]); // rounding may leave less than 0
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
        if (a.map && a.columnBin < 16) return cudaErrorNotSupported; // MapColumns
        return a.map ? launchForm<Form::map>(args, unit, maps, element, stream) : launchForm<Form::sums>(args, unit, maps, element, stream);
    }
    constexpr float SmallScale = 1e-6f; // changes in units of its square would leave fp32
    if (!(std::abs(a.scale) >= SmallScale) || !describe(maps.o, element, args.o, a.dim, a.queries, a.queryHeads, args.oRow, args.oHead))
        return cudaErrorNotSupported;
    return args.kind == 1   ? launchForm<Form::key>(args, 2 * Log2e, maps, element, stream)
           : args.kind == 2 ? launchForm<Form::joint>(args, 2 * Log2e, maps, element, stream)
                            : launchForm<Form::independent>(args, 2 * Log2e, maps, element, stream);
#else
    return cudaErrorNotSupported;
#endif
}

} // namespace keepsight::cuda
