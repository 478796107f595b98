// A number editor that shows 0.001 instead of 0.001000 and 50 instead of 50.0.
#pragma once

#include <QDoubleSpinBox>
#include <QLocale>

namespace keepsight {

class TrimmedSpinBox : public QDoubleSpinBox {
public:
    using QDoubleSpinBox::QDoubleSpinBox;
    QString textFromValue(double value) const override {
        QString text = QDoubleSpinBox::textFromValue(value);
        const QString point = locale().decimalPoint();
        if (!text.contains(point)) return text;
        while (text.endsWith(locale().zeroDigit()))
            text.chop(locale().zeroDigit().size());
        if (text.endsWith(point)) text.chop(point.size());
        return text;
    }
};

} // namespace keepsight
