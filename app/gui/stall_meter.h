// How long the event loop stood still: a heartbeat that remembers its longest gap.
#pragma once

#include <QElapsedTimer>
#include <QObject>
#include <QTimer>

namespace keepsight {

class StallMeter : public QObject {
    Q_OBJECT
public:
    static constexpr int BeatMs = 5;
    explicit StallMeter(QObject* parent = nullptr);
    double longestMs() const { return m_longestMs; } // beyond the beat itself
    void reset();                                    // forgets start-up, say

private:
    QTimer m_timer;
    QElapsedTimer m_since;
    double m_longestMs = 0;
};

} // namespace keepsight
