// GGUF metadata (tokenizer.ggml.*) → parts of a byte-level BPE tokenizer.
#include "engine/data/error.h"
#include "engine/tokenizer/byte_bpe_tokenizer.h"

namespace keepsight {

TokenizerParts partsFromGguf(const TokenizerSource& source) {
    if (source.ggmlModel != "gpt2")
        throw EngineError("tokenizer: expected byte-level BPE (tokenizer.ggml.model 'gpt2'), found '" + source.ggmlModel +
                          "', which is not supported");
    if (source.tokens.empty()) throw EngineError("tokenizer: expected a vocabulary in tokenizer.ggml.tokens, found none");
    if (!source.types.empty() && source.types.size() != source.tokens.size())
        throw EngineError("tokenizer: expected " + std::to_string(source.tokens.size()) + " entries in tokenizer.ggml.token_type, found " +
                          std::to_string(source.types.size()));

    TokenizerParts parts;
    parts.preTokenizer = PreTokenizer::named(source.ggmlPre);
    // What the families' own tokenizers do and GGUF does not say:
    parts.bpe.ignoreMerges = source.ggmlPre == "llama-bpe";
    parts.nfc = source.ggmlPre == "qwen2";

    parts.bpe.tokens = source.tokens;
    parts.bpe.merges.reserve(source.merges.size());
    for (std::size_t i = 0; i < source.merges.size(); ++i) {
        const std::string& merge = source.merges[i];
        const std::size_t space = merge.find(' ');
        if (space == std::string::npos || merge.find(' ', space + 1) != std::string::npos)
            throw EngineError("tokenizer: expected two parts in merge " + std::to_string(i) + " of tokenizer.ggml.merges, found '" + merge +
                              "'");
        parts.bpe.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
    }
    constexpr std::int32_t Control = 3, UserDefined = 4;
    for (std::size_t i = 0; i < source.types.size(); ++i)
        if (source.types[i] == Control || source.types[i] == UserDefined)
            parts.added.push_back({.id = static_cast<TokenId>(i), .text = source.tokens[i], .special = source.types[i] == Control});
    parts.bos = source.bos;
    parts.eos = source.eos;
    if (source.addBos && source.bos >= 0) parts.before.push_back(source.bos);
    if (source.addEos && source.eos >= 0) parts.after.push_back(source.eos);
    return parts;
}

} // namespace keepsight
