// Running text set into lines: where each cluster of tokens lies. Depends on width and font only, so it is kept while steps change.
#pragma once

#include "widgets/tokens/tokens_model.h"

#include <QFont>
#include <QRectF>
#include <functional>
#include <vector>

namespace keepsight {

struct TokenBox {
    float x = 0, width = 0;
    std::int32_t line = 0;
    bool trimmed = false; // begins a line: its leading space is not drawn
};

class TokensLayout {
public:
    using Measure = std::function<double(const QString&)>; // width of a text in the units of the layout

    // Boxes of the first `kept` clusters that lie on complete lines stay if width and scale are unchanged.
    void update(const std::vector<TokenCluster>& clusters, std::size_t kept, double width, double lineHeight, const Measure& measure);
    void clear() { m_boxes.clear(); }

    int lines() const { return m_boxes.empty() ? 0 : m_boxes.back().line + 1; }
    double height() const { return lines() * m_lineHeight; }
    double lineHeight() const { return m_lineHeight; }
    const TokenBox& box(std::size_t cluster) const { return m_boxes[cluster]; }
    QRectF rect(std::size_t cluster) const;
    // The part of a cluster's rectangle that belongs to its i-th token.
    QRectF tokenRect(const TokenCluster& cluster, std::size_t at, int i) const;
    std::pair<std::size_t, std::size_t> clustersOnLines(int first, int last) const; // [begin, end)
    Position positionAt(const std::vector<TokenCluster>& clusters, double x, double y) const; // −1: no token there

private:
    std::vector<TokenBox> m_boxes; // one per cluster
    double m_width = 0, m_lineHeight = 1;
};

} // namespace keepsight
