#include "widgets/base/figure.h"

#include "engine/data/error.h"
#include "tests/support/trace_builder.h"
#include "widgets/base/axis.h"
#include "widgets/base/trace_view.h"

#include <QTemporaryDir>
#include <QXmlStreamReader>
#include <QtTest>
#include <cmath>
#include <cstring>

using namespace keepsight;
using keepsight::test::buildTrace;
using keepsight::test::TraceShape;

namespace {

QByteArray read(const QString& path) {
    QFile file(path);
    return file.open(QIODevice::ReadOnly) ? file.readAll() : QByteArray();
}

struct Row {
    const char* name;
    PictureFocus focus;
};
const std::vector<Row> Rows = {{"retained", {LaneIndex{1}, Step{9}, LayerIndex{-1}, HeadIndex{-1}, false}},
                               {"retained", {LaneIndex{1}, Step{9}, LayerIndex{1}, HeadIndex{2}, false}},
                               {"attention", {LaneIndex{1}, Step{-1}, LayerIndex{2}, HeadIndex{1}, false}},
                               {"needle", {LaneIndex{1}, Step{-1}, LayerIndex{-1}, HeadIndex{-1}, false}}};

} // namespace

class FigureTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void init() { QVERIFY(m_dir.isValid()); }

    void twoExportsAreByteEqual_data() {
        QTest::addColumn<int>("row");
        QTest::addColumn<QString>("format");
        for (int row = 0; row < static_cast<int>(Rows.size()); ++row)
            for (const char* format : {"pdf", "svg", "png", "csv", "npy", "json"})
                QTest::addRow("%s %d %s", Rows[static_cast<std::size_t>(row)].name, row, format) << row << QString(format);
    }
    void twoExportsAreByteEqual() {
        QFETCH(int, row);
        QFETCH(QString, format);
        const Row& wanted = Rows[static_cast<std::size_t>(row)];
        QByteArray files[2];
        for (QByteArray& bytes : files) {
            const auto figure = makeFigure(wanted.name, buildTrace(), wanted.focus);
            const QString path = m_dir.filePath("figure." + format);
            exportFigure(*figure, figureFormat(format), SingleColumn, path);
            bytes = read(path);
            if (format == "pdf" && row == 0 && files[1].isEmpty()) QTest::qWait(1100); // another second on the clock
        }
        QVERIFY(files[0].size() > 60);
        QVERIFY(files[0] == files[1]);
    }

    void pdfPagesAreExactVectorsWithTrueType() {
        for (const double inches : {SingleColumn, TextWidth, DoubleColumn}) {
            const auto figure = makeFigure("attention", buildTrace(), Rows[2].focus);
            const QString path = m_dir.filePath("page.pdf");
            exportFigure(*figure, FigureFormat::pdf, inches, path);
            const QByteArray pdf = read(path);
            QVERIFY(pdf.startsWith("%PDF-"));
            QVERIFY(!pdf.contains("DCTDecode"));
            QVERIFY(!pdf.contains("/Subtype /Image"));
            QVERIFY(!pdf.contains("/Type3"));
            const auto box = QRegularExpression("/MediaBox \\[0 0 ([0-9.]+) ([0-9.]+)").match(QString::fromLatin1(pdf));
            QVERIFY(box.hasMatch());
            QVERIFY(std::abs(box.captured(1).toDouble() - inches * 72) < 0.01);
            QVERIFY(pdf.contains("D:20000101000000"));
        }
    }

    void largeMapsBecomeLosslessImages() {
        TraceShape shape;
        shape.prompt = 600;
        shape.decode = 0;
        const auto figure = makeFigure("retained", buildTrace(shape), {});
        const QString path = m_dir.filePath("large.pdf");
        exportFigure(*figure, FigureFormat::pdf, DoubleColumn, path);
        const QByteArray pdf = read(path);
        QVERIFY(pdf.contains("/Subtype /Image"));
        QVERIFY(!pdf.contains("DCTDecode"));
    }

    void svgIsXmlWithVectorCellsAndOutlinedText() {
        for (const Row& row : Rows) {
            const auto figure = makeFigure(row.name, buildTrace(), row.focus);
            const QString path = m_dir.filePath("figure.svg");
            exportFigure(*figure, FigureFormat::svg, SingleColumn, path);
            QXmlStreamReader xml(read(path));
            int shapes = 0, images = 0, texts = 0;
            while (!xml.atEnd()) {
                if (xml.readNext() != QXmlStreamReader::StartElement) continue;
                shapes += xml.name() == QLatin1String("path") || xml.name() == QLatin1String("rect");
                images += xml.name() == QLatin1String("image");
                texts += xml.name() == QLatin1String("text");
                if (xml.name() == QLatin1String("svg"))
                    QCOMPARE(xml.attributes().value("viewBox").toString().split(' ').value(2), QString::number(SingleColumn * 72));
            }
            QVERIFY2(!xml.hasError(), qPrintable(xml.errorString()));
            QVERIFY(shapes > 10);
            QCOMPARE(images, 0);
            QCOMPARE(texts, 0);
        }
    }

    void pngHas300DotsPerInch() {
        const auto figure = makeFigure("needle", buildTrace(), Rows[3].focus);
        const QString path = m_dir.filePath("figure.png");
        exportFigure(*figure, FigureFormat::png, SingleColumn, path);
        const QImage image(path);
        QCOMPARE(image.width(), 975);
        QVERIFY(std::abs(image.dotsPerMeterX() * 0.0254 - 300) < 0.1);
    }

    void npyHoldsTheValues() {
        const auto figure = makeFigure("needle", buildTrace(), Rows[3].focus);
        const QString path = m_dir.filePath("figure.npy");
        exportFigure(*figure, FigureFormat::npy, SingleColumn, path);
        const QByteArray npy = read(path);
        QVERIFY(npy.startsWith("\x93NUMPY"));
        const std::vector<double> expected = figure->data().values;
        const qsizetype payload = static_cast<qsizetype>(expected.size() * sizeof(double));
        QVERIFY(npy.size() > payload);
        std::vector<double> found(expected.size());
        std::memcpy(found.data(), npy.constData() + npy.size() - payload, static_cast<std::size_t>(payload));
        for (std::size_t i = 0; i < expected.size(); ++i)
            QVERIFY(std::isnan(expected[i]) ? std::isnan(found[i]) : expected[i] == found[i]);
    }

    void mistakesAreSaid() {
        QVERIFY_THROWS_EXCEPTION(UsageError, figureFormat("jpeg"));
        QVERIFY_THROWS_EXCEPTION(UsageError, makeFigure("no such picture", buildTrace(), {}));
        QVERIFY_THROWS_EXCEPTION(UsageError, makeFigure("retained", nullptr, {}));
        QVERIFY_THROWS_EXCEPTION(UsageError,
                                 makeFigure("attention", buildTrace(), {LaneIndex{0}, Step{-1}, LayerIndex{99}, HeadIndex{0}, false}));
        const auto figure = makeFigure("needle", buildTrace(), Rows[3].focus);
        QVERIFY_THROWS_EXCEPTION(UsageError, exportFigure(*figure, FigureFormat::pdf, 0, m_dir.filePath("x.pdf")));
        const QString nowhere = m_dir.filePath("missing/folder/x.pdf");
        try {
            exportFigure(*figure, FigureFormat::pdf, SingleColumn, nowhere);
            QFAIL("expected an exception");
        } catch (const EngineError& error) {
            QVERIFY(QString(error.what()).contains("missing/folder"));
        }
    }

    void everyPictureHasAFigure() {
        const auto trace = buildTrace();
        for (const std::string& name : pictureNames()) {
            const auto figure =
                makeFigure(QString::fromStdString(name), trace, {LaneIndex{1}, Step{9}, LayerIndex{1}, HeadIndex{1}, false});
            QVERIFY(figure);
            QVERIFY(!figure->name().isEmpty());
            QVERIFY(figure->sizeForWidth(234).height() > 20);
        }
    }

    void everyViewIsMadeFromItsLine() {
        QCOMPARE(views().size(), std::size_t{6});
        for (const ViewEntry& entry : views()) {
            const std::unique_ptr<TraceView> view(entry.make(nullptr));
            QVERIFY2(!view->accessibleName().isEmpty(), entry.id);
            view->setTrace(nullptr);
            QVERIFY(!view->grab().isNull());
        }
    }

    void ticksAreRoundNumbersInsideTheRange() {
        for (const AxisRange range :
             {AxisRange{0, 211, false, true}, AxisRange{-0.5, 29.5, false, true}, AxisRange{0.31, 0.37, false, false},
              AxisRange{0, 3, false, true}, AxisRange{1e-4, 1, true, false}, AxisRange{8, 600, true, false}}) {
            const auto marks = ticks(range, 6);
            QVERIFY(marks.size() >= 2 && marks.size() <= 8);
            for (const Tick& tick : marks) {
                QVERIFY(tick.value >= range.min - 1e-9 && tick.value <= range.max + 1e-9);
                if (range.integers) QCOMPARE(tick.value, std::round(tick.value));
                QVERIFY(std::abs(tick.text.toDouble() - tick.value) <= std::abs(tick.value) * 1e-6 + 1e-12);
            }
        }
    }

private:
    QTemporaryDir m_dir;
};

QTEST_MAIN(FigureTest)
#include "figure_test.moc"
