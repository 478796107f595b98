// GGUF versions 2 and 3, little-endian. Layout: magic, version, counts; key-value pairs; tensor table; padding; tensor data.
// Every count is compared with the bytes that remain before anything is multiplied, rounded or allocated.
#include "engine/model/weights_gguf.h"

#include "engine/data/error.h"
#include "engine/model/weights_json.h"

#include <algorithm>
#include <array>

namespace keepsight {
namespace {

constexpr std::uint64_t MaxStringBytes = 64u << 20;
constexpr std::uint64_t MaxArrayItems = 64u << 20;
constexpr std::uint64_t MaxEntries = 1u << 20; // keys, and tensors
constexpr int MaxArrayDepth = 4;
constexpr std::uint64_t MaxAlignment = 64u << 10;
constexpr std::uint64_t MinKeyBytes = 8 + 4 + 1;            // empty name, type, smallest value
constexpr std::uint64_t MinTensorBytes = 8 + 4 + 8 + 4 + 8; // empty name, one dimension, type, offset

// Names of GGML's storage types by number, for refusals.
constexpr std::array<const char*, 40> TypeNames = {
    "F32",  "F16",   "Q4_0",    "Q4_1",   "",        "",      "Q5_0",   "Q5_1",  "Q8_0",  "Q8_1",   "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",   "I16",  "I32",  "I64",
    "F64",  "IQ1_M", "BF16",    "",       "",        "",      "TQ1_0",  "TQ2_0", "",      "",       "",     "MXFP4"};

std::uint64_t scalarBytes(GgufType type) {
    switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
        return 1;
    case GgufType::u16:
    case GgufType::i16:
        return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
        return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
        return 8;
    case GgufType::string:
    case GgufType::array:
        break;
    }
    return 0;
}

class Parser {
public:
    Parser(std::span<const std::byte> bytes, const std::string& where) : m_bytes(bytes), m_in(bytes, where) {
        m_out.metadata.where = where;
    }

    GgufFile run() {
        const auto magic = m_in.take(4, "the magic");
        if (std::memcmp(magic.data(), "GGUF", 4) != 0) m_in.fail("expected the magic 'GGUF', found '" + shown(asText(magic)) + "'");
        const auto version = m_in.value<std::uint32_t>("the version");
        if (version != 0 && (version & 0xffffu) == 0) m_in.fail("is a big-endian GGUF file, only little-endian ones are read");
        if (version != 2 && version != 3) m_in.fail("is GGUF version " + std::to_string(version) + ", versions 2 and 3 are read");
        const auto tensors = m_in.value<std::uint64_t>("the tensor count");
        const auto keys = m_in.value<std::uint64_t>("the key count");
        bound("keys", keys, MinKeyBytes, MaxEntries);
        for (std::uint64_t i = 0; i < keys; ++i)
            readKey();
        bound("tensors", tensors, MinTensorBytes, MaxEntries);
        for (std::uint64_t i = 0; i < tensors; ++i)
            readTensor();
        placeTensors();
        return std::move(m_out);
    }

private:
    static std::string_view asText(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

    void bound(const std::string& what, std::uint64_t count, std::uint64_t leastBytes, std::uint64_t most) {
        if (count > m_in.remaining() / leastBytes || count > most)
            m_in.fail("claims " + std::to_string(count) + " " + what + ", the " + std::to_string(m_in.remaining()) +
                      " bytes left hold at most " + std::to_string(std::min(m_in.remaining() / leastBytes, most)));
    }

    std::string_view readString(const std::string& what) {
        const auto length = m_in.value<std::uint64_t>(what);
        if (length > MaxStringBytes)
            m_in.fail(what + " claims " + std::to_string(length) + " bytes, at most " + std::to_string(MaxStringBytes) + " are read");
        return asText(m_in.take(length, what));
    }

    std::string readName(const std::string& what) {
        const std::string_view name = readString(what);
        if (!isPlainName(name)) m_in.fail(what + " '" + shown(name) + "' should be 1 to 512 printable ASCII characters");
        return std::string(name);
    }

    GgufType readType(const std::string& key) {
        const auto type = m_in.value<std::uint32_t>("the type of key '" + key + "'");
        if (type > static_cast<std::uint32_t>(GgufType::f64)) m_in.fail("key '" + key + "' has the unknown type " + std::to_string(type));
        return static_cast<GgufType>(type);
    }

    // Moves over `count` values of one type, so that later reads need no checks.
    void skip(GgufType type, std::uint64_t count, const std::string& key, int depth) {
        if (const auto size = scalarBytes(type)) {
            bound("items in key '" + key + "'", count, size, MaxArrayItems);
            const auto bytes = m_in.take(count * size, "key '" + key + "'");
            if (type == GgufType::boolean && std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b > std::byte{1}; }))
                m_in.fail("key '" + key + "' holds a boolean other than 0 and 1");
            return;
        }
        bound("items in key '" + key + "'", count, type == GgufType::string ? 8 : 12, MaxArrayItems);
        for (std::uint64_t i = 0; i < count; ++i) {
            if (type == GgufType::string) {
                readString("a string of key '" + key + "'");
                continue;
            }
            if (depth >= MaxArrayDepth)
                m_in.fail("key '" + key + "' nests arrays deeper than " + std::to_string(MaxArrayDepth) + " levels");
            const GgufType inner = readType(key);
            skip(inner, m_in.value<std::uint64_t>("the length of key '" + key + "'"), key, depth + 1);
        }
    }

