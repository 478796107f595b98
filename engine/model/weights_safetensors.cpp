// Safetensors: 8 bytes of header length, a JSON header, then the tensors' bytes without gaps to the end of the file.
#include "engine/data/error.h"
#include "engine/model/config_reader.h"
#include "engine/model/weights_json.h"
#include "engine/model/weights_mapping.h"

#include <algorithm>
#include <deque>

namespace keepsight {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;
using Tensors = std::map<std::string, WeightTensor, std::less<>>;

constexpr std::uint64_t MaxHeaderBytes = 100'000'000;
constexpr std::size_t MaxDimensions = 8;

struct Place {
    std::uint64_t begin = 0, end = 0;
    std::string name;
};

std::uint64_t unsignedValue(const ByteReader& in, const json& value, const std::string& what) {
    if (!value.is_number_unsigned()) in.fail(what + " should be a whole number from 0, found " + shown(value.dump()));
    return value.get<std::uint64_t>();
}

WeightType typeFrom(const ByteReader& in, const std::string& dtype, const std::string& what) {
    if (dtype == "F32") return WeightType::f32;
    if (dtype == "F16") return WeightType::f16;
    if (dtype == "BF16") return WeightType::bf16;
    in.fail(what + " is '" + shown(dtype) + "'; supported are F32, F16 and BF16");
}

// One entry of the header: type, shape and place, which must agree with each other.
WeightTensor readEntry(const ByteReader& in, const std::string& name, const json& entry, Place& place) {
    const std::string what = "tensor '" + shown(name) + "'";
    if (!isPlainName(name)) in.fail(what + " should be named with 1 to 512 printable ASCII characters");
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets"))
        in.fail(what + " should have exactly dtype, shape and data_offsets");
    if (!entry["dtype"].is_string()) in.fail(what + ": dtype should be a string");
    if (!entry["shape"].is_array() || entry["shape"].size() > MaxDimensions) in.fail(what + ": shape should be a list of at most 8 sizes");
    if (!entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2)
        in.fail(what + ": data_offsets should be a list of two offsets");
    WeightTensor tensor;
    tensor.name = name;
    tensor.type = typeFrom(in, entry["dtype"].get<std::string>(), what);
    std::uint64_t bytes = static_cast<std::uint64_t>(rowBytes(tensor.type, 1));
    for (const json& item : entry["shape"]) {
        const std::uint64_t size = unsignedValue(in, item, what + ": a size");
        if (size > (std::uint64_t{1} << 48) || !multiply(bytes, size, bytes))
            in.fail(what + " has an impossible size " + std::to_string(size));
        tensor.shape.push_back(static_cast<std::int64_t>(size));
    }
    place = {unsignedValue(in, entry["data_offsets"][0], what + ": an offset"),
             unsignedValue(in, entry["data_offsets"][1], what + ": an offset"), name};
    if (place.end < place.begin || place.end - place.begin != bytes)
        in.fail(what + ": its shape needs " + std::to_string(bytes) + " bytes, data_offsets say " + std::to_string(place.begin) + " to " +
                std::to_string(place.end));
    return tensor;
}

Tensors parseFile(std::span<const std::byte> bytes, const std::string& where) {
    ByteReader in(bytes, where);
    const auto length = in.value<std::uint64_t>("the header's length");
    if (length > MaxHeaderBytes)
        in.fail("the header claims " + std::to_string(length) + " bytes, at most " + std::to_string(MaxHeaderBytes) + " are read");
    const auto raw = in.take(length, "the header");
    const std::string_view text(reinterpret_cast<const char*>(raw.data()), raw.size());
    if (!text.starts_with('{')) in.fail("the header should start with '{'");
    const json header = parseForeignJson(text, "weights: '" + where + "': header");
    const auto data = bytes.subspan(in.offset());

    Tensors out;
    std::vector<Place> places;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") {
            if (!entry.is_object() || std::any_of(entry.begin(), entry.end(), [](const json& v) { return !v.is_string(); }))
                in.fail("__metadata__ should be an object of strings");
            continue;
        }
        Place place;
        out.emplace(name, readEntry(in, name, entry, place));
        places.push_back(std::move(place));
    }
    std::sort(places.begin(), places.end(),
              [](const Place& a, const Place& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
    std::uint64_t end = 0;
    for (const Place& place : places) {
        if (place.begin != end)
            in.fail("tensor '" + place.name + "' starts at " + std::to_string(place.begin) + " where " + std::to_string(end) +
                    " was expected: tensors " + (place.begin < end ? "overlap" : "leave a gap"));
        if (place.end > data.size())
            in.fail("tensor '" + place.name + "' ends at " + std::to_string(place.end) + ", the file holds " + std::to_string(data.size()) +
                    " bytes of tensors; is it complete?");
        end = place.end;
        out.find(place.name)->second.bytes = data.subspan(place.begin, place.end - place.begin);
    }
    if (end != data.size())
        in.fail("the tensors end at " + std::to_string(end) + ", the file holds " + std::to_string(data.size()) + " bytes of tensors");
    return out;
}

class SafetensorsWeights final : public WeightFile {
public:
    explicit SafetensorsWeights(const fs::path& directory) {
        m_config = readConfig(insideDirectory(directory, "config.json"));
        if (m_config.name.empty()) m_config.name = fs::canonical(directory).filename().string();
        m_tokenizer = readTokenizerSource(directory);
        m_stops = readStopTokens(directory);
        if (fs::exists(directory / "model.safetensors")) {
            openShard(directory, "model.safetensors", [](const std::string&) { return true; });
        } else if (fs::exists(directory / "model.safetensors.index.json")) {
            openIndex(directory);
        } else {
            refuse(directory);
        }
    }

    const ModelConfig& config() const override { return m_config; }
    const TokenizerSource& tokenizer() const override { return m_tokenizer; }
    const std::string& format() const override { return m_format; }
    const std::vector<fs::path>& files() const override { return m_files; }
    const Tensors& tensors() const override { return m_tensors; }
    std::vector<std::int32_t> stopTokens() const override { return m_stops; }

private:
    template <class Wanted>
    void openShard(const fs::path& directory, const std::string& name, const Wanted& wanted) {
        const auto& mapping = m_mappings.emplace_back(insideDirectory(directory, name));
        m_files.push_back(directory / name);
        for (auto& [key, tensor] : parseFile(mapping.bytes(), (directory / name).string()))
            if (wanted(key)) m_tensors.emplace(key, std::move(tensor));
    }

    void openIndex(const fs::path& directory) {
        const fs::path file = insideDirectory(directory, "model.safetensors.index.json");
        const std::string where = "weights: '" + file.string() + "'";
        const json index = readForeignJson(file, MaxHeaderBytes);
        if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
            throw EngineError(where + ": expected an object with 'weight_map'");
        std::map<std::string, std::string> shardOf;
        std::map<std::string, int> shards;
        for (const auto& [tensor, shard] : index["weight_map"].items()) {
            if (!shard.is_string()) throw EngineError(where + ": the shard of '" + shown(tensor) + "' should be a file name");
            shardOf[tensor] = shard.get<std::string>();
            ++shards[shard.get<std::string>()];
        }
        for (const auto& [shard, count] : shards) {
            if (!shard.ends_with(".safetensors")) throw EngineError(where + ": shard '" + shown(shard) + "' should be a .safetensors file");
            if (!fs::exists(insideDirectory(directory, shard)))
                throw EngineError(where + ": shard '" + shard + "' with " + std::to_string(count) + " tensors is missing in the directory");
            openShard(directory, shard, [&](const std::string& tensor) {
                const auto it = shardOf.find(tensor);
                return it != shardOf.end() && it->second == shard;
            });
        }
        for (const auto& [tensor, shard] : shardOf)
            if (!m_tensors.contains(tensor))
                throw EngineError(where + ": tensor '" + shown(tensor) + "' is missing in shard '" + shard + "'");
    }

    [[noreturn]] static void refuse(const fs::path& directory) {
        for (const auto& entry : fs::directory_iterator(directory)) {
            const std::string extension = entry.path().extension().string();
            if (extension == ".bin" || extension == ".pt" || extension == ".pth")
                openWeights(entry.path()); // refuses pickles with its hint
        }
        throw EngineError("weights: '" + directory.string() + "' holds neither model.safetensors nor model.safetensors.index.json");
    }

    std::string m_format = "safetensors";
    std::deque<MappedFile> m_mappings;
    std::vector<fs::path> m_files;
    ModelConfig m_config;
    TokenizerSource m_tokenizer;
    std::vector<std::int32_t> m_stops;
    Tensors m_tensors;
};

} // namespace

std::unique_ptr<WeightFile> openSafetensors(const fs::path& directory) { return std::make_unique<SafetensorsWeights>(directory); }

} // namespace keepsight
