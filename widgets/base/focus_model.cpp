#include "widgets/base/focus_model.h"

namespace keepsight {

void FocusModel::set(const Focus& focus) {
    if (focus == m_focus) return;
    const Focus before = std::exchange(m_focus, focus);
    Q_EMIT changed(m_focus, before);
}

void FocusModel::setLane(LaneIndex lane) {
    Focus f = m_focus;
    f.lane = lane;
    set(f);
}

void FocusModel::setStep(Step step) {
    Focus f = m_focus;
    f.step = step;
    set(f);
}

void FocusModel::setHead(LayerIndex layer, HeadIndex head) {
    Focus f = m_focus;
    f.layer = layer;
    f.head = head;
    set(f);
}

void FocusModel::setPosition(Position position) {
    Focus f = m_focus;
    f.position = position;
    set(f);
}

} // namespace keepsight
