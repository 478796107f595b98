// Byte-pair merging of one piece.
#pragma once

#include "engine/data/ids.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace keepsight {

struct BpeParts {
    std::vector<std::string> tokens;                         // by id, in the byte alphabet; "" where an id is unused
    std::vector<std::pair<std::string, std::string>> merges; // best first
    bool ignoreMerges = false;                               // a piece that is a token stays whole, whatever the merges say
    std::string unknown;                                     // token for a byte the vocabulary lacks; "": such bytes are dropped
    bool fuseUnknown = false;                                // neighbours become one unknown token
};

class Bpe {
public:
    explicit Bpe(const BpeParts& parts); // throws EngineError naming a merge or token that does not fit the vocabulary
    void encode(std::string_view bytes, std::vector<TokenId>& out) const; // appends

private:
    struct Merge {
        std::uint32_t rank = 0;
        TokenId id = -1; // −1: the pair does not merge
    };
    const Merge* merge(TokenId left, TokenId right) const;
    void insertMerge(TokenId left, TokenId right, Merge merge);

    std::array<TokenId, 256> m_byteToken{};
    TokenId m_unknown = -1;
    bool m_fuseUnknown = false;
    std::unordered_map<std::string, TokenId> m_whole; // only if ignoreMerges
    std::vector<std::uint64_t> m_keys;                // open addressing, a power of two long; Empty where free
    std::vector<Merge> m_values;
};

} // namespace keepsight
