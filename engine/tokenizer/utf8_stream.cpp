#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/unicode.h"

#include <algorithm>

namespace keepsight {
namespace {

constexpr std::string_view Replacement = "\xEF\xBF\xBD";

// Could these bytes, of which the first is already known not to start a whole character, still become one?
bool mayBecomeCharacter(std::string_view tail) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(tail[i]); };
    const std::size_t length = byte(0) >= 0xC2 && byte(0) <= 0xDF   ? 2
                               : byte(0) >= 0xE0 && byte(0) <= 0xEF ? 3
                               : byte(0) >= 0xF0 && byte(0) <= 0xF4 ? 4
                                                                    : 0;
    if (tail.size() >= length) return false;
    std::string whole(tail);
    if (whole.size() == 1) whole += byte(0) == 0xE0 ? '\xA0' : byte(0) == 0xF0 ? '\x90' : '\x80';
    whole.resize(length, '\x80');
    return isValidUtf8(whole);
}

// How many bytes one U+FFFD stands for: the longest start of a character, at least one byte (Unicode, section 3.9).
std::size_t brokenLength(std::string_view text) {
    std::size_t length = 1;
    while (length < text.size() && length < 3 && mayBecomeCharacter(text.substr(0, length)) &&
           mayBecomeCharacter(text.substr(0, length + 1)))
        ++length;
    return length;
}

} // namespace

std::string Utf8Stream::push(std::string_view bytes) {
    m_pending += bytes;
    std::string out;
    std::string_view rest = m_pending;
    while (!rest.empty()) {
        const std::size_t good = std::min(firstInvalidUtf8(rest), rest.size());
        out += rest.substr(0, good);
        rest.remove_prefix(good);
        if (rest.empty() || mayBecomeCharacter(rest)) break;
        out += Replacement;
        rest.remove_prefix(brokenLength(rest));
    }
    m_pending = std::string(rest);
    return out;
}

std::string Utf8Stream::finish() {
    const bool unfinished = !m_pending.empty();
    m_pending.clear();
    return unfinished ? std::string(Replacement) : std::string();
}

bool isValidUtf8(std::string_view text) { return firstInvalidUtf8(text) == std::string_view::npos; }

} // namespace keepsight
