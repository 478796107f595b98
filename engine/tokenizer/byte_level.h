// The byte alphabet of byte-level BPE: every byte has a printable stand-in, so that vocabularies are readable text.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace keepsight {

const std::array<std::string, 256>& byteLetters();                // UTF-8 of each byte's stand-in
std::optional<std::string> bytesOfLetters(std::string_view utf8); // nullopt: holds a character that stands for no byte

} // namespace keepsight
