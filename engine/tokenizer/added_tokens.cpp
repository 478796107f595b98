#include "engine/tokenizer/added_tokens.h"

#include "engine/tokenizer/unicode.h"

#include <algorithm>

namespace keepsight {
namespace {

bool wordBefore(std::string_view text, std::size_t end) { return end > 0 && (classOf(codePointBefore(text, end).value) & WordChar) != 0; }
bool wordAfter(std::string_view text, std::size_t at) { return at < text.size() && (classOf(codePointAt(text, at).value) & WordChar) != 0; }

} // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : m_tokens(std::move(tokens)) {
    std::erase_if(m_tokens, [](const AddedToken& t) { return t.text.empty(); });
    std::stable_sort(m_tokens.begin(), m_tokens.end(), [](const auto& a, const auto& b) { return a.text.size() > b.text.size(); });
    for (std::size_t i = 0; i < m_tokens.size(); ++i)
        m_byFirstByte[static_cast<unsigned char>(m_tokens[i].text.front())].push_back(i);
}

const AddedToken* AddedTokens::longestAt(std::string_view text, std::size_t at) const {
    for (const std::size_t i : m_byFirstByte[static_cast<unsigned char>(text[at])])
        if (text.compare(at, m_tokens[i].text.size(), m_tokens[i].text) == 0) return &m_tokens[i];
    return nullptr;
}

void AddedTokens::split(std::string_view text, bool parseSpecial, const Sink& sink) const {
    std::size_t done = 0; // everything before it has been handed out
    for (std::size_t at = 0; at < text.size();) {
        const AddedToken* token = longestAt(text, at);
        if (token == nullptr) {
            ++at;
            continue;
        }
        std::size_t start = at, stop = at + token->text.size();
        at = stop; // also when the match is not used: matches never overlap
        if (token->special && !parseSpecial) continue;
        if (token->singleWord && (wordBefore(text, start) || wordAfter(text, stop))) continue;
        if (token->lstrip) {
            while (start > done) {
                const CodePoint c = codePointBefore(text, start);
                if ((classOf(c.value) & Blank) == 0) break;
                start -= c.length;
            }
        }
        if (token->rstrip) {
            while (stop < text.size()) {
                const CodePoint c = codePointAt(text, stop);
                if ((classOf(c.value) & Blank) == 0) break;
                stop += c.length;
            }
        }
        if (start > done) sink(text.substr(done, start - done), -1);
        sink(text.substr(start, stop - start), token->id);
        done = stop;
    }
    if (done < text.size()) sink(text.substr(done), -1);
}

} // namespace keepsight
