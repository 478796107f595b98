// How smooth the window stays during a long run, and what showing the run costs it: the real window, the default model, a long text.
//
// A Score of two lanes (full, snapkv) goes on while every view is raised in turn and the time line is scrubbed. Printed are, for each
// phase, the longest stall of the event loop, the longest event with what handled it, and the share of one core that the window's
// thread took; then the time per token while the run is shown and while it is not, and what one more snapshot costs each view alone.
#include "app/calm_threads.h"
#include "app/gui/main_window.h"
#include "app/gui/message_bar.h"
#include "app/gui/setup_panel.h"
#include "app/gui/theme.h"
#include "engine/engine.h"
#include "widgets/base/trace_view.h"

#include <QAction>
#include <QApplication>
#include <QCommandLineParser>
#include <QDir>
#include <QDockWidget>
#include <QElapsedTimer>
#include <QFile>
#include <QMetaEnum>
#include <QPlainTextEdit>
#include <QSettings>
#include <QStandardPaths>
#include <QTemporaryDir>
#include <QThread>
#include <QTimer>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <map>
#include <numeric>

using namespace keepsight;

namespace {

double threadCpuMs() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) * 1e3 + double(t.tv_nsec) / 1e6;
}

double median(std::vector<double> of) {
    if (of.empty()) return NotMeasured;
    std::ranges::nth_element(of, of.begin() + std::ptrdiff_t(of.size() / 2));
    return of[of.size() / 2];
}

// Times every event of the window's thread.
class WatchedApplication : public QApplication {
public:
    using QApplication::QApplication;
    struct Sum {
        int count = 0;
        double ms = 0, longest = 0;
    };
    double longestMs = 0;
    QString longestName;          // "MetaCall to EngineWorker"; of nested events the chain of the longest
    std::map<QString, Sum> names; // events handled by the loop itself, by name

    void reset() {
        longestMs = 0;
        names.clear();
    }
    bool notify(QObject* receiver, QEvent* event) override {
        if (QThread::currentThread() != thread()) return QApplication::notify(receiver, event);
        const char* to = receiver->metaObject()->className();
        const char* of = receiver->parent() ? receiver->parent()->metaObject()->className() : "";
        const QEvent::Type type = event->type();
        const Handled before = std::exchange(m_inside, {});
        ++m_depth;
        QElapsedTimer timer;
        timer.start();
        const bool taken = QApplication::notify(receiver, event);
        const double ms = double(timer.nsecsElapsed()) / 1e6;
        --m_depth;
        QString name;
        if (ms > 0.3) {
            name = QString("%1 to %2").arg(QMetaEnum::fromType<QEvent::Type>().valueToKey(type), to);
            if (*of) name += QString(" of %1").arg(of);
            if (m_inside.ms > ms / 2) name += " > " + m_inside.name;
        }
        if (m_depth > 0) {
            m_inside = ms > before.ms ? Handled{ms, name} : before;
            return taken;
        }
        m_inside = {};
        if (ms > longestMs) {
            longestMs = ms;
            longestName = name;
        }
        Sum& sum = names[name.isEmpty() ? QString("short ones") : name];
        ++sum.count;
        sum.ms += ms;
        sum.longest = std::max(sum.longest, ms);
        return taken;
    }

private:
    struct Handled {
        double ms = 0;
        QString name;
    };
    Handled m_inside; // the longest event handled inside the one being handled
    int m_depth = 0;
};

struct Tpot {
    double medianMs = 0, meanMs = 0;
};

Tpot tpotOf(const Trace& trace, std::size_t lane) {
    std::vector<double> times;
    for (const StepRecord& step : trace.lanes.at(lane).steps)
        if (step.kind == StepRecord::Kind::decode) times.push_back(step.milliseconds);
    return {median(times), std::accumulate(times.begin(), times.end(), 0.0) / double(std::max<std::size_t>(1, times.size()))};
}

class WindowBench {
public:
    WindowBench(WatchedApplication& app, MainWindow& window, bool details) : m_app(app), m_window(window), m_details(details) {}

