#include "widgets/base/cell_renderer.h"

#include <QPaintEngine>
#include <QPainterPath>
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <map>

namespace keepsight {
namespace {

// Per pixel or cell: 0 … 255 is a colour of the scale, below are the kinds without a value.
constexpr int Missing = -1, Blank = -2, Evicted = -3;

int codeOf(CellKind kind) {
    switch (kind) {
    case CellKind::blank:
        return Blank;
    case CellKind::evicted:
        return Evicted;
    case CellKind::missing:
    case CellKind::value:
        break;
    }
    return Missing;
}

// Bounds of the cells that pixel i of n shows: every cell belongs to exactly one pixel, or the pixel to exactly one cell.
std::vector<int> bounds(int pixels, int cells) {
    std::vector<int> at(static_cast<std::size_t>(pixels) + 1);
    for (int i = 0; i <= pixels; ++i)
        at[static_cast<std::size_t>(i)] = static_cast<int>(static_cast<std::int64_t>(i) * cells / pixels);
    return at;
}

// ColorScale::index() for many floats: a guess from the number's bits, put right by the exact bounds of the colours.
class Indexer {
public:
    explicit Indexer(const ColorScale& scale) : m_logarithmic(scale.logarithmic()) {
        const double low = m_logarithmic ? std::log2(scale.min()) : scale.min(),
                     high = m_logarithmic ? std::log2(scale.max()) : scale.max();
        m_low = static_cast<float>(low);
        m_factor = static_cast<float>(255.0 / (high - low));
        m_bounds.front() = -std::numeric_limits<float>::infinity();
        m_bounds.back() = std::numeric_limits<float>::infinity();
        for (int i = 1; i < 256; ++i) { // the first float of each colour, by halving the way from the colour before
            float below = static_cast<float>(scale.valueAt((i - 1) / 255.0)), first = static_cast<float>(scale.valueAt(i / 255.0));
            for (;;) {
                const float middle = below + (first - below) / 2;
                if (!(middle > below && middle < first)) break;
                (scale.index(static_cast<double>(middle)) < i ? below : first) = middle;
            }
            m_bounds[static_cast<std::size_t>(i)] = first;
        }
    }
    int operator()(float value) const {
        if (!(value == value)) return Missing;
        float at = value;
        if (m_logarithmic) { // exponent and mantissa, the mantissa's logarithm as a parabola
            const auto bits = std::bit_cast<std::int32_t>(value);
            const float part = static_cast<float>(bits & 0x7fffff) * (1.0f / 8388608.0f);
            at = value > 0 ? static_cast<float>(bits >> 23) - 127.0f + part + 0.3435f * part * (1.0f - part) : m_low;
        }
        int i = static_cast<int>(std::min(std::max((at - m_low) * m_factor + 0.5f, 0.0f), 255.0f));
        while (value < m_bounds[static_cast<std::size_t>(i)])
            --i;
        while (i < 255 && value >= m_bounds[static_cast<std::size_t>(i) + 1])
            ++i;
        return i;
    }

private:
    bool m_logarithmic;
    float m_low = 0, m_factor = 1;
    std::array<float, 257> m_bounds{};
};

struct Accumulator {
    double sum = 0;
    float peak = 0;
    int values = 0;
    std::array<int, 3> others{}; // missing, blank, evicted
    void add(float v, CellKind kind) {
        if (kind == CellKind::value && v == v) {
            peak = values == 0 ? v : std::max(peak, v);
            sum += static_cast<double>(v);
            ++values;
        } else {
            ++others[static_cast<std::size_t>(-1 - codeOf(kind))];
        }
    }
    int code(const Indexer& index, CellReduce reduce) const {
        const auto most = std::max_element(others.begin(), others.end());
        if (values == 0 || *most > values) return -1 - static_cast<int>(most - others.begin());
        return index(reduce == CellReduce::max ? peak : static_cast<float>(sum / values));
    }
};

CellKind kindOr(const CellGrid& grid, std::size_t i) { return grid.kinds.empty() ? CellKind::value : grid.kinds[i]; }

struct Hatch {
    int period, thick;
    bool rising(int x, int y) const { return (x + y) % period < thick; }
    bool falling(int x, int y) const { return (x - y % period + period) % period < thick; }
};

} // namespace

CellKind CellGrid::kindAt(int row, int col) const {
    const auto i = static_cast<std::size_t>(row) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(col);
    const CellKind kind = kindOr(*this, i);
    return kind == CellKind::value && std::isnan(values[i]) ? CellKind::missing : kind;
}

CellStyle CellStyle::of(const QPalette& palette) {
    const QColor base = palette.color(QPalette::Base);
    CellStyle style;
    style.background = base.rgb();
    if (base.lightness() < 128) {
        style.missing = qRgb(58, 60, 64);
        style.missingLine = qRgb(96, 98, 104);
        style.evicted = qRgb(66, 54, 74);
        style.evictedLine = qRgb(132, 108, 146);
    }
    return style;
}

QImage renderCells(const CellGrid& grid, const QSize& pixels, qreal dpr, const ColorScale& scale, const CellStyle& style,
                   CellReduce reduce) {
    if (grid.rows <= 0 || grid.cols <= 0 || pixels.isEmpty()) return {};
    QImage image(pixels, QImage::Format_RGB32);
    const int width = pixels.width(), height = pixels.height();
    const bool shrinkX = width < grid.cols, shrinkY = height < grid.rows;
    const std::vector<int> xs = bounds(width, grid.cols), ys = bounds(height, grid.rows);
    const int period = std::max(3, static_cast<int>(std::lround(5 * dpr)));
    const Hatch hatch{period, std::max(1, static_cast<int>(std::lround(dpr)))};
    std::vector<int> codes(static_cast<std::size_t>(width)), cells(static_cast<std::size_t>(grid.cols));
    std::vector<Accumulator> sums;
    const Indexer index(scale);
    int shownRow = -1;
    for (int y = 0; y < height; ++y) {
        const int rowBegin = ys[static_cast<std::size_t>(y)];
        if (shrinkX || shrinkY) {
            const int rowEnd = shrinkY ? ys[static_cast<std::size_t>(y) + 1] : rowBegin + 1;
            if (rowBegin != shownRow) {
                sums.assign(static_cast<std::size_t>(width), {});
                for (int row = rowBegin; row < rowEnd; ++row) {
                    const std::size_t base = static_cast<std::size_t>(row) * static_cast<std::size_t>(grid.cols);
                    for (int x = 0; x < width; ++x) {
                        const int begin = xs[static_cast<std::size_t>(x)];
                        const int end = shrinkX ? xs[static_cast<std::size_t>(x) + 1] : begin + 1;
                        Accumulator& sum = sums[static_cast<std::size_t>(x)];
                        for (int col = begin; col < end; ++col) {
                            const std::size_t i = base + static_cast<std::size_t>(col);
                            sum.add(grid.values[i], kindOr(grid, i));
                        }
                    }
                }
                for (int x = 0; x < width; ++x)
                    codes[static_cast<std::size_t>(x)] = sums[static_cast<std::size_t>(x)].code(index, reduce);
            }
        } else if (rowBegin != shownRow) { // enlarging: one look-up for each cell, not for each pixel
            const std::size_t base = static_cast<std::size_t>(rowBegin) * static_cast<std::size_t>(grid.cols);
            for (std::size_t col = 0; col < cells.size(); ++col) {
                const CellKind kind = kindOr(grid, base + col);
                cells[col] = kind == CellKind::value ? index(grid.values[base + col]) : codeOf(kind);
            }
            for (std::size_t x = 0; x < codes.size(); ++x)
                codes[x] = cells[static_cast<std::size_t>(xs[x])];
        }
        shownRow = rowBegin;
        auto* line = reinterpret_cast<QRgb*>(image.scanLine(y));
        for (int x = 0; x < width; ++x) {
            const int code = codes[static_cast<std::size_t>(x)];
            if (code >= 0)
                line[x] = scale.entry(code);
            else if (code == Blank)
                line[x] = style.background;
            else if (code == Evicted)
                line[x] = hatch.falling(x, y) ? style.evictedLine : style.evicted;
            else
                line[x] = hatch.rising(x, y) ? style.missingLine : style.missing;
        }
    }
    return image;
}

void paintHatch(QPainter& painter, const QRectF& rect, QRgb fill, QRgb line, bool falling, double spacing) {
    painter.fillRect(rect, QColor::fromRgb(fill));
    QPainterPath path;
    // Lines x + y = k (rising) or x − y = k (falling), cut at the rectangle by hand.
    const double low = falling ? rect.left() - rect.bottom() : rect.left() + rect.top();
    const double high = falling ? rect.right() - rect.top() : rect.right() + rect.bottom();
    for (double k = std::ceil(low / spacing) * spacing; k < high; k += spacing) {
        const double x0 = std::max(rect.left(), falling ? k + rect.top() : k - rect.bottom());
        const double x1 = std::min(rect.right(), falling ? k + rect.bottom() : k - rect.top());
        if (x1 <= x0) continue;
        path.moveTo(x0, falling ? x0 - k : k - x0);
        path.lineTo(x1, falling ? x1 - k : k - x1);
    }
    painter.save();
    painter.setPen(QPen(QColor::fromRgb(line), 0.5, Qt::SolidLine, Qt::FlatCap));
    painter.setBrush(Qt::NoBrush);
    painter.drawPath(path);
    painter.restore();
}

namespace {

struct Run {
    int row, rowEnd, col, colEnd, code;
};

// Maximal horizontal runs of equal code, merged downwards where the next row repeats them exactly.
std::vector<Run> runsOf(const CellGrid& grid, const ColorScale& scale) {
    const Indexer index(scale);
    std::vector<Run> runs;
    std::map<int, std::size_t> open, next; // by first column
    for (int row = 0; row < grid.rows; ++row) {
        next.clear();
        for (int col = 0; col < grid.cols;) {
            const auto codeAt = [&](int c) {
                const CellKind kind = grid.kindAt(row, c);
                return kind == CellKind::value ? index(grid.at(row, c)) : codeOf(kind);
            };
            const int code = codeAt(col);
            int end = col + 1;
            while (end < grid.cols && codeAt(end) == code)
                ++end;
            const auto above = open.find(col);
            if (above != open.end() && runs[above->second].colEnd == end && runs[above->second].code == code) {
                runs[above->second].rowEnd = row + 1;
                next[col] = above->second;
            } else {
                next[col] = runs.size();
                runs.push_back({row, row + 1, col, end, code});
            }
            col = end;
        }
        std::swap(open, next);
    }
    return runs;
}

// May the run's colour reach one cell further? Not into blanks, which nothing paints over.
bool paintedBeside(const CellGrid& grid, const Run& run, bool below) {
    if (below) {
        if (run.rowEnd >= grid.rows) return false;
        for (int col = run.col; col < run.colEnd; ++col)
            if (grid.kindAt(run.rowEnd, col) == CellKind::blank) return false;
        return true;
    }
    if (run.colEnd >= grid.cols) return false;
    for (int row = run.row; row < run.rowEnd; ++row)
        if (grid.kindAt(row, run.colEnd) == CellKind::blank) return false;
    return true;
}

void paintVectorCells(QPainter& painter, const QRectF& target, const CellGrid& grid, const ColorScale& scale, const CellStyle& style) {
    const double w = target.width() / grid.cols, h = target.height() / grid.rows, reach = 0.6;
    // Viewers blend the edges of shapes with what lies below, which leaves pale seams between neighbours. So every cell is painted
    // twice: first reaching under its right and lower neighbour, then exactly. One path for each colour keeps files small.
    std::map<int, QPainterPath> under, exact;
    std::vector<std::pair<QRectF, int>> hatched;
    for (const Run& run : runsOf(grid, scale)) {
        const QRectF rect(target.left() + run.col * w, target.top() + run.row * h, (run.colEnd - run.col) * w, (run.rowEnd - run.row) * h);
        if (run.code == Blank) continue;
        if (run.code == Missing || run.code == Evicted) {
            hatched.emplace_back(rect, run.code);
            continue;
        }
        exact[run.code].addRect(rect);
        const bool right = paintedBeside(grid, run, false), below = paintedBeside(grid, run, true);
        if (right || below) under[run.code].addRect(rect.adjusted(0, 0, right ? std::min(w, reach) : 0, below ? std::min(h, reach) : 0));
    }
    painter.save();
    painter.setRenderHint(QPainter::Antialiasing, false);
    painter.setPen(Qt::NoPen);
    painter.fillRect(target, QColor::fromRgb(style.background));
    const auto fill = [&](std::map<int, QPainterPath>& paths) {
        for (auto& [code, path] : paths) {
            path.setFillRule(Qt::WindingFill); // rectangles of one colour may overlap
            painter.setBrush(QColor::fromRgb(scale.entry(code)));
            painter.drawPath(path);
        }
    };
    fill(under);
    for (const auto& [rect, code] : hatched) {
        const bool evicted = code == Evicted;
        paintHatch(painter, rect, evicted ? style.evicted : style.missing, evicted ? style.evictedLine : style.missingLine, evicted, 3.0);
    }
    fill(exact);
    painter.restore();
}

} // namespace

void paintCells(QPainter& painter, const QRectF& target, const CellGrid& grid, const ColorScale& scale, const CellStyle& style) {
    if (grid.rows <= 0 || grid.cols <= 0 || target.isEmpty()) return;
    const QTransform toDevice = painter.deviceTransform();
    if (painter.paintEngine()->type() == QPaintEngine::Raster) { // pixels: the exact ones
        const QRect pixels = toDevice.mapRect(target).toRect();
        const QImage image = renderCells(grid, pixels.size(), toDevice.m11(), scale, style);
        painter.save();
        painter.resetTransform();
        painter.drawImage(pixels.topLeft(), image);
        painter.restore();
        return;
    }
    if (grid.rows <= MaxVectorCells && grid.cols <= MaxVectorCells) {
        paintVectorCells(painter, target, grid, scale, style);
        return;
    }
    const auto whole = [](double units, int cells) { // about 600 dpi, whole pixels per cell, at most 4096 pixels if cells allow
        return std::clamp(static_cast<int>(std::ceil(units * 600 / 72 / cells)), 1, std::max(1, 4096 / cells));
    };
    const QSize size(grid.cols * whole(target.width(), grid.cols), grid.rows * whole(target.height(), grid.rows));
    const QImage image = renderCells(grid, size, size.width() / target.width(), scale, style);
    painter.save();
    painter.setRenderHint(QPainter::LosslessImageRendering);
    painter.setRenderHint(QPainter::SmoothPixmapTransform, false);
    painter.drawImage(target, image);
    painter.restore();
}

} // namespace keepsight
