#include "engine/data/trace_file.h"

#include "engine/data/error.h"
#include "engine/data/plain_json.h"
#include "engine/data/session_codec.h"
#include "engine/data/session_db.h"
#include "engine/data/session_rows.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>

namespace keepsight {

namespace fs = std::filesystem;
using namespace session;

namespace {

constexpr std::int64_t MostCells = std::int64_t(1) << 30; // layers × heads × positions of a lane, and cells of a map

fs::path besideSession(const fs::path& path, const char* suffix) {
    fs::path other = path;
    other += suffix;
    return other;
}

// A copy of a session and its log in a folder of its own, removed with the object.
class ScratchCopy {
public:
    explicit ScratchCopy(const fs::path& path) {
        std::string folder = (fs::temp_directory_path() / "keepsight-XXXXXX").string();
        if (!::mkdtemp(folder.data()))
            throw EngineError("session '" + path.string() + "': cannot make a folder in " + fs::temp_directory_path().string());
        m_folder = folder;
        fs::copy_file(path, file());
        if (fs::exists(besideSession(path, "-wal"))) fs::copy_file(besideSession(path, "-wal"), besideSession(file(), "-wal"));
        fs::permissions(m_folder, fs::perms::owner_write, fs::perm_options::add);
    }
    ScratchCopy(const ScratchCopy&) = delete;
    ScratchCopy& operator=(const ScratchCopy&) = delete;
    ~ScratchCopy() {
        std::error_code ignored;
        fs::remove_all(m_folder, ignored);
    }
    fs::path file() const { return m_folder / "session.keep"; }

private:
    fs::path m_folder;
};

std::string immutableUri(const fs::path& path) {
    static const char digits[] = "0123456789ABCDEF";
    std::string uri = "file:";
    for (const char c : fs::absolute(path).string()) {
        if (c == '?' || c == '#' || c == '%' || static_cast<unsigned char>(c) < 0x21) {
            uri += '%';
            uri += digits[static_cast<unsigned char>(c) >> 4];
            uri += digits[static_cast<unsigned char>(c) & 15];
        } else
            uri += c;
    }
    return uri + "?immutable=1";
}

class Reader {
public:
    explicit Reader(const fs::path& path) : m_path(path) {}

    std::shared_ptr<const Trace> load() {
        open();
        m_db.execute("BEGIN"); // one state of the file, also while someone records into it
        checkSchema();
        readSeal();
        readMeta();
        readLanes();
        readTokens();
        readSteps();
        readRetained();
        readMaps();
        readMeasurements();
        return m_trace;
    }

private:
    [[noreturn]] void damaged(const std::string& part, const std::string& what) const {
        throw EngineError("session '" + m_path.string() + "' is damaged: " + part + " " + what);
    }

    void open() {
        std::ifstream file(m_path, std::ios::binary);
        if (!file) throw EngineError("session '" + m_path.string() + "': cannot open it: " + std::strerror(errno));
        char head[16] = {};
        file.read(head, sizeof head);
        if (file.gcount() != sizeof head || std::string_view(head, 16) != std::string_view("SQLite format 3\0", 16))
            throw EngineError("'" + m_path.string() + "' is not a Keepsight session: expected an SQLite database");
        m_db = Database(m_path.string(), SQLITE_OPEN_READONLY, m_path);
        if (readable()) return;
        const int code = sqlite3_errcode(m_db.get()) & 0xff;
        if (code != SQLITE_CANTOPEN && code != SQLITE_READONLY && code != SQLITE_IOERR) m_db.fail("cannot read it");
        // Read-only media: the log's index cannot be made there. Without a log the file alone is everything.
        std::error_code error;
        const bool log = fs::exists(besideSession(m_path, "-wal"), error) && fs::file_size(besideSession(m_path, "-wal"), error) > 0;
        if (log) {
            m_copy.emplace(m_path);
            m_db = Database(m_copy->file().string(), SQLITE_OPEN_READWRITE, m_path);
        } else {
            m_db = Database(immutableUri(m_path), SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, m_path);
        }
        if (!readable()) m_db.fail("cannot read it");
    }

