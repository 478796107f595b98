// A whole file mapped read-only, and checked reading from a range of bytes.
#pragma once

#include "engine/data/error.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

// MAP_PRIVATE, PROT_READ; regular files only. Whoever truncates the file while it is mapped makes later reads fault: the system offers no
// guard.
class MappedFile {
public:
    explicit MappedFile(const std::filesystem::path& path); // throws EngineError
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    std::span<const std::byte> bytes() const { return {m_data, m_size}; }

private:
    const std::byte* m_data = nullptr;
    std::size_t m_size = 0;
};

// Little-endian values one after the other; a read past the end is refused with what was claimed and what is there.
class ByteReader {
public:
    ByteReader(std::span<const std::byte> bytes, std::string where) : m_bytes(bytes), m_where(std::move(where)) {}

    std::uint64_t offset() const { return m_offset; }
    std::uint64_t remaining() const { return m_bytes.size() - m_offset; }
    std::span<const std::byte> take(std::uint64_t count, std::string_view what);

    template <class T>
    T value(std::string_view what) {
        static_assert(std::endian::native == std::endian::little);
        T v{};
        std::memcpy(&v, take(sizeof(T), what).data(), sizeof(T));
        return v;
    }

    [[noreturn]] void fail(const std::string& sentence) const; // prefixed with the file's name

private:
    std::span<const std::byte> m_bytes;
    std::string m_where;
    std::uint64_t m_offset = 0;
};

std::string shown(std::string_view text);                                // foreign text in a message: printable, at most 80 bytes
bool isPlainName(std::string_view text);                                 // printable ASCII without spaces, 1 to 512 bytes
std::string shapeText(const std::vector<std::int64_t>& shape);           // "576×1536"
bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product); // false: overflow

} // namespace keepsight
