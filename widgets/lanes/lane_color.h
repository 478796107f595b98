// How a lane looks everywhere: letter, colour, dash pattern and marker. Lanes never differ by hue alone.
#pragma once

#include "engine/data/ids.h"

#include <QColor>
#include <QList>
#include <QPalette>
#include <QString>

namespace keepsight {

inline constexpr int MaxLanes = 4;

bool isDark(const QPalette& palette);
QColor laneColor(LaneIndex lane);                         // on white paper
QColor laneColor(LaneIndex lane, const QPalette& palette); // lighter variants on a dark base
QColor laneTextColor(const QColor& background);           // black or white, whichever contrasts more
QString laneLetter(LaneIndex lane);                       // "A" … "D", "E" …
QList<qreal> laneDash(LaneIndex lane);                    // in pen widths, empty: solid

enum class LaneMarker { disc, square, triangle, diamond };
LaneMarker laneMarker(LaneIndex lane);
bool laneMarkerHollow(LaneIndex lane); // only its outline

} // namespace keepsight
