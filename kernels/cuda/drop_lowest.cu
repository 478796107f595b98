// One eviction a head without the host: the lowest scored entry goes, and what lies behind it moves up by one, in place.
//
// First kernel: a block a KV head finds the entry; further blocks save the first row of every block of the second kernel ("edges"), because the
// neighbour before it needs that row after its owner has overwritten it. Second kernel: each block reads its rows, moved by one, then writes them.
#include "kernels/cuda/launch.h"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int FindThreads = 1024, MoveThreads = 256, Each = 4, Words = MoveThreads * Each; // words a block of the second kernel moves

struct Pieces { // of moved[i]: what follows from its row size
    int wordBytes = 16, wordsPerRow = 1, rows = 1, blocks = 1; // rows of a block, blocks of a head
    std::int64_t firstBlock = 0, edge = 0, edgeWords = 1;      // of all tensors' blocks; first edge, in 16 bytes; 16-byte words of an edge
};
struct Layout {
    Pieces pieces[DropLowestArgs::MostMoved];
    std::int64_t blocks = 0, edges = 0;
};

int wordBytes(const DropLowestArgs::Moved& m) { // the widest of which rows are made
    for (const int bytes : {16, 4, 2})
        if (m.row % bytes == 0 && m.head % bytes == 0 && reinterpret_cast<std::uintptr_t>(m.data) % static_cast<unsigned>(bytes) == 0) return bytes;
    return 1;
}

// f(word of that size)
template <class F>
__device__ void withWord(int bytes, const F& f) {
    switch (bytes) {
    case 16: return f(uint4{});
    case 4: return f(unsigned{});
    case 2: return f(static_cast<unsigned short>(0));
    default: return f(static_cast<unsigned char>(0));
    }
}

Layout layoutOf(const DropLowestArgs& a) {
    Layout out;
    for (int i = 0; i < a.count; ++i) {
        const DropLowestArgs::Moved& m = a.moved[i];
        Pieces& p = out.pieces[i];
        p.wordBytes = wordBytes(m);
        p.wordsPerRow = static_cast<int>(m.row / p.wordBytes);
        p.rows = std::max(1, Words / std::max(1, p.wordsPerRow));
        p.blocks = static_cast<int>((a.capacity + p.rows - 1) / p.rows);
        p.firstBlock = out.blocks;
        p.edge = out.edges;
        p.edgeWords = (m.row + 15) / 16;
        out.blocks += m.heads * p.blocks;
        out.edges += m.heads * p.blocks * p.edgeWords;
    }
    return out;
}

// Block number of all tensors → tensor, head, block of the head.
struct Spot {
    int tensor = 0, block = 0;
    std::int64_t head = 0;
    __device__ Spot(const Layout& layout, int count, std::int64_t number) {
#pragma unroll 1
        while (tensor + 1 < count && number >= layout.pieces[tensor + 1].firstBlock)
            ++tensor;
        const Pieces& p = layout.pieces[tensor];
        head = (number - p.firstBlock) / p.blocks;
        block = static_cast<int>((number - p.firstBlock) % p.blocks);
    }
};

__device__ unsigned ordered(float x) {
    const unsigned bits = __float_as_uint(isnan(x) ? -INFINITY : x + 0.0f); // −0 + 0 = 0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__global__ void __launch_bounds__(FindThreads) find_kernel(const DropLowestArgs a, const Layout layout, const DropLowestScratch s) {
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    if (blockIdx.x >= a.kvHeads) { // edges, a warp each
        const std::int64_t number = (static_cast<std::int64_t>(blockIdx.x) - a.kvHeads) * (threads / 32) + warp;
        if (number >= layout.blocks) return;
        const Spot spot(layout, a.count, number);
        const Pieces& p = layout.pieces[spot.tensor];
        const DropLowestArgs::Moved& m = a.moved[spot.tensor];
        const char* from = static_cast<const char*>(m.data) + spot.head * m.head + static_cast<std::int64_t>(spot.block) * p.rows * m.row;
        uint4* to = s.edges + p.edge + (spot.head * p.blocks + spot.block) * p.edgeWords;
        withWord(p.wordBytes, [&](auto word) {
            using Word = decltype(word);
            for (int i = lane; i < p.wordsPerRow; i += 32) reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
        });
        return;
    }
    __shared__ unsigned long long lowest[FindThreads / 32];
    const int h = static_cast<int>(blockIdx.x), n = min(a.lengths[h], static_cast<int>(a.capacity));
    const int begin = a.entries ? max(a.entries[h], 0) : a.limits[1], end = a.entries ? n : n - a.limits[2];
    const bool drops = begin < end && (a.entries ? a.entries[h] >= 0 : n > a.limits[0]);
    unsigned long long best = ~0ull;
    if (drops && a.scores) {
        const float* scores = a.scores + h * a.scoresHead;
        for (int t = begin + thread; t < end; t += threads)
            best = min(best, static_cast<unsigned long long>(ordered(scores[t])) << 32 | static_cast<unsigned>(t));
        for (int step = 16; step > 0; step /= 2)
            best = min(best, __shfl_xor_sync(0xffffffffu, best, step));
    } else if (drops) {
        best = static_cast<unsigned>(begin);
    }
    if (lane == 0) lowest[warp] = best;
    __syncthreads();
    if (thread > 0) return;
    for (int i = 1; i < threads / 32; ++i)
        best = min(best, lowest[i]);
    const int victim = drops ? static_cast<int>(best & 0xffffffffu) : static_cast<int>(a.capacity);
    s.victims[h] = victim;
    if (a.gone) {
        a.gone[h] = drops ? reinterpret_cast<const std::int32_t*>(static_cast<const char*>(a.moved[0].data) + h * a.moved[0].head)[victim] : -1;
        a.gone[a.kvHeads + h] = drops ? victim : -1;
    }
    if (drops) a.lengths[h] = n - 1;
}

