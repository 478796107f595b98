// A number editor that takes odd numbers only: steps of two, and what is typed even moves to the next odd one.
#pragma once

#include <QSpinBox>

namespace keepsight {

class OddSpinBox : public QSpinBox {
public:
    explicit OddSpinBox(QWidget* parent = nullptr) : QSpinBox(parent) { setSingleStep(2); }

protected:
    QValidator::State validate(QString& text, int& at) const override {
        const QValidator::State state = QSpinBox::validate(text, at);
        return state == QValidator::Acceptable && valueFromText(text) % 2 == 0 ? QValidator::Intermediate : state;
    }
    void fixup(QString& text) const override {
        QString copy = text;
        int at = 0;
        if (QSpinBox::validate(copy, at) != QValidator::Acceptable) return QSpinBox::fixup(text);
        const int value = valueFromText(text);
        text = prefix() + textFromValue(value % 2 ? value : value < maximum() ? value + 1 : value - 1) + suffix();
    }
};

} // namespace keepsight
