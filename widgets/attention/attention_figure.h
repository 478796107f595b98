// The attention of one head on paper.
#pragma once

#include "widgets/base/color_scale.h"
#include "widgets/base/figure.h"

#include <optional>

namespace keepsight {

// scale: the one shown on screen (range lock, linear); default: the upper four decades, logarithmic.
std::unique_ptr<Figure> attentionFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus,
                                        std::optional<ColorScale> scale = {});

} // namespace keepsight
