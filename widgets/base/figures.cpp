// Figures by name: the one place that knows which part of the window draws which picture.
#include "engine/data/error.h"
#include "widgets/attention/attention_figure.h"
#include "widgets/base/figure.h"
#include "widgets/needle/needle_figure.h"
#include "widgets/retained/retained_figure.h"
#if __has_include("widgets/curves/curve_figure.h")
#include "widgets/curves/curve_figure.h"
#endif
#if __has_include("widgets/tokens/tokens_figure.h")
#include "widgets/tokens/tokens_figure.h"
#endif

#include <algorithm>

namespace keepsight {

std::unique_ptr<Figure> makeFigure(const QString& name, std::shared_ptr<const Trace> trace, const PictureFocus& focus) {
    if (!trace) throw UsageError("figure '" + name.toStdString() + "': expected a recorded run, found none");
    if (name == QLatin1String("retained")) return retainedFigure(std::move(trace), focus);
    if (name == QLatin1String("attention")) return attentionFigure(std::move(trace), focus);
    if (name == QLatin1String("needle")) return needleFigure(std::move(trace), focus);
#if __has_include("widgets/tokens/tokens_figure.h")
    if (name == QLatin1String("tokens")) return tokensFigure(std::move(trace), focus);
#endif
#if __has_include("widgets/curves/curve_figure.h")
    const auto& known = pictureNames();
    if (std::find(known.begin(), known.end(), name.toStdString()) != known.end()) return curveFigure(name, std::move(trace), focus);
#endif
    picture(*trace, name.toStdString(), focus); // throws UsageError that lists the names
    throw UsageError("figure '" + name.toStdString() + "' can be exported as numbers only");
}

} // namespace keepsight
