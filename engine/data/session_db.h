// SQLite and the tables of a session file, as thin values. Internal to engine/data's sources.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <sqlite3.h>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace keepsight::session {

inline constexpr std::int32_t ApplicationId = 0x4B454550; // "KEEP"

struct Text {
    std::string bytes;
};
struct Blob {
    std::string bytes;
};
using Cell = std::variant<std::monostate, std::int64_t, double, Text, Blob>; // NULL stands for "not measured"

Cell real(double value); // NaN becomes NULL, -0 becomes 0: SQLite keeps neither
double realOf(const Cell& cell);

// Columns between `id INTEGER PRIMARY KEY` and `sum INTEGER`, the same in every table.
struct Table {
    const char* name;
    std::vector<const char*> columns; // "lane INTEGER"
};
enum TableId { Meta, Lanes, Tokens, Steps, Retained, Maps, Measurements, Seal, TableCount };
const Table& table(TableId id);

// 64-bit FNV-1a over the table's name, the id and every column with its type and length.
std::int64_t rowSum(TableId table, std::int64_t id, const std::vector<Cell>& cells);

class Database {
public:
    Database() = default;
    Database(const std::string& nameOrUri, int flags, const std::filesystem::path& shownAs);
    ~Database() { close(); }
    Database(Database&& other) noexcept : m_db(std::exchange(other.m_db, nullptr)), m_path(std::move(other.m_path)) {}
    Database& operator=(Database&& other) noexcept;
    void close();
    explicit operator bool() const { return m_db != nullptr; }
    void execute(const std::string& sql);
    std::int64_t integer(const std::string& sql); // first column of the first row
    [[noreturn]] void fail(const std::string& doing) const;
    sqlite3* get() const { return m_db; }
    const std::filesystem::path& path() const { return m_path; }

private:
    sqlite3* m_db = nullptr;
    std::filesystem::path m_path;
};

class Statement {
public:
    Statement(Database& db, const std::string& sql);
    ~Statement() { sqlite3_finalize(m_statement); }
    Statement(const Statement&) = delete;
    Statement& operator=(const Statement&) = delete;
    void bind(int index, const Cell& cell); // from 1; the cell must outlive the next step
    bool step();                            // true: a row is there
    void reset() { sqlite3_reset(m_statement); }
    Cell column(int index) const; // from 0

private:
    Database& m_db;
    sqlite3_stmt* m_statement = nullptr;
};

// Writes rows with their sums, and the seal: per table the number of rows and the total of their sums.
class RowWriter {
public:
    explicit RowWriter(Database& db);
    ~RowWriter();
    void createTables();
    std::int64_t append(TableId table, const std::vector<Cell>& cells);       // returns the id
    void put(TableId table, std::int64_t id, const std::vector<Cell>& cells); // inserts or replaces
    void seal();                                                              // before every commit
    void restore(const RowWriter& other);                                     // continues what another connection wrote

private:
    struct Total {
        std::int64_t rows = 0;
        std::uint64_t sum = 0;
        bool changed = false;
    };
    Database& m_db;
    std::vector<Statement*> m_insert;
    std::vector<Total> m_totals;
    std::map<std::pair<int, std::int64_t>, std::int64_t> m_sums; // of rows that may be replaced
};

} // namespace keepsight::session