    void begin(const QString& phase) {
        end();
        m_phase = phase;
        m_window.stallMeter()->reset();
        m_app.reset();
        m_cpu = threadCpuMs();
        m_since.start();
        m_updates = 0;
    }
    void end() {
        if (m_phase.isEmpty()) return;
        const double wall = double(m_since.nsecsElapsed()) / 1e6;
        std::printf("%-22s %6.1f s  stall %6.1f ms  window's thread %5.1f %%  %4.1f snapshots/s  longest event %6.1f ms: %s\n", qPrintable(m_phase), wall / 1e3,
                    m_window.stallMeter()->longestMs(), 100 * (threadCpuMs() - m_cpu) / wall, 1e3 * m_updates / wall, m_app.longestMs, qPrintable(m_app.longestName));
        if (m_details)
            for (const auto& [name, sum] : m_app.names)
                if (sum.ms > 0.004 * wall) std::printf("    %5.1f %%  %6d times  longest %6.1f ms  %s\n", 100 * sum.ms / wall, sum.count, sum.longest, qPrintable(name));
        std::fflush(stdout);
        m_worst = std::max(m_worst, m_window.stallMeter()->longestMs());
        m_phase.clear();
    }
    void snapshotCame() { ++m_updates; }
    double worstStallMs() const { return m_worst; }

    void raise(const QString& view) const {
        if (auto* dock = m_window.findChild<QDockWidget*>("dock-" + view)) dock->raise();
    }

    // The run from the click on Score to its end. Phases follow the steps, so that each sees what there is by then.
    bool score(int decodeSteps) {
        bool ended = false, failed = false;
        QEventLoop loop;
        QObject::connect(&m_window, &MainWindow::runEnded, &loop, [&] { ended = true; });
        QObject::connect(m_window.worker(), &EngineWorker::failed, &loop, [&] { ended = failed = true; });
        QObject::connect(m_window.worker(), &EngineWorker::traceUpdated, &loop, [&] { snapshotCame(); });
        std::vector<std::pair<double, QString>> plan{{0.0, "curves"}, {0.25, "tokens"}, {0.33, "retained"}, {0.41, "attention"}, {0.49, "needle"}, {0.57, "results"}, {0.65, "curves"}, {0.73, "scrub"}, {0.9, "follow"}};
        std::size_t next = 0;
        bool scrubbing = false;
        int ticks = 0;
        QTimer tick;
        QObject::connect(&tick, &QTimer::timeout, &loop, [&] {
            if (ended) return loop.quit();
            const auto trace = m_window.session()->shown();
            const int last = trace ? trace->lastStep() : -1;
            while (next < plan.size() && last >= 1 && last >= plan[next].first * decodeSteps) {
                const QString what = plan[next].second;
                begin(next == 0 ? QString("first steps") : what == "scrub" || what == "follow" ? what : what + " raised");
                scrubbing = what == "scrub";
                if (what == "follow") m_window.focusModel()->setStep(Step{last});
                else if (!scrubbing) raise(what);
                ++next;
            }
            if (scrubbing) m_window.focusModel()->setStep(Step{(++ticks * 37) % std::max(1, last)});
        });
        begin("prefill");
        m_window.action("run.score")->trigger();
        tick.start(40);
        loop.exec();
        QTimer::singleShot(700, &loop, &QEventLoop::quit); // what comes with the end belongs to it
        loop.exec();
        end();
        return !failed;
    }
    void scrubAtRest() {
        begin("scrub at rest");
        QEventLoop loop;
        const int last = m_window.session()->shown()->lastStep();
        int ticks = 0;
        QTimer tick;
        QObject::connect(&tick, &QTimer::timeout, &loop, [&] {
            if (++ticks > 100) return loop.quit();
            m_window.focusModel()->setStep(Step{(ticks * 37) % std::max(1, last)});
        });
        tick.start(25);
        loop.exec();
        end();
    }

private:
    WatchedApplication& m_app;
    MainWindow& m_window;
    bool m_details;
    QString m_phase;
    QElapsedTimer m_since;
    double m_cpu = 0, m_worst = 0;
    int m_updates = 0;
};

