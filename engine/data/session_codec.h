// The blobs of a session file: evictions, held sets and attention maps as compressed bytes. Internal to engine/data's sources.
#pragma once

#include "engine/data/trace.h"

#include <string>
#include <string_view>
#include <vector>

namespace keepsight::session {

std::string compressed(std::string_view bytes);
std::string decompressed(std::string_view bytes, std::size_t atMost); // throws EngineError without naming the place

// Evictions of one step over all layers and heads: how many of each [layers × heads], then each head's positions as gaps; varints.
std::string encodeDelta(const std::vector<KeepRecord>& records, int layers, int heads);
std::vector<KeepRecord> decodeDelta(std::string_view blob, LaneIndex lane, Step step, int layers, int heads, Position positions);

// What every layer and head holds after a step: one bitmap of ⌈positions / 8⌉ bytes each, low bit first.
std::string heldBitmaps(const Retention& retention, Step step);

enum class MapEncoding { codes, floats };
MapEncoding encodingOf(const AttentionMap& map); // codes if that is exact
std::string encodeMap(const AttentionMap& map, MapEncoding encoding);
void decodeMap(std::string_view blob, MapEncoding encoding, AttentionMap& map); // fills values; rows and cols are set

} // namespace keepsight::session
