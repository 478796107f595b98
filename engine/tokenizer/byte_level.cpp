#include "engine/tokenizer/byte_level.h"

#include "engine/tokenizer/unicode.h"

namespace keepsight {
namespace {

struct Alphabet {
    std::array<std::string, 256> letters;
    std::array<int, 512> byteOf;

    // Bytes that are visible in Latin-1 stand for themselves; the others take the code points from U+0100 on, in order.
    Alphabet() {
        byteOf.fill(-1);
        char32_t next = 0x100;
        for (int byte = 0; byte < 256; ++byte) {
            const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
            const char32_t letter = visible ? char32_t(byte) : next++;
            appendUtf8(letters[byte], letter);
            byteOf[letter] = byte;
        }
    }
};

const Alphabet& alphabet() {
    static const Alphabet instance;
    return instance;
}

} // namespace

const std::array<std::string, 256>& byteLetters() { return alphabet().letters; }

std::optional<std::string> bytesOfLetters(std::string_view utf8) {
    std::string bytes;
    if (firstInvalidUtf8(utf8) != std::string_view::npos) return std::nullopt;
    for (std::size_t at = 0; at < utf8.size();) {
        const CodePoint c = codePointAt(utf8, at);
        const int byte = c.value < 512 ? alphabet().byteOf[c.value] : -1;
        if (byte < 0) return std::nullopt;
        bytes += static_cast<char>(static_cast<unsigned char>(byte));
        at += c.length;
    }
    return bytes;
}

} // namespace keepsight
