// A slider over the steps of a run, coloured by phase: prefill, eviction, decode, and what is still to come.
#pragma once

#include <QSlider>

namespace keepsight {

class TimelineSlider : public QSlider {
    Q_OBJECT
public:
    explicit TimelineSlider(QWidget* parent = nullptr);
    void setSteps(int last, int expectedLast); // last: −1 none; expectedLast ≥ last while the run goes on
    void setAccent(const QColor& color);       // of the focused lane
    int stepAt(double x) const;                // nearest recorded step
    double xOf(int step) const;

    QSize sizeHint() const override;
    QSize minimumSizeHint() const override;

protected:
    void paintEvent(QPaintEvent* event) override;
    void mousePressEvent(QMouseEvent* event) override;
    void mouseMoveEvent(QMouseEvent* event) override;
    void mouseReleaseEvent(QMouseEvent* event) override;
    void wheelEvent(QWheelEvent* event) override;
    bool event(QEvent* event) override;

private:
    QRectF track() const;
    double prefillEnd() const;
    double evictEnd() const;

    int m_last = -1, m_expected = -1;
    QColor m_accent;
};

} // namespace keepsight
