#include "engine/data/trace_file.h"

#include "engine/data/error.h"
#include "engine/data/files.h"
#include "engine/data/job.h"
#include "engine/data/session_rows.h"

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <optional>
#include <thread>
#include <unistd.h>

namespace keepsight {

namespace fs = std::filesystem;
using session::Database;
using session::TraceRows;

namespace {

constexpr auto BatchTime = std::chrono::milliseconds(500);

fs::path beside(const fs::path& path, const char* suffix) {
    fs::path other = path;
    other += suffix;
    return other;
}

void removeQuietly(const fs::path& path) {
    std::error_code ignored;
    fs::remove(path, ignored);
}

// A complete session in a temporary, flushed to disk once commit() returns and gone if that is not reached.
class WholeFile {
public:
    WholeFile(const Trace& trace, const fs::path& target) : m_path(beside(target, ".part")) {
        discard();
        // Made here and not by SQLite, which tries again read-only and then reports that failure instead of the first.
        const int file = ::open(m_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file < 0) throw EngineError("session '" + target.string() + "': cannot write it: " + std::strerror(errno));
        ::close(file);
        m_db = Database(m_path.string(), SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, target);
        try {
            m_db.execute(
                "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=FULL; PRAGMA application_id=" + std::to_string(session::ApplicationId) +
                "; PRAGMA user_version=" + std::to_string(Trace::CurrentFormat) + "; BEGIN IMMEDIATE");
            m_rows.emplace(m_db);
            m_rows->create(trace);
        } catch (...) {
            discard();
            throw;
        }
    }
    ~WholeFile() { discard(); }
    TraceRows& rows() { return *m_rows; }
    void commit() {
        m_db.execute("COMMIT");
        m_committed.emplace(m_db);
        m_committed->resume(*m_rows);
        m_rows.reset();
        m_db.close();
    }
    const TraceRows& committed() const { return *m_committed; } // the rows' state, for the next connection
    const fs::path& path() const { return m_path; }

private:
    void discard() {
        m_rows.reset();
        m_db.close();
        removeQuietly(m_path);
    }
    fs::path m_path;
    Database m_db;
    std::optional<TraceRows> m_rows, m_committed;
};

// An earlier session whose recording was cut off is one file plus its log. The log must neither be lost before the
// replacement is there, nor be taken for the replacement's own.
void settleEarlier(const fs::path& path) {
    std::error_code error;
    if (!fs::exists(beside(path, "-wal"), error)) return;
    if (fs::exists(path, error)) {
        Database old(path.string(), SQLITE_OPEN_READWRITE, path);
        const bool failed =
            sqlite3_exec(old.get(), "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE", nullptr, nullptr, nullptr) != SQLITE_OK;
        if (failed && (sqlite3_errcode(old.get()) & 0xff) == SQLITE_BUSY)
            throw EngineError("session '" + path.string() + "': another program is writing it");
    }
    removeQuietly(beside(path, "-wal"));
    removeQuietly(beside(path, "-shm"));
}

Trace withoutText(const Trace& trace) {
    Trace out = trace;
    const auto strip = [](std::vector<TokenRecord>& tokens) {
        for (TokenRecord& token : tokens) {
            token.id = -1;
            token.bytes.clear();
        }
    };
    strip(out.tokens);
    for (Lane& lane : out.lanes)
        strip(lane.generated);
    if (!out.run.jobJson.empty()) {
        Job job = jobFromJson(out.run.jobJson);
        job.prompt.text.clear();
        job.prompt.ids.reset();
        job.needle.haystack.clear();
        job.commandLine.clear();
        job.commandLine = commandLineOf(job, out.model.path);
        out.run.commandLine = job.commandLine;
        out.run.jobJson = jobToJson(job);
    } else {
        out.run.commandLine.clear();
    }
    // What the model said may quote the prompt.
    for (Measurement& measurement : out.measurements)
        for (auto& [name, value] : measurement.fields)
            if (name == "text" || name == "answer" || name == "prompt" || name == "output" || name == "continuation") value = std::string();
    return out;
}

} // namespace

struct TraceFileWriter::Private {
    explicit Private(fs::path target) : path(std::move(target)) {}

    fs::path path;
    std::mutex mutex; // the recording thread and the committer
    std::condition_variable wake;
    Database db;
    std::optional<TraceRows> rows;
    bool inBatch = false, stopping = false;
    std::chrono::steady_clock::time_point batchBegan;
    std::string failure; // of the committer, thrown by the next call
    std::thread committer;

    void commit() {
        if (!inBatch) return;
        rows->flush();
        db.execute("COMMIT");
        inBatch = false;
    }