    bool readable() { return sqlite3_exec(m_db.get(), "SELECT count(*) FROM sqlite_schema", nullptr, nullptr, nullptr) == SQLITE_OK; }

    void checkSchema() {
        const std::int64_t id = m_db.integer("PRAGMA application_id"), version = m_db.integer("PRAGMA user_version");
        if (id != ApplicationId)
            throw EngineError("'" + m_path.string() + "' is not a Keepsight session: its application id is " + std::to_string(id) +
                              ", expected " + std::to_string(ApplicationId));
        if (version > Trace::CurrentFormat)
            throw EngineError("session '" + m_path.string() + "' has format " + std::to_string(version) +
                              ", but this program reads formats up to " + std::to_string(Trace::CurrentFormat));
        if (version < 1) damaged("its header", "names format " + std::to_string(version));
        m_trace->formatVersion = static_cast<int>(version);
        // Plain tables only: nothing in a file we are given may run.
        if (m_db.integer("SELECT count(*) FROM sqlite_schema WHERE type <> 'table' OR rootpage <= 0") != 0)
            damaged("its schema", "holds more than tables");
    }

    // Calls `use(id, cells)` for every row, after its sum was checked; then checks the table against the seal.
    template <class Use>
    void eachRow(TableId id, const Use& use) {
        const Table& t = table(id);
        std::string sql = "SELECT id";
        for (const char* column : t.columns)
            sql += ", " + std::string(column).substr(0, std::string_view(column).find(' '));
        Statement select(m_db, sql + ", sum FROM " + t.name + " ORDER BY id");
        std::int64_t rows = 0;
        std::uint64_t total = 0;
        std::vector<Cell> cells(t.columns.size());
        while (select.step()) {
            const Cell first = select.column(0), last = select.column(static_cast<int>(cells.size()) + 1);
            const auto* row = std::get_if<std::int64_t>(&first);
            const auto* sum = std::get_if<std::int64_t>(&last);
            for (std::size_t i = 0; i < cells.size(); ++i)
                cells[i] = select.column(static_cast<int>(i) + 1);
            m_part = std::string("table ") + t.name + ", row " + std::to_string(row ? *row : -1);
            if (!row || !sum || rowSum(id, *row, cells) != *sum) damaged(m_part, "does not match its checksum");
            ++rows;
            total += static_cast<std::uint64_t>(*sum);
            m_cells = &cells;
            try {
                use(*row);
            } catch (const EngineError& error) {
                if (std::string_view(error.what()).find("is damaged") != std::string_view::npos) throw;
                damaged(m_part + ":", error.what());
            }
        }
        if (id == Seal) return;
        const auto& seal = m_seal[static_cast<std::size_t>(id)];
        if (!seal || seal->first != rows || static_cast<std::uint64_t>(seal->second) != total)
            damaged(std::string("table ") + t.name, "holds " + std::to_string(rows) + " rows; its seal says " +
                                                        (seal ? std::to_string(seal->first) : std::string("nothing")) +
                                                        (seal && seal->first == rows ? ", with another checksum" : ""));
    }

