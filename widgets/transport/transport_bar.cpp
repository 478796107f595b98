#include "widgets/transport/transport_bar.h"

#include "widgets/lanes/lane_color.h"
#include "widgets/transport/timeline_slider.h"

#include <QAbstractButton>
#include <QAction>
#include <QApplication>
#include <QComboBox>
#include <QEvent>
#include <QHBoxLayout>
#include <QIcon>
#include <QLabel>
#include <QLocale>
#include <QPainter>
#include <QPixmap>
#include <QToolButton>
#include <algorithm>
#include <cmath>

namespace keepsight {
namespace {

enum class Symbol { toStart, back, play, pause, forward, toEnd };

// Drawn here: platform styles lack some of them, or draw them black on a dark theme.
QPixmap symbolPixmap(Symbol symbol, const QColor& color, qreal ratio) {
    constexpr int Size = 16;
    QPixmap pixmap(QSize(Size, Size) * ratio);
    pixmap.setDevicePixelRatio(ratio);
    pixmap.fill(Qt::transparent);
    QPainter painter(&pixmap);
    painter.setRenderHint(QPainter::Antialiasing);
    painter.setPen(Qt::NoPen);
    painter.setBrush(color);
    const auto triangle = [&](double tip, double base) { painter.drawPolygon(QPolygonF{{base, 2.5}, {tip, 8}, {base, 13.5}}); };
    const auto bar = [&](double x) { painter.drawRect(QRectF(x, 2.5, 2.2, 11)); };
    switch (symbol) {
    case Symbol::toStart: bar(2); triangle(5, 13.5); break;
    case Symbol::back: triangle(2.5, 10); bar(11.3); break;
    case Symbol::play: triangle(14, 3.5); break;
    case Symbol::pause: painter.drawRect(QRectF(3.5, 2.5, 3.2, 11)); painter.drawRect(QRectF(9.3, 2.5, 3.2, 11)); break;
    case Symbol::forward: bar(2.5); triangle(13.5, 6); break;
    case Symbol::toEnd: bar(11.8); triangle(11, 2.5); break;
    }
    return pixmap;
}

QIcon symbolIcon(Symbol symbol, const QPalette& palette, qreal ratio) {
    QIcon icon;
    icon.addPixmap(symbolPixmap(symbol, palette.color(QPalette::Active, QPalette::ButtonText), ratio), QIcon::Normal);
    icon.addPixmap(symbolPixmap(symbol, palette.color(QPalette::Disabled, QPalette::ButtonText), ratio), QIcon::Disabled);
    return icon;
}

enum Speed { asRecorded, tenPerSecond, fiftyPerSecond };
constexpr int ShortestMs = 10, LongestMs = 2000;

} // namespace

TransportBar::TransportBar(QWidget* parent) : QWidget(parent) {
    setAccessibleName(tr("Time"));
    auto* row = new QHBoxLayout(this);
    row->setContentsMargins(8, 4, 8, 4);
    row->setSpacing(4);
    m_toStart = makeAction(tr("To the start"), QKeySequence(Qt::CTRL | Qt::Key_Comma), "toStart");
    m_back = makeAction(tr("Step back"), QKeySequence(Qt::Key_Comma), "back");
    m_play = makeAction(tr("Play"), QKeySequence(Qt::Key_Space), "play");
    m_forward = makeAction(tr("Step forward"), QKeySequence(Qt::Key_Period), "forward");
    m_toEnd = makeAction(tr("To the end"), QKeySequence(Qt::CTRL | Qt::Key_Period), "toEnd");
    for (QAction* action : {m_toStart, m_back, m_play, m_forward, m_toEnd})
        row->addWidget(makeButton(action));
    row->addSpacing(6);
    m_label = new QLabel;
    m_label->setObjectName(QStringLiteral("position"));
    m_label->setAccessibleName(tr("Step and position"));
    row->addWidget(m_label);
    row->addSpacing(6);
    m_slider = new TimelineSlider;
    m_slider->setObjectName(QStringLiteral("timeline"));
    row->addWidget(m_slider, 1);
    row->addSpacing(6);
    m_speed = new QComboBox;
    m_speed->setObjectName(QStringLiteral("speed"));
    m_speed->addItem(tr("as recorded"));
    m_speed->addItem(tr("10 steps/s"));
    m_speed->addItem(tr("50 steps/s"));
    m_speed->setAccessibleName(tr("Speed of playing"));
    m_speed->setToolTip(tr("Speed of playing: the recorded milliseconds of each step, or a fixed one"));
    row->addWidget(m_speed);

    m_timer.setSingleShot(true);
    m_timer.setTimerType(Qt::PreciseTimer);
    connect(&m_timer, &QTimer::timeout, this, &TransportBar::tick);
    connect(m_toStart, &QAction::triggered, this, [this] { goTo(0); });
    connect(m_back, &QAction::triggered, this, [this] { pause(); goTo(step() - 1); });
    connect(m_play, &QAction::triggered, this, &TransportBar::playPressed);
    connect(m_forward, &QAction::triggered, this, [this] { pause(); goTo(step() + 1); });
    connect(m_toEnd, &QAction::triggered, this, [this] { goTo(lastStep()); });
    connect(m_slider, &QSlider::valueChanged, this, [this](int value) {
        if (!m_moving) goTo(value);
    });
    paintIcons();
    refresh();
}

QAction* TransportBar::makeAction(const QString& text, const QKeySequence& keys, const char* name) {
    auto* action = new QAction(text, this);
    action->setObjectName(QLatin1String(name));
    action->setShortcut(keys);
    action->setToolTip(tr("%1 (%2)").arg(text, keys.toString(QKeySequence::NativeText)));
    addAction(action);
    return action;
}

QToolButton* TransportBar::makeButton(QAction* action) {
    auto* button = new QToolButton;
    button->setDefaultAction(action);
    button->setIconSize({16, 16});
    button->setFocusPolicy(Qt::StrongFocus);
    button->setAccessibleName(action->text());
    return button;
}

// Space is also how the keyboard presses buttons and opens lists: there it keeps that meaning.
void TransportBar::playPressed() {
    QWidget* at = QApplication::focusWidget();
    if (auto* button = qobject_cast<QAbstractButton*>(at)) {
        auto* tool = qobject_cast<QToolButton*>(at);
        if (!(tool && tool->defaultAction() == m_play)) return button->click();
    } else if (auto* list = qobject_cast<QComboBox*>(at)) {
        return list->showPopup();
    }
    toggle();
}

bool TransportBar::running() const {
    return m_trace && !m_trace->run.finished && !m_trace->run.cancelled && m_trace->run.failure.empty();
}

void TransportBar::setTrace(std::shared_ptr<const Trace> trace) {
    m_trace = std::move(trace);
    const std::string run = m_trace ? m_trace->run.createdUtc + m_trace->run.commandLine : std::string();
    const bool another = run != m_run;
    m_run = run;
    if (another) {
        pause();
        m_followEnd = true;
    }
    const int last = lastStep();
    if (last < 0) pause();
    // A budget preview cuts the history short for a moment: the focus stays, the bar shows the nearest step there is.
    if (m_focus && last >= 0 && m_followEnd && (another || running()) && m_focus->focus().step.value != last) {
        m_moving = true;
        m_focus->setStep(Step{last});
        m_moving = false;
    }
    refresh();
}

void TransportBar::follow(FocusModel& focus) {
    m_focus = &focus;
    connect(&focus, &FocusModel::changed, this, [this](const Focus& now, const Focus& before) {
        if (now.step != before.step && !m_moving) m_followEnd = now.step.value >= lastStep();
        refresh();
    });
    refresh();
}

int TransportBar::step() const { return std::clamp(m_focus ? m_focus->focus().step.value : 0, 0, std::max(0, lastStep())); }

int TransportBar::expectedLast() const {
    if (!m_trace) return -1;
    const int last = lastStep();
    if (!running() || m_trace->run.kind != "score") return last;
    return std::max(last, static_cast<int>(m_trace->tokens.size()) - m_trace->prefillLength + 1);
}

const StepRecord* TransportBar::record(int step) const {
    if (!m_trace || m_trace->lanes.empty() || step < 0) return nullptr;
    const auto at = static_cast<std::size_t>(step);
    const auto focused = static_cast<std::size_t>(m_focus ? std::max(0, m_focus->focus().lane.value) : 0);
    if (focused < m_trace->lanes.size() && at < m_trace->lanes[focused].steps.size()) return &m_trace->lanes[focused].steps[at];
    for (const Lane& lane : m_trace->lanes) // one that has come further
        if (at < lane.steps.size()) return &lane.steps[at];
    return nullptr;
}

int TransportBar::intervalMs(int step) const {
    if (m_speed->currentIndex() == tenPerSecond) return 100;
    if (m_speed->currentIndex() == fiftyPerSecond) return 20;
    const StepRecord* next = record(step + 1);
    if (!next || std::isnan(next->milliseconds)) return 100;
    return static_cast<int>(std::clamp<double>(next->milliseconds, ShortestMs, LongestMs));
}

void TransportBar::goTo(int step) {
    if (!m_focus || lastStep() < 0) return;
    m_focus->setStep(Step{std::clamp(step, 0, lastStep())});
    refresh(); // also where the focus did not change: the slider's own value may have
}

void TransportBar::play() {
    if (lastStep() < 1 || !m_focus) return;
    if (step() >= lastStep()) goTo(0);
    if (!isPlaying()) {
        m_timer.start(intervalMs(step()));
        Q_EMIT playingChanged(true);
    }
    refresh();
}

void TransportBar::pause() {
    if (!isPlaying()) return;
    m_timer.stop();
    Q_EMIT playingChanged(false);
    refresh();
}

void TransportBar::toggle() {
    if (isPlaying()) pause();
    else play();
}

void TransportBar::tick() {
    goTo(step() + 1);
    if (step() < lastStep()) {
        m_timer.start(intervalMs(step()));
    } else {
        Q_EMIT playingChanged(false);
        refresh();
    }
}

void TransportBar::refresh() {
    const int last = lastStep(), now = step();
    m_moving = true;
    m_slider->setSteps(last, expectedLast());
    m_slider->setValue(now);
    m_slider->setAccent(laneColor(m_focus ? m_focus->focus().lane : LaneIndex{0}, palette()));
    m_moving = false;
    const QLocale locale;
    QString text = tr("Nothing to play yet");
    if (last >= 0) {
        text = tr("step %1 of %2").arg(locale.toString(now), locale.toString(expectedLast()));
        if (const StepRecord* at = record(now)) {
            const int position = at->kind == StepRecord::Kind::evict ? at->firstPosition - 1 : at->firstPosition + at->count - 1;
            text += tr(" · position %1").arg(locale.toString(position));
        }
    }
    m_label->setText(text);
    // Wide enough for every step, so that the slider does not jump under the pointer.
    if (last >= 0) {
        const QString widest = tr("step %1 of %2").arg(locale.toString(expectedLast()), locale.toString(expectedLast())) +
                               tr(" · position %1").arg(locale.toString(m_trace->prefillLength + expectedLast()));
        m_label->setMinimumWidth(std::max(m_label->minimumWidth(), m_label->fontMetrics().horizontalAdvance(widest) + 4));
    }
    const bool playing = isPlaying();
    m_toStart->setEnabled(last >= 0 && now > 0);
    m_back->setEnabled(last >= 0 && now > 0);
    m_forward->setEnabled(now < last);
    m_toEnd->setEnabled(now < last);
    m_play->setEnabled(last >= 1);
    m_speed->setEnabled(last >= 1);
    const QString name = playing ? tr("Pause") : tr("Play");
    if (m_play->text() != name) {
        m_play->setText(name);
        m_play->setToolTip(tr("%1 (%2)").arg(name, m_play->shortcut().toString(QKeySequence::NativeText)));
        paintIcons();
    }
}

void TransportBar::paintIcons() {
    const qreal ratio = std::max(2.0, devicePixelRatioF()); // sharp on any screen the window is dragged to
    m_toStart->setIcon(symbolIcon(Symbol::toStart, palette(), ratio));
    m_back->setIcon(symbolIcon(Symbol::back, palette(), ratio));
    m_play->setIcon(symbolIcon(isPlaying() ? Symbol::pause : Symbol::play, palette(), ratio));
    m_forward->setIcon(symbolIcon(Symbol::forward, palette(), ratio));
    m_toEnd->setIcon(symbolIcon(Symbol::toEnd, palette(), ratio));
}

void TransportBar::changeEvent(QEvent* event) {
    if (event->type() == QEvent::PaletteChange && m_slider) {
        paintIcons();
        refresh();
    }
    QWidget::changeEvent(event);
}

} // namespace keepsight
