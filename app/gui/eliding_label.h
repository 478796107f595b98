// One line of text that gives way: it takes the room that is left and ends in an ellipsis; the tool tip has all of it.
#pragma once

#include <QWidget>

namespace keepsight {

class ElidingLabel : public QWidget {
    Q_OBJECT
public:
    explicit ElidingLabel(QWidget* parent = nullptr);
    void setText(const QString& text);
    const QString& text() const { return m_text; }
    QSize sizeHint() const override { return {40, fontMetrics().height() + 2}; }
    QSize minimumSizeHint() const override { return {20, sizeHint().height()}; }

protected:
    void paintEvent(QPaintEvent* event) override;

private:
    QString m_text;
};

} // namespace keepsight
