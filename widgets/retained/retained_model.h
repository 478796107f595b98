// What each layer and KV head still holds, as cells: 1 held, 0 evicted, blank not seen yet.
#pragma once

#include "engine/data/trace.h"
#include "widgets/base/cell_renderer.h"

namespace keepsight {

class RetainedModel {
public:
    RetainedModel() = default;
    RetainedModel(std::shared_ptr<const Trace> trace, LaneIndex lane); // a lane outside the trace leaves the model empty

    bool empty() const { return layers() == 0 || heads() == 0 || positions() == 0; }
    int layers() const;
    int heads() const;
    Position positions() const; // appended by the last recorded step
    int steps() const;

    CellGrid overview(Step step, HeadIndex head) const;       // [layers, positions]
    CellGrid history(LayerIndex layer, HeadIndex head) const; // [steps, positions]
    // The same for a picture of that many pixels, from which renderCells() draws exactly the same: cells that would share a pixel are one
    // already, so that a long run costs no more than its positions and the pixels.
    CellGrid overview(Step step, HeadIndex head, const QSize& pixels) const;
    CellGrid history(LayerIndex layer, HeadIndex head, const QSize& pixels) const;
    int keptCount(Step step, LayerIndex layer, HeadIndex head) const;
    int seen(Step step) const;                                                // positions appended up to and including step
    int evictedAt(LayerIndex layer, HeadIndex head, Position position) const; // NeverEvicted while held, or never seen

private:
    const Lane* lane() const;
    std::shared_ptr<const Trace> m_trace;
    int m_lane = -1;
};

} // namespace keepsight
