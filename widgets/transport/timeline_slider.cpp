#include "widgets/transport/timeline_slider.h"

#include <QHelpEvent>
#include <QMouseEvent>
#include <QPainter>
#include <QToolTip>
#include <QWheelEvent>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

constexpr double Knob = 7.0, Thickness = 6.0;
// Prefill and eviction are one step each, but the first holds most of the time and all of the prompt: they get room of their own.
constexpr double PrefillShare = 0.16, EvictShare = 0.05, LeastPrefill = 48, LeastEvict = 22;

} // namespace

TimelineSlider::TimelineSlider(QWidget* parent) : QSlider(Qt::Horizontal, parent) {
    setFocusPolicy(Qt::StrongFocus);
    setTracking(true);
    setRange(0, 0);
    setPageStep(16);
    setMouseTracking(true);
    setSizePolicy(QSizePolicy::Expanding, QSizePolicy::Fixed);
    setAccessibleName(tr("Timeline"));
}

void TimelineSlider::setSteps(int last, int expectedLast) {
    if (last == m_last && expectedLast == m_expected) return;
    m_last = last;
    m_expected = std::max(last, expectedLast);
    setRange(0, std::max(0, last));
    setEnabled(last >= 0);
    update();
}

void TimelineSlider::setAccent(const QColor& color) {
    if (color == m_accent) return;
    m_accent = color;
    update();
}

QSize TimelineSlider::sizeHint() const { return {400, static_cast<int>(2 * Knob) + 6 + fontMetrics().height()}; }
QSize TimelineSlider::minimumSizeHint() const { return {120, sizeHint().height()}; }

QRectF TimelineSlider::track() const { return {Knob + 2, Knob + 2 - Thickness / 2, width() - 2 * (Knob + 2), Thickness}; }

double TimelineSlider::prefillEnd() const {
    const QRectF bar = track();
    return bar.left() + std::max(LeastPrefill, bar.width() * PrefillShare);
}

double TimelineSlider::evictEnd() const { return prefillEnd() + std::max(LeastEvict, track().width() * EvictShare); }

double TimelineSlider::xOf(int step) const {
    if (step <= 0) return prefillEnd();
    if (step == 1) return evictEnd();
    const double decodes = std::max(1, m_expected - 1);
    return evictEnd() + (track().right() - evictEnd()) * std::min(1.0, (step - 1) / decodes);
}

int TimelineSlider::stepAt(double x) const {
    if (x < (prefillEnd() + evictEnd()) / 2) return 0;
    const double decodes = std::max(1, m_expected - 1);
    const double step = 1 + (x - evictEnd()) / std::max(1.0, track().right() - evictEnd()) * decodes;
    return std::clamp(static_cast<int>(std::lround(step)), std::min(1, m_last), std::max(0, m_last));
}

void TimelineSlider::paintEvent(QPaintEvent*) {
    QPainter painter(this);
    painter.setRenderHint(QPainter::Antialiasing);
    const QRectF bar = track();
    const QColor ink = palette().color(QPalette::WindowText), ground = palette().color(QPalette::Window);
    const auto mix = [](const QColor& a, const QColor& b, double t) {
        return QColor::fromRgbF(static_cast<float>(a.redF() * (1 - t) + b.redF() * t), static_cast<float>(a.greenF() * (1 - t) + b.greenF() * t),
                                static_cast<float>(a.blueF() * (1 - t) + b.blueF() * t));
    };
    const QColor accent = isEnabled() && m_accent.isValid() ? m_accent : mix(ground, ink, 0.4);
    const QColor future = mix(ground, ink, 0.13), prefill = mix(ground, accent, 0.5);

    painter.setPen(Qt::NoPen);
    painter.setBrush(future);
    painter.drawRoundedRect(bar, Thickness / 2, Thickness / 2);
    if (m_last >= 0) {
        painter.setBrush(prefill);
        painter.drawRect(QRectF(bar.left(), bar.top(), prefillEnd() - bar.left(), bar.height()));
        if (m_last >= 1) {
            // Hatched, so that the phases differ by more than a shade.
            const QRectF evict(prefillEnd(), bar.top(), evictEnd() - prefillEnd(), bar.height());
            painter.fillRect(evict, ground);
            painter.setBrush(QBrush(accent, Qt::BDiagPattern));
            painter.setPen(QPen(accent, 1));
            painter.drawRect(evict.adjusted(0.5, 0.5, -0.5, -0.5));
            painter.setPen(Qt::NoPen);
        }
        if (m_last >= 2) {
            painter.setBrush(accent);
            const double now = std::max(evictEnd(), xOf(value()));
            painter.drawRect(QRectF(evictEnd(), bar.top(), now - evictEnd(), bar.height()));
            painter.setBrush(prefill); // recorded, but later than what is shown
            painter.drawRect(QRectF(now, bar.top(), xOf(m_last) - now, bar.height()));
        }
        const QPointF centre(xOf(value()), bar.center().y());
        painter.setBrush(accent);
        painter.setPen(QPen(palette().color(QPalette::Base), 1.5));
        painter.drawEllipse(centre, Knob, Knob);
        if (hasFocus()) {
            painter.setBrush(Qt::NoBrush);
            painter.setPen(QPen(palette().color(QPalette::Highlight), 1.5));
            painter.drawEllipse(centre, Knob + 1.5, Knob + 1.5);
        }
    }
    if (m_last < 0) return;
    QFont small = font();
    if (small.pointSizeF() > 0) small.setPointSizeF(small.pointSizeF() * 0.85);
    painter.setFont(small);
    painter.setPen(mix(ground, ink, 0.7));
    const QFontMetricsF metrics(small);
    const double top = bar.bottom() + Knob - 2, height = metrics.height();
    const auto label = [&](double left, double right, const QString& text) {
        painter.drawText(QRectF(left, top, std::max(0.0, right - left), height), Qt::AlignLeft | Qt::AlignVCenter, metrics.elidedText(text, Qt::ElideRight, right - left));
    };
    label(bar.left(), prefillEnd() - 4, tr("prefill"));
    const QString eviction = tr("eviction");
    const double evictRight = std::max(evictEnd() - 2, prefillEnd() + metrics.horizontalAdvance(eviction) + 2);
    label(prefillEnd(), evictRight, eviction);
    label(evictRight + 6, bar.right(), tr("decode"));
}

void TimelineSlider::mousePressEvent(QMouseEvent* event) {
    if (event->button() != Qt::LeftButton) return event->ignore();
    setSliderDown(true);
    setValue(stepAt(event->position().x()));
}

void TimelineSlider::mouseMoveEvent(QMouseEvent* event) {
    if (isSliderDown()) setValue(stepAt(event->position().x()));
}

void TimelineSlider::mouseReleaseEvent(QMouseEvent* event) {
    if (event->button() == Qt::LeftButton) setSliderDown(false);
}

void TimelineSlider::wheelEvent(QWheelEvent* event) {
    if (const int turns = event->angleDelta().y() + event->angleDelta().x(); turns != 0) setValue(value() + (turns > 0 ? -1 : 1));
    event->accept();
}

bool TimelineSlider::event(QEvent* event) {
    if (event->type() == QEvent::ToolTip && m_last >= 0) {
        const auto* help = static_cast<QHelpEvent*>(event);
        const int step = stepAt(help->pos().x());
        QToolTip::showText(help->globalPos(), step == 0 ? tr("Step 0: end of the prefill") : step == 1 ? tr("Step 1: eviction after the prefill") : tr("Step %1: decoded token %2").arg(step).arg(step - 1), this);
        return true;
    }
    return QSlider::event(event);
}

} // namespace keepsight
