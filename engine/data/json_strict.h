// Reading our own JSON strictly: unknown keys, wrong types and numbers that do not fit are refused by name.
// Internal to engine/data's sources; not part of any interface.
#pragma once

#include "engine/data/error.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

namespace keepsight {

using OrderedJson = nlohmann::ordered_json;

// Depth ≤ 16 and no duplicate keys; `what` opens every message.
OrderedJson parseStrictJson(const std::string& text, const std::string& what);
bool isUtf8(std::string_view text);
// Bytes that are not UTF-8 (a path, an answer cut inside a character) become {"hex": "…"}.
OrderedJson jsonOfBytes(const std::string& bytes);
std::string bytesOfJson(const OrderedJson& value, const std::string& what);

// One object being read: every member is taken at most once, finish() refuses what is left.
class StrictObject {
public:
    StrictObject(const OrderedJson& value, std::string what) : m_value(value), m_what(std::move(what)) {
        if (!value.is_object()) throw EngineError(m_what + ": expected an object, found " + value.type_name());
    }
    const OrderedJson* take(const char* key) { // nullptr: absent
        const auto it = m_value.find(key);
        if (it == m_value.end()) return nullptr;
        m_taken.insert(key);
        return &*it;
    }
    template <class T>
    void read(const char* key, T& out) {
        if (const OrderedJson* value = take(key)) convert(*value, out, path(key));
    }
    std::string path(const std::string& key) const { return m_what + "." + key; }
    void finish() const {
        for (const auto& [key, value] : m_value.items())
            if (!m_taken.contains(key)) throw EngineError(m_what + ": unknown key '" + key + "'");
    }

    template <class T>
    static void convert(const OrderedJson& value, T& out, const std::string& what) {
        if constexpr (std::is_same_v<T, bool>) {
            if (!value.is_boolean()) throw EngineError(what + ": expected true or false, found " + value.dump());
            out = value.get<bool>();
        } else if constexpr (std::is_same_v<T, std::string>) {
            out = bytesOfJson(value, what);
        } else if constexpr (std::is_integral_v<T>) {
            const bool fits =
                value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<T>::max())
                : value.is_number_integer()
                    ? std::is_signed_v<T> && value.get<std::int64_t>() >= static_cast<std::int64_t>(std::numeric_limits<T>::min())
                    : false;
            if (!fits)
                throw EngineError(what + ": expected a whole number that fits " + std::to_string(sizeof(T) * 8) + " bits, found " +
                                  shortened(value));
            out = value.get<T>();
        } else if constexpr (std::is_floating_point_v<T>) {
            if (!value.is_number()) throw EngineError(what + ": expected a number, found " + shortened(value));
            out = value.get<T>();
        } else { // a vector
            if (!value.is_array()) throw EngineError(what + ": expected an array, found " + shortened(value));
            out.clear();
            for (const OrderedJson& item : value) {
                typename T::value_type one{};
                convert(item, one, what + "[" + std::to_string(out.size()) + "]");
                out.push_back(std::move(one));
            }
        }
    }

private:
    static std::string shortened(const OrderedJson& value) {
        const std::string text = value.dump(-1, ' ', true, OrderedJson::error_handler_t::replace);
        return text.size() > 60 ? text.substr(0, 57) + "..." : text;
    }
    const OrderedJson& m_value;
    std::string m_what;
    std::set<std::string> m_taken;
};

// Names of an enum in value order.
template <class Enum, std::size_t N>
Enum enumOfJson(const OrderedJson& value, const char* const (&names)[N], const std::string& what) {
    std::string list;
    for (std::size_t i = 0; i < N; ++i) {
        if (value.is_string() && value.get_ref<const std::string&>() == names[i]) return static_cast<Enum>(i);
        list += std::string(i ? ", " : "") + names[i];
    }
    throw EngineError(what + ": expected one of " + list + ", found " + value.dump(-1, ' ', true, OrderedJson::error_handler_t::replace));
}

} // namespace keepsight
