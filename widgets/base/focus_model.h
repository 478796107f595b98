// The one focus all views share: lane, step, layer, head, token.
#pragma once

#include "engine/data/ids.h"

#include <QObject>
#include <utility>

namespace keepsight {

struct Focus {
    LaneIndex lane{0};
    Step step{0};
    LayerIndex layer{0};
    HeadIndex head{0};        // of those that the lane stores entries for: KV heads, or query heads with granularity=query_head
    Position position = -1;   // token; −1: none
    friend bool operator==(const Focus&, const Focus&) = default;
};

class FocusModel : public QObject {
    Q_OBJECT
public:
    using QObject::QObject;
    const Focus& focus() const { return m_focus; }
    void set(const Focus& focus); // emits changed() only on a difference; values are as given, views clamp to their trace
    void setLane(LaneIndex lane);
    void setStep(Step step);
    void setHead(LayerIndex layer, HeadIndex head);
    void setPosition(Position position);

Q_SIGNALS:
    void changed(const keepsight::Focus& now, const keepsight::Focus& before);

private:
    Focus m_focus;
};

} // namespace keepsight
