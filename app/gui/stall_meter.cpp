#include "app/gui/stall_meter.h"

#include <algorithm>

namespace keepsight {

StallMeter::StallMeter(QObject* parent) : QObject(parent) {
    m_timer.setTimerType(Qt::PreciseTimer);
    m_timer.setInterval(BeatMs);
    connect(&m_timer, &QTimer::timeout, this, [this] {
        m_longestMs = std::max(m_longestMs, double(m_since.nsecsElapsed()) / 1e6 - BeatMs);
        m_since.start();
    });
    reset();
    m_timer.start();
}

void StallMeter::reset() {
    m_longestMs = 0;
    m_since.start();
}

} // namespace keepsight
