// The needle grid of one lane on paper, and the painting it shares with the view.
#pragma once

#include "widgets/base/axis.h"
#include "widgets/base/cell_renderer.h"
#include "widgets/base/figure.h"
#include "widgets/needle/needle_model.h"

namespace keepsight {

std::unique_ptr<Figure> needleFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus);

ColorScale needleScale(); // cividis, 0 … 1
// Cells with their numbers and the axes' numbers around plot. leftAxis: depth labels too.
void paintNeedleGrid(QPainter& painter, const QRectF& plot, const NeedleModel& model, const NeedleGrid& grid, const PlotStyle& style,
                     const CellStyle& cells, bool leftAxis);
double needleLeftWidth(const NeedleModel& model, const PlotStyle& style);

} // namespace keepsight
