// Code points, their classes and NFC, exactly as the Hugging Face tokenizers library sees them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace keepsight {

// Bits of classOf. The library's parts are built on different Unicode versions, so two pairs of bits differ a little.
enum CharClass : std::uint8_t {
    Letter = 1,    // \p{L} of split expressions
    Number = 2,    // \p{N} of split expressions
    Space = 4,     // \s of split expressions
    Numeric = 8,   // what the Digits pre-tokenizer isolates
    WordChar = 16, // \w beside added tokens
    Blank = 32,    // \s beside added tokens
};
std::uint8_t classOf(char32_t c); // 0 for values that are no code point

struct CodePoint {
    char32_t value = 0;
    std::size_t length = 0; // bytes
};
// text must be valid UTF-8 and at < text.size().
CodePoint codePointAt(std::string_view text, std::size_t at);
CodePoint codePointBefore(std::string_view text, std::size_t end); // the one that ends at `end` > 0
void appendUtf8(std::string& out, char32_t c);

std::string toNfc(std::string_view text); // valid UTF-8 in, NFC out

// Offset of the first byte that does not belong to a well-formed character; npos: valid throughout.
std::size_t firstInvalidUtf8(std::string_view text);

} // namespace keepsight
