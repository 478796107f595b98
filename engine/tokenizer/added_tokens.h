// Tokens that are found in the text before anything else happens to it: special ones and those a vocabulary was extended by.
#pragma once

#include "engine/data/ids.h"

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

struct AddedToken {
    TokenId id = -1;
    std::string text;
    bool special = false;
    bool singleWord = false;             // only between non-word characters
    bool lstrip = false, rstrip = false; // swallows the white space on that side
    bool normalized = false;             // searched after normalising, else before
};

class AddedTokens {
public:
    AddedTokens() = default;
    explicit AddedTokens(std::vector<AddedToken> tokens);

    using Sink = std::function<void(std::string_view text, TokenId id)>; // id −1: ordinary text
    // Cuts text at the leftmost, then longest, tokens. Special ones count as ordinary text unless parseSpecial.
    void split(std::string_view utf8, bool parseSpecial, const Sink& sink) const;
    bool empty() const { return m_tokens.empty(); }

private:
    const AddedToken* longestAt(std::string_view text, std::size_t at) const;
    std::vector<AddedToken> m_tokens;                        // longest first
    std::array<std::vector<std::size_t>, 256> m_byFirstByte; // into m_tokens, longest first
};

} // namespace keepsight