    // A record that is followed by silence (a long needle cell) is committed in time as well.
    void commitInTime() {
        std::unique_lock lock(mutex);
        while (!stopping) {
            if (!inBatch) {
                wake.wait(lock);
                continue;
            }
            if (wake.wait_until(lock, batchBegan + BatchTime) == std::cv_status::no_timeout || !inBatch ||
                std::chrono::steady_clock::now() < batchBegan + BatchTime)
                continue;
            try {
                commit();
            } catch (const std::exception& error) {
                giveUp(error.what());
                if (failure.empty()) failure = error.what();
                inBatch = false;
            }
        }
    }

    template <class Write>
    void record(const Write& write) {
        const std::lock_guard lock(mutex);
        if (!failure.empty()) throw EngineError(failure);
        if (!rows) throw EngineError("session '" + path.string() + "': a record came before the run began or after it ended");
        const auto now = std::chrono::steady_clock::now();
        if (!inBatch) {
            db.execute("BEGIN IMMEDIATE");
            inBatch = true;
            batchBegan = now;
            wake.notify_one();
        }
        try {
            write(*rows);
            if (now - batchBegan >= BatchTime) commit();
        } catch (const EngineError& error) {
            giveUp(error.what());
            throw;
        }
    }

    // After an error of the database nothing more is written: the file stays as it was at the last commit, whose seal is true.
    // A record that was refused for itself changes nothing and may be followed by others.
    void giveUp(const std::string& cause) {
        const int code = sqlite3_errcode(db.get());
        if (code == SQLITE_OK || code == SQLITE_ROW || code == SQLITE_DONE) return;
        failure = cause;
        inBatch = false;
        if (!sqlite3_get_autocommit(db.get())) sqlite3_exec(db.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    }

    void stopCommitter() {
        {
            const std::lock_guard lock(mutex);
            stopping = true;
        }
        wake.notify_one();
        if (committer.joinable()) committer.join();
        stopping = false;
    }

    // One file, no log beside it. A reader that holds the file open keeps the log; it is merged by whoever opens it next.
    void close() {
        rows.reset();
        if (!db) return;
        sqlite3_busy_timeout(db.get(), 200);
        sqlite3_exec(db.get(), "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE", nullptr, nullptr, nullptr);
        db.close();
    }
};

TraceFileWriter::TraceFileWriter(const fs::path& path) : d(std::make_unique<Private>(path)) {}

TraceFileWriter::~TraceFileWriter() {
    d->stopCommitter();
    try {
        if (d->rows && d->failure.empty()) {
            if (!d->inBatch) d->db.execute("BEGIN IMMEDIATE");
            d->rows->complete();
            d->db.execute("COMMIT");
        }
    } catch (const std::exception&) {
        // What was committed before stays; a destructor cannot say more.
    }
    d->close();
}

void TraceFileWriter::begin(const Trace& header) {
    if (d->rows) throw EngineError("session '" + d->path.string() + "': the run began twice");
    WholeFile whole(header, d->path);
    whole.rows().flush();
    whole.commit();
    settleEarlier(d->path);
    replaceFile(whole.path(), d->path);
    d->db = Database(d->path.string(), SQLITE_OPEN_READWRITE, d->path);
    d->db.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL");
    d->rows.emplace(d->db);
    d->rows->resume(whole.committed());
    d->failure.clear();
    d->committer = std::thread([this] { d->commitInTime(); });
}

void TraceFileWriter::add(LaneIndex lane, const TokenRecord& token) {
    d->record([&](TraceRows& rows) { rows.add(lane, token); });
}
void TraceFileWriter::add(LaneIndex lane, const StepRecord& step) {
    d->record([&](TraceRows& rows) { rows.add(lane, step); });
}
void TraceFileWriter::add(const KeepRecord& evictions) {
    d->record([&](TraceRows& rows) { rows.add(evictions); });
}
void TraceFileWriter::add(std::shared_ptr<const AttentionMap> map) {
    d->record([&](TraceRows& rows) { rows.add(*map); });
}
void TraceFileWriter::add(const Measurement& measurement) {
    d->record([&](TraceRows& rows) { rows.add(measurement); });
}
void TraceFileWriter::notice(LaneIndex lane, const std::string& text) {
    d->record([&](TraceRows& rows) { rows.notice(lane, text); });
}

void TraceFileWriter::end(Outcome outcome, const std::string& failure) {
    d->record([&](TraceRows& rows) {
        RunInfo run = rows.run();
        run.finished = true;
        run.cancelled = outcome == Outcome::cancelled;
        run.failure = failure;
        rows.setRun(run);
        rows.complete();
    });
    d->stopCommitter();
    if (!d->failure.empty()) throw EngineError(d->failure);
    try {
        d->commit();
    } catch (const EngineError& error) {
        d->giveUp(error.what());
        d->close();
        throw;
    }
    d->close();
}

void saveTrace(const Trace& trace, const fs::path& path, const SaveOptions& options) {
    WholeFile whole(options.withoutText ? withoutText(trace) : trace, path);
    whole.rows().complete();
    whole.commit();
    settleEarlier(path);
    replaceFile(whole.path(), path);
}

} // namespace keepsight
