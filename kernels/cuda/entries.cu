// Moving cache entries on the device: out[h, i] = in[h, index[h, i]], and appending behind ragged heads.
// One block per (head, group of entries); an entry's bytes are copied in 16-byte words where its size and place allow, else byte by byte.
#include "kernels/cuda/launch.h"

#include <algorithm>

namespace keepsight::cuda {
namespace {

constexpr int Threads = 256;
constexpr int EntriesPerBlock = 8;

__device__ void copyEntry(std::uint8_t* to, const std::uint8_t* from, std::int64_t bytes, int lane, int lanes) {
    if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from) | static_cast<std::uintptr_t>(bytes)) % 16 == 0) {
        for (std::int64_t i = lane; i < bytes / 16; i += lanes) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    } else {
        for (std::int64_t i = lane; i < bytes; i += lanes) to[i] = from[i];
    }
}

__global__ void move_entries_kernel(MoveEntriesArgs a, std::int64_t places) {
    const int lanes = Threads / EntriesPerBlock, lane = static_cast<int>(threadIdx.x) % lanes;
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * EntriesPerBlock + threadIdx.x / lanes, h = blockIdx.y;
    std::uint8_t* to = a.to + h * a.toHead + i * a.entry;
    if (i < places && i < a.counts[h])
        copyEntry(to, a.from + h * a.fromHead + a.index[h * a.indexHead + i] * a.entry, a.entry, lane, lanes);
    else if (i < a.zeroTo)
        for (std::int64_t b = lane; b < a.entry; b += lanes) to[b] = 0;
}

__global__ void append_entries_kernel(AppendEntriesArgs a) {
    const int lanes = Threads / EntriesPerBlock, lane = static_cast<int>(threadIdx.x) % lanes;
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * EntriesPerBlock + threadIdx.x / lanes, h = blockIdx.y;
    if (i < a.rows) copyEntry(a.to + h * a.toHead + (a.lengths[h] + i) * a.entry, a.from + h * a.fromHead + i * a.fromRow, a.entry, lane, lanes);
}

dim3 gridFor(std::int64_t entries, std::int64_t heads) {
    return dim3(static_cast<unsigned>((entries + EntriesPerBlock - 1) / EntriesPerBlock), static_cast<unsigned>(heads));
}

} // namespace

cudaError_t launchMoveEntries(const MoveEntriesArgs& args, std::int64_t places, cudaStream_t stream) {
    const std::int64_t entries = std::max(places, args.zeroTo);
    if (entries == 0 || args.heads == 0 || args.entry == 0) return cudaSuccess;
    move_entries_kernel<<<gridFor(entries, args.heads), Threads, 0, stream>>>(args, places);
    return cudaGetLastError();
}

cudaError_t launchAppendEntries(const AppendEntriesArgs& args, cudaStream_t stream) {
    if (args.rows == 0 || args.heads == 0 || args.entry == 0) return cudaSuccess;
    append_entries_kernel<<<gridFor(args.rows, args.heads), Threads, 0, stream>>>(args);
    return cudaGetLastError();
}

} // namespace keepsight::cuda
