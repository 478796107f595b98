#include "engine/model/weights_mapping.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace keepsight {

MappedFile::MappedFile(const std::filesystem::path& path) {
    const std::string where = "weights: cannot read '" + path.string() + "': ";
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); // nonblocking: a pipe must not hang us
    if (file < 0) throw EngineError(where + std::strerror(errno));
    struct stat info {};
    const bool known = ::fstat(file, &info) == 0;
    const int statError = errno;
    if (!known || !S_ISREG(info.st_mode)) {
        ::close(file);
        throw EngineError(where + (known ? "expected a regular file" : std::strerror(statError)));
    }
    m_size = static_cast<std::size_t>(info.st_size);
    if (m_size > 0) {
        void* data = ::mmap(nullptr, m_size, PROT_READ, MAP_PRIVATE, file, 0);
        const int mapError = errno;
        if (data == MAP_FAILED) {
            ::close(file);
            throw EngineError(where + std::strerror(mapError));
        }
        m_data = static_cast<const std::byte*>(data);
    }
    ::close(file);
}

MappedFile::~MappedFile() {
    if (m_data) ::munmap(const_cast<std::byte*>(m_data), m_size);
}

std::span<const std::byte> ByteReader::take(std::uint64_t count, std::string_view what) {
    if (count > remaining())
        fail(std::string(what) + " claims " + std::to_string(count) + " bytes at offset " + std::to_string(m_offset) + ", " +
             std::to_string(remaining()) + " are there");
    const auto part = m_bytes.subspan(static_cast<std::size_t>(m_offset), static_cast<std::size_t>(count));
    m_offset += count;
    return part;
}

void ByteReader::fail(const std::string& sentence) const { throw EngineError("weights: '" + m_where + "': " + sentence); }

std::string shown(std::string_view text) {
    constexpr std::size_t Longest = 80;
    std::string out;
    for (const char c : text.substr(0, Longest))
        out += c >= 0x20 && c < 0x7f ? c : '?';
    return text.size() > Longest ? out + "…" : out;
}

bool isPlainName(std::string_view text) {
    return !text.empty() && text.size() <= 512 && std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

std::string shapeText(const std::vector<std::int64_t>& shape) {
    if (shape.empty()) return "scalar";
    std::string out;
    for (const auto size : shape)
        out += (out.empty() ? "" : "×") + std::to_string(size);
    return out;
}

bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) { return !__builtin_mul_overflow(a, b, &product); }

} // namespace keepsight
