// Text to token ids and back, with exactly the ids of the model's own tokenizer.
#pragma once

#include "engine/data/ids.h"
#include "engine/model/weights.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

struct EncodeOptions {
    bool parseSpecial = false; // special tokens written in the text become their id; otherwise they are plain text
    bool addSpecial = false;   // BOS/EOS as the tokenizer's own post-processor says
};

class Tokenizer {
public:
    virtual ~Tokenizer() = default;
    virtual std::vector<TokenId> encode(std::string_view utf8, const EncodeOptions& options = {}) const = 0;
    virtual std::string bytes(TokenId id) const = 0;   // exact bytes; special tokens give their text; throws on ids out of range
    virtual int vocab() const = 0;
    virtual bool isSpecial(TokenId id) const = 0;
    virtual TokenId bos() const = 0;                   // −1: none
    virtual TokenId eos() const = 0;
    virtual std::string describe() const = 0;          // "byte-level BPE, pre-tokenizer smollm, 49152 tokens"
    std::string decode(const std::vector<TokenId>& ids) const; // concatenated bytes
};

// Throws EngineError naming any part (pre-tokenizer, normalizer, model, decoder) that is not supported.
std::unique_ptr<Tokenizer> makeTokenizer(const TokenizerSource& source);

// Emits only whole UTF-8 characters; bytes of an unfinished one are held back until it is complete or proved invalid (then U+FFFD).
class Utf8Stream {
public:
    std::string push(std::string_view bytes);
    std::string finish();

private:
    std::string m_pending;
};

bool isValidUtf8(std::string_view text); // strict: no overlong forms, surrogates or values above U+10FFFF

// Chat frames are built in and matched by the hash of the template text; unknown templates run raw.
struct ChatFrame {
    std::string name;                                  // "" = raw
    std::string system;                                // default system message
    std::string userBefore, userAfter;                 // around the first user turn, up to where the answer starts
    std::vector<std::string> stops;                    // texts of the tokens that end an answer
    std::string wrap(std::string_view user) const { return userBefore + std::string(user) + userAfter; }
};
ChatFrame chatFrameFor(std::string_view chatTemplate);

} // namespace keepsight
