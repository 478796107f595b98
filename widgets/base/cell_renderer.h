// Grids of values as coloured cells: an image for the screen, vector cells for paper.
#pragma once

#include "widgets/base/color_scale.h"

#include <QImage>
#include <QPainter>
#include <QPalette>
#include <QRectF>
#include <cstdint>
#include <vector>

namespace keepsight {

enum class CellKind : std::uint8_t {
    value,
    missing, // not measured, not run: grey, hatched
    blank,   // cannot exist, as keys after their query: background
    evicted  // was dropped before: tinted, hatched the other way
};

struct CellGrid {
    int rows = 0, cols = 0;
    std::vector<float> values;   // [rows, cols] row-major; NaN of kind value draws as missing
    std::vector<CellKind> kinds; // [rows, cols], or empty: all value

    float at(int row, int col) const {
        return values[static_cast<std::size_t>(row) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(col)];
    }
    CellKind kindAt(int row, int col) const; // missing for NaN
};

struct CellStyle {
    QRgb background = qRgb(255, 255, 255);
    QRgb missing = qRgb(228, 228, 228), missingLine = qRgb(176, 176, 176);
    QRgb evicted = qRgb(232, 222, 236), evictedLine = qRgb(176, 148, 188);
    static CellStyle paper() { return {}; }
    static CellStyle of(const QPalette& palette); // the same roles on a light or dark screen
};

enum class CellReduce { mean, max }; // of the cells that share a pixel

// Device pixels; cells larger than a pixel keep sharp edges, smaller ones are reduced over exactly the pixels' areas. dpr scales the
// hatching only.
QImage renderCells(const CellGrid& grid, const QSize& pixels, qreal dpr, const ColorScale& scale, const CellStyle& style,
                   CellReduce reduce = CellReduce::mean);

// For paper: rectangles of equal colour up to 256 × 256 cells, above that one lossless image of whole pixels per cell.
inline constexpr int MaxVectorCells = 256;
void paintCells(QPainter& painter, const QRectF& target, const CellGrid& grid, const ColorScale& scale, const CellStyle& style = {});

// Fills rect with color and draws hatch lines whose phase is that of the page, so that neighbours join. Needs no clipping (SVG).
void paintHatch(QPainter& painter, const QRectF& rect, QRgb fill, QRgb line, bool falling, double spacing = 4.0);

} // namespace keepsight
