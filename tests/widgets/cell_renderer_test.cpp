#include "widgets/base/cell_renderer.h"

#include <QBuffer>
#include <QElapsedTimer>
#include <QSvgGenerator>
#include <QtTest>
#include <cmath>
#include <limits>

using namespace keepsight;

namespace {

CellGrid gridOf(int rows, int cols, std::vector<float> values) {
    CellGrid grid;
    grid.rows = rows;
    grid.cols = cols;
    grid.values = std::move(values);
    return grid;
}

CellGrid noise(int rows, int cols) {
    CellGrid grid = gridOf(rows, cols, {});
    std::uint32_t state = 1;
    for (int i = 0; i < rows * cols; ++i) {
        state = state * 1664525u + 1013904223u;
        grid.values.push_back(static_cast<float>(state >> 8) / 16777216.0f);
    }
    return grid;
}

} // namespace

class CellRendererTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void enlargedCellsKeepSharpEdges() {
        const ColorScale scale(ColorMap::viridis, 0, 3);
        const QImage image = renderCells(gridOf(2, 2, {0, 1, 2, 3}), {20, 10}, 1, scale, CellStyle::paper());
        QCOMPARE(image.size(), QSize(20, 10));
        for (int y = 0; y < 10; ++y)
            for (int x = 0; x < 20; ++x)
                QCOMPARE(image.pixel(x, y), scale.color(x / 10 + 2 * (y / 5)));
    }

    void sharedPixelsShowTheMeanOrTheMax() {
        const ColorScale scale(ColorMap::viridis, 0, 8);
        const CellGrid grid = gridOf(2, 4, {0, 2, 8, 8, 4, 2, 8, 0});
        const QImage mean = renderCells(grid, {2, 1}, 1, scale, CellStyle::paper());
        QCOMPARE(mean.pixel(0, 0), scale.color(2));
        QCOMPARE(mean.pixel(1, 0), scale.color(6));
        const QImage max = renderCells(grid, {2, 1}, 1, scale, CellStyle::paper(), CellReduce::max);
        QCOMPARE(max.pixel(0, 0), scale.color(4));
        QCOMPARE(max.pixel(1, 0), scale.color(8));
    }

    void everyCellCountsInExactlyOnePixel() { // odd sizes: the mean over all pixels, weighted by their cells, is the mean of the grid
        const CellGrid grid = gridOf(1, 7, {1, 1, 1, 1, 1, 1, 1});
        const ColorScale scale(ColorMap::greys, 0, 1);
        const QImage image = renderCells(grid, {3, 1}, 1, scale, CellStyle::paper());
        for (int x = 0; x < 3; ++x)
            QCOMPARE(image.pixel(x, 0), scale.color(1));
    }

    void kindsHaveTheirOwnPatterns() {
        CellGrid grid = gridOf(1, 4, {0.5f, std::nanf(""), 0.5f, 0.5f});
        grid.kinds = {CellKind::value, CellKind::value, CellKind::blank, CellKind::evicted};
        const CellStyle style = CellStyle::paper();
        const ColorScale scale(ColorMap::viridis, 0, 1);
        const QImage image = renderCells(grid, {80, 20}, 1, scale, style);
        QSet<QRgb> colors[4];
        for (int y = 0; y < 20; ++y)
            for (int x = 0; x < 80; ++x)
                colors[x / 20].insert(image.pixel(x, y));
        QCOMPARE(colors[0], QSet<QRgb>{scale.color(0.5)});
        QCOMPARE(colors[1], (QSet<QRgb>{style.missing, style.missingLine}));
        QCOMPARE(colors[2], QSet<QRgb>{style.background});
        QCOMPARE(colors[3], (QSet<QRgb>{style.evicted, style.evictedLine}));
    }

    void theScreenFollowsThePalette() {
        QPalette dark;
        dark.setColor(QPalette::Base, QColor(30, 30, 32));
        QCOMPARE(CellStyle::of(dark).background, qRgb(30, 30, 32));
        QVERIFY(qGray(CellStyle::of(dark).missing) < 128);
        QVERIFY(qGray(CellStyle::paper().missing) > 128);
    }

    void everyCellHasTheColourOfTheScale_data() {
        QTest::addColumn<double>("low");
        QTest::addColumn<double>("high");
        QTest::addColumn<bool>("logarithmic");
        QTest::newRow("unit") << 0.0 << 1.0 << false;
        QTest::newRow("far from zero") << 1000.0 << 1000.5 << false;
        QTest::newRow("around zero") << -0.25 << 0.25 << false;
        QTest::newRow("four decades") << 1e-4 << 1.0 << true;
        QTest::newRow("less than an octave") << 0.4 << 0.6 << true;
    }
    void everyCellHasTheColourOfTheScale() {
        QFETCH(double, low);
        QFETCH(double, high);
        QFETCH(bool, logarithmic);
        const ColorScale scale(ColorMap::viridis, low, high, logarithmic);
        CellGrid grid = noise(64, 64);
        for (float& value : grid.values)
            value = static_cast<float>(low + (value * 1.2 - 0.1) * (high - low)); // some outside
        grid.values[0] = std::numeric_limits<float>::infinity();
        grid.values[1] = 0;
        const QImage image = renderCells(grid, {64, 64}, 1, scale, CellStyle::paper());
        for (int y = 0; y < 64; ++y)
            for (int x = 0; x < 64; ++x)
                QCOMPARE(image.pixel(x, y), scale.color(static_cast<double>(grid.at(y, x))));
    }

    void emptyGridsDrawNothing() {
        QVERIFY(renderCells({}, {10, 10}, 1, {}, {}).isNull());
        QVERIFY(renderCells(noise(2, 2), {0, 10}, 1, {}, {}).isNull());
    }

    void paperCellsAreVectorsWithOnePathPerColour() {
        const CellGrid grid = gridOf(3, 4, {0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0}); // two colours, five runs, two of them merged downwards
        QBuffer buffer;
        buffer.open(QIODevice::WriteOnly);
        QSvgGenerator generator;
        generator.setOutputDevice(&buffer);
        generator.setSize({100, 100});
        QPainter painter(&generator);
        paintCells(painter, {0, 0, 100, 100}, grid, ColorScale(ColorMap::viridis, 0, 1));
        painter.end();
        QVERIFY(!buffer.data().contains("<image"));
        QCOMPARE(buffer.data().count("#440154"), buffer.data().count("#fde725"));
        QVERIFY(buffer.data().contains("#440154"));
    }

    void largeGridsBecomeOneLosslessImage() {
        QBuffer buffer;
        buffer.open(QIODevice::WriteOnly);
        QSvgGenerator generator;
        generator.setOutputDevice(&buffer);
        generator.setSize({100, 100});
        QPainter painter(&generator);
        paintCells(painter, {0, 0, 100, 100}, noise(4, MaxVectorCells + 1), ColorScale());
        painter.end();
        QCOMPARE(buffer.data().count("<image"), 1);
        QVERIFY(buffer.data().contains("data:image/png"));
    }

    void speedIsPrinted() {
        const CellGrid square = noise(2048, 2048), panel = noise(30, 4000);
        for (const bool logarithmic : {false, true}) {
            const ColorScale scale(ColorMap::viridis, 1e-4, 1, logarithmic);
            for (const QSize size : {QSize(600, 600), QSize(2048, 2048)}) {
                QElapsedTimer timer;
                timer.start();
                const QImage image = renderCells(square, size, 1, scale, {});
                qInfo("2048 x 2048 cells on %d x %d pixels, %s: %.1f ms", size.width(), size.height(), logarithmic ? "log" : "linear",
                      static_cast<double>(timer.nsecsElapsed()) / 1e6);
                QCOMPARE(image.size(), size);
            }
        }
        QElapsedTimer timer;
        timer.start();
        for (int head = 0; head < 3; ++head)
            QVERIFY(!renderCells(panel, {300, 250}, 1, ColorScale(), {}).isNull());
        qInfo("30 x 3 x 4000 cells on 3 panels of 300 x 250 pixels: %.1f ms", static_cast<double>(timer.nsecsElapsed()) / 1e6);
    }
};

QTEST_GUILESS_MAIN(CellRendererTest)
#include "cell_renderer_test.moc"
