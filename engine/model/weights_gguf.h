// The GGUF container: metadata and tensor table, checked; what the keys mean to a Llama model is read in weights_gguf_config.cpp.
#pragma once

#include "engine/model/weights.h"
#include "engine/model/weights_mapping.h"

#include <optional>

namespace keepsight {

enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// A value stays in the mapping until somebody asks for it; its bounds are checked already.
struct GgufValue {
    GgufType type = GgufType::u8; // of the value, or of the elements
    bool isArray = false;
    std::uint64_t count = 1;
    std::span<const std::byte> bytes; // of the payload
};

class GgufMetadata {
public:
    std::string where; // file name for messages
    std::map<std::string, GgufValue, std::less<>> values;

    [[noreturn]] void fail(const std::string& sentence) const;
    const GgufValue* find(std::string_view key) const;
    std::optional<std::int64_t> integer(std::string_view key) const; // throws if present with another type
    std::optional<double> real(std::string_view key) const;
    std::optional<bool> boolean(std::string_view key) const;
    std::optional<std::string> text(std::string_view key) const;
    std::vector<std::string> texts(std::string_view key) const;     // empty if absent
    std::vector<std::int64_t> integers(std::string_view key) const; // empty if absent; a scalar counts as one
};

struct GgufFile {
    GgufMetadata metadata;
    std::map<std::string, WeightTensor, std::less<>> tensors;
};
GgufFile parseGguf(std::span<const std::byte> bytes, const std::string& where);

ModelConfig ggufConfig(const GgufFile& file);
TokenizerSource ggufTokenizer(const GgufMetadata& metadata, int vocab);
std::vector<std::int32_t> ggufStopTokens(const GgufMetadata& metadata, int vocab);

} // namespace keepsight
