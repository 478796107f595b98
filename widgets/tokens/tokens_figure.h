// The text with its holding as a figure for paper.
#pragma once

#include "widgets/base/figure.h"

namespace keepsight {

// Share over all layers and heads; over one layer or head where the focus names it. Throws UsageError as picture() does.
std::unique_ptr<Figure> tokensFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus);

} // namespace keepsight
