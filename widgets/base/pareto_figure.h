// Quality against memory: one labelled point for each recorded perplexity row.
#pragma once

#include "widgets/base/figure.h"

namespace keepsight {

std::unique_ptr<Figure> paretoFigure(const Trace& trace, const PictureFocus& focus); // throws UsageError as picture() does

} // namespace keepsight
