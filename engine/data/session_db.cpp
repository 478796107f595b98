#include "engine/data/session_db.h"

#include "engine/data/error.h"

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>

namespace keepsight::session {

namespace {

struct Fnv {
    std::uint64_t hash = 14695981039346656037ull;
    void add(std::string_view bytes) {
        for (const char c : bytes)
            hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    }
    void add(std::uint64_t value) {
        char bytes[8];
        for (int i = 0; i < 8; ++i)
            bytes[i] = static_cast<char>(value >> (8 * i));
        add(std::string_view(bytes, 8));
    }
};

bool isReplaceable(TableId id) { return id == Meta || id == Lanes || id == Maps; }

} // namespace

Cell real(double value) {
    if (std::isnan(value)) return {};
    return value == 0.0 ? 0.0 : value;
}

double realOf(const Cell& cell) {
    const auto* value = std::get_if<double>(&cell);
    return value ? *value : std::numeric_limits<double>::quiet_NaN();
}

const Table& table(TableId id) {
    static const Table tables[TableCount] = {
        {"meta", {"key TEXT", "value TEXT"}},
        {"lanes", {"label TEXT", "policy TEXT", "notice TEXT", "layers INTEGER", "heads INTEGER"}},
        {"tokens", {"lane INTEGER", "position INTEGER", "token INTEGER", "role INTEGER", "bytes BLOB"}},
        {"steps",
         {"lane INTEGER", "step INTEGER", "kind INTEGER", "first_position INTEGER", "count INTEGER", "milliseconds REAL",
          "policy_milliseconds REAL", "nll REAL", "kv_bytes INTEGER", "allocated_bytes INTEGER"}},
        {"retained", {"lane INTEGER", "step INTEGER", "kind INTEGER", "data BLOB"}},
        {"maps",
         {"lane INTEGER", "layer INTEGER", "head INTEGER", "per_query_head INTEGER", "row_begin INTEGER", "row_end INTEGER",
          "row_bin INTEGER", "col_bin INTEGER", "rows INTEGER", "cols INTEGER", "encoding INTEGER", "data BLOB"}},
        {"measurements", {"lane INTEGER", "kind TEXT", "fields TEXT"}},
        {"seal", {"rows INTEGER", "total INTEGER"}},
    };
    return tables[id];
}

std::int64_t rowSum(TableId id, std::int64_t row, const std::vector<Cell>& cells) {
    Fnv fnv;
    fnv.add(std::string_view(table(id).name));
    fnv.add(static_cast<std::uint64_t>(row));
    for (const Cell& cell : cells) {
        fnv.add(static_cast<std::uint64_t>(cell.index()));
        if (const auto* integer = std::get_if<std::int64_t>(&cell)) fnv.add(static_cast<std::uint64_t>(*integer));
        if (const auto* number = std::get_if<double>(&cell)) fnv.add(std::bit_cast<std::uint64_t>(*number));
        const auto* text = std::get_if<Text>(&cell);
        const auto* blob = std::get_if<Blob>(&cell);
        if (!text && !blob) continue;
        const std::string& bytes = text ? text->bytes : blob->bytes;
        fnv.add(static_cast<std::uint64_t>(bytes.size()));
        fnv.add(bytes);
    }
    return static_cast<std::int64_t>(fnv.hash);
}

Database::Database(const std::string& nameOrUri, int flags, const std::filesystem::path& shownAs) : m_path(shownAs) {
    const int rc = sqlite3_open_v2(nameOrUri.c_str(), &m_db, flags, nullptr);
    if (rc != SQLITE_OK) {
        const std::string cause = m_db ? sqlite3_errmsg(m_db) : "out of memory";
        const int systemError = m_db ? sqlite3_system_errno(m_db) : 0;
        close();
        throw EngineError("session '" + shownAs.string() +
                          "': cannot open it: " + (systemError ? std::strerror(systemError) : cause.c_str()));
    }
    sqlite3_extended_result_codes(m_db, 1);
    sqlite3_busy_timeout(m_db, 2000);
    sqlite3_db_config(m_db, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
    sqlite3_db_config(m_db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
}

Database& Database::operator=(Database&& other) noexcept {
    if (this == &other) return *this;
    close();
    m_db = std::exchange(other.m_db, nullptr);
    m_path = std::move(other.m_path);
    return *this;
}

void Database::close() { sqlite3_close_v2(std::exchange(m_db, nullptr)); }

void Database::execute(const std::string& sql) {
    errno = 0;
    if (sqlite3_exec(m_db, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) fail("cannot use it");
}

std::int64_t Database::integer(const std::string& sql) {
    Statement statement(*this, sql);
    if (!statement.step()) return 0;
    const Cell cell = statement.column(0);
    const auto* value = std::get_if<std::int64_t>(&cell);
    return value ? *value : 0;
}

void Database::fail(const std::string& doing) const {
    // SQLite keeps the system's own reason only for some calls; else what the last failing system call left behind tells it.
    const int last = errno, known = sqlite3_system_errno(m_db);
    const bool telling = last == ENOSPC || last == EDQUOT || last == EFBIG || last == EROFS || last == EACCES || last == EIO;
    const int systemError = known ? known : telling ? last : 0;
    std::string cause = sqlite3_errmsg(m_db);
    const int code = sqlite3_errcode(m_db) & 0xff;
    if ((code == SQLITE_IOERR || code == SQLITE_CANTOPEN || code == SQLITE_FULL) && systemError != 0)
        cause += std::string(" (") + std::strerror(systemError) + ")";
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_ERROR || code == SQLITE_FORMAT)
        cause = "the file is damaged or not a session (" + cause + ")";
    throw EngineError("session '" + m_path.string() + "': " + doing + ": " + cause);
}

Statement::Statement(Database& db, const std::string& sql) : m_db(db) {
    if (sqlite3_prepare_v2(db.get(), sql.c_str(), static_cast<int>(sql.size()), &m_statement, nullptr) != SQLITE_OK)
        db.fail("cannot read it");
}

void Statement::bind(int index, const Cell& cell) {
    int rc = SQLITE_OK;
    if (std::holds_alternative<std::monostate>(cell))
        rc = sqlite3_bind_null(m_statement, index);
    else if (const auto* integer = std::get_if<std::int64_t>(&cell))
        rc = sqlite3_bind_int64(m_statement, index, *integer);
    else if (const auto* number = std::get_if<double>(&cell))
        rc = sqlite3_bind_double(m_statement, index, *number);
    else if (const auto* text = std::get_if<Text>(&cell))
        rc = sqlite3_bind_text64(m_statement, index, text->bytes.data(), text->bytes.size(), SQLITE_STATIC, SQLITE_UTF8);
    else if (const auto* blob = std::get_if<Blob>(&cell))
        rc = sqlite3_bind_blob64(m_statement, index, blob->bytes.data() ? blob->bytes.data() : "", blob->bytes.size(), SQLITE_STATIC);
    if (rc != SQLITE_OK) m_db.fail("cannot write a value");
}

bool Statement::step() {
    errno = 0;
    const int rc = sqlite3_step(m_statement);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE) m_db.fail(sqlite3_stmt_readonly(m_statement) ? "cannot read it" : "cannot write it");
    return rc == SQLITE_ROW;
}

Cell Statement::column(int index) const {
    switch (sqlite3_column_type(m_statement, index)) {
    case SQLITE_INTEGER:
        return static_cast<std::int64_t>(sqlite3_column_int64(m_statement, index));
    case SQLITE_FLOAT:
        return sqlite3_column_double(m_statement, index);
    case SQLITE_TEXT: {
        const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(m_statement, index));
        return Text{bytes ? std::string(bytes, static_cast<std::size_t>(sqlite3_column_bytes(m_statement, index))) : std::string()};
    }
    case SQLITE_BLOB: {
        const auto* bytes = static_cast<const char*>(sqlite3_column_blob(m_statement, index));
        return Blob{bytes ? std::string(bytes, static_cast<std::size_t>(sqlite3_column_bytes(m_statement, index))) : std::string()};
    }
    default:
        return {};
    }
}

RowWriter::RowWriter(Database& db) : m_db(db), m_insert(TableCount, nullptr), m_totals(TableCount) {}

RowWriter::~RowWriter() {
    for (Statement* statement : m_insert)
        delete statement;
}

void RowWriter::createTables() {
    for (int id = 0; id < TableCount; ++id) {
        const Table& t = table(static_cast<TableId>(id));
        std::string sql = std::string("CREATE TABLE ") + t.name + "(id INTEGER PRIMARY KEY";
        for (const char* column : t.columns)
            sql += std::string(", ") + column;
        m_db.execute(sql + ", sum INTEGER)");
        m_totals[static_cast<std::size_t>(id)].changed = true;
    }
}

std::int64_t RowWriter::append(TableId id, const std::vector<Cell>& cells) {
    const std::int64_t row = m_totals[id].rows + 1; // rows are never deleted
    put(id, row, cells);
    return row;
}

void RowWriter::put(TableId id, std::int64_t row, const std::vector<Cell>& cells) {
    Statement*& insert = m_insert[id];
    if (!insert) {
        std::string marks = "?";
        for (std::size_t i = 0; i < cells.size() + 1; ++i)
            marks += ",?";
        insert = new Statement(m_db, std::string("INSERT OR REPLACE INTO ") + table(id).name + " VALUES(" + marks + ")");
    }
    const std::int64_t sum = rowSum(id, row, cells);
    insert->reset();
    insert->bind(1, Cell(row));
    for (std::size_t i = 0; i < cells.size(); ++i)
        insert->bind(static_cast<int>(i) + 2, cells[i]);
    insert->bind(static_cast<int>(cells.size()) + 2, Cell(sum));
    insert->step();
    insert->reset();

    Total& total = m_totals[id];
    total.changed = true;
    const auto old = m_sums.find({id, row});
    if (old != m_sums.end())
        total.sum -= static_cast<std::uint64_t>(old->second);
    else
        ++total.rows;
    total.sum += static_cast<std::uint64_t>(sum);
    if (isReplaceable(id)) m_sums[{id, row}] = sum;
}

void RowWriter::seal() {
    for (int id = 0; id < Seal; ++id) {
        Total& total = m_totals[static_cast<std::size_t>(id)];
        if (!total.changed) continue;
        total.changed = false;
        put(Seal, id + 1, {Cell(total.rows), Cell(static_cast<std::int64_t>(total.sum))});
    }
}

void RowWriter::restore(const RowWriter& other) {
    m_totals = other.m_totals;
    m_sums = other.m_sums;
}

} // namespace keepsight::session
