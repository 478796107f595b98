// A call of ops::packed_attention with all that goes with it, as its tests make it.
#pragma once

#include "kernels/bind/packed.h"
#include "tests/kernels/support.h"

namespace keepsight::test {

struct PackedCall {
    at::Tensor q, positions, lengths, queryPosition;
    ops::PackedSide keys, values;
    ops::KeyTurn turn;
    double scale = 0.125;

    ops::AttentionStats emptyStats(bool perKvHead) const {
        ops::AttentionStats stats;
        const int64_t heads = q.size(0), capacity = positions.size(1);
        stats.columnSum = at::ones({heads, capacity}); // accumulated
        stats.lastRows = at::full({heads, 1, capacity}, NAN);
        stats.map = at::ones({perKvHead ? lengths.size(0) : heads, 3, capacity / 7 + 1});
        stats.rowBin = 10, stats.colBin = 7, stats.mapRowBegin = queryPosition.item<int>() - 15;
        return stats;
    }
    // name: "composite", or whatever choose() chose.
    at::Tensor attentionBy(const QString& name, ops::AttentionStats* stats) const {
        if (name != "composite") return ops::packed_attention(q, keys, values, positions, lengths, queryPosition, scale, stats, turn);
        const auto optional = [](const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
        const ops::AttentionStats none, &s = stats ? *stats : none;
        return composite<ops::PackedAttention>("packed_attention")
            .call(q, ops::packedTensors(keys), keys.bits, keys.groupTokens, keys.across, ops::packedTensors(values), values.bits, values.groupTokens, values.across,
                  positions, lengths, queryPosition, scale, optional(turn.inverseFrequencies), turn.byRank, optional(s.columnSum), optional(s.lastRows),
                  optional(s.map), s.mapRowBegin, s.rowBin, s.colBin);
    }
};

} // namespace keepsight::test
