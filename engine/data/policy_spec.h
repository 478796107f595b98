// Policies as values: what the registry offers (PolicyInfo) and what a person chose (PolicySpec).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace keepsight {

enum class PolicyKind { evict, admit, attend }; // frees stored tokens; never stores some; stores all, attends to some

struct ParamInfo {
    enum class Type { integer, real, choice, reals, file, settings }; // reals: numbers separated by '/'; file: a path, settings: name=value;…, empty: none
    std::string name;                 // as typed in --policy id:name=value
    Type type = Type::integer;
    std::string initial;              // default, canonical text
    double low = 0, high = 0;         // inclusive; integer, real and reals only
    std::vector<std::string> choices; // choice only
    std::string unit;                 // "tokens", "" …
    std::string help;                 // one sentence
    bool odd = false;                 // integer only: even numbers are refused
};

struct PolicyInfo {
    std::string id;
    std::vector<std::string> aliases;
    PolicyKind kind = PolicyKind::evict;
    std::string summary;              // one sentence
    std::string paper;                // "SnapKV, arXiv:2404.14469"; empty: none
    std::vector<ParamInfo> params;
    bool usesBudget = true;           // false: `full`
    std::string quant;                // the quantizer it is made for, taken where none is chosen; empty: none
};

// Kept tokens per layer and KV head: B = floor(T·(1−c)) or `tokens`; T = tokens at prefill end, or seen so far for each_step policies.
struct Budget {
    enum class Kind { ratio, tokens } kind = Kind::ratio;
    double compressionRatio = 0.0; // fraction REMOVED, 0 ≤ c < 1
    int tokens = 0;
    static Budget removed(double c) { return {Kind::ratio, c, 0}; }
    static Budget kept(int n) { return {Kind::tokens, 0.0, n}; }
    int resolve(std::int64_t tokensSeen) const; // ≥ 1; double arithmetic in kvpress's order of operations: int(T * (1 - c))
    bool operator==(const Budget&) const = default;
};

// How a cache stores what the policy keeps. "none": in the model's own number type.
struct QuantInfo {
    std::string id;
    std::vector<std::string> aliases;
    std::string summary; // one sentence
    std::string paper;   // empty: none
    std::vector<ParamInfo> params;
};

struct QuantSpec {
    std::string id = "none";
    std::map<std::string, std::string> params; // only what differs from the defaults, canonical text
    bool operator==(const QuantSpec&) const = default;
    std::string text() const; // "kivi:bits=2"; "none"
};

struct PolicySpec {
    std::string id = "full";
    std::map<std::string, std::string> params; // only what differs from the defaults, canonical text
    Budget budget;
    QuantSpec quant; // how the cache stores what is kept
    bool operator==(const PolicySpec&) const = default;
    std::string text() const; // "snapkv:kernel=7,window=32", without budget and quantizer; "full"
};

} // namespace keepsight