Job jobOf(const QString& text, double prefix) {
    Job job;
    job.kind = RunKind::score;
    job.prompt.text = text.toStdString();
    job.score.prefixRatio = prefix;
    job.lanes = {{"A", PolicySpec{}}, {"B", PolicySpec{.id = "snapkv", .params = {}, .budget = Budget::removed(0.5)}}};
    return job;
}

// The same run again, shown and not shown by turns of about two seconds: side by side, so that what else the machine does falls on both.
// While the window's thread sleeps it takes no snapshot, and so none is made.
struct Turns {
    std::vector<double> shown, hidden; // mean time of a step in each turn, all lanes
};
Turns alternate(MainWindow& window) {
    constexpr int TurnMs = 2000;
    std::vector<int> ends; // last step of each turn; the first is shown
    bool ended = false;
    QEventLoop loop;
    QElapsedTimer turn;
    QObject::connect(&window, &MainWindow::runEnded, &loop, [&] { ended = true, loop.quit(); });
    QObject::connect(window.worker(), &EngineWorker::traceUpdated, &loop, [&](JobId, const TracePtr& trace) {
        if (trace->lastStep() < 2) return turn.invalidate();
        if (!turn.isValid()) {
            ends.push_back(trace->lastStep());
            turn.start();
        } else if (ends.size() % 2 == 0) { // the first snapshot after a sleep ends it
            ends.push_back(trace->lastStep());
            turn.start();
        } else if (turn.elapsed() >= TurnMs) {
            ends.push_back(trace->lastStep());
            QThread::msleep(TurnMs);
        }
    });
    window.action("run.score")->trigger();
    if (!ended) loop.exec();
    Turns out;
    const auto trace = window.session()->recorded();
    for (std::size_t i = 1; i < ends.size(); ++i) {
        double sum = 0;
        for (const Lane& lane : trace->lanes)
            for (int step = ends[i - 1] + 1; step <= ends[i]; ++step)
                sum += lane.steps.at(std::size_t(step)).milliseconds / double(trace->lanes.size());
        if (ends[i] > ends[i - 1]) (i % 2 ? out.shown : out.hidden).push_back(sum / (ends[i] - ends[i - 1]));
    }
    return out;
}

void printTpot(const char* name, const Trace& trace) {
    for (std::size_t lane = 0; lane < trace.lanes.size(); ++lane) {
        const Tpot tpot = tpotOf(trace, lane);
        std::printf("%-22s lane %s: median TPOT %6.2f ms, mean %6.2f ms\n", name, trace.lanes[lane].label.c_str(), tpot.medianMs, tpot.meanMs);
    }
}

} // namespace

