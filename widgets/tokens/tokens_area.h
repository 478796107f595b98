// The scrolling text of the Tokens view. Paints visible lines only; its layout is kept while steps and focus change.
#pragma once

#include "widgets/tokens/tokens_painter.h"

#include <QAbstractScrollArea>
#include <QFont>
#include <QHash>
#include <memory>

namespace keepsight {

class TokensArea : public QAbstractScrollArea {
    Q_OBJECT
public:
    explicit TokensArea(QWidget* parent = nullptr);
    void setText(std::shared_ptr<const Trace> trace, LaneIndex lane, bool symbols);
    void setHolding(const Focus& focus, HoldingScope scope);
    void setPosition(Position position); // outlined; scrolled into sight if it changed
    const TokensModel& model() const { return m_model; }
    const TokensLayout& layoutOfText() const { return m_layout; }
    Position positionAt(const QPoint& viewportPoint) const;
    TokensStyle style() const;
    QSize sizeHint() const override { return {520, 260}; }

Q_SIGNALS:
    void positionChosen(keepsight::Position position);

protected:
    void paintEvent(QPaintEvent* event) override;
    void resizeEvent(QResizeEvent* event) override;
    void changeEvent(QEvent* event) override;
    void mousePressEvent(QMouseEvent* event) override;
    void mouseMoveEvent(QMouseEvent* event) override;
    void keyPressEvent(QKeyEvent* event) override;
    bool viewportEvent(QEvent* event) override;

private:
    void setLines(std::size_t kept);
    void updateBar();
    Position besides(int lines) const; // token above or below the focused one
    QRectF rectOf(Position position) const;

    std::shared_ptr<const Trace> m_trace;
    TokensModel m_model;
    TokensLayout m_layout;
    QHash<QString, double> m_widths; // measured before: a long text says the same words again and again
    QFont m_widthsOf;
    Focus m_focus;
    Position m_position = -1;
};

} // namespace keepsight
