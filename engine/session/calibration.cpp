#include "engine/session/calibration.h"

#include "engine/data/error.h"
#include "engine/session/calibration_text.h"
#include "engine/session/snapshot.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace keepsight {
namespace {

std::string readText(const std::string& file) {
    constexpr std::size_t MostBytes = 1 << 20; // more than 2048 tokens need
    std::ifstream in(file, std::ios::binary);
    if (!in) throw EngineError("calibration: cannot read '" + file + "': " + std::strerror(errno));
    std::string text(MostBytes, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(std::max<std::streamsize>(in.gcount(), 0)));
    while (text.size() == MostBytes && !text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.pop_back(); // not inside a character
    if (text.find('\0') != std::string::npos || !isValidUtf8(text)) throw EngineError("calibration: '" + file + "' is not UTF-8 text");
    return text;
}

} // namespace

CalibrationSample calibrationSample(const Model& model, const Tokenizer& tokenizer, const std::string& file, std::stop_token stop) {
    constexpr std::size_t MostTokens = 2048; // of one sequence, as the paper's samples
    const std::string text = file.empty() ? std::string(shippedCalibrationText()) : readText(file);
    std::vector<TokenId> ids = tokenizer.encode(text, {.parseSpecial = false, .addSpecial = false});
    const auto room = static_cast<std::size_t>(model.config().maxPositions > 0 ? model.config().maxPositions : static_cast<int>(MostTokens));
    ids.resize(std::min({ids.size(), MostTokens, room}));
    if (ids.size() < 32)
        throw EngineError("calibration: expected a text of at least 32 tokens, found " + std::to_string(ids.size()) + (file.empty() ? "" : " in '" + file + "'"));
    KvCache cache(model.config(), model.dtype(), model.device(), RopeMode::cacheRelative); // such a cache holds keys before RoPE
    for (std::size_t done = 0; done < ids.size();) {
        const std::size_t count = std::min<std::size_t>(static_cast<std::size_t>(Snapshot::Block), ids.size() - done);
        model.forward(std::span(ids).subspan(done, count), static_cast<Position>(done), cache, nullptr, LogitRows::none, stop);
        done += count;
    }
    CalibrationSample sample;
    for (int l = 0; l < cache.layers(); ++l) {
        const CacheLayer& layer = cache.layer(LayerIndex{l});
        sample.keys.push_back(layer.keys.narrow(1, 0, layer.maxHeld()).to(at::kFloat));
        sample.values.push_back(layer.values.narrow(1, 0, layer.maxHeld()).to(at::kFloat));
    }
    return sample;
}

} // namespace keepsight
