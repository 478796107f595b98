// Curves: perplexity so far, milliseconds per token and KV bytes of every lane, over one shared axis of token positions.
#pragma once

#include "widgets/base/trace_view.h"
#include "widgets/curves/curves_model.h"

#include <array>
#include <vector>

class QLabel;
class QCustomPlot;
class QCPAxisRect;
class QCPGraph;
class QCPLegend;
class QCPItemStraightLine;
class QCPRange;

namespace keepsight {

class CurvesView : public TraceView {
    Q_OBJECT
public:
    explicit CurvesView(QWidget* parent = nullptr);
    void setTrace(std::shared_ptr<const Trace> trace) override;
    void follow(FocusModel& focus) override;
    std::unique_ptr<Figure> figure() const override; // of the plot last clicked; perplexity at first

    const CurvesModel& model() const { return m_model; }

public Q_SLOTS:
    void resetZoom();
    void showTable(); // the numbers of the plot last clicked, in a dialog

protected:
    bool eventFilter(QObject* object, QEvent* event) override; // mouse over the plot
    void keyPressEvent(QKeyEvent* event) override;
    void changeEvent(QEvent* event) override;
    void resizeEvent(QResizeEvent* event) override;
    void contextMenuEvent(QContextMenuEvent* event) override;

private:
    enum Plot { Perplexity, Tpot, Memory, Plots };
    struct Graphs { std::array<QCPGraph*, Plots> line{}; QCPGraph* raw = nullptr; std::size_t shown = 0, window = 0, stride = 1; };
    void makePlots();
    void makeGraphs();
    void appendPoints();
    void scaleValues();
    void applyPalette();
    void wrapLegend();
    void moveCursor();
    void replot(); // soon; while hidden: when it is shown again
    void seek(double pixelX);
    QString readout(int step) const;
    int plotAt(const QPointF& at) const;

    std::shared_ptr<const Trace> m_trace;
    FocusModel* m_focus = nullptr;
    CurvesModel m_model;
    QCustomPlot* m_plot = nullptr;
    QLabel* m_empty = nullptr;
    QCPLegend* m_legend = nullptr; // above the plots: inside, four lanes would cover the curves
    std::array<QCPAxisRect*, Plots> m_rects{};
    std::array<QCPItemStraightLine*, Plots> m_cursors{};
    std::vector<Graphs> m_graphs; // per lane
    int m_active = Perplexity;
    bool m_zoomed = false, m_linking = false, m_seeking = false, m_behind = false;
};

} // namespace keepsight
