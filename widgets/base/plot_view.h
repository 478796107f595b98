// Base of the views that draw a picture: caching, coalesced rebuilds, empty state, table twin.
//
// A view says what to draw (rebuild), what to lay over it (paintOverlay) and what to say when there is nothing (emptyText).
// Rebuilds happen at most once per event loop turn and only while visible; paintEvent draws the cached picture and the overlay.
#pragma once

#include "widgets/base/axis.h"
#include "widgets/base/cell_renderer.h"
#include "widgets/base/trace_view.h"

#include <QPixmap>
#include <QTimer>

namespace keepsight {

class PlotView : public TraceView {
    Q_OBJECT
public:
    explicit PlotView(QWidget* parent = nullptr);
    void setTrace(std::shared_ptr<const Trace> trace) override;
    void follow(FocusModel& focus) override;
    virtual PictureData table() const; // the table twin; default: the data of figure()

public Q_SLOTS:
    void showTable(); // the same numbers as a table, in a dialog

protected:
    const std::shared_ptr<const Trace>& trace() const { return m_trace; }
    Focus focus() const; // clamped to the trace
    FocusModel* focusModel() const { return m_focusModel; }
    PlotStyle plotStyle() const;
    CellStyle cellStyle() const;
    void invalidate(); // picture is out of date: rebuild soon
    void rebuildNow(); // if out of date; for hit tests right after a change

    virtual QString emptyText() const = 0; // "": there is something to draw
    virtual void rebuild(QPainter& painter, const QSizeF& size) = 0;
    virtual void paintOverlay(QPainter&) {}                           // focus marks; cheap
    virtual void focusChanged(const Focus& now, const Focus& before); // both clamped, and different; default: invalidate()
    virtual void traceChanged() {}                                    // before the next rebuild
    virtual QString toolTipAt(const QPointF&) const { return {}; }

    bool event(QEvent* event) override;
    void paintEvent(QPaintEvent* event) override;
    void resizeEvent(QResizeEvent* event) override;
    void showEvent(QShowEvent* event) override;
    void changeEvent(QEvent* event) override;
    void contextMenuEvent(QContextMenuEvent* event) override;
    void keyPressEvent(QKeyEvent* event) override; // arrows: layer and token, PgUp/PgDn: head, Home/End: first and last token
    void focusInEvent(QFocusEvent* event) override;
    void focusOutEvent(QFocusEvent* event) override;
    QRectF plotArea() const { return m_area; }
    void setPlotMargins(const QMargins& margins); // room for child widgets; the picture is drawn inside

private:
    std::shared_ptr<const Trace> m_trace;
    FocusModel* m_focusModel = nullptr;
    QTimer m_timer;
    QPixmap m_picture;
    QRectF m_area;
    QMargins m_margins;
    bool m_stale = true;
};

// "B · snapkv:window=8 · 50 % removed".
QString laneTitle(const Lane& lane);
Focus clampFocus(Focus focus, const Trace* trace);
QString tokenText(const Trace& trace, LaneIndex lane, Position position); // quoted, white space made visible; "" if unknown

} // namespace keepsight
