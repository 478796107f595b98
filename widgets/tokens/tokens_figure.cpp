#include "widgets/tokens/tokens_figure.h"

#include "engine/data/error.h"
#include "widgets/base/axis.h"
#include "widgets/tokens/tokens_painter.h"

#include <QCoreApplication>
#include <algorithm>

namespace keepsight {
namespace {

constexpr double Indent = 2, BarWidth = 110, LegendGap = 6;

QString tr(const char* text) { return QCoreApplication::translate("keepsight::TokensFigure", text); }

class TokensFigure final : public Figure {
public:
    TokensFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus) : m_data(picture(*trace, "tokens", focus)) {
        Focus at;
        at.lane = focus.lane;
        at.step = focus.step.value < 0 ? Step{trace->lastStep()} : focus.step;
        at.layer = LayerIndex{std::max(0, focus.layer.value)};
        at.head = HeadIndex{std::max(0, focus.head.value)};
        m_scope = focus.layer.value < 0 ? HoldingScope::everything : focus.head.value < 0 ? HoldingScope::layer : HoldingScope::head;
        m_model.setText(trace.get(), focus.lane, true);
        m_model.setHolding(trace.get(), at, m_scope);
    }

    QString name() const override { return QString::fromStdString(m_data.name); }
    PictureData data() const override { return m_data; }
    QSizeF sizeForWidth(double width) const override {
        const PlotStyle style = PlotStyle::paper();
        return {width, set(width, style).height() + LegendGap + colorBarHeight(style) + 2};
    }

    void paint(QPainter& painter, const QSizeF& size) const override {
        const PlotStyle style = PlotStyle::paper();
        const TokensLayout layout = set(size.width(), style);
        const double height = layout.lineHeight(), ascent = height * 0.74;
        painter.save();
        painter.translate(Indent, 0);
        const TokensStyle colors;
        paintTokens(painter, m_model, layout, 0, m_model.clusters().size(), ascent, colors,
                    [&](QPainter& p, const QPointF& baseline, const QString& text, const QColor& color) {
                        const QRectF rect(baseline.x(), baseline.y() - ascent, textWidth(text, style) + 2, height);
                        paintText(p, rect, Qt::AlignLeft | Qt::AlignVCenter, text, style, color);
                    });
        painter.restore();
        const QRectF bar(Indent + style.textSize, layout.height() + LegendGap, std::min(BarWidth, size.width() * 0.45), style.textSize * 0.8);
        paintColorBar(painter, bar, colors.scale, m_scope == HoldingScope::everything ? tr("share of layers × heads") : m_scope == HoldingScope::layer ? tr("share of the layer's heads") : tr("held by the head"), style);
        // What an evicted token looks like.
        const QRectF sample(bar.right() + 3 * style.textSize, bar.top() - style.textSize * 0.3, textWidth(tr("evicted"), style) + 4, textHeight(style) * 1.1);
        painter.fillRect(sample, colors.background(TokenState::evicted, 0));
        const QColor ink = colors.text(TokenState::evicted, 0);
        paintText(painter, sample.adjusted(2, 0, 2, 0), Qt::AlignLeft | Qt::AlignVCenter, tr("evicted"), style, ink);
        painter.setPen(QPen(ink, style.lineWidth));
        painter.drawLine(QPointF(sample.left(), sample.center().y()), QPointF(sample.right(), sample.center().y()));
    }

private:
    TokensLayout set(double width, const PlotStyle& style) const {
        TokensLayout layout;
        layout.update(m_model.clusters(), 0, std::max(40.0, width - 2 * Indent), textHeight(style) * 1.25, [&](const QString& text) { return textWidth(text, style); });
        return layout;
    }

    PictureData m_data;
    TokensModel m_model;
    HoldingScope m_scope = HoldingScope::everything;
};

} // namespace

std::unique_ptr<Figure> tokensFigure(std::shared_ptr<const Trace> trace, const PictureFocus& focus) {
    if (!trace) throw UsageError("figure tokens: there is no run to draw");
    return std::make_unique<TokensFigure>(std::move(trace), focus);
}

} // namespace keepsight
