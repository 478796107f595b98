#include "widgets/tokens/tokens_layout.h"

#include <algorithm>
#include <numeric>

namespace keepsight {
namespace {

constexpr double LeastTokenWidth = 0.32; // of a line's height, so that each token can be seen and hit

} // namespace

void TokensLayout::update(const std::vector<TokenCluster>& clusters, std::size_t kept, double width, double lineHeight, const Measure& measure) {
    if (width != m_width || lineHeight != m_lineHeight) kept = 0;
    m_width = width;
    m_lineHeight = lineHeight;
    kept = std::min({kept, m_boxes.size(), clusters.size()});
    // A word may go on in new tokens and move to the next line whole: its line is set again.
    if (kept > 0) {
        const int line = m_boxes[kept - 1].line;
        while (kept > 0 && m_boxes[kept - 1].line == line)
            --kept;
    }
    m_boxes.resize(kept);
    int line = kept == 0 ? 0 : m_boxes.back().line + 1;
    double x = 0;
    if (kept > 0 && clusters[kept - 1].lineBreaks > 1) line += clusters[kept - 1].lineBreaks - 1;

    const double least = LeastTokenWidth * lineHeight;
    const double space = measure(QStringLiteral(" "));
    for (std::size_t begin = kept; begin < clusters.size();) {
        // A word: clusters between which no line may break.
        std::size_t end = begin + 1;
        while (end < clusters.size() && clusters[end - 1].lineBreaks == 0 && !clusters[end - 1].whitespace && !clusters[end].leadingSpace && !clusters[end].whitespace)
            ++end;
        std::vector<double> widths;
        for (std::size_t i = begin; i < end; ++i)
            widths.push_back(std::max(measure(clusters[i].text), least * clusters[i].count));
        const bool atStart = x <= 0;
        const double trim = clusters[begin].leadingSpace ? space : 0;
        double whole = std::accumulate(widths.begin(), widths.end(), 0.0) - (atStart ? trim : 0);
        if (!atStart && x + whole > width) {
            ++line;
            x = 0;
            whole -= trim;
        }
        for (std::size_t i = begin; i < end; ++i) {
            double w = widths[i - begin];
            bool trimmed = i == begin && x <= 0 && clusters[i].leadingSpace;
            if (trimmed) w = std::max(least, w - space);
            if (x > 0 && x + w > width) { // a word longer than a line
                ++line;
                x = 0;
            }
            m_boxes.push_back({static_cast<float>(x), static_cast<float>(std::min(w, width)), line, trimmed});
            x += w;
        }
        if (clusters[end - 1].lineBreaks > 0) {
            line += clusters[end - 1].lineBreaks;
            x = 0;
        }
        begin = end;
    }
}

QRectF TokensLayout::rect(std::size_t cluster) const {
    const TokenBox& box = m_boxes[cluster];
    return {box.x, box.line * m_lineHeight, box.width, m_lineHeight};
}

QRectF TokensLayout::tokenRect(const TokenCluster& cluster, std::size_t at, int i) const {
    const QRectF whole = rect(at);
    if (cluster.count == 1) return whole;
    const double total = std::max(1, std::accumulate(cluster.weights.begin(), cluster.weights.end(), 0));
    const double before = std::accumulate(cluster.weights.begin(), cluster.weights.begin() + i, 0);
    return {whole.left() + whole.width() * before / total, whole.top(), whole.width() * cluster.weights[static_cast<std::size_t>(i)] / total, whole.height()};
}

std::pair<std::size_t, std::size_t> TokensLayout::clustersOnLines(int first, int last) const {
    const auto begin = std::ranges::lower_bound(m_boxes, first, {}, &TokenBox::line);
    const auto end = std::ranges::upper_bound(m_boxes, last, {}, &TokenBox::line);
    return {static_cast<std::size_t>(begin - m_boxes.begin()), static_cast<std::size_t>(end - m_boxes.begin())};
}

Position TokensLayout::positionAt(const std::vector<TokenCluster>& clusters, double x, double y) const {
    if (y < 0 || x < 0 || m_boxes.empty()) return -1;
    const int line = static_cast<int>(y / m_lineHeight);
    const auto [begin, end] = clustersOnLines(line, line);
    for (std::size_t c = begin; c < end; ++c) {
        if (x >= m_boxes[c].x + m_boxes[c].width) continue;
        for (int i = 0; i < clusters[c].count; ++i)
            if (tokenRect(clusters[c], c, i).right() > x) return clusters[c].first + i;
        return clusters[c].first + clusters[c].count - 1;
    }
    return -1;
}

} // namespace keepsight