    void readKey() {
        const std::string key = readName("the name of a key");
        GgufValue value;
        value.type = readType(key);
        if (value.type == GgufType::array) {
            value.isArray = true;
            value.type = readType(key);
            value.count = m_in.value<std::uint64_t>("the length of key '" + key + "'");
        }
        const auto begin = m_in.offset();
        skip(value.type, value.count, key, 1);
        value.bytes = m_bytes.subspan(begin, m_in.offset() - begin);
        if (!m_out.metadata.values.emplace(key, value).second) m_in.fail("the key '" + key + "' occurs twice");
    }

    void readTensor() {
        WeightTensor tensor;
        tensor.name = readName("the name of a tensor");
        const std::string what = "tensor '" + tensor.name + "'";
        const auto dimensions = m_in.value<std::uint32_t>(what);
        if (dimensions < 1 || dimensions > 4) m_in.fail(what + " has " + std::to_string(dimensions) + " dimensions, expected 1 to 4");
        std::uint64_t elements = 1;
        for (std::uint32_t d = 0; d < dimensions; ++d) {
            const auto size = m_in.value<std::uint64_t>(what);
            if (size < 1 || !multiply(elements, size, elements) || elements > (std::uint64_t{1} << 48))
                m_in.fail(what + " has an impossible size " + std::to_string(size));
            tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(size)); // the file lists the fastest dimension first
        }
        const auto type = m_in.value<std::uint32_t>(what);
        switch (type) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 8:
        case 30:
            tensor.type = static_cast<WeightType>(type);
            break;
        default: {
            const std::string known =
                type < TypeNames.size() && *TypeNames[type] ? TypeNames[type] : "of unknown type " + std::to_string(type);
            m_in.fail(what + " is " + known + "; supported are F32, F16, BF16, Q8_0, Q4_0 and Q4_1");
        }
        }
        const auto offset = m_in.value<std::uint64_t>(what);
        const auto columns = static_cast<std::uint64_t>(tensor.shape.back());
        const bool blocks = tensor.type == WeightType::q4_0 || tensor.type == WeightType::q4_1 || tensor.type == WeightType::q8_0;
        if (blocks && columns % 32 != 0)
            m_in.fail(what + " is " + name(tensor.type) + " with rows of " + std::to_string(columns) + ", expected a multiple of 32");
        std::uint64_t size = 0;
        if (!multiply(static_cast<std::uint64_t>(rowBytes(tensor.type, tensor.shape.back())), elements / columns, size))
            m_in.fail(what + " is too large");
        m_places.push_back({offset, size, tensor.name});
        std::string key = tensor.name;
        if (!m_out.tensors.emplace(std::move(key), std::move(tensor)).second) m_in.fail("the " + what + " occurs twice");
    }

    void placeTensors() {
        const auto alignment = static_cast<std::uint64_t>(m_out.metadata.integer("general.alignment").value_or(32));
        if (alignment < 8 || alignment > MaxAlignment || !std::has_single_bit(alignment))
            m_in.fail("general.alignment is " + std::to_string(alignment) + ", expected a power of two from 8 to " +
                      std::to_string(MaxAlignment));
        const std::uint64_t padding = (alignment - m_in.offset() % alignment) % alignment;
        if (m_places.empty()) return;
        m_in.take(padding, "the padding before the tensors");
        const auto data = m_bytes.subspan(m_in.offset());
        std::sort(m_places.begin(), m_places.end(), [](const Place& a, const Place& b) { return a.offset < b.offset; });
        std::uint64_t end = 0;
        const std::string* previous = nullptr;
        for (const Place& place : m_places) {
            const std::string what = "tensor '" + place.name + "'";
            if (place.offset % alignment != 0)
                m_in.fail(what + " starts at " + std::to_string(place.offset) + ", no multiple of the alignment " +
                          std::to_string(alignment));
            if (place.offset > data.size() || place.size > data.size() - place.offset)
                m_in.fail(what + " claims " + std::to_string(place.size) + " bytes at " + std::to_string(place.offset) +
                          " of the tensor data, which has " + std::to_string(data.size()) + "; is the file complete?");
            if (previous && place.offset < end) m_in.fail(what + " overlaps tensor '" + *previous + "'");
            end = place.offset + place.size;
            previous = &place.name;
            m_out.tensors.find(place.name)->second.bytes = data.subspan(place.offset, place.size);
        }
    }

    struct Place {
        std::uint64_t offset, size;
        std::string name;
    };
    std::span<const std::byte> m_bytes;
    ByteReader m_in;
    GgufFile m_out;
    std::vector<Place> m_places;
};

