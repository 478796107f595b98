#include "engine/data/files.h"

#include "engine/data/error.h"
#include "engine/data/picture.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <optional>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

namespace keepsight {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse(const fs::path& path, int cause) {
    throw EngineError("cannot write '" + path.string() + "': " + std::strerror(cause));
}

int writeAll(int file, std::string_view bytes) { // 0, or errno
    while (!bytes.empty()) {
        const ssize_t written = ::write(file, bytes.data(), bytes.size());
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return errno;
        if (written == 0) return EIO;
        bytes.remove_prefix(static_cast<std::size_t>(written));
    }
    return 0;
}

void flushFolder(const fs::path& of) {
    const fs::path folder = of.has_parent_path() ? of.parent_path() : fs::path(".");
    const int handle = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (handle < 0) return; // a folder that may be written but not read: the rename itself is done
    ::fsync(handle);
    ::close(handle);
}

// Of a name for one of our own open files (/dev/stdout, /dev/fd/3, links to them): its number. What is behind it may be a pipe or somebody's redirected
// file, to be written on and never replaced.
std::optional<int> descriptorOf(fs::path path) {
    std::error_code none;
    for (int hop = 0; hop < 8; ++hop) {
        const fs::path folder = path.parent_path().lexically_normal();
        const std::string name = path.filename().string();
        if ((folder == "/proc/self/fd" || folder == "/dev/fd") && !name.empty() && name.size() < 9 && name.find_first_not_of("0123456789") == std::string::npos) return std::stoi(name);
        const fs::path next = fs::read_symlink(path, none);
        if (none) return std::nullopt;
        path = next.is_absolute() ? next : path.parent_path() / next;
    }
    return std::nullopt;
}

} // namespace

void replaceFile(const fs::path& temporary, const fs::path& path) {
    struct stat existing {};
    if (descriptorOf(path) || (::stat(path.c_str(), &existing) == 0 && !S_ISREG(existing.st_mode))) { // a device or folder must not give way to a file
        ::unlink(temporary.c_str());
        throw EngineError("cannot write " + path.string() + ": expected a file or a free name, found a folder, device or pipe there");
    }
    if (::rename(temporary.c_str(), path.c_str()) != 0) refuse(path, errno);
    flushFolder(path);
}

void writeFileAtomically(const fs::path& path, std::string_view bytes) {
    if (const std::optional<int> own = descriptorOf(path)) {
        if (const int error = writeAll(*own, bytes)) refuse(path, error);
        return;
    }
    struct stat existing {};
    const bool exists = ::stat(path.c_str(), &existing) == 0;
    if (exists && S_ISDIR(existing.st_mode)) refuse(path, EISDIR);
    if (exists && !S_ISREG(existing.st_mode)) { // a pipe or terminal cannot be replaced
        const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
        if (file < 0) refuse(path, errno);
        const int error = writeAll(file, bytes);
        ::close(file);
        if (error) refuse(path, error);
        return;
    }
    std::error_code unresolved;
    const fs::path target = exists ? fs::canonical(path, unresolved) : path; // through a link, not over it
    const fs::path real = unresolved ? path : target;
    std::string temporary = real.string() + ".XXXXXX";
    const int file = ::mkostemp(temporary.data(), O_CLOEXEC);
    if (file < 0) refuse(path, errno);
    mode_t mask = ::umask(0);
    ::umask(mask);
    int error = ::fchmod(file, exists ? existing.st_mode & 07777 : 0666 & ~mask) == 0 ? 0 : errno;
    if (!error) error = writeAll(file, bytes);
    if (!error && ::fsync(file) != 0) error = errno;
    if (::close(file) != 0 && !error) error = errno;
    if (!error && ::rename(temporary.c_str(), real.c_str()) != 0) error = errno;
    if (error) {
        ::unlink(temporary.c_str());
        refuse(path, error);
    }
    flushFolder(real);
}

} // namespace keepsight
