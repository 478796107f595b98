#include "engine/tokenizer/byte_bpe_tokenizer.h"

#include "engine/data/error.h"
#include "engine/tokenizer/byte_level.h"
#include "engine/tokenizer/unicode.h"

#include <limits>

namespace keepsight {
namespace {

std::vector<AddedToken> chosen(const std::vector<AddedToken>& all, bool normalized, bool nfc) {
    std::vector<AddedToken> tokens;
    for (const AddedToken& token : all) {
        if (token.normalized != normalized) continue;
        tokens.push_back(token);
        if (normalized && nfc) tokens.back().text = toNfc(token.text);
    }
    return tokens;
}

} // namespace

ByteBpeTokenizer::ByteBpeTokenizer(TokenizerParts parts)
    : m_bpe(parts.bpe), m_preTokenizer(std::move(parts.preTokenizer)), m_rawAdded(chosen(parts.added, false, parts.nfc)),
      m_normalizedAdded(chosen(parts.added, true, parts.nfc)), m_nfc(parts.nfc), m_before(std::move(parts.before)),
      m_after(std::move(parts.after)), m_bos(parts.bos), m_eos(parts.eos) {
    std::size_t count = parts.bpe.tokens.size();
    for (const AddedToken& token : parts.added)
        count = std::max(count, static_cast<std::size_t>(token.id) + 1);
    m_bytes.resize(count);
    m_special.resize(count, false);
    for (std::size_t i = 0; i < parts.bpe.tokens.size(); ++i) {
        auto bytes = bytesOfLetters(parts.bpe.tokens[i]);
        m_bytes[i] = bytes ? std::move(*bytes) : parts.bpe.tokens[i];
    }
    for (const AddedToken& token : parts.added) {
        m_bytes[token.id] = token.text;
        if (token.special) m_special[token.id] = true;
    }
    const auto inside = [&](TokenId id) { return id >= 0 && static_cast<std::size_t>(id) < count; };
    for (const auto& ids : {m_before, m_after})
        for (const TokenId id : ids)
            if (!inside(id))
                throw EngineError("tokenizer: the post-processor adds token " + std::to_string(id) + ", but ids end at " +
                                  std::to_string(count));
    if (!inside(m_bos)) m_bos = -1;
    if (!inside(m_eos)) m_eos = -1;
}

std::vector<TokenId> ByteBpeTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
    if (const std::size_t bad = firstInvalidUtf8(text); bad != std::string_view::npos)
        throw EngineError("text: expected UTF-8, found a broken character at byte " + std::to_string(bad));
    if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
        throw EngineError("text: expected at most 2 GiB, found " + std::to_string(text.size()) + " bytes");

    std::vector<TokenId> ids;
    ids.reserve(text.size() / 3 + 8);
    if (options.addSpecial) ids.insert(ids.end(), m_before.begin(), m_before.end());
    const auto encodeText = [&](std::string_view part) {
        m_preTokenizer.split(part, [&](std::string_view piece) { m_bpe.encode(piece, ids); });
    };
    const auto encodeNormal = [&](std::string_view part, TokenId id) {
        if (id >= 0)
            ids.push_back(id);
        else
            encodeText(part);
    };
    m_rawAdded.split(text, options.parseSpecial, [&](std::string_view part, TokenId id) {
        if (id >= 0) {
            ids.push_back(id);
            return;
        }
        const std::string normal = m_nfc ? toNfc(part) : std::string();
        m_normalizedAdded.split(m_nfc ? std::string_view(normal) : part, options.parseSpecial, encodeNormal);
    });
    if (options.addSpecial) ids.insert(ids.end(), m_after.begin(), m_after.end());
    return ids;
}

std::string ByteBpeTokenizer::bytes(TokenId id) const {
    if (id < 0 || id >= vocab())
        throw EngineError("tokenizer: expected token ids from 0 to " + std::to_string(vocab() - 1) + ", found " + std::to_string(id));
    return m_bytes[id];
}

bool ByteBpeTokenizer::isSpecial(TokenId id) const { return id >= 0 && id < vocab() && m_special[id]; }

std::string ByteBpeTokenizer::describe() const {
    return "byte-level BPE, pre-tokenizer " + m_preTokenizer.name() + (m_nfc ? ", NFC" : "") + ", " + std::to_string(vocab()) + " tokens";
}

} // namespace keepsight
