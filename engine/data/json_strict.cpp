#include "engine/data/json_strict.h"

namespace keepsight {

OrderedJson parseStrictJson(const std::string& text, const std::string& what) {
    constexpr int MaxDepth = 16;
    std::vector<std::set<std::string>> keys;
    const auto check = [&](int depth, OrderedJson::parse_event_t event, OrderedJson& parsed) {
        if (depth > MaxDepth) throw EngineError(what + ": nested deeper than " + std::to_string(MaxDepth));
        if (event == OrderedJson::parse_event_t::object_start) keys.emplace_back();
        if (event == OrderedJson::parse_event_t::object_end && !keys.empty()) keys.pop_back();
        if (event == OrderedJson::parse_event_t::key && !keys.empty()) {
            const auto& key = parsed.get_ref<const std::string&>();
            if (!keys.back().insert(key).second) throw EngineError(what + ": key '" + key + "' appears twice");
        }
        return true;
    };
    try {
        return OrderedJson::parse(text, check);
    } catch (const OrderedJson::parse_error& error) {
        throw EngineError(what + ": not valid JSON at byte " + std::to_string(error.byte));
    } catch (const OrderedJson::exception&) {
        throw EngineError(what + ": not valid JSON (a number is out of range)");
    }
}

bool isUtf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const auto first = static_cast<unsigned char>(text[i]);
        const std::size_t more = first < 0x80                    ? 0
                                 : first >= 0xC2 && first < 0xE0 ? 1
                                 : first >= 0xE0 && first < 0xF0 ? 2
                                 : first >= 0xF0 && first < 0xF5 ? 3
                                                                 : 4;
        if (more == 4 || i + more >= text.size()) return false;
        for (std::size_t k = 1; k <= more; ++k)
            if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return false;
        if (more > 1) { // overlong forms, surrogates, beyond U+10FFFF
            const auto second = static_cast<unsigned char>(text[i + 1]);
            if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
                (first == 0xF4 && second > 0x8F))
                return false;
        }
        i += more + 1;
    }
    return true;
}

OrderedJson jsonOfBytes(const std::string& bytes) {
    if (isUtf8(bytes)) return bytes;
    static const char digits[] = "0123456789abcdef";
    std::string hex;
    for (const char c : bytes) {
        hex += digits[static_cast<unsigned char>(c) >> 4];
        hex += digits[static_cast<unsigned char>(c) & 15];
    }
    return {{"hex", hex}};
}

std::string bytesOfJson(const OrderedJson& value, const std::string& what) {
    if (value.is_string()) return value.get<std::string>();
    if (!value.is_object() || value.size() != 1 || !value.contains("hex") || !value["hex"].is_string())
        throw EngineError(what + ": expected a string");
    const auto& hex = value["hex"].get_ref<const std::string&>();
    const auto digit = [&](char c) -> unsigned {
        if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
        if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
        throw EngineError(what + ": '" + std::string(1, c) + "' is no hexadecimal digit");
    };
    if (hex.size() % 2 != 0) throw EngineError(what + ": an odd number of hexadecimal digits");
    std::string bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2)
        bytes += static_cast<char>(digit(hex[i]) * 16 + digit(hex[i + 1]));
    return bytes;
}

} // namespace keepsight
