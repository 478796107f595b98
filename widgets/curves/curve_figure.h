// One of the curves as a figure for paper.
#pragma once

#include "widgets/base/figure.h"

namespace keepsight {

// kind: "ppl" | "tpot" | "memory". Throws UsageError as picture() does.
std::unique_ptr<Figure> curveFigure(const QString& kind, std::shared_ptr<const Trace> trace, const PictureFocus& focus);

} // namespace keepsight
