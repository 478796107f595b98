// A picture as a value: drawn the same on screen, in PDF, SVG and PNG, with the data it shows.
#pragma once

#include "engine/data/picture.h"

#include <QPainter>
#include <QRectF>
#include <QString>
#include <memory>

namespace keepsight {

// A figure paints itself in points (1/72 in) on white paper, always light, no title inside the picture.
class Figure {
public:
    virtual ~Figure() = default;
    virtual QString name() const = 0;                                          // "retained-L12", for file names
    virtual QSizeF sizeForWidth(double widthPoints) const = 0;                 // page size in points at that width
    virtual void paint(QPainter& painter, const QSizeF& sizePoints) const = 0; // text 7–9 pt
    virtual PictureData data() const = 0;                                      // what CSV, NPY and JSON export
};

enum class FigureFormat { pdf, svg, png, csv, npy, json };

// Widths for papers, in inches.
inline constexpr double SingleColumn = 3.25, TextWidth = 5.5, DoubleColumn = 6.75;

// Writes through a temporary and rename; two exports of the same figure are byte-equal. Throws EngineError naming the path and the cause.
void exportFigure(const Figure& figure, FigureFormat format, double widthInches, const QString& path);
FigureFormat figureFormat(const QString& nameOrSuffix); // throws UsageError listing the formats

// The figure of that name (pictureNames()) for a trace; the window, `keepsight export` and tests all draw through this.
// Throws UsageError as picture() does.
std::unique_ptr<Figure> makeFigure(const QString& name, std::shared_ptr<const Trace> trace, const PictureFocus& focus);

} // namespace keepsight
