// The first difference between two traces, as a path to it; empty: equal in every field, NaN equal to NaN.
#pragma once

#include "engine/data/trace.h"

#include <bit>
#include <cstring>
#include <type_traits>

namespace keepsight::test {

inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }
inline bool same(const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](double x, double y) { return same(x, y); });
}
inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) { return same(double(x), double(y)); });
}
inline bool same(const Measurement::Value& a, const Measurement::Value& b) {
    if (a.index() != b.index()) return false;
    if (const auto* x = std::get_if<double>(&a)) return same(*x, std::get<double>(b));
    if (const auto* x = std::get_if<std::vector<double>>(&a)) return same(*x, std::get<std::vector<double>>(b));
    return a == b;
}
template <class T>
requires(!std::is_same_v<T, double> && !std::is_same_v<T, float>) bool same(const T& a, const T& b) { return a == b; }

#define KEEPSIGHT_SAME(member)                                                                                                             \
    if (!same(a.member, b.member)) return std::string(#member)

inline std::string difference(const AttentionMap& a, const AttentionMap& b) {
    KEEPSIGHT_SAME(lane);
    KEEPSIGHT_SAME(layer);
    KEEPSIGHT_SAME(head);
    KEEPSIGHT_SAME(perQueryHead);
    KEEPSIGHT_SAME(rowBegin);
    KEEPSIGHT_SAME(rowEnd);
    KEEPSIGHT_SAME(rowBin);
    KEEPSIGHT_SAME(colBin);
    KEEPSIGHT_SAME(rows);
    KEEPSIGHT_SAME(cols);
    KEEPSIGHT_SAME(values);
    return {};
}
inline std::string difference(const std::shared_ptr<const AttentionMap>& a, const std::shared_ptr<const AttentionMap>& b) {
    return difference(*a, *b);
}
inline std::string difference(const TokenRecord& a, const TokenRecord& b) {
    KEEPSIGHT_SAME(id);
    KEEPSIGHT_SAME(position);
    KEEPSIGHT_SAME(role);
    KEEPSIGHT_SAME(bytes);
    return {};
}
inline std::string difference(const StepRecord& a, const StepRecord& b) {
    KEEPSIGHT_SAME(step);
    KEEPSIGHT_SAME(kind);
    KEEPSIGHT_SAME(firstPosition);
    KEEPSIGHT_SAME(count);
    KEEPSIGHT_SAME(milliseconds);
    KEEPSIGHT_SAME(policyMilliseconds);
    KEEPSIGHT_SAME(nll);
    KEEPSIGHT_SAME(kvBytes);
    KEEPSIGHT_SAME(allocatedBytes);
    return {};
}
inline std::string difference(const Measurement& a, const Measurement& b) {
    KEEPSIGHT_SAME(kind);
    KEEPSIGHT_SAME(lane);
    if (a.fields.size() != b.fields.size()) return "fields.size";
    for (std::size_t i = 0; i < a.fields.size(); ++i)
        if (a.fields[i].first != b.fields[i].first || !same(a.fields[i].second, b.fields[i].second)) return a.fields[i].first;
    return {};
}
inline std::string difference(const Retention& a, const Retention& b) {
    KEEPSIGHT_SAME(layers());
    KEEPSIGHT_SAME(heads());
    if (!std::equal(a.bornAt().begin(), a.bornAt().end(), b.bornAt().begin(), b.bornAt().end())) return "bornAt";
    for (int layer = 0; layer < a.layers(); ++layer)
        for (int head = 0; head < a.heads(); ++head) {
            const auto x = a.evictedAt(LayerIndex{layer}, HeadIndex{head}), y = b.evictedAt(LayerIndex{layer}, HeadIndex{head});
            if (!std::equal(x.begin(), x.end(), y.begin(), y.end()))
                return "evictedAt[" + std::to_string(layer) + "][" + std::to_string(head) + "]";
        }
    return {};
}
inline std::string difference(const Lane& a, const Lane& b);
template <class T>
std::string difference(const std::vector<T>& a, const std::vector<T>& b, const std::string& name) {
    if (a.size() != b.size()) return name + ".size " + std::to_string(a.size()) + " / " + std::to_string(b.size());
    for (std::size_t i = 0; i < a.size(); ++i)
        if (const std::string inner = difference(a[i], b[i]); !inner.empty()) return name + "[" + std::to_string(i) + "]." + inner;
    return {};
}
inline std::string difference(const Lane& a, const Lane& b) {
    KEEPSIGHT_SAME(label);
    KEEPSIGHT_SAME(policy);
    KEEPSIGHT_SAME(notice);
    if (const auto inner = difference(a.generated, b.generated, "generated"); !inner.empty()) return inner;
    if (const auto inner = difference(a.steps, b.steps, "steps"); !inner.empty()) return inner;
    if (const auto inner = difference(a.retention, b.retention); !inner.empty()) return "retention." + inner;
    return difference(a.maps, b.maps, "maps");
}
inline std::string difference(const Trace& a, const Trace& b) {
    KEEPSIGHT_SAME(formatVersion);
    KEEPSIGHT_SAME(run.kind);
    KEEPSIGHT_SAME(run.commandLine);
    KEEPSIGHT_SAME(run.jobJson);
    KEEPSIGHT_SAME(run.toolVersion);
    KEEPSIGHT_SAME(run.torchVersion);
    KEEPSIGHT_SAME(run.createdUtc);
    KEEPSIGHT_SAME(run.device);
    KEEPSIGHT_SAME(run.dtype);
    KEEPSIGHT_SAME(run.threads);
    KEEPSIGHT_SAME(run.seed);
    KEEPSIGHT_SAME(run.finished);
    KEEPSIGHT_SAME(run.cancelled);
    KEEPSIGHT_SAME(run.failure);
    KEEPSIGHT_SAME(model.path);
    KEEPSIGHT_SAME(model.sha256);
    KEEPSIGHT_SAME(model.format);
    KEEPSIGHT_SAME(model.weightTypes);
    KEEPSIGHT_SAME(model.tokenizer);
    KEEPSIGHT_SAME(model.chatTemplate);
    KEEPSIGHT_SAME(model.dtype);
    KEEPSIGHT_SAME(model.device);
    KEEPSIGHT_SAME(model.parameters);
    KEEPSIGHT_SAME(model.weightBytes);
    KEEPSIGHT_SAME(model.kvBytesPerToken);
    KEEPSIGHT_SAME(model.config.architecture);
    KEEPSIGHT_SAME(model.config.name);
    KEEPSIGHT_SAME(model.config.layers);
    KEEPSIGHT_SAME(model.config.queryHeads);
    KEEPSIGHT_SAME(model.config.kvHeads);
    KEEPSIGHT_SAME(model.config.headDim);
    KEEPSIGHT_SAME(model.config.hidden);
    KEEPSIGHT_SAME(model.config.feedForward);
    KEEPSIGHT_SAME(model.config.vocab);
    KEEPSIGHT_SAME(model.config.maxPositions);
    KEEPSIGHT_SAME(model.config.ropeTheta);
    KEEPSIGHT_SAME(model.config.normEps);
    KEEPSIGHT_SAME(model.config.ropeScaling.kind);
    KEEPSIGHT_SAME(model.config.ropeScaling.factor);
    KEEPSIGHT_SAME(model.config.ropeScaling.lowFreqFactor);
    KEEPSIGHT_SAME(model.config.ropeScaling.highFreqFactor);
    KEEPSIGHT_SAME(model.config.ropeScaling.originalMaxPositions);
    KEEPSIGHT_SAME(model.config.ropeFactors);
    KEEPSIGHT_SAME(model.config.tiedEmbeddings);
    KEEPSIGHT_SAME(model.config.attentionBias);
    KEEPSIGHT_SAME(model.config.mlpBias);
    KEEPSIGHT_SAME(model.config.slidingWindow);
    KEEPSIGHT_SAME(prefillLength);
    if (const auto inner = difference(a.tokens, b.tokens, "tokens"); !inner.empty()) return inner;
    if (const auto inner = difference(a.lanes, b.lanes, "lanes"); !inner.empty()) return inner;
    if (const auto inner = difference(a.maps, b.maps, "maps"); !inner.empty()) return inner;
    return difference(a.measurements, b.measurements, "measurements");
}

#undef KEEPSIGHT_SAME

} // namespace keepsight::test
