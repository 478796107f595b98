#include "engine/data/policy_spec.h"

#include <algorithm>

namespace keepsight {

int Budget::resolve(std::int64_t tokensSeen) const {
    // kvpress: int(k_len * (1 - ratio)) in doubles; 10 · (1 − 0.9) floors to 0, and a cache must hold something.
    const std::int64_t kept = kind == Kind::tokens ? tokens : static_cast<std::int64_t>(static_cast<double>(tokensSeen) * (1.0 - compressionRatio));
    return static_cast<int>(std::max<std::int64_t>(1, kept));
}

namespace {

std::string specText(const std::string& id, const std::map<std::string, std::string>& params) {
    std::string out = id;
    char separator = ':';
    for (const auto& [key, value] : params) {
        out += separator + key + '=' + value;
        separator = ',';
    }
    return out;
}

} // namespace

std::string PolicySpec::text() const { return specText(id, params); }
std::string QuantSpec::text() const { return specText(id, params); }

} // namespace keepsight
