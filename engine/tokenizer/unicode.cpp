#include "engine/tokenizer/unicode.h"

#include "engine/tokenizer/unicode_data.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace keepsight {
namespace {

using namespace unicode_data;

constexpr char32_t Limit = 0x110000;

std::vector<std::uint8_t> makeClasses() {
    std::vector<std::uint8_t> classes(Limit, 0);
    const auto mark = [&](const Range* ranges, std::size_t count, std::uint8_t bit) {
        for (std::size_t i = 0; i < count; ++i)
            for (char32_t c = ranges[i].first; c <= ranges[i].last; ++c)
                classes[c] |= bit;
    };
    mark(letterRanges, letterCount, Letter);
    mark(numberRanges, numberCount, Number);
    mark(spaceRanges, spaceCount, Space);
    mark(numericRanges, numericCount, Numeric);
    mark(wordRanges, wordCount, WordChar);
    mark(blankRanges, blankCount, Blank);
    return classes;
}

// Hangul syllables are composed by arithmetic (Unicode, section 3.12).
constexpr char32_t SBase = 0xAC00, LBase = 0x1100, VBase = 0x1161, TBase = 0x11A7;
constexpr char32_t LCount = 19, VCount = 21, TCount = 28, SCount = LCount * VCount * TCount;

struct NfcTables {
    std::unordered_map<char32_t, std::uint8_t> combining;
    std::unordered_map<char32_t, const Pair*> decompose;
    std::unordered_map<char32_t, const Replacement*> replace;
    std::unordered_map<std::uint64_t, char32_t> compose;

    NfcTables() {
        for (std::size_t i = 0; i < markCount; ++i)
            for (char32_t c = markRanges[i].first; c <= markRanges[i].last; ++c)
                combining[c] = markRanges[i].combiningClass;
        for (std::size_t i = 0; i < pairCount; ++i) {
            decompose[pairs[i].composite] = &pairs[i];
            compose[key(pairs[i].first, pairs[i].second)] = pairs[i].composite;
        }
        for (std::size_t i = 0; i < replacementCount; ++i)
            replace[replacements[i].from] = &replacements[i];
    }
    static std::uint64_t key(char32_t a, char32_t b) { return (std::uint64_t(a) << 32) | b; }
    std::uint8_t combiningClass(char32_t c) const {
        const auto found = combining.find(c);
        return found == combining.end() ? 0 : found->second;
    }
};

const NfcTables& nfcTables() {
    static const NfcTables tables;
    return tables;
}

void appendDecomposed(std::u32string& out, char32_t c, const NfcTables& tables) {
    if (c >= SBase && c < SBase + SCount) {
        const char32_t s = c - SBase;
        out += LBase + s / (VCount * TCount);
        out += VBase + s % (VCount * TCount) / TCount;
        if (s % TCount != 0) out += TBase + s % TCount;
    } else if (const auto replaced = tables.replace.find(c); replaced != tables.replace.end()) {
        for (const char32_t part : replaced->second->to)
            if (part != 0) out += part;
    } else if (const auto pair = tables.decompose.find(c); pair != tables.decompose.end()) {
        appendDecomposed(out, pair->second->first, tables);
        out += pair->second->second;
    } else {
        out += c;
    }
}

char32_t composed(char32_t a, char32_t b, const NfcTables& tables) { // 0: they do not compose
    if (a >= LBase && a < LBase + LCount && b >= VBase && b < VBase + VCount) return SBase + ((a - LBase) * VCount + (b - VBase)) * TCount;
    if (a >= SBase && a < SBase + SCount && (a - SBase) % TCount == 0 && b > TBase && b < TBase + TCount) return a + (b - TBase);
    const auto found = tables.compose.find(NfcTables::key(a, b));
    return found == tables.compose.end() ? 0 : found->second;
}

} // namespace

std::uint8_t classOf(char32_t c) {
    static const std::vector<std::uint8_t> classes = makeClasses();
    return c < Limit ? classes[c] : 0;
}

CodePoint codePointAt(std::string_view text, std::size_t at) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return {lead, 1};
    if (lead < 0xE0) return {char32_t(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
    if (lead < 0xF0) return {char32_t(lead & 0x0F) << 12 | char32_t(byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
    return {char32_t(lead & 0x07) << 18 | char32_t(byte(1) & 0x3F) << 12 | char32_t(byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

CodePoint codePointBefore(std::string_view text, std::size_t end) {
    std::size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80)
        --at;
    return codePointAt(text, at);
}

void appendUtf8(std::string& out, char32_t c) {
    const auto put = [&](char32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | c >> 6);
        put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | c >> 12);
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | c >> 18);
        put(0x80 | (c >> 12 & 0x3F));
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    }
}

std::string toNfc(std::string_view text) {
    // Nothing below U+0300 changes, and its first byte is below 0xCC: most text is done after one look.
    if (std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0xCC; })) return std::string(text);

    const NfcTables& tables = nfcTables();
    std::u32string chars;
    chars.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) {
        const CodePoint c = codePointAt(text, at);
        appendDecomposed(chars, c.value, tables);
        at += c.length;
    }
    std::vector<std::uint8_t> classes(chars.size());
    std::transform(chars.begin(), chars.end(), classes.begin(), [&](char32_t c) { return tables.combiningClass(c); });

    // Canonical order: each run of marks sorted by class, equal classes in their order.
    std::vector<std::pair<std::uint8_t, char32_t>> run;
    for (std::size_t first = 0; first < chars.size();) {
        std::size_t last = first;
        while (last < chars.size() && classes[last] != 0)
            ++last;
        if (last - first > 1) {
            run.clear();
            for (std::size_t i = first; i < last; ++i)
                run.emplace_back(classes[i], chars[i]);
            std::stable_sort(run.begin(), run.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
            for (std::size_t i = first; i < last; ++i)
                std::tie(classes[i], chars[i]) = run[i - first];
        }
        first = last + 1;
    }

    // Composition: a mark joins the last starter unless one of the same or a higher class, or a starter, stands between.
    std::u32string out;
    out.reserve(chars.size());
    std::size_t starter = std::u32string::npos; // index into out
    int lastClass = -1;                         // class of the newest character kept after the starter; −1: none
    for (std::size_t i = 0; i < chars.size(); ++i) {
        if (starter != std::u32string::npos && lastClass < int(classes[i])) {
            if (const char32_t joined = composed(out[starter], chars[i], tables)) {
                out[starter] = joined;
                continue;
            }
        }
        if (classes[i] == 0) {
            starter = out.size();
            lastClass = -1;
        } else {
            lastClass = classes[i];
        }
        out += chars[i];
    }
    std::string utf8;
    utf8.reserve(text.size());
    for (const char32_t c : out)
        appendUtf8(utf8, c);
    return utf8;
}

std::size_t firstInvalidUtf8(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    for (std::size_t at = 0; at < text.size();) {
        const unsigned char lead = byte(at);
        if (lead < 0x80) {
            ++at;
            continue;
        }
        const std::size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                                   : lead >= 0xE0 && lead <= 0xEF ? 3
                                   : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                                  : 0;
        if (length == 0 || at + length > text.size()) return at;
        // The second byte excludes overlong forms, surrogates and values above U+10FFFF.
        const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (byte(at + 1) < low || byte(at + 1) > high) return at;
        for (std::size_t i = 2; i < length; ++i)
            if ((byte(at + i) & 0xC0) != 0x80) return at;
        at += length;
    }
    return std::string_view::npos;
}

} // namespace keepsight
