#include "widgets/base/color_scale.h"

#include <QtTest>
#include <cmath>
#include <limits>

using namespace keepsight;

class ColorScaleTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void theEndsOfAMapAreItsFirstAndLastColour_data() {
        QTest::addColumn<int>("map");
        QTest::addColumn<QRgb>("low");
        QTest::addColumn<QRgb>("high");
        QTest::newRow("viridis") << static_cast<int>(ColorMap::viridis) << qRgb(0x44, 0x01, 0x54) << qRgb(0xfd, 0xe7, 0x25);
        QTest::newRow("cividis") << static_cast<int>(ColorMap::cividis) << qRgb(0x00, 0x22, 0x4e) << qRgb(0xfe, 0xe8, 0x38);
        QTest::newRow("greys") << static_cast<int>(ColorMap::greys) << qRgb(0xff, 0xff, 0xff) << qRgb(0x30, 0x32, 0x36);
    }
    void theEndsOfAMapAreItsFirstAndLastColour() {
        QFETCH(int, map);
        QFETCH(QRgb, low);
        QFETCH(QRgb, high);
        const ColorScale scale(static_cast<ColorMap>(map), -2, 6);
        QCOMPARE(scale.color(-2), low);
        QCOMPARE(scale.color(-100), low); // clamped
        QCOMPARE(scale.color(6), high);
        QCOMPARE(scale.color(std::numeric_limits<double>::infinity()), high);
    }

    void brightnessOfSequentialMapsRisesSteadily() {
        for (const ColorMap map : {ColorMap::viridis, ColorMap::cividis}) {
            const ColorScale scale(map, 0, 1);
            for (int i = 1; i < 256; ++i) {
                const auto luma = [&](int k) {
                    return 0.2126 * qRed(scale.entry(k)) + 0.7152 * qGreen(scale.entry(k)) + 0.0722 * qBlue(scale.entry(k));
                };
                QVERIFY2(luma(i) > luma(i - 1) - 1.5, qPrintable(QString::number(i)));
            }
        }
    }

    void theMiddleOfADifferenceIsZeroAndNearWhite() {
        const ColorScale scale = ColorScale::symmetric(-3);
        QCOMPARE(scale.min(), -3.0);
        QCOMPARE(scale.max(), 3.0);
        QVERIFY(QColor(scale.color(0)).lightness() > 235);
        QVERIFY(QColor(scale.color(-3)).blue() > QColor(scale.color(-3)).red());
        QVERIFY(QColor(scale.color(3)).red() > QColor(scale.color(3)).blue());
    }

    void logarithmicScalesSpreadDecadesEvenly() {
        const ColorScale scale(ColorMap::viridis, 1e-4, 1, true);
        QVERIFY(scale.logarithmic());
        for (int decade = -4; decade <= 0; ++decade)
            QVERIFY(std::abs(scale.fraction(std::pow(10.0, decade)) - (decade + 4) / 4.0) < 1e-9);
        QCOMPARE(scale.index(0), 0); // below the range, not missing
        QVERIFY(std::abs(scale.valueAt(0.5) - 1e-2) < 1e-9);
        QVERIFY(!ColorScale(ColorMap::viridis, 0, 1, true).logarithmic()); // no logarithm of zero
    }

    void valueAtInvertsFraction() {
        for (const bool logarithmic : {false, true}) {
            const ColorScale scale(ColorMap::cividis, 0.02, 7, logarithmic);
            for (double f = 0; f <= 1; f += 0.125)
                QVERIFY(std::abs(scale.fraction(scale.valueAt(f)) - f) < 1e-9);
        }
    }

    void missingHasItsOwnColour() {
        const ColorScale scale = ColorScale(ColorMap::viridis, 0, 1).withMissing(QColor(1, 2, 3));
        QCOMPARE(scale.index(std::nan("")), -1);
        QCOMPARE(scale.color(std::nan("")), qRgb(1, 2, 3));
    }

    void emptyAndBrokenRangesStillColour() {
        for (const auto& [low, high] : {std::pair{2.0, 2.0}, std::pair{0.0, 0.0}, std::pair{5.0, -5.0}, std::pair{std::nan(""), 3.0}}) {
            const ColorScale scale(ColorMap::viridis, low, high);
            QVERIFY(scale.max() > scale.min());
            QVERIFY(scale.index(1.0) >= 0);
        }
    }

    void inkIsReadableOnEveryColour() {
        const ColorScale scale(ColorMap::cividis, 0, 1);
        QCOMPARE(scale.inkOn(0), QColor(Qt::white));
        QCOMPARE(scale.inkOn(1), QColor(Qt::black));
    }
};

QTEST_APPLESS_MAIN(ColorScaleTest)
#include "color_scale_test.moc"