int main(int argc, char** argv) {
    WatchedApplication app(argc, argv);
    QCommandLineParser options;
    options.addHelpOption();
    options.addOption({"tokens", "of the text", "N", "5000"});
    options.addOption({"prefix", "percent of the text that is prefilled", "N", "75"});
    options.addOption({"details", "the events that cost most, per phase"});
    options.addOption({"stalls-only", "do not compare the time per token with that of a run that is not shown"});
    options.process(app);
    QTemporaryDir folder;
    QStandardPaths::setTestModeEnabled(true);
    QCoreApplication::setOrganizationName("keepsight-bench");
    QCoreApplication::setApplicationName("window-bench");
    QSettings::setDefaultFormat(QSettings::IniFormat);
    QSettings::setPath(QSettings::IniFormat, QSettings::UserScope, folder.path());
    initResources();
    rememberSystemPalette();
    applyTheme(Theme::light);
    const auto models = QDir(KEEPSIGHT_BUILD "/models").entryInfoList({"*.gguf"});
    QFile sample(KEEPSIGHT_RESOURCES "/texts/harbour_long.txt");
    if (models.isEmpty() || !sample.open(QIODevice::ReadOnly)) {
        std::fprintf(stderr, "window_bench: the default model is not installed: run tests/run.sh\n");
        return 1;
    }
    const QString model = models.front().filePath(), once = QString::fromUtf8(sample.readAll());
    const double prefix = options.value("prefix").toDouble() / 100;

    Engine engine;
    engine.open({.model = model.toStdString()});
    QString text = once;
    const int wanted = options.value("tokens").toInt();
    const auto tokensOf = [&] { return int(engine.tokenize(jobOf(text, prefix).prompt).ids.size()); };
    while (tokensOf() < wanted)
        text += once;
    while (tokensOf() > wanted)
        text.chop(std::max(1, (tokensOf() - wanted) * 2));
    const int tokens = tokensOf(), prefill = int(tokens * prefix);
    std::printf("%d tokens, %d prefilled, %d steps of two lanes, %d cores\n", tokens, prefill, tokens - prefill, QThread::idealThreadCount());
    MainWindow window({.restoreLayout = false, .askBeforeClosing = false, .size = {1600, 1000}});
    window.show();
    {
        QEventLoop loop;
        QObject::connect(&window, &MainWindow::modelReady, &loop, &QEventLoop::quit);
        window.openModel(model);
        loop.exec();
        window.findChild<QPlainTextEdit*>("promptEdit")->setPlainText(text);
        window.setup()->prompt()->setPrefixRatio(prefix);
        QTimer::singleShot(1500, &loop, &QEventLoop::quit);
        loop.exec();
    }
    WindowBench bench(app, window, options.isSet("details"));
    if (!bench.score(tokens - prefill + 1)) {
        std::fprintf(stderr, "window_bench: %s\n", qPrintable(window.messages()->text()));
        return 1;
    }
    bench.scrubAtRest();
    printTpot("in the window", *window.session()->recorded());
    if (!options.isSet("stalls-only")) {
        const Turns turns = alternate(window);
        std::vector<double> ratios;
        for (std::size_t i = 0; i < std::min(turns.shown.size(), turns.hidden.size()); ++i)
            ratios.push_back(turns.shown[i] / turns.hidden[i]);
        std::printf("by turns (%zu)          shown %.2f ms a token, not shown %.2f ms; ratio of neighbours, median %.3f\n", ratios.size(), median(turns.shown), median(turns.hidden), median(ratios));
    }

    const auto full = window.session()->recorded();
    const auto again = std::make_shared<const Trace>(*full);
    window.focusModel()->setStep(Step{full->lastStep()});
    for (const ViewEntry& entry : views()) {
        TraceView* view = window.view(entry.id);
        bench.raise(entry.id);
        QCoreApplication::processEvents();
        std::vector<double> set, shown;
        for (int i = 0; i < 9; ++i) {
            QElapsedTimer timer;
            timer.start();
            view->setTrace(i % 2 ? full : again);
            set.push_back(double(timer.nsecsElapsed()) / 1e6);
            timer.start();
            QCoreApplication::processEvents();
            view->repaint();
            shown.push_back(double(timer.nsecsElapsed()) / 1e6);
        }
        std::printf("%-10s one more snapshot: setTrace %6.2f ms, rebuilt and painted %6.2f ms\n", entry.id, median(set), median(shown));
    }
    {
        std::vector<double> copy, drop;
        for (int i = 0; i < 9; ++i) {
            QElapsedTimer timer;
            timer.start();
            auto one = std::make_shared<const Trace>(*full);
            copy.push_back(double(timer.nsecsElapsed()) / 1e6);
            timer.start();
            one.reset();
            drop.push_back(double(timer.nsecsElapsed()) / 1e6);
        }
        std::printf("snapshot   copied in %.2f ms, dropped in %.2f ms\n", median(copy), median(drop));
    }
    std::printf("longest stall of the event loop: %.1f ms\n", bench.worstStallMs());
    return 0;
}
