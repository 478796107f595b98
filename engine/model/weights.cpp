#include "engine/model/weights.h"

#include "engine/data/error.h"
#include "engine/model/weights_mapping.h"

#include <algorithm>

namespace keepsight {
namespace {

namespace fs = std::filesystem;

std::string convertHint(const fs::path& path) {
    return "weights: '" + path.string() +
           "' is a pickle checkpoint, which can run code when it is read; convert it to safetensors first "
           "(in Python: AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out, safe_serialization=True))";
}

bool contains(std::span<const std::byte> bytes, std::string_view text) {
    const auto* first = reinterpret_cast<const char*>(bytes.data());
    return std::string_view(first, bytes.size()).find(text) != std::string_view::npos;
}

// What a single file is, by its first bytes; the name only chooses between sentences.
std::unique_ptr<WeightFile> openFile(const fs::path& path) {
    const MappedFile mapping(path);
    const auto head = mapping.bytes().first(std::min<std::size_t>(mapping.bytes().size(), 4096));
    const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
    if (text.starts_with("GGUF")) return openGguf(path);
    const std::string extension = path.extension().string();
    const bool torchName = extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".ckpt";
    if (text.starts_with("\x80") || (text.starts_with("PK\x03\x04") && (torchName || contains(head, "data.pkl"))))
        throw EngineError(convertHint(path));
    if (extension == ".safetensors")
        throw EngineError("weights: '" + path.string() + "' needs its config.json and tokenizer; open the directory it is in");
    throw EngineError("weights: '" + path.string() +
                      "' is no model: expected a GGUF file or a directory with config.json and safetensors, found " +
                      (head.empty() ? "an empty file" : "a file starting with '" + shown(text.substr(0, 4)) + "'"));
}

} // namespace

const char* name(WeightType type) {
    switch (type) {
    case WeightType::f32:
        return "F32";
    case WeightType::f16:
        return "F16";
    case WeightType::q4_0:
        return "Q4_0";
    case WeightType::q4_1:
        return "Q4_1";
    case WeightType::q8_0:
        return "Q8_0";
    case WeightType::bf16:
        return "BF16";
    }
    return "?";
}

std::int64_t rowBytes(WeightType type, std::int64_t columns) {
    // values per block, bytes per block: GGML's layouts
    std::int64_t values = 1, bytes = 2;
    switch (type) {
    case WeightType::f32:
        bytes = 4;
        break;
    case WeightType::f16:
    case WeightType::bf16:
        break;
    case WeightType::q4_0:
        values = 32, bytes = 2 + 16;
        break;
    case WeightType::q4_1:
        values = 32, bytes = 4 + 16;
        break;
    case WeightType::q8_0:
        values = 32, bytes = 2 + 32;
        break;
    }
    if (columns < 0 || columns % values != 0)
        throw EngineError(std::string("weights: a row of ") + std::to_string(columns) + " values is no multiple of " + name(type) +
                          "'s block of " + std::to_string(values));
    std::int64_t total = 0;
    if (__builtin_mul_overflow(columns / values, bytes, &total))
        throw EngineError("weights: a row of " + std::to_string(columns) + " values is too long");
    return total;
}

const WeightTensor* WeightFile::find(std::string_view name) const {
    const auto it = tensors().find(name);
    return it == tensors().end() ? nullptr : &it->second;
}

const WeightTensor& WeightFile::tensor(std::string_view name, std::vector<std::int64_t> shape) const {
    const WeightTensor* found = find(name);
    if (!found) {
        const std::string where =
            files().empty() ? "the model" : "'" + files().front().string() + "'" + (files().size() > 1 ? " and its other shards" : "");
        throw EngineError("weights: tensor '" + std::string(name) + "' (" + shapeText(shape) + ") is missing in " + where);
    }
    if (found->shape != shape)
        throw EngineError("weights: tensor '" + std::string(name) + "' is " + shapeText(found->shape) + ", the config says " +
                          shapeText(shape));
    return *found;
}

std::unique_ptr<WeightFile> openWeights(const fs::path& path) {
    constexpr std::string_view Random = "random:";
    if (const std::string text = path.string(); text.starts_with(Random)) return openRandom(std::string_view(text).substr(Random.size()));
    std::error_code error;
    const auto status = fs::status(path, error);
    if (!fs::exists(status))
        throw EngineError("weights: '" + path.string() + "' does not exist; expected a .gguf file or a model directory");
    if (!fs::is_directory(status)) return openFile(path);
    if (fs::exists(path / "config.json")) return openSafetensors(path);

    std::vector<fs::path> gguf;
    for (const auto& entry : fs::directory_iterator(path, error))
        if (entry.path().extension() == ".gguf") gguf.push_back(entry.path());
    if (gguf.size() == 1) return openGguf(gguf.front());
    throw EngineError("weights: '" + path.string() + "' holds no config.json" +
                      (gguf.empty() ? " and no .gguf file" : " but " + std::to_string(gguf.size()) + " .gguf files; name one of them"));
}

} // namespace keepsight
