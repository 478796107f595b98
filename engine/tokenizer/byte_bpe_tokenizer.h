// A byte-level BPE tokenizer put together from parts; the readers of tokenizer.json and GGUF metadata produce the parts.
#pragma once

#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/pretokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace keepsight {

struct TokenizerParts {
    BpeParts bpe;
    PreTokenizer preTokenizer;
    bool nfc = false;
    std::vector<AddedToken> added;
    std::vector<TokenId> before, after; // what addSpecial puts around the text
    TokenId bos = -1, eos = -1;
};

TokenizerParts partsFromJson(const TokenizerSource& source); // reads source.path
TokenizerParts partsFromGguf(const TokenizerSource& source);

class ByteBpeTokenizer final : public Tokenizer {
public:
    explicit ByteBpeTokenizer(TokenizerParts parts);
    std::vector<TokenId> encode(std::string_view utf8, const EncodeOptions& options = {}) const override;
    std::string bytes(TokenId id) const override;
    int vocab() const override { return static_cast<int>(m_bytes.size()); }
    bool isSpecial(TokenId id) const override;
    TokenId bos() const override { return m_bos; }
    TokenId eos() const override { return m_eos; }
    std::string describe() const override;

private:
    Bpe m_bpe;
    PreTokenizer m_preTokenizer;
    AddedTokens m_rawAdded, m_normalizedAdded;
    std::vector<std::string> m_bytes; // by id
    std::vector<bool> m_special;
    bool m_nfc;
    std::vector<TokenId> m_before, m_after;
    TokenId m_bos, m_eos;
};

} // namespace keepsight
