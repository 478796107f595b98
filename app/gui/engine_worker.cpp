#include "app/gui/engine_worker.h"

#include "app/gui/run_recorder.h"
#include "engine/data/error.h"

#include <QElapsedTimer>
#include <QMetaObject>
#include <QPointer>
#include <QSet>
#include <QThread>
#include <QTimer>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <mutex>

namespace keepsight {

namespace {

struct Work {
    JobId id = 0;
    QString tag;
    std::stop_source stop;
    enum class Kind { open, run, attention } kind = Kind::run;
    OpenOptions options;
    Job job;
    TracePtr trace; // attention: the run it belongs to
    LayerIndex layer;
    HeadIndex head;
};

// Views show a snapshot bit by bit, in the turns of the event loop after it came: what the thread works until then is counted as its cost.
constexpr std::chrono::milliseconds ShowingTime{50};

std::int64_t threadCpuNs() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

QString sentence(const std::exception& e) { return QString::fromUtf8(e.what()); }

} // namespace

struct EngineWorker::Private {
    EngineWorker* q = nullptr;
    std::unique_ptr<QThread> runner, previewer;

    mutable std::mutex mutex; // everything below up to the blank line
    std::condition_variable wake, previewWake;
    std::deque<std::shared_ptr<Work>> waiting;
    std::shared_ptr<Work> running;
    bool quit = false;
    std::shared_ptr<Engine> engine; // made in the runner: loading it takes time
    std::filesystem::path recovery;
    struct PreviewRequest {
        TracePtr base;
        LaneIndex lane;
        PolicySpec policy;
        QElapsedTimer since;
    };
    std::optional<PreviewRequest> previewRequest;
    std::optional<PromptSpec> countRequest;
    struct ExplainWork {
        quint64 ticket = 0;
        ExplainRequest request;
    };
    std::optional<ExplainWork> explainRequest;
    quint64 explainWanted = 0;      // ticket of the newest question; 0: none any more
    std::stop_source explaining;    // of the one under way
    bool explainRepeats = false;    // it repeats a lane, which takes long

    std::atomic<JobId> lastId{0};
    QSet<JobId> silenced;                  // owner's thread only: cancelled ids, whose late results are dropped
    std::atomic<std::int64_t> showingNs{0}; // what the owner's thread has worked to show the last snapshot; negative: it is at it

    // Runs in the thread of the worker object; nothing is delivered once it is being destroyed.
    template <class Call>
    void post(Call&& call) {
        QMetaObject::invokeMethod(q, std::forward<Call>(call), Qt::QueuedConnection);
    }

    JobId enqueue(std::shared_ptr<Work> work, Running policy, bool alone) {
        work->id = ++lastId;
        std::vector<JobId> stopped;
        {
            std::lock_guard lock(mutex);
            std::erase_if(waiting, [&](const auto& w) { return alone || w->tag == work->tag; });
            if (running && (alone || (policy == Running::cancel && running->tag == work->tag))) {
                running->stop.request_stop();
                stopped.push_back(running->id);
            }
            waiting.push_back(work);
            if (explainRequest && explainRequest->request.step.value > 1) explainRequest.reset();
            if (explainRepeats) dropExplanation(); // the cores belong to the job
        }
        for (const JobId id : stopped)
            silenced.insert(id);
        wake.notify_one();
        return work->id;
    }

    void dropExplanation() { // the mutex is held
        explainWanted = 0;
        explaining.request_stop();
    }

