// What the bindings of CPU kernels share.
#pragma once

#include "engine/data/error.h"
#include "kernels/cpu_kernels.h"
#include "kernels/scratch.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <new>
#include <optional>
#include <string>

namespace keepsight::ops {

class Scratch {
public:
    explicit Scratch(std::int64_t bytes) : m_data(bytes > 0 ? takeScratch(static_cast<std::size_t>((bytes + 63) / 64 * 64)) : nullptr) {
        if (bytes > 0 && !m_data) throw std::bad_alloc();
    }
    ~Scratch() {
        if (m_data) giveScratch(m_data);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* data() const { return m_data; }

private:
    void* m_data;
};

inline Element elementOf(const at::Tensor& tensor) { return tensor.scalar_type() == at::kFloat ? Element::f32 : Element::bf16; }

inline at::Tensor rowsDense(const at::Tensor& x) { return x.stride(-1) == 1 ? x : x.contiguous(); }

// Threads that did not start torch take its number of threads here; memory that cannot be had is said in our words.
template <class Call>
void onCpu(const char* op, Call&& call) {
    at::get_num_threads();
    try {
        call(cpuKernels());
    } catch (const std::bad_alloc&) {
        throw EngineError(std::string(op) + ": not enough memory for its scratch space; use a shorter text or a smaller model.");
    }
}

inline void collect(AttentionArgs& args, const std::optional<at::Tensor>& columnSum, const std::optional<at::Tensor>& lastRows,
                    const std::optional<at::Tensor>& map, int64_t rowBegin, int64_t rowBin, int64_t colBin) {
    if (columnSum) args.columnSum = columnSum->data_ptr<float>();
    if (lastRows) args.lastRows = lastRows->data_ptr<float>(), args.lastCount = lastRows->size(1);
    if (!map) return;
    args.map = map->data_ptr<float>();
    args.mapHeads = map->size(0), args.mapRows = map->size(1), args.mapColumns = map->size(2);
    args.mapRowBegin = rowBegin, args.rowBin = rowBin, args.columnBin = colBin;
}

} // namespace keepsight::ops
