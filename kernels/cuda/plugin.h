// What the plug-in's bindings share.
#pragma once

#include "kernels/cuda/launch_decode.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <array>
#include <atomic>
#include <mutex>
#include <string>
#include <vector>

namespace keepsight::cuda {

using OptionalTensor = std::optional<at::Tensor>;

inline void check(cudaError_t error, const char* operation) {
    TORCH_CHECK(error == cudaSuccess, "keepsight::", operation, ": the CUDA launch failed: ", cudaGetErrorString(error));
}

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline CudaElement elementOf(const at::Tensor& t) {
    switch (t.scalar_type()) {
    case at::kFloat:
        return CudaElement::f32;
    case at::kBFloat16:
        return CudaElement::bf16;
    case at::kHalf:
        return CudaElement::f16;
    default:
        TORCH_CHECK(false, "keepsight: expected fp32, bf16 or fp16 on the device, found ", t.scalar_type());
    }
}

// The operator's form in ATen calls, for what has no kernel here. Signature: the binding's own, decltype(matvec).
template <class Signature, class... Arguments> auto composite(const char* operation, Arguments&&... arguments) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("keepsight::") + operation).c_str(), "").typed<Signature>();
    return op.redispatch(c10::DispatchKeySet(c10::DispatchKey::CompositeExplicitAutograd), std::forward<Arguments>(arguments)...);
}

