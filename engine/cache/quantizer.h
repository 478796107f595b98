// Quantizers store what a policy keeps in few bits: packed codes with scales, not a simulation.
//
// Adding one: engine/cache/quant_x.cpp (info + class), one line in quantizers.def, tests/engine/cache/quant_x_test.cpp.
#pragma once

#include "engine/cache/selection.h"
#include "engine/data/ids.h"
#include "engine/data/model_config.h"
#include "engine/data/policy_spec.h"

#include "kernels/bind/ops.h"

#include <ATen/core/Tensor.h>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

enum class Side { keys, values };

// One side of one layer: entries of every KV head in ascending position, oldest first. Heads may hold different numbers of entries.
class StoredSide {
public:
    virtual ~StoredSide() = default;
    virtual void append(const at::Tensor& x) = 0;         // [kvHeads, S, headDim]: the newest entries of every head, in full precision
    virtual void append(const at::Tensor& x, const std::vector<std::int32_t>& counts) = 0; // the first counts[h] rows of each head only
    virtual void settle(bool afterPrefill) = 0;           // packs what the quantizer's residual rule lets go now
    virtual void keep(const Selection& selection) = 0;    // evicts the rest; indices over all entries of a head
    virtual at::Tensor dense(std::int64_t capacity) const = 0; // [kvHeads, capacity, headDim] in the model's type, zero behind the entries
    virtual std::vector<std::int32_t> packed() const = 0; // [kvHeads] entries held as codes
    virtual std::int64_t storedBytes() const = 0;         // codes, scales, zeros, outliers with their indices, full-precision rows
    virtual std::int64_t allocatedBytes() const = 0;      // the same as allocated

    virtual ops::PackedSide packedView() const = 0;       // as attention reads it
    virtual bool acrossHeads() const = 0;                 // packedView() is PackedSide::across
    // What append() of one entry a head, dropEntries() if `drops`, and settle() would do, with room made for it: work that can be recorded is the same for
    // the same answer, as many entries that go, and layout(). nullopt: it cannot. countReplayed(): what a replay of append() and settle() does on the host.
    virtual std::optional<std::string> nextStep(bool drops) = 0;
    virtual void countReplayed() = 0;
    // Evicts entries[h, :] of each head, [kvHeads, n] int32 where the cache is, ascending behind those below 0, which are none; without the host, after
    // nextStep(true). Which entries went the host learns later: countDropped() then counts them, [kvHeads], and what settle() did in that step.
    virtual void dropEntries(const at::Tensor& entries) = 0;
    virtual void countDropped(const std::vector<std::vector<std::int32_t>>& entries) = 0;
    virtual std::uint64_t layout() const = 0;
};

struct SideShape {
    int kvHeads = 1, headDim = 64;
    at::ScalarType dtype;
    at::Device device;
};

// What a quantizer learns from a text before it runs, per layer; see Quantizer::wantsCalibration.
struct CalibrationSample {
    std::vector<at::Tensor> keys, values; // per layer [kvHeads, N, headDim] fp32; keys before RoPE
};

class Quantizer {
public:
    explicit Quantizer(QuantSpec spec) : m_spec(std::move(spec)) {}
    virtual ~Quantizer() = default;
    const QuantSpec& spec() const { return m_spec; }

    virtual std::unique_ptr<StoredSide> make(Side side, LayerIndex layer, const SideShape& shape) const = 0;
    virtual bool plainKeys() const { return false; }      // keys are stored before RoPE and rotated when read
    // Bits per stored value, keys and values alike, with scales and zeros but without the residual and outliers.
    virtual double effectiveBits(LayerIndex layer, const ModelConfig& config) const = 0;
    // The sentence that says why the model cannot be stored this way (a group that does not divide the head size); empty: it can.
    virtual std::string refuses(const ModelConfig&) const { return {}; }

    virtual bool wantsCalibration() const { return false; }
    virtual std::string calibrationFile() const { return {}; } // empty: the shipped text
    virtual void calibrate(const CalibrationSample&) {}        // before the first make()
    // More tokens for the same memory: tokens that a budget of 16-bit tokens becomes in that layer, spec's equal_memory on. Else the budget.
    int tokensFor(int budget, LayerIndex layer, const ModelConfig& config) const;
    bool equalMemory() const { return m_equalMemory; }

protected:
    // Bits per value that equal_memory reckons with.
    virtual double budgetBits(LayerIndex layer, const ModelConfig& config) const { return effectiveBits(layer, config); }

    QuantSpec m_spec;
    bool m_equalMemory = false;
};

struct QuantEntry {
    QuantInfo info;
    std::unique_ptr<Quantizer> (*make)(const QuantInfo&, const QuantSpec&); // null for none
};

const std::vector<QuantEntry>& quantRegistry();             // "none" first
const QuantEntry& quantEntry(std::string_view idOrAlias);   // throws UsageError listing the ids
QuantSpec parseQuantSpec(std::string_view text);            // throws UsageError
void checkQuantSpec(const QuantSpec& spec);                 // throws UsageError
std::unique_ptr<Quantizer> makeQuantizer(const QuantSpec& spec); // null for none

ParamInfo equalMemoryParam(); // off | on: the budget counts 16-bit tokens; more are kept for the same bytes

} // namespace keepsight
