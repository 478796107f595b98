// What the program does without a visible window: figures and screenshots of a session.
#pragma once

#include "engine/data/picture.h"

#include <QSize>
#include <QString>

namespace keepsight {

struct FocusOptions {
    int step = -1, layer = -1, head = -1, position = -1; // −1: the default of the figure or view
    QString laneLetter;                              // or its number; empty: the first
};
LaneIndex laneOf(const Trace& trace, const FocusOptions& options); // throws UsageError naming the lanes there are

// keepsight export FILE.keep … ; throws EngineError, UsageError
void exportSession(const QString& file, const QString& figure, const FocusOptions& focus, const QString& width, const QString& format, const QString& out);

QSize parseSize(const QString& text); // "1600x1000"; throws UsageError
// keepsight FILE.keep --screenshot F.png --view NAME --size WxH; view "window": the whole window. Returns when the file is written.
void screenshot(const QString& file, const QString& view, const QSize& size, const FocusOptions& focus, const QString& out);

} // namespace keepsight