template <class T>
T load(const std::byte* from) {
    T v;
    std::memcpy(&v, from, sizeof(T));
    return v;
}

std::optional<std::int64_t> asInteger(GgufType type, const std::byte* p) {
    switch (type) {
    case GgufType::u8:
        return load<std::uint8_t>(p);
    case GgufType::i8:
        return load<std::int8_t>(p);
    case GgufType::u16:
        return load<std::uint16_t>(p);
    case GgufType::i16:
        return load<std::int16_t>(p);
    case GgufType::u32:
        return load<std::uint32_t>(p);
    case GgufType::i32:
        return load<std::int32_t>(p);
    case GgufType::i64:
        return load<std::int64_t>(p);
    case GgufType::u64: {
        const auto v = load<std::uint64_t>(p);
        if (v <= static_cast<std::uint64_t>(INT64_MAX)) return static_cast<std::int64_t>(v);
        return {};
    }
    default:
        return {};
    }
}

} // namespace

GgufFile parseGguf(std::span<const std::byte> bytes, const std::string& where) { return Parser(bytes, where).run(); }

void GgufMetadata::fail(const std::string& sentence) const { throw EngineError("weights: '" + where + "': " + sentence); }

const GgufValue* GgufMetadata::find(std::string_view key) const {
    const auto it = values.find(key);
    return it == values.end() ? nullptr : &it->second;
}

std::optional<std::int64_t> GgufMetadata::integer(std::string_view key) const {
    const GgufValue* v = find(key);
    if (!v) return {};
    const auto number = v->isArray ? std::nullopt : asInteger(v->type, v->bytes.data());
    if (!number) fail("key '" + std::string(key) + "' should be an integer");
    return number;
}

std::optional<double> GgufMetadata::real(std::string_view key) const {
    const GgufValue* v = find(key);
    if (!v) return {};
    if (!v->isArray && v->type == GgufType::f32) return load<float>(v->bytes.data());
    if (!v->isArray && v->type == GgufType::f64) return load<double>(v->bytes.data());
    fail("key '" + std::string(key) + "' should be a floating-point number");
}

std::optional<bool> GgufMetadata::boolean(std::string_view key) const {
    const GgufValue* v = find(key);
    if (!v) return {};
    if (v->isArray || v->type != GgufType::boolean) fail("key '" + std::string(key) + "' should be a boolean");
    return v->bytes[0] != std::byte{0};
}

std::optional<std::string> GgufMetadata::text(std::string_view key) const {
    const GgufValue* v = find(key);
    if (!v) return {};
    if (v->isArray || v->type != GgufType::string) fail("key '" + std::string(key) + "' should be a string");
    std::string out(reinterpret_cast<const char*>(v->bytes.data()) + 8, v->bytes.size() - 8);
    if (!isUtf8Text(out)) fail("key '" + std::string(key) + "' is not UTF-8");
    return out;
}

std::vector<std::string> GgufMetadata::texts(std::string_view key) const {
    const GgufValue* v = find(key);
    if (!v) return {};
    if (!v->isArray || v->type != GgufType::string) fail("key '" + std::string(key) + "' should be a list of strings");
    std::vector<std::string> out;
    out.reserve(v->count);
    const std::byte* p = v->bytes.data();
    for (std::uint64_t i = 0; i < v->count; ++i) {
        const auto length = load<std::uint64_t>(p);
        out.emplace_back(reinterpret_cast<const char*>(p + 8), length);
        p += 8 + length;
    }
    return out;
}

std::vector<std::int64_t> GgufMetadata::integers(std::string_view key) const {
    const GgufValue* v = find(key);
    if (!v) return {};
    std::vector<std::int64_t> out;
    for (std::uint64_t i = 0; i < v->count; ++i) {
        const auto number = asInteger(v->type, v->bytes.data() + i * scalarBytes(v->type));
        if (!number) fail("key '" + std::string(key) + "' should hold integers");
        out.push_back(*number);
    }
    return out;
}

} // namespace keepsight
