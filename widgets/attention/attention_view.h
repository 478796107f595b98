// Query × key attention of the focused layer and head, with what the focused lane evicted.
#pragma once

#include "widgets/attention/attention_model.h"
#include "widgets/base/plot_view.h"

#include <optional>

class QCheckBox;
class QComboBox;
class QPushButton;

namespace keepsight {

class AttentionView : public PlotView {
    Q_OBJECT
public:
    explicit AttentionView(QWidget* parent = nullptr);
    std::unique_ptr<Figure> figure() const override;

    void setLogarithmic(bool on);
    void setRangeLocked(bool on);             // keep the range shown now for every head and lane
    void setFullResolutionAvailable(bool on); // false without a model, as in a replay
    const ColorScale& scale() const { return m_scale; }
    std::optional<AttentionModel::Hit> cellAt(const QPointF& point); // widget coordinates
    QPointF pointOf(Position query, Position key);

Q_SIGNALS:
    void fullResolutionRequested(keepsight::LayerIndex layer, keepsight::HeadIndex queryHead);

protected:
    QString emptyText() const override;
    void rebuild(QPainter& painter, const QSizeF& size) override;
    void paintOverlay(QPainter& painter) override;
    void focusChanged(const Focus& now, const Focus& before) override;
    void traceChanged() override;
    QString toolTipAt(const QPointF& point) const override;
    void mousePressEvent(QMouseEvent* event) override;
    void resizeEvent(QResizeEvent* event) override;
    void changeEvent(QEvent* event) override;

private:
    void refresh();   // model, scale and controls of the focus
    void fillHeads(); // query heads of the focused KV head
    void retranslate();
    void requestFullResolution();
    std::optional<QPointF> positionAt(const QPointF& point) const; // key, query
    HeadIndex kvHead() const;                                      // whose keys the focused head reads
    std::optional<HeadIndex> queryHead() const;                    // nullopt: mean of the KV head

    AttentionModel m_model;
    ColorScale m_scale;
    QRectF m_plot;
    QWidget* m_bar = nullptr;
    QCheckBox* m_logarithmic = nullptr;
    QCheckBox* m_locked = nullptr;
    QComboBox* m_heads = nullptr;
    QPushButton* m_full = nullptr;
    int m_firstQueryHead = -1;
    bool m_available = true;
};

} // namespace keepsight
