// The retained sets on paper: all layers and heads at a step, or one head over the steps (focus.layer ≥ 0).
#pragma once

#include "widgets/base/axis.h"
#include "widgets/base/cell_renderer.h"
#include "widgets/base/figure.h"

namespace keepsight {

std::unique_ptr<Figure> retainedFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus);

// Colours shared with the view: held dark on light (light on dark screens), evicted as the page, not seen yet in between.
ColorScale retainedScale(const PlotStyle& style);
CellStyle retainedCells(const PlotStyle& style);

} // namespace keepsight
