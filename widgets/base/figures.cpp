// Figures by name: the one place that knows which part of the window draws which picture.
#include "engine/data/error.h"
#include "widgets/attention/attention_figure.h"
#include "widgets/base/figure.h"
#include "widgets/base/pareto_figure.h"
#include "widgets/curves/curve_figure.h"
#include "widgets/needle/needle_figure.h"
#include "widgets/retained/retained_figure.h"
#include "widgets/tokens/tokens_figure.h"

namespace keepsight {

std::unique_ptr<Figure> makeFigure(const QString& name, std::shared_ptr<const Trace> trace, const PictureFocus& focus) {
    if (!trace) throw UsageError("figure '" + name.toStdString() + "': expected a recorded run, found none");
    if (name == QLatin1String("retained")) return retainedFigure(std::move(trace), focus);
    if (name == QLatin1String("attention")) return attentionFigure(std::move(trace), focus);
    if (name == QLatin1String("needle")) return needleFigure(std::move(trace), focus);
    if (name == QLatin1String("tokens")) return tokensFigure(std::move(trace), focus);
    if (name == QLatin1String("pareto")) return paretoFigure(*trace, focus);
    if (name == QLatin1String("ppl") || name == QLatin1String("tpot") || name == QLatin1String("memory"))
        return curveFigure(name, std::move(trace), focus);
    picture(*trace, name.toStdString(), focus); // throws UsageError that lists the names
    throw UsageError("figure '" + name.toStdString() + "' can be exported as numbers only");
}

} // namespace keepsight
