// The generated tables behind unicode.h (tests/golden/make_unicode_tables.py writes unicode_classes.cpp and unicode_nfc.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace keepsight::unicode_data {

struct Range {
    char32_t first, last;
};
struct MarkRange {
    char32_t first, last;
    std::uint8_t combiningClass;
};
struct Pair { // canonical composite and its two parts
    char32_t composite, first, second;
};
struct Replacement { // decomposes for good: NFC never composes it again
    char32_t from, to[3];
};

extern const Range letterRanges[], numberRanges[], spaceRanges[], numericRanges[], wordRanges[], blankRanges[];
extern const std::size_t letterCount, numberCount, spaceCount, numericCount, wordCount, blankCount;
extern const MarkRange markRanges[];
extern const std::size_t markCount;
extern const Pair pairs[];
extern const std::size_t pairCount;
extern const Replacement replacements[];
extern const std::size_t replacementCount;

} // namespace keepsight::unicode_data
