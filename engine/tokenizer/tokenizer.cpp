#include "engine/tokenizer/tokenizer.h"

#include "engine/data/error.h"
#include "engine/tokenizer/byte_bpe_tokenizer.h"

namespace keepsight {

std::string Tokenizer::decode(const std::vector<TokenId>& ids) const {
    std::string text;
    for (const TokenId id : ids)
        text += bytes(id);
    return text;
}

std::unique_ptr<Tokenizer> makeTokenizer(const TokenizerSource& source) {
    switch (source.kind) {
    case TokenizerSource::Kind::tokenizerJson:
        return std::make_unique<ByteBpeTokenizer>(partsFromJson(source));
    case TokenizerSource::Kind::gguf:
        return std::make_unique<ByteBpeTokenizer>(partsFromGguf(source));
    case TokenizerSource::Kind::sentencepiece:
        throw EngineError("tokenizer: SentencePiece models (" + source.path.string() +
                          ") are not supported; expected a tokenizer.json with byte-level BPE beside the weights");
    case TokenizerSource::Kind::none:
        break;
    }
    throw EngineError("tokenizer: expected a tokenizer.json or GGUF tokenizer metadata with the model, found none");
}

} // namespace keepsight
