// Draws laid-out tokens with their holding: the same on screen and on paper.
#pragma once

#include "widgets/base/color_scale.h"
#include "widgets/tokens/tokens_layout.h"

#include <QColor>
#include <QPainter>

namespace keepsight {

struct TokensStyle {
    QColor base = Qt::white, ink = Qt::black; // ground and text of tokens that are not in the cache
    ColorScale scale{ColorMap::viridis, 0.0, 1.0};

    QColor background(TokenState state, double share) const; // invalid: none
    QColor text(TokenState state, double share) const;       // readable on that background
};

using DrawText = std::function<void(QPainter&, const QPointF& baseline, const QString&, const QColor&)>;

// Clusters [begin, end) at their places; ascent is from the top of a line to its baseline.
void paintTokens(QPainter& painter, const TokensModel& model, const TokensLayout& layout, std::size_t begin, std::size_t end, double ascent,
                 const TokensStyle& style, const DrawText& drawText);

} // namespace keepsight
