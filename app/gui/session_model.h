// The run on the desk: what was recorded, what is shown of it (a preview may differ), where it is saved.
#pragma once

#include "engine/data/trace_file.h"

#include <QObject>
#include <QString>
#include <memory>

namespace keepsight {

class SessionModel : public QObject {
    Q_OBJECT
public:
    using TracePtr = std::shared_ptr<const Trace>;
    using QObject::QObject;
    ~SessionModel() override;

    TracePtr recorded() const { return m_recorded; } // what save() writes; nullptr: nothing yet
    TracePtr shown() const { return m_shown; }
    QString path() const { return m_path; }          // empty: never saved
    QString title() const;                           // "lighthouse.keep", "Untitled"
    bool isUnsaved() const { return m_unsaved; }
    bool isPreview() const { return m_shown != m_recorded; }

    void setLive(TracePtr trace);    // a snapshot or the end of a run: unsaved, and no longer the file it was opened from
    void setPreview(TracePtr trace); // shown only
    void extend(TracePtr trace);     // the same run with more in it (a full-resolution map)
    void dropPreview();

    void open(const QString& path, bool asNew = false); // asNew: its content, unsaved and without a path (recovered runs)
    void save(const QString& path, const SaveOptions& options = {});
    void clear();

Q_SIGNALS:
    void shownChanged(const std::shared_ptr<const keepsight::Trace>& trace);
    void stateChanged(); // title or unsaved marker
    void opened(const QString& path);
    void saved(const QString& path);
    void failed(const QString& reason);

private:
    void show(TracePtr trace);
    void setState(const QString& path, bool unsaved);
    TracePtr m_recorded, m_shown;
    QString m_path;
    bool m_unsaved = false;
    int m_opening = 0; // newest wins
};

} // namespace keepsight