    std::int64_t integer(std::size_t column, std::int64_t low, std::int64_t high) const {
        const auto* value = std::get_if<std::int64_t>(&(*m_cells)[column]);
        if (!value || *value < low || *value > high)
            damaged(m_part, "has " + (value ? std::to_string(*value) : std::string("no whole number")) + " in column " +
                                std::to_string(column + 1) + "; expected " + std::to_string(low) + " … " + std::to_string(high));
        return *value;
    }
    int index(std::size_t column, std::int64_t low = 0) const {
        return static_cast<int>(integer(column, low, std::numeric_limits<std::int32_t>::max()));
    }
    const std::string& text(std::size_t column) const {
        const auto* value = std::get_if<Text>(&(*m_cells)[column]);
        if (!value) damaged(m_part, "has no text in column " + std::to_string(column + 1));
        return value->bytes;
    }
    const std::string& blob(std::size_t column) const {
        const auto* value = std::get_if<Blob>(&(*m_cells)[column]);
        if (!value) damaged(m_part, "has no bytes in column " + std::to_string(column + 1));
        return value->bytes;
    }
    OrderedJson json(std::size_t column) const { return parseStrictJson(text(column), "JSON"); }
    LaneIndex lane(std::size_t column, int low = 0) const {
        return LaneIndex{static_cast<int>(integer(column, low, static_cast<std::int64_t>(m_trace->lanes.size()) - 1))};
    }
    Lane& laneAt(LaneIndex index) { return m_trace->lanes[static_cast<std::size_t>(index.value)]; }

    void readSeal() {
        m_seal.resize(TableCount);
        eachRow(Seal, [&](std::int64_t row) {
            if (row < 1 || row > Seal) damaged("its seal", "names table " + std::to_string(row));
            m_seal[static_cast<std::size_t>(row - 1)] = {
                integer(0, 0, std::numeric_limits<std::int64_t>::max()),
                integer(1, std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max())};
        });
    }

    void readMeta() {
        int seen = 0;
        eachRow(Meta, [&](std::int64_t row) {
            seen |= 1 << (row & 7);
            if (row == RunRow) m_trace->run = runFromJson(json(1), "run");
            if (row == ModelRow) m_trace->model = modelFromJson(json(1), "model");
            if (row == PrefillRow) StrictObject::convert(json(1), m_trace->prefillLength, "prefill_length");
        });
        if (seen != ((1 << RunRow) | (1 << ModelRow) | (1 << PrefillRow)))
            damaged("table meta", "lacks the run, the model or the prefill's length");
    }

    void readLanes() {
        eachRow(Lanes, [&](std::int64_t row) {
            if (row != static_cast<std::int64_t>(m_trace->lanes.size()) + 1) damaged(m_part, "is out of order");
            Lane& out = m_trace->lanes.emplace_back();
            out.label = bytesOfJson(json(0), "label");
            out.policy = policyFromJson(json(1), "policy");
            out.notice = bytesOfJson(json(2), "notice");
            out.retention = Retention(static_cast<int>(integer(3, 0, 4096)), static_cast<int>(integer(4, 0, 4096)));
        });
    }

    void readTokens() {
        eachRow(Tokens, [&](std::int64_t) {
            const LaneIndex of = lane(0, SharedLane.value);
            TokenRecord token;
            token.position = index(1);
            token.id = index(2, std::numeric_limits<std::int32_t>::min());
            token.role = static_cast<TokenRecord::Role>(integer(3, 0, 2));
            token.bytes = blob(4);
            (of == SharedLane ? m_trace->tokens : laneAt(of).generated).push_back(std::move(token));
        });
    }

    void readSteps() {
        std::vector<std::vector<int>> counts(m_trace->lanes.size());
        std::vector<std::int64_t> positions(m_trace->lanes.size());
        eachRow(Steps, [&](std::int64_t) {
            const LaneIndex of = lane(0);
            Lane& out = laneAt(of);
            StepRecord step;
            step.step = Step{
                static_cast<int>(integer(1, static_cast<std::int64_t>(out.steps.size()), static_cast<std::int64_t>(out.steps.size())))};
            step.kind = static_cast<StepRecord::Kind>(integer(2, 0, 2));
            step.firstPosition = index(3);
            step.count = index(4);
            step.milliseconds = realOf((*m_cells)[5]);
            step.policyMilliseconds = realOf((*m_cells)[6]);
            step.nll = realOf((*m_cells)[7]);
            step.kvBytes = integer(8, std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max());
            step.allocatedBytes = integer(9, std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max());
            std::int64_t& total = positions[static_cast<std::size_t>(of.value)];
            total += step.count;
            const std::int64_t rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(out.retention.layers()) * out.retention.heads());
            if (total > MostCells / rows)
                damaged(m_part, "brings lane " + out.label + " to " + std::to_string(total) + " positions, more than a session may hold");
            out.steps.push_back(step);
        });
        for (Lane& out : m_trace->lanes)
            for (const StepRecord& step : out.steps)
                out.retention.append(step.step, step.count);
    }

