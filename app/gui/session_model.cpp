#include "app/gui/session_model.h"

#include "app/gui/background.h"

#include <QFileInfo>

namespace keepsight {

SessionModel::~SessionModel() { QThreadPool::globalInstance()->waitForDone(); } // a save that was begun is finished

QString SessionModel::title() const { return m_path.isEmpty() ? tr("Untitled") : QFileInfo(m_path).fileName(); }

void SessionModel::show(TracePtr trace) {
    if (m_shown == trace) return;
    m_shown = std::move(trace);
    Q_EMIT shownChanged(m_shown);
}

void SessionModel::setState(const QString& path, bool unsaved) {
    if (m_path == path && m_unsaved == unsaved) return;
    m_path = path;
    m_unsaved = unsaved;
    Q_EMIT stateChanged();
}

void SessionModel::setLive(TracePtr trace) {
    m_recorded = trace;
    setState({}, true);
    show(std::move(trace));
}

void SessionModel::setPreview(TracePtr trace) { show(std::move(trace)); }

void SessionModel::extend(TracePtr trace) {
    m_recorded = trace;
    setState(m_path, true);
    show(std::move(trace));
}

void SessionModel::dropPreview() { show(m_recorded); }

void SessionModel::clear() {
    ++m_opening;
    m_recorded = nullptr;
    setState({}, false);
    show(nullptr);
}

void SessionModel::open(const QString& path, bool asNew) {
    const int turn = ++m_opening;
    inBackground(
        this, [path] { return loadTrace(path.toStdString()); },
        [this, path, asNew, turn](TracePtr trace) {
            if (turn != m_opening) return;
            m_recorded = trace;
            setState(asNew ? QString() : path, asNew);
            show(std::move(trace));
            Q_EMIT opened(path);
            Q_EMIT stateChanged(); // the same path may hold another run
        },
        [this, turn](const QString& reason) {
            if (turn == m_opening) Q_EMIT failed(reason);
        });
}

void SessionModel::save(const QString& path, const SaveOptions& options) {
    if (!m_recorded) return;
    inBackground(
        this,
        [path, options, trace = m_recorded] {
            saveTrace(*trace, path.toStdString(), options);
            return trace;
        },
        [this, path, options](TracePtr trace) {
            // A copy without its text is for sharing; the run itself is then still unsaved.
            if (trace == m_recorded && !options.withoutText) setState(path, false);
            Q_EMIT saved(path);
        },
        [this](const QString& reason) { Q_EMIT failed(reason); });
}

} // namespace keepsight
