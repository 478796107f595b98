#include "widgets/tokens/tokens_painter.h"

#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

constexpr double EvictedTint = 0.30, EvictedInk = 0.72, AheadInk = 0.55; // how much of the scale's lowest colour, and of the ink, is left

QColor mix(const QColor& a, const QColor& b, double t) {
    const auto at = [t](int x, int y) { return static_cast<int>(std::lround(x * (1 - t) + y * t)); };
    return {at(a.red(), b.red()), at(a.green(), b.green()), at(a.blue(), b.blue())};
}

} // namespace

QColor TokensStyle::background(TokenState state, double share) const {
    switch (state) {
    case TokenState::ahead: return {};
    case TokenState::evicted: return mix(base, QColor::fromRgb(scale.color(0.0)), EvictedTint);
    case TokenState::held: return QColor::fromRgb(scale.color(share));
    }
    return {};
}

QColor TokensStyle::text(TokenState state, double share) const {
    switch (state) {
    case TokenState::ahead: return mix(base, ink, AheadInk);
    case TokenState::evicted: return mix(background(state, share), ink, EvictedInk);
    case TokenState::held: return scale.inkOn(share);
    }
    return ink;
}

void paintTokens(QPainter& painter, const TokensModel& model, const TokensLayout& layout, std::size_t begin, std::size_t end, double ascent,
                 const TokensStyle& style, const DrawText& drawText) {
    const double gap = std::max(0.4, layout.lineHeight() * 0.03), pad = layout.lineHeight() * 0.06; // thin lines between tokens and between lines
    for (std::size_t c = begin; c < end; ++c) {
        const TokenCluster& cluster = model.clusters()[c];
        for (int i = 0; i < cluster.count; ++i) {
            const Position p = cluster.first + i;
            const QColor color = style.background(model.state(p), model.share(p));
            if (!color.isValid()) continue;
            painter.fillRect(layout.tokenRect(cluster, c, i).adjusted(0, pad, -gap, -pad), color);
        }
        QString text = cluster.text;
        const TokenBox& box = layout.box(c);
        if (box.trimmed && text.startsWith(QLatin1Char(' '))) text.remove(0, 1);
        const QRectF rect = layout.rect(c);
        const TokenState state = model.state(cluster.first);
        const QColor ink = style.text(state, model.share(cluster.first));
        if (!text.isEmpty()) drawText(painter, QPointF(rect.left(), rect.top() + ascent), text, ink);
        for (int i = 0; i < cluster.count; ++i) {
            if (model.state(cluster.first + i) != TokenState::evicted) continue;
            const QRectF part = layout.tokenRect(cluster, c, i);
            const double y = part.top() + ascent * 0.70 + layout.lineHeight() * 0.02;
            painter.setPen(QPen(ink, std::max(0.6, layout.lineHeight() * 0.05)));
            painter.drawLine(QPointF(part.left(), y), QPointF(part.right() - gap, y));
        }
    }
}

} // namespace keepsight
