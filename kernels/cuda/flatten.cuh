// Equal shares of ragged heads, worked out on the device: the entries of every head are cut into tiles, the tiles of all heads laid end to
// end, and the blocks take equal runs of them. The host never learns the lengths, so one captured graph serves every step. Nothing here is
// negative: divisions, which a block waits for before it asks for its first tile, are the shorter ones of unsigned numbers.
#pragma once

#include <cstdint>

namespace keepsight::cuda {

constexpr unsigned EveryLane = 0xffffffffu;

// By one whole warp. counts [kvHeads]: entries of a head, countOf(h) called by all lanes, 0 for h ≥ kvHeads. A head is walked `parts` times
// (once per block of query heads): first [kvHeads·parts + 1] becomes the place of each walk's first tile, the last one the number of tiles.
template <class CountOf>
__device__ void flattenHeads(int kvHeads, int parts, int tileEntries, int* counts, int* first, CountOf&& countOf) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int before = 0;
#pragma unroll 1 // cold code comes from memory, too: loops stay loops where time is not spent
    for (int base = 0; base < kvHeads; base += 32) {
        const int h = base + lane, n = countOf(h), tiles = (n + tileEntries - 1) / tileEntries;
        int sum = tiles * parts;
        for (int step = 1; step < 32; step *= 2) {
            const int left = __shfl_up_sync(EveryLane, sum, step);
            if (lane >= step) sum += left;
        }
        if (h < kvHeads) {
            counts[h] = n;
#pragma unroll 1
            for (int p = 0; p < parts; ++p)
                first[h * parts + p] = before + sum - tiles * (parts - p);
        }
        before += __shfl_sync(EveryLane, sum, 31);
    }
    if (lane == 0) first[kvHeads * parts] = before;
}

__device__ inline int quotient(int a, int b) { return static_cast<int>(static_cast<unsigned>(a) / static_cast<unsigned>(b)); }
__device__ inline int remainderOf(int a, int b) { return static_cast<int>(static_cast<unsigned>(a) % static_cast<unsigned>(b)); }

// Blocks of the grid that get work: none with fewer tiles than warps, unless that is all there is, and whole numbers of blocks a walk where
// all are alike: a block that ends one head and begins another costs more than a few idle blocks. By a whole warp or more.
__device__ inline int blocksFor(const int* first, int walks, int warps, int grid) {
    const int tiles = first[walks], blocks = min(grid, quotient(tiles + warps - 1, warps)), each = quotient(tiles, walks);
    if (blocks < walks || each * walks != tiles) return blocks;
    bool alike = true;
#pragma unroll 1
    for (int walk = static_cast<int>(threadIdx.x) % 32; walk < walks; walk += 32)
        alike &= first[walk] == walk * each;
    return __all_sync(EveryLane, alike) ? blocks - remainderOf(blocks, walks) : blocks;
}
// Shares differ by one tile at most, the larger ones first.
__device__ inline int shareBegin(int block, int tiles, int blocks) { return block * quotient(tiles, blocks) + min(block, remainderOf(tiles, blocks)); }
__device__ inline int blockOfTile(int tile, int tiles, int blocks) {
    const int each = quotient(tiles, blocks), larger = remainderOf(tiles, blocks), inLarger = larger * (each + 1);
    return tile < inLarger ? quotient(tile, each + 1) : larger + quotient(tile - inLarger, max(each, 1));
}
// The walk that holds a tile: the last one with first ≤ tile.
__device__ inline int walkOfTile(const int* first, int walks, int tile) {
    int low = 0, high = walks - 1;
#pragma unroll 1
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (first[middle] <= tile)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

} // namespace keepsight::cuda
