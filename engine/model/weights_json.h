// Strict JSON for files written by others: bounded size and depth, no duplicate keys, no integers silently turned into floats.
#pragma once

#include <nlohmann/json.hpp>

#include <filesystem>
#include <string>
#include <string_view>

namespace keepsight {

inline constexpr int MaxJsonDepth = 16;

// where: names the text in messages. Throws EngineError.
nlohmann::json parseForeignJson(std::string_view text, const std::string& where);
// Reads the whole file first; refuses more than maxBytes.
nlohmann::json readForeignJson(const std::filesystem::path& file, std::uintmax_t maxBytes = 16u << 20);
std::string readSmallFile(const std::filesystem::path& file, std::uintmax_t maxBytes);
bool isUtf8Text(std::string_view text);

} // namespace keepsight
