#include "engine/model/weights_json.h"

#include "engine/data/error.h"
#include "engine/model/weights_mapping.h"

#include <vector>

namespace keepsight {
namespace {

using nlohmann::json;

// Builds the document while it checks what nlohmann's own reader lets through.
class StrictHandler final : public nlohmann::json_sax<json> {
public:
    explicit StrictHandler(std::string where) : m_where(std::move(where)) {}
    json result() { return std::move(m_root); }

    bool null() override { return put(nullptr); }
    bool boolean(bool v) override { return put(v); }
    bool number_integer(number_integer_t v) override { return put(v); }
    bool number_unsigned(number_unsigned_t v) override { return put(v); }
    bool number_float(number_float_t v, const string_t& text) override {
        if (text.find_first_of(".eE") == string_t::npos) fail("the integer " + shown(text) + " does not fit into 64 bits");
        return put(v);
    }
    bool string(string_t& v) override { return put(std::move(v)); }
    bool binary(binary_t&) override { fail("binary values are not JSON"); }
    bool start_object(std::size_t) override { return open(json::object()); }
    bool start_array(std::size_t) override { return open(json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& v) override {
        if (m_open.back()->contains(v)) fail("the key '" + shown(v) + "' occurs twice");
        m_key = std::move(v);
        return true;
    }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& problem) override {
        // the library's text starts with its own error id in brackets
        std::string text = problem.what();
        if (const auto end = text.find("] "); end != std::string::npos) text.erase(0, end + 2);
        fail("not valid JSON at byte " + std::to_string(position) + " (" + shown(text) + ")");
    }

private:
    [[noreturn]] void fail(const std::string& sentence) const { throw EngineError(m_where + ": " + sentence); }

    json* place(json value) {
        if (++m_values > MaxValues) fail("holds more than " + std::to_string(MaxValues) + " values");
        if (m_open.empty()) return &(m_root = std::move(value));
        json& parent = *m_open.back();
        if (parent.is_array()) return &parent.emplace_back(std::move(value));
        return &(parent[m_key] = std::move(value));
    }
    bool put(json value) { return place(std::move(value)) != nullptr; }
    bool open(json value) {
        if (m_open.size() >= static_cast<std::size_t>(MaxJsonDepth))
            fail("JSON is nested deeper than " + std::to_string(MaxJsonDepth) + " levels");
        // pointers to open containers stay valid: a container grows only after its open child was closed
        m_open.push_back(place(std::move(value)));
        return true;
    }
    bool close() {
        m_open.pop_back();
        return true;
    }

    static constexpr int MaxValues = 4'000'000; // bounds memory: a value takes far more bytes than its shortest text

    std::string m_where;
    int m_values = 0;
    json m_root;
    std::vector<json*> m_open;
    std::string m_key;
};

} // namespace

json parseForeignJson(std::string_view text, const std::string& where) {
    StrictHandler handler(where);
    if (!json::sax_parse(text.begin(), text.end(), &handler)) throw EngineError(where + ": not valid JSON");
    return handler.result();
}

std::string readSmallFile(const std::filesystem::path& file, std::uintmax_t maxBytes) {
    const MappedFile mapping(file);
    if (mapping.bytes().size() > maxBytes)
        throw EngineError("'" + file.string() + "' has " + std::to_string(mapping.bytes().size()) + " bytes, at most " +
                          std::to_string(maxBytes) + " are read");
    return {reinterpret_cast<const char*>(mapping.bytes().data()), mapping.bytes().size()};
}

json readForeignJson(const std::filesystem::path& file, std::uintmax_t maxBytes) {
    const std::string text = readSmallFile(file, maxBytes);
    return parseForeignJson(text, "'" + file.string() + "'");
}

bool isUtf8Text(std::string_view text) {
    try {
        return !json(std::string(text)).dump().empty(); // the writer refuses what is not UTF-8
    } catch (const json::exception&) {
        return false;
    }
}

} // namespace keepsight