template <class Word>
__device__ void move(const DropLowestScratch& s, const Pieces& p, const DropLowestArgs::Moved& m, std::int64_t head, int block, int from, int to) {
    Word words[Each];
    Word* rows = reinterpret_cast<Word*>(static_cast<char*>(m.data) + head * m.head);
    const Word* next = reinterpret_cast<const Word*>(s.edges + p.edge + (head * p.blocks + block + 1) * p.edgeWords);
    const int first = block * p.rows;
#pragma unroll
    for (int i = 0; i < Each; ++i) {
        const int word = i * MoveThreads + static_cast<int>(threadIdx.x), row = word / p.wordsPerRow, at = first + row;
        if (row >= p.rows || at < from || at >= to) continue;
        words[i] = row + 1 < p.rows ? rows[static_cast<std::int64_t>(at + 1) * p.wordsPerRow + word % p.wordsPerRow] : next[word % p.wordsPerRow];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Each; ++i) {
        const int word = i * MoveThreads + static_cast<int>(threadIdx.x), row = word / p.wordsPerRow, at = first + row;
        if (row >= p.rows || at < from || at >= to) continue;
        rows[static_cast<std::int64_t>(at) * p.wordsPerRow + word % p.wordsPerRow] = words[i];
    }
}

__global__ void __launch_bounds__(MoveThreads) move_kernel(const DropLowestArgs a, const Layout layout, const DropLowestScratch s) {
    const Spot spot(layout, a.count, blockIdx.x);
    const Pieces& p = layout.pieces[spot.tensor];
    const DropLowestArgs::Moved& m = a.moved[spot.tensor];
    const int h = static_cast<int>(spot.head / (m.heads / a.kvHeads)), from = s.victims[h], to = a.lengths[h]; // rows [from, to) change
    if (from >= to || (spot.block + 1) * p.rows <= from || spot.block * p.rows >= to) return;
    withWord(p.wordBytes, [&](auto word) { move<decltype(word)>(s, p, m, spot.head, spot.block, from, to); });
}

} // namespace

std::int64_t dropLowestEdges(const DropLowestArgs& args) { return layoutOf(args).edges; }

bool takesDropLowest(const DropLowestArgs& args) {
    return std::all_of(args.moved, args.moved + args.count, [](const DropLowestArgs::Moved& m) {
        return m.row > 0 && m.row <= wordBytes(m) * Words;
    });
}

cudaError_t launchDropLowest(const DropLowestArgs& args, const DropLowestScratch& scratch, cudaStream_t stream) {
    if (args.kvHeads == 0 || args.capacity == 0) return cudaSuccess;
    const Layout layout = layoutOf(args);
    const std::int64_t edgeBlocks = (layout.blocks + FindThreads / 32 - 1) / (FindThreads / 32);
    find_kernel<<<static_cast<unsigned>(args.kvHeads + edgeBlocks), FindThreads, 0, stream>>>(args, layout, scratch);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    move_kernel<<<static_cast<unsigned>(layout.blocks), MoveThreads, 0, stream>>>(args, layout, scratch);
    return cudaGetLastError();
}

} // namespace keepsight::cuda