inline const CudaDevice& deviceOf(const at::Tensor& t) {
    static std::array<CudaDevice, 64> devices; // attributes do not change: a race writes the same values
    static std::array<std::atomic<bool>, 64> known;
    const auto index = static_cast<std::size_t>(t.get_device());
    TORCH_CHECK(index < devices.size(), "keepsight: device number ", index, " is too large");
    if (!known[index]) {
        static std::mutex one;
        const std::lock_guard lock(one);
        CudaDevice found;
        int major = 0, device = static_cast<int>(index);
        check(cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device), "device");
        check(cudaDeviceGetAttribute(&found.sharedPerBlock, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device");
        check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
        found.clusters = major >= 9;
        devices[index] = found;
        known[index] = true;
    }
    return devices[index];
}

// Dense rows with every row at a multiple of 16 bytes, as the kernels that read whole tiles want it: a cache is so already, anything else is copied.
inline at::Tensor inTiles(const at::Tensor& t) {
    const auto bytes = static_cast<std::int64_t>(t.element_size());
    const bool fits = t.stride(2) == 1 && t.stride(0) * bytes % 16 == 0 && t.stride(1) * bytes % 16 == 0 && t.stride(1) * bytes < (std::int64_t{1} << 31) && reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % 16 == 0;
    return fits ? t : t.clone(at::MemoryFormat::Contiguous);
}

// Parts of one allocation, each at a multiple of 16 bytes.
class Scratch {
public:
    template <class T> void add(T*& place, std::int64_t count) {
        m_places.push_back({reinterpret_cast<void**>(&place), m_bytes});
        m_bytes += (count * static_cast<std::int64_t>(sizeof(T)) + 15) / 16 * 16;
    }
    void allocate(const at::Tensor& like) {
        m_memory = at::empty({m_bytes}, like.options().dtype(at::kByte));
        for (const auto& [place, offset] : m_places) *place = static_cast<std::uint8_t*>(m_memory.mutable_data_ptr()) + offset;
    }

private:
    std::vector<std::pair<void**, std::int64_t>> m_places;
    std::int64_t m_bytes = 0;
    at::Tensor m_memory;
};


// Causal attention of the newest of `held` entries over all of them, in torch's fused kernels: out [1, Hq, S, D] and log-sum-exp [1, Hq, S] fp32
// (plugin_decode.cpp). bf16 and fp16, head sizes in whole eights up to 256.
std::pair<at::Tensor, at::Tensor> fusedCausal(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t held, double scale);

// Counters for the blocks of one launch after another, [walks], 0 before and after each: cleared once, not at every token. Launches of a device follow each
// other in one stream.
inline unsigned* arrivalCounters(const at::Tensor& like, std::int64_t walks) {
    constexpr std::int64_t Most = 1 << 14;
    static std::array<std::atomic<unsigned*>, 64> counters; // never freed: they outlive every graph
    static std::mutex one;
    const auto index = static_cast<std::size_t>(like.get_device());
    TORCH_CHECK(index < counters.size() && walks <= Most, "keepsight: ", walks, " heads on device ", index, " are too many");
    if (!counters[index]) {
        const std::lock_guard lock(one);
        if (!counters[index]) {
            void* memory = nullptr;
            check(cudaMalloc(&memory, Most * sizeof(unsigned)), "attention");
            check(cudaMemset(memory, 0, Most * sizeof(unsigned)), "attention");
            check(cudaDeviceSynchronize(), "attention");
            counters[index] = static_cast<unsigned*>(memory);
        }
    }
    return counters[index];
}

struct MapBins {
    std::int64_t rowBegin = 0, row = 1, column = 1;
};

// What every attention of one query is told of it. Tensors must outlive the launch.
inline void describeQuery(AttentionArgs& a, const at::Tensor& q, std::int64_t kvHeads, std::int64_t capacity, const at::Tensor& queryPosition, double scale) {
    a.q = {q.const_data_ptr(), q.stride(0), q.stride(1)};
    a.queryHeads = q.size(0);
    a.kvHeads = kvHeads;
    a.queries = 1;
    a.capacity = capacity;
    a.dim = q.size(2);
    a.queryPositions = queryPosition.const_data_ptr<std::int32_t>();
    a.scale = static_cast<float>(scale);
}

// Scratch of such an attention; with scores where statistics are made of them.
inline void addDecodeScratch(Scratch& scratch, DecodeScratch& s, const AttentionArgs& a, const at::Tensor& q, bool scores) {
    const std::int64_t walks = walksOf(a.queryHeads, a.kvHeads), slots = decodeBlocks(deviceOf(q)) + walks;
    scratch.add(s.outputs, slots * 8 * a.dim);
    scratch.add(s.parts, slots * 8);
    s.arrived = arrivalCounters(q, walks);
    if (!scores) return;
    scratch.add(s.scores, a.queryHeads * a.capacity);
    scratch.add(s.logSums, a.queryHeads);
    scratch.add(s.visible, a.kvHeads);
}

// One query's attention with its statistics, whatever the entries are stored as: launch(scratch, device) runs the kernel on `a`.
template <class Launch>
void decodeOne(const char* operation, AttentionArgs& a, const at::Tensor& q, const OptionalTensor& columnSum, const OptionalTensor& lastRows, const OptionalTensor& map,
               const MapBins& bins, const Launch& launch) {
    if (columnSum) a.columnSum = columnSum->mutable_data_ptr<float>();
    at::Tensor weights; // of the one row: asked for, or what the map is made of
    if (lastRows && lastRows->size(1) > 0)
        weights = *lastRows;
    else if (map)
        weights = at::empty({a.queryHeads, 1, a.capacity}, q.options().dtype(at::kFloat));
    if (weights.defined()) a.lastRows = weights.mutable_data_ptr<float>(), a.lastCount = 1;
    DecodeScratch s;
    Scratch scratch;
    addDecodeScratch(scratch, s, a, q, a.columnSum || a.lastRows);
    scratch.allocate(q);
    check(launch(s, deviceOf(q)), operation);
    if (!map) return;
    BinRowArgs b;
    b.weights = a.lastRows;
    b.positions = a.positions;
    b.starts = a.k.starts;
    b.lengths = a.lengths;
    b.queryPosition = a.queryPositions;
    b.map = map->mutable_data_ptr<float>();
    b.queryHeads = a.queryHeads;
    b.kvHeads = a.kvHeads;
    b.capacity = a.capacity;
    b.mapHeads = map->size(0), b.mapRows = map->size(1), b.mapColumns = map->size(2);
    b.mapRowBegin = bins.rowBegin, b.rowBin = bins.row, b.columnBin = bins.column;
    check(launchBinRow(b, stream()), operation);
}

} // namespace keepsight::cuda
