// What attention collects besides its output: visibility and the binning of key positions.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/simd.h"

namespace keepsight::KEEPSIGHT_ISA {
namespace {

// Entries of an ascending list that are ≤ limit: what a query sees of a head is always a prefix.
KEEPSIGHT_INLINE std::int64_t visible(const std::int32_t* positions, std::int64_t count, std::int32_t limit) {
    std::int64_t low = 0, high = count;
    while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (positions[middle] <= limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Map row of a query, or −1 outside the map.
KEEPSIGHT_INLINE std::int64_t mapRow(const AttentionArgs& args, std::int64_t query) {
    const std::int64_t p = args.queryPositions[query] - args.mapRowBegin;
    return p < 0 || p / args.rowBin >= args.mapRows ? -1 : p / args.rowBin;
}

KEEPSIGHT_INLINE float total(const float* values, std::int64_t count) {
    Floats acc{};
    std::int64_t i = 0;
    for (; i + Lanes <= count; i += Lanes)
        acc += load(values + i);
    float rest = 0;
    for (; i < count; ++i)
        rest += values[i];
    return sum(acc) + rest;
}

// ends[c]: entries of the head before the end of column bin c, so that bin c is [ends[c − 1], ends[c]).
KEEPSIGHT_INLINE void columnEnds(const AttentionArgs& args, std::int64_t head, std::int64_t* ends) {
    const std::int32_t* positions = args.positionsOf(head);
    std::int64_t t = 0;
    for (std::int64_t c = 0; c < args.mapColumns; ++c) {
        const std::int64_t limit = (c + 1) * args.columnBin;
        while (t < args.lengths[head] && positions[t] < limit)
            ++t;
        ends[c] = t;
    }
}

// Adds weights [count] to one row of a map.
KEEPSIGHT_INLINE void addToMap(const float* weights, std::int64_t count, const std::int64_t* ends, std::int64_t columns, float factor,
                               float* row) {
    std::int64_t begin = 0;
    for (std::int64_t c = 0; c < columns && begin < count; ++c) {
        const std::int64_t end = least(ends[c], count);
        if (end > begin) row[c] += factor * total(weights + begin, end - begin);
        begin = end;
    }
}

// scores[0, count) holds s·log2 e; becomes 2^(s − max), zero up to padded; returns the sum. count > 0.
KEEPSIGHT_INLINE float exponentials(float* scores, std::int64_t count, std::int64_t padded, float& maximumOut) {
    Floats best = broadcast(scores[0]);
    std::int64_t t = 0;
    for (; t + Lanes <= count; t += Lanes)
        best = maximum(best, load(scores + t));
    float top = largest(best);
    for (; t < count; ++t)
        top = scores[t] > top ? scores[t] : top;
    const Floats shift = broadcast(top);
    Floats acc{};
    for (t = 0; t + Lanes <= count; t += Lanes) {
        const Floats e = exp2(load(scores + t) - shift);
        store(scores + t, e);
        acc += e;
    }
    float rest = 0;
    if (t < count) {
        float tail[Lanes];
        store(tail, broadcast(top));
        std::memcpy(tail, scores + t, static_cast<std::size_t>(count - t) * 4);
        store(tail, exp2(load(tail) - shift));
        for (std::int64_t i = t; i < count; ++i)
            rest += scores[i] = tail[i - t];
    }
    std::memset(scores + count, 0, static_cast<std::size_t>(padded - count) * 4);
    maximumOut = top;
    return sum(acc) + rest;
}

} // namespace
} // namespace keepsight::KEEPSIGHT_ISA
