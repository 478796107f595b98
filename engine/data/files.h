// Replacing files so that a crash leaves the old one or the new one. Internal to engine/data's sources; see writeFileAtomically.
#pragma once

#include <filesystem>

namespace keepsight {

// Renames `temporary` (already flushed) to `path` and flushes the folder. Throws EngineError.
void replaceFile(const std::filesystem::path& temporary, const std::filesystem::path& path);

} // namespace keepsight