    void runLoop();
    void runOne(const std::shared_ptr<Work>& work);
    TracePtr execute(const std::shared_ptr<Work>& work, Outcome& outcome);
    void previewLoop();
    void explainOne(Engine& with, const ExplainWork& work);
};

EngineWorker::EngineWorker(QObject* parent) : QObject(parent), d(std::make_unique<Private>()) {
    qRegisterMetaType<JobId>("keepsight::JobId");
    qRegisterMetaType<Progress>("keepsight::Progress");
    qRegisterMetaType<TracePtr>("keepsight::TracePtr");
    qRegisterMetaType<ExplanationPtr>("keepsight::ExplanationPtr");
    qRegisterMetaType<Outcome>("keepsight::Outcome");
    qRegisterMetaType<ModelInfo>("keepsight::ModelInfo");
    d->q = this;
    d->runner.reset(QThread::create([this] { d->runLoop(); }));
    d->previewer.reset(QThread::create([this] { d->previewLoop(); }));
    d->runner->setObjectName("engine");
    d->previewer->setObjectName("preview");
    d->runner->start();
    d->previewer->start();
}

EngineWorker::~EngineWorker() {
    {
        std::lock_guard lock(d->mutex);
        d->quit = true;
        d->waiting.clear();
        if (d->running) d->running->stop.request_stop();
        d->dropExplanation();
    }
    d->wake.notify_all();
    d->previewWake.notify_all();
    d->runner->wait();
    d->previewer->wait();
}

void EngineWorker::setRecoveryFile(const QString& path) {
    std::lock_guard lock(d->mutex);
    d->recovery = path.toStdString();
}

JobId EngineWorker::open(const OpenOptions& options) {
    auto work = std::make_shared<Work>();
    work->tag = "model";
    work->kind = Work::Kind::open;
    work->options = options;
    return d->enqueue(std::move(work), Running::cancel, true);
}

JobId EngineWorker::submit(Job job, const QString& tag, Running running) {
    auto work = std::make_shared<Work>();
    work->tag = tag;
    work->job = std::move(job);
    return d->enqueue(std::move(work), running, false);
}

JobId EngineWorker::attention(TracePtr trace, const PromptSpec& prompt, LayerIndex layer, HeadIndex queryHead) {
    auto work = std::make_shared<Work>();
    work->tag = "attention";
    work->kind = Work::Kind::attention;
    work->job.prompt = prompt;
    work->trace = std::move(trace);
    work->layer = layer;
    work->head = queryHead;
    return d->enqueue(std::move(work), Running::cancel, false);
}

bool EngineWorker::cancel(JobId id) {
    {
        std::lock_guard lock(d->mutex);
        if (std::erase_if(d->waiting, [&](const auto& w) { return w->id == id; })) return true;
        if (!d->running || d->running->id != id) return false;
        d->running->stop.request_stop();
    }
    if (QThread::currentThread() == thread())
        d->silenced.insert(id);
    else
        d->post([this, id] { d->silenced.insert(id); });
    return false;
}

void EngineWorker::cancelAll() {
    JobId id = 0;
    {
        std::lock_guard lock(d->mutex);
        d->waiting.clear();
        if (d->running) id = d->running->id;
    }
    if (id) cancel(id);
}

bool EngineWorker::isBusy() const {
    std::lock_guard lock(d->mutex);
    return d->running || !d->waiting.empty();
}

void EngineWorker::preview(TracePtr base, LaneIndex lane, const PolicySpec& policy) {
    Private::PreviewRequest request{std::move(base), lane, policy, {}};
    request.since.start();
    {
        std::lock_guard lock(d->mutex);
        d->previewRequest = std::move(request);
        if (d->explainRepeats) d->explaining.request_stop(); // it goes on after the preview
    }
    d->previewWake.notify_one();
}

void EngineWorker::countTokens(const PromptSpec& prompt) {
    {
        std::lock_guard lock(d->mutex);
        d->countRequest = prompt;
        if (d->explainRepeats) d->explaining.request_stop();
    }
    d->previewWake.notify_one();
}

void EngineWorker::explain(quint64 ticket, const ExplainRequest& request) {
    {
        std::lock_guard lock(d->mutex);
        d->dropExplanation();
        d->explainWanted = ticket;
        d->explainRequest = {ticket, request};
    }
    d->previewWake.notify_one();
}

void EngineWorker::stopExplaining() {
    std::lock_guard lock(d->mutex);
    d->explainRequest.reset();
    d->dropExplanation();
}

void EngineWorker::Private::runLoop() {
    auto made = std::make_shared<Engine>();
    {
        std::lock_guard lock(mutex);
        engine = made;
    }
    for (;;) {
        std::shared_ptr<Work> work;
        {
            std::unique_lock lock(mutex);
            running.reset();
            wake.wait(lock, [&] { return quit || !waiting.empty(); });
            if (quit) break;
            work = waiting.front();
            waiting.pop_front();
            running = work;
        }
        runOne(work);
    }
    std::lock_guard lock(mutex);
    engine.reset();
}

void EngineWorker::Private::runOne(const std::shared_ptr<Work>& work) {
    const JobId id = work->id;
    post([this, id, tag = work->tag] { Q_EMIT q->started(id, tag); });
    // The job is off the books before its end is told: whoever hears of it finds isBusy() true only for other work.
    const auto end = [&](auto&& tell) {
        {
            std::lock_guard lock(mutex);
            running.reset();
        }
        post(std::forward<decltype(tell)>(tell));
    };
    try {
        Outcome outcome = Outcome::complete;
        auto trace = execute(work, outcome);
        end([this, id, outcome, trace] {
            silenced.remove(id);
            Q_EMIT q->finished(id, outcome, trace);
        });
    } catch (const std::bad_alloc&) {
        end([this, id] {
            silenced.remove(id);
            Q_EMIT q->failed(id, tr("The run needs more memory than this machine has free; shorten the text or lower the number of lanes."));
        });
    } catch (const std::exception& e) {
        end([this, id, reason = sentence(e)] {
            silenced.remove(id);
            Q_EMIT q->failed(id, reason);
        });
    }
}

TracePtr EngineWorker::Private::execute(const std::shared_ptr<Work>& work, Outcome& outcome) {
    const JobId id = work->id;
    QElapsedTimer sinceProgress;
    std::string lastStage;
    RunRecorder* live = nullptr;
    const OnProgress report = [&](const Progress& progress) {
        if (live) live->tick();
        const bool last = progress.total > 0 && progress.done >= progress.total;
        if (sinceProgress.isValid() && sinceProgress.elapsed() < 50 && progress.stage == lastStage && !last) return;
        sinceProgress.start();
        lastStage = progress.stage;
        post([this, id, progress] {
            if (!silenced.contains(id)) Q_EMIT q->progressed(id, progress);
        });
    };
    const auto stop = work->stop.get_token();

    if (work->kind == Work::Kind::open) {
        outcome = engine->open(work->options, stop, report);
        if (outcome == Outcome::complete) post([this, model = engine->model()] { Q_EMIT q->modelOpened(model); });
        return nullptr;
    }
    if (!engine->isOpen()) throw EngineError("No model is open: choose a model on the left, then run again.");
    if (work->kind == Work::Kind::attention) {
        const auto map = engine->attention(work->job.prompt, work->layer, work->head, stop, report);
        if (stop.stop_requested() || !map) {
            outcome = Outcome::cancelled;
            return work->trace;
        }
        MemoryTrace extended(*work->trace);
        extended.add(map);
        return extended.snapshot();
    }

    if (work->job.commandLine.empty()) work->job.commandLine = commandLineOf(work->job, engine->model().path);
    std::filesystem::path path;
    {
        std::lock_guard lock(mutex);
        path = recovery;
    }
    const auto warn = [this](const std::string& text) {
        post([this, text = QString::fromStdString(text)] { Q_EMIT q->warned(text); });
    };
    showingNs = 0;
    RunRecorder recorder(
        [this, id](TracePtr snapshot) {
            showingNs = -1;
            post([this, id, snapshot] {
                const std::int64_t before = threadCpuNs();
                if (!silenced.contains(id)) Q_EMIT q->traceUpdated(id, snapshot);
                QTimer::singleShot(ShowingTime, q, [this, before] { showingNs = threadCpuNs() - before; });
            });
        },
        [this]() -> std::optional<RunRecorder::Clock::duration> {
            const std::int64_t ns = showingNs;
            return ns < 0 ? std::nullopt : std::optional<RunRecorder::Clock::duration>(std::chrono::nanoseconds(ns));
        },
        path.empty() ? nullptr : std::make_unique<RecoverySink>(path, warn));
    live = &recorder;
    outcome = engine->run(work->job, recorder, stop, report);
    return recorder.result();
}

void EngineWorker::Private::previewLoop() {
    for (;;) {
        std::optional<PreviewRequest> request;
        std::optional<PromptSpec> prompt;
        std::optional<ExplainWork> why;
        std::shared_ptr<Engine> current;
        {
            std::unique_lock lock(mutex);
            previewWake.wait(lock, [&] { return quit || previewRequest || countRequest || explainRequest; });
            if (quit) return;
            std::swap(request, previewRequest);
            std::swap(prompt, countRequest);
            if (!request && !prompt && explainRequest) {
                why = std::exchange(explainRequest, std::nullopt);
                explaining = std::stop_source();
                explainRepeats = why->request.step.value > 1;
            }
            current = engine;
        }
        if (request && current) {
            const int lane = request->lane.value;
            try {
                const auto sets = current->preview(request->policy);
                if (sets && request->base) {
                    auto trace = withPreview(*request->base, request->lane, request->policy, *sets);
                    post([this, lane, trace, since = request->since] { Q_EMIT q->previewed(lane, trace, double(since.nsecsElapsed()) / 1e6); });
                } else {
                    post([this, lane] { Q_EMIT q->previewRefused(lane, {}); });
                }
            } catch (const std::exception& e) {
                post([this, lane, reason = sentence(e)] { Q_EMIT q->previewRefused(lane, reason); });
            }
        }
        if (prompt) {
            int count = -1;
            try {
                if (current && current->isOpen()) count = static_cast<int>(current->tokenize(*prompt).ids.size());
            } catch (const std::exception&) {
                count = -1; // the run itself says what is wrong with the text
            }
            post([this, count] { Q_EMIT q->tokensCounted(count); });
        }
        if (why && current) explainOne(*current, *why);
    }
}

void EngineWorker::Private::explainOne(Engine& with, const ExplainWork& work) {
    const ExplainRequest& ask = work.request;
    ExplanationPtr answer;
    QString reason;
    try {
        const auto found = ask.step.value <= 1 ? with.explain(ask.policy, ask.layer, ask.head, ask.position)
                                               : with.explain(ask.policy, ask.fed, ask.step, ask.layer, ask.head, ask.position, explaining.get_token());
        if (found) answer = std::make_shared<const Explanation>(*found);
        else reason = tr("Nothing was found about this choice: the prefill that is held may lack what the policy looks at. Score the text again.");
    } catch (const std::bad_alloc&) {
        reason = tr("Explaining this choice needs more memory than this machine has free.");
    } catch (const std::exception& e) {
        reason = sentence(e);
    }
    std::lock_guard lock(mutex);
    explainRepeats = false;
    if (explainWanted != work.ticket) return; // somebody asked anew, or nobody wants to know any more
    if (!answer && explaining.stop_requested()) { // it made room for a preview: again, after that
        explainRequest = work;
        return;
    }
    explainWanted = 0;
    post([this, ticket = work.ticket, answer, reason] { Q_EMIT q->explained(ticket, answer, reason); });
}

} // namespace keepsight
