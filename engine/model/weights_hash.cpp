#include "engine/model/weights.h"

#include "engine/data/error.h"
#include "engine/model/weights_mapping.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <fstream>
#include <sys/stat.h>
#include <unistd.h>

namespace keepsight {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t HexLength = 64;

class Sha256 {
public:
    Sha256() : m_context(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
        if (!m_context || EVP_DigestInit_ex(m_context.get(), EVP_sha256(), nullptr) != 1)
            throw EngineError("weights: sha256 is not available");
    }
    void add(const void* data, std::size_t size) {
        if (EVP_DigestUpdate(m_context.get(), data, size) != 1) throw EngineError("weights: sha256 failed");
    }
    std::string hex() {
        std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
        unsigned length = 0;
        if (EVP_DigestFinal_ex(m_context.get(), digest.data(), &length) != 1) throw EngineError("weights: sha256 failed");
        std::string out;
        for (unsigned i = 0; i < length; ++i) {
            out += "0123456789abcdef"[digest[i] >> 4];
            out += "0123456789abcdef"[digest[i] & 15];
        }
        return out;
    }

private:
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> m_context;
};

// Reads instead of mapping: a file that shrinks meanwhile ends early here and cannot fault.
void addFile(Sha256& hash, const fs::path& path) {
    const auto fail = [&](int code) { throw EngineError("weights: cannot read '" + path.string() + "': " + std::strerror(code)); };
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail(errno);
    const auto closer = [](const int* f) { ::close(*f); };
    const std::unique_ptr<const int, decltype(closer)> guard(&file, closer);
    std::vector<char> buffer(1 << 20);
    for (;;) {
        const ssize_t got = ::read(file, buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail(errno);
        if (got == 0) return;
        hash.add(buffer.data(), static_cast<std::size_t>(got));
    }
}

fs::path cacheFolder() {
    if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache == '/') return fs::path(cache) / "keepsight";
    if (const char* home = std::getenv("HOME"); home && *home == '/') return fs::path(home) / ".cache" / "keepsight";
    return {};
}

// One small file per set of weights, named by path, size and time of each; empty: no cache.
fs::path cacheEntry(const std::vector<fs::path>& files) {
    const fs::path folder = cacheFolder();
    if (folder.empty()) return {};
    Sha256 key;
    for (const auto& file : files) {
        struct stat info {};
        std::error_code error;
        const fs::path full = fs::canonical(file, error);
        if (error || ::stat(full.c_str(), &info) != 0) return {};
        const std::string text = full.string() + '\0' + std::to_string(info.st_size) + '\0' + std::to_string(info.st_mtim.tv_sec) + '.' +
                                 std::to_string(info.st_mtim.tv_nsec) + '\0';
        key.add(text.data(), text.size());
    }
    return folder / (key.hex() + ".sha256");
}

std::string cachedHash(const fs::path& entry) {
    std::ifstream in(entry);
    std::string text;
    std::getline(in, text);
    const bool valid = text.size() == HexLength && text.find_first_not_of("0123456789abcdef") == std::string::npos;
    return valid ? text : std::string();
}

// A cache that cannot be written is no reason to fail.
void remember(const fs::path& entry, const std::string& hash) {
    std::error_code error;
    fs::create_directories(entry.parent_path(), error);
    const fs::path temporary = entry.string() + "." + std::to_string(::getpid());
    {
        std::ofstream out(temporary);
        out << hash << '\n';
        if (!out.flush()) {
            fs::remove(temporary, error);
            return;
        }
    }
    fs::rename(temporary, entry, error);
    if (error) fs::remove(temporary, error);
}

} // namespace

std::string weightHash(const std::vector<fs::path>& files) {
    std::vector<fs::path> sorted = files;
    std::sort(sorted.begin(), sorted.end(), [](const fs::path& a, const fs::path& b) { return a.filename() < b.filename(); });
    const fs::path entry = cacheEntry(sorted);
    if (!entry.empty())
        if (std::string known = cachedHash(entry); !known.empty()) return known;
    Sha256 hash;
    for (const auto& file : sorted)
        addFile(hash, file);
    std::string hex = hash.hex();
    if (!entry.empty()) remember(entry, hex);
    return hex;
}

} // namespace keepsight
