#include "widgets/lanes/lane_color.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace keepsight {
namespace {

// Okabe and Ito's blue, vermillion and bluish green, darkened until each has a contrast of 4.5 with white; lighter on dark.
constexpr std::array<QRgb, MaxLanes> OnLight{0xff3f444e, 0xff1f6bb0, 0xffc24e14, 0xff00795a};
constexpr std::array<QRgb, MaxLanes> OnDark{0xffc9ced8, 0xff62b0f0, 0xfff58a4b, 0xff3cc79b};

// A session of the command line may hold more lanes than the window makes: each further four take other colours and dashes for the same shapes.
std::size_t number(LaneIndex lane) { return static_cast<std::size_t>(std::max(0, lane.value)); }
std::size_t cycle(LaneIndex lane) { return number(lane) / MaxLanes; }
std::size_t slot(LaneIndex lane) { return (number(lane) + cycle(lane)) % MaxLanes; }

double luminance(const QColor& c) {
    const auto linear = [](double v) { return v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4); };
    return 0.2126 * linear(c.redF()) + 0.7152 * linear(c.greenF()) + 0.0722 * linear(c.blueF());
}

} // namespace

bool isDark(const QPalette& palette) { return luminance(palette.color(QPalette::Base)) < luminance(palette.color(QPalette::Text)); }

QColor laneColor(LaneIndex lane) { return QColor::fromRgba(OnLight[slot(lane)]); }

QColor laneColor(LaneIndex lane, const QPalette& palette) {
    return isDark(palette) ? QColor::fromRgba(OnDark[slot(lane)]) : laneColor(lane);
}

QColor laneTextColor(const QColor& background) {
    const double y = luminance(background); // WCAG contrast with white against contrast with black
    return 1.05 / (y + 0.05) >= (y + 0.05) / 0.05 ? QColor(Qt::white) : QColor(Qt::black);
}

QString laneLetter(LaneIndex lane) { return lane.value < 0 ? QString() : QString(QChar(u'A' + lane.value % 26)); }

QList<qreal> laneDash(LaneIndex lane) {
    static const std::array<QList<qreal>, MaxLanes> patterns{QList<qreal>{}, QList<qreal>{7, 2}, QList<qreal>{5, 2, 1.2, 2}, QList<qreal>{2, 1.6}};
    return patterns[slot(lane)];
}

LaneMarker laneMarker(LaneIndex lane) { return static_cast<LaneMarker>(number(lane) % MaxLanes); }

bool laneMarkerHollow(LaneIndex lane) { return cycle(lane) % 2 == 1; }

} // namespace keepsight
