#include "engine/data/session_codec.h"

#include "engine/data/error.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <zstd.h>

namespace keepsight::session {

namespace {

constexpr int CompressionLevel = 9;

void putVarint(std::string& out, std::uint32_t value) {
    for (; value >= 0x80; value >>= 7)
        out += static_cast<char>(value | 0x80);
    out += static_cast<char>(value);
}

std::uint32_t takeVarint(std::string_view& in) {
    std::uint32_t value = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        if (in.empty()) break;
        const auto byte = static_cast<unsigned char>(in.front());
        in.remove_prefix(1);
        if (shift == 28 && byte > 0x0F) break;
        value |= static_cast<std::uint32_t>(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
    throw EngineError("a number is cut off or too large");
}

} // namespace

std::string compressed(std::string_view bytes) {
    const std::unique_ptr<ZSTD_CCtx, std::size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, CompressionLevel);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
    std::string out(ZSTD_compressBound(bytes.size()), '\0');
    const std::size_t size = ZSTD_compress2(context.get(), out.data(), out.size(), bytes.data(), bytes.size());
    if (ZSTD_isError(size)) throw EngineError(std::string("cannot compress: ") + ZSTD_getErrorName(size));
    out.resize(size);
    return out;
}

std::string decompressed(std::string_view bytes, std::size_t atMost) {
    const unsigned long long claimed = ZSTD_getFrameContentSize(bytes.data(), bytes.size());
    if (claimed == ZSTD_CONTENTSIZE_ERROR || claimed == ZSTD_CONTENTSIZE_UNKNOWN) throw EngineError("not zstd data");
    if (claimed > atMost)
        throw EngineError("claims " + std::to_string(claimed) + " bytes where at most " + std::to_string(atMost) + " belong");
    std::string out(static_cast<std::size_t>(claimed), '\0');
    const std::size_t size = ZSTD_decompress(out.data(), out.size(), bytes.data(), bytes.size());
    if (ZSTD_isError(size) || size != out.size()) throw EngineError("zstd data is damaged");
    return out;
}

std::string encodeDelta(const std::vector<KeepRecord>& records, int layers, int heads) {
    const std::size_t rows = static_cast<std::size_t>(layers) * static_cast<std::size_t>(heads);
    std::vector<std::vector<const KeepRecord*>> ofRow(rows);
    for (const KeepRecord& record : records)
        ofRow[static_cast<std::size_t>(record.layer.value) * static_cast<std::size_t>(heads) + static_cast<std::size_t>(record.head.value)]
            .push_back(&record);
    std::string counts, gaps;
    for (const auto& row : ofRow) {
        // A head's records of one step are normally one; several are merged, which the ascending order of gaps needs.
        std::vector<Position> merged;
        for (const KeepRecord* record : row)
            merged.insert(merged.end(), record->evicted.begin(), record->evicted.end());
        if (row.size() > 1) std::sort(merged.begin(), merged.end());
        putVarint(counts, static_cast<std::uint32_t>(merged.size()));
        Position next = 0;
        for (const Position p : merged) {
            putVarint(gaps, static_cast<std::uint32_t>(p - next));
            next = p + 1;
        }
    }
    return compressed(counts + gaps);
}

std::vector<KeepRecord> decodeDelta(std::string_view blob, LaneIndex lane, Step step, int layers, int heads, Position positions) {
    const std::size_t rows = static_cast<std::size_t>(layers) * static_cast<std::size_t>(heads);
    const std::string bytes = decompressed(blob, rows * 5 * (static_cast<std::size_t>(positions) + 1));
    std::string_view in = bytes;
    std::vector<std::uint32_t> counts(rows);
    for (auto& count : counts) {
        count = takeVarint(in);
        if (count > static_cast<std::uint32_t>(positions)) throw EngineError("more evictions than positions");
    }
    std::vector<KeepRecord> records;
    for (std::size_t row = 0; row < rows; ++row) {
        if (counts[row] == 0) continue;
        KeepRecord record{lane, step, LayerIndex{static_cast<int>(row) / heads}, HeadIndex{static_cast<int>(row) % heads}, {}};
        record.evicted.reserve(counts[row]);
        std::int64_t next = 0;
        for (std::uint32_t i = 0; i < counts[row]; ++i) {
            const std::int64_t p = next + takeVarint(in);
            if (p >= positions) throw EngineError("evicts position " + std::to_string(p) + " of " + std::to_string(positions));
            record.evicted.push_back(static_cast<Position>(p));
            next = p + 1;
        }
        records.push_back(std::move(record));
    }
    if (!in.empty()) throw EngineError("has " + std::to_string(in.size()) + " bytes too many");
    return records;
}

std::string heldBitmaps(const Retention& retention, Step step) {
    const auto n = static_cast<std::size_t>(retention.positionsAt(step));
    std::string out;
    for (int layer = 0; layer < retention.layers(); ++layer)
        for (int head = 0; head < retention.heads(); ++head) {
            const auto row = retention.evictedAt(LayerIndex{layer}, HeadIndex{head});
            const std::size_t begin = out.size();
            out.resize(begin + (n + 7) / 8, '\0');
            for (std::size_t p = 0; p < n; ++p)
                if (row[p] > step.value) out[begin + p / 8] = static_cast<char>(out[begin + p / 8] | (1 << (p % 8)));
        }
    return out;
}

MapEncoding encodingOf(const AttentionMap& map) {
    for (const float value : map.values)
        if (!(std::isnan(value) || std::bit_cast<std::uint32_t>(storedAttention(value)) == std::bit_cast<std::uint32_t>(value)))
            return MapEncoding::floats;
    return MapEncoding::codes;
}

std::string encodeMap(const AttentionMap& map, MapEncoding encoding) {
    const std::size_t n = map.values.size();
    if (encoding == MapEncoding::codes) {
        std::string codes(n, '\0');
        for (std::size_t i = 0; i < n; ++i)
            codes[i] = static_cast<char>(attentionCode(map.values[i]));
        return compressed(codes);
    }
    std::string planes(4 * n, '\0'); // all lowest bytes, then the next …: neighbours share exponents
    for (std::size_t i = 0; i < n; ++i) {
        const auto bits = std::bit_cast<std::uint32_t>(map.values[i]);
        for (std::size_t plane = 0; plane < 4; ++plane)
            planes[plane * n + i] = static_cast<char>(bits >> (8 * plane));
    }
    return compressed(planes);
}

void decodeMap(std::string_view blob, MapEncoding encoding, AttentionMap& map) {
    const std::size_t n = static_cast<std::size_t>(map.rows) * static_cast<std::size_t>(map.cols);
    const std::size_t expected = encoding == MapEncoding::codes ? n : 4 * n;
    const std::string bytes = decompressed(blob, expected);
    if (bytes.size() != expected)
        throw EngineError("holds " + std::to_string(bytes.size()) + " bytes; expected " + std::to_string(expected));
    map.values.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
        if (encoding == MapEncoding::codes) {
            map.values[i] = attentionWeight(static_cast<std::uint8_t>(bytes[i]));
            continue;
        }
        std::uint32_t bits = 0;
        for (std::size_t plane = 0; plane < 4; ++plane)
            bits |= static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[plane * n + i])) << (8 * plane);
        map.values[i] = std::bit_cast<float>(bits);
    }
}

} // namespace keepsight::session