    void readRetained() {
        struct Check {
            LaneIndex lane;
            Step step;
            std::string bitmaps;
        };
        std::vector<Check> keyframes;
        eachRow(Retained, [&](std::int64_t) {
            const LaneIndex of = lane(0);
            Lane& out = laneAt(of);
            const Step step{static_cast<int>(integer(1, 0, static_cast<std::int64_t>(out.steps.size()) - 1))};
            const Position positions = out.retention.positionsAt(step);
            const auto rows = static_cast<std::size_t>(out.retention.layers()) * static_cast<std::size_t>(out.retention.heads());
            if (integer(2, Delta, Keyframe) == Keyframe)
                keyframes.push_back({of, step, decompressed(blob(3), rows * (static_cast<std::size_t>(positions) + 7) / 8 + rows)});
            else
                for (const KeepRecord& record : decodeDelta(blob(3), of, step, out.retention.layers(), out.retention.heads(), positions))
                    out.retention.evict(record);
        });
        for (const Check& check : keyframes)
            if (heldBitmaps(laneAt(check.lane).retention, check.step) != check.bitmaps)
                damaged("lane " + laneAt(check.lane).label + ", step " + std::to_string(check.step.value) + ":",
                        "the recorded evictions do not lead to the recorded sets");
    }

    void readMaps() {
        eachRow(Maps, [&](std::int64_t) {
            auto map = std::make_shared<AttentionMap>();
            map->lane = lane(0, SharedLane.value);
            map->layer = LayerIndex{index(1)};
            map->head = HeadIndex{index(2)};
            map->perQueryHead = integer(3, 0, 1) != 0;
            map->rowBegin = index(4);
            map->rowEnd = index(5);
            map->rowBin = index(6, 1);
            map->colBin = index(7, 1);
            map->rows = index(8);
            map->cols = index(9);
            if (static_cast<std::int64_t>(map->rows) * map->cols > MostCells) damaged(m_part, "claims more cells than a session may hold");
            decodeMap(blob(11), static_cast<MapEncoding>(integer(10, 0, 1)), *map);
            (map->lane == SharedLane ? m_trace->maps : laneAt(map->lane).maps).push_back(std::move(map));
        });
    }

    void readMeasurements() {
        eachRow(Measurements, [&](std::int64_t) {
            Measurement out;
            out.lane = lane(0, SharedLane.value);
            out.kind = bytesOfJson(json(1), "kind");
            fieldsFromJson(json(2), out, "fields");
            m_trace->measurements.push_back(std::move(out));
        });
    }

    fs::path m_path;
    std::optional<ScratchCopy> m_copy;
    Database m_db; // closed before its copy is removed
    std::shared_ptr<Trace> m_trace = std::make_shared<Trace>();
    std::vector<std::optional<std::pair<std::int64_t, std::int64_t>>> m_seal;
    std::vector<Cell>* m_cells = nullptr;
    std::string m_part;
};

} // namespace

std::shared_ptr<const Trace> loadTrace(const fs::path& path) {
    try {
        return Reader(path).load();
    } catch (const std::bad_alloc&) {
        throw EngineError("session '" + path.string() + "': not enough memory to open it");
    } catch (const fs::filesystem_error& error) {
        throw EngineError("session '" + path.string() + "': cannot copy it for reading: " + error.code().message());
    }
}

} // namespace keepsight
