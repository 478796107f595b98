#include "widgets/base/figure.h"

#include "engine/data/error.h"

#include <QBuffer>
#include <QImage>
#include <QImageWriter>
#include <QPageLayout>
#include <QPageSize>
#include <QPdfWriter>
#include <QSvgGenerator>
#include <cmath>
#include <filesystem>

namespace keepsight {
namespace {

constexpr int PngDpi = 300;
constexpr int PdfDpi = 1200; // coordinates of text and lines are rounded to this

struct FormatName {
    FigureFormat format;
    const char* name;
};
constexpr FormatName Formats[] = {{FigureFormat::pdf, "pdf"}, {FigureFormat::svg, "svg"}, {FigureFormat::png, "png"},
                                  {FigureFormat::csv, "csv"}, {FigureFormat::npy, "npy"}, {FigureFormat::json, "json"}};

QSizeF pageSize(const Figure& figure, double widthInches) {
    const double width = widthInches * 72;
    return {width, std::ceil(figure.sizeForWidth(width).height())};
}

// Replaces what differs from run to run by characters of the same number, so that the offsets in the file stay true.
QByteArray withoutTime(QByteArray pdf) {
    const auto overwrite = [&pdf](const QByteArray& key, char open, char close, const QByteArray& pattern) {
        for (qsizetype at = pdf.indexOf(key); at >= 0; at = pdf.indexOf(key, at + 1)) {
            const qsizetype begin = pdf.indexOf(open, at + key.size()), end = pdf.indexOf(close, begin + 1);
            if (begin < 0 || end < 0 || begin > at + key.size() + 4) continue;
            for (qsizetype i = begin + 1; i < end; ++i) {
                const qsizetype k = i - begin - 1;
                pdf[i] = k < pattern.size() ? pattern[k] : (pattern.isEmpty() ? '0' : pdf[i]);
            }
        }
    };
    overwrite("/CreationDate", '(', ')', "D:20000101000000Z00'00'");
    overwrite("/ModDate", '(', ')', "D:20000101000000Z00'00'");
    return pdf;
}

QByteArray pdf(const Figure& figure, const QSizeF& size) {
    QBuffer buffer;
    buffer.open(QIODevice::WriteOnly);
    {
        QPdfWriter writer(&buffer);
        writer.setResolution(PdfDpi);
        writer.setCreator(QStringLiteral("Keepsight"));
        writer.setTitle(figure.name());
        writer.setPageLayout(QPageLayout(QPageSize(size, QPageSize::Point, QStringLiteral("figure"), QPageSize::ExactMatch),
                                         QPageLayout::Portrait, QMarginsF(0, 0, 0, 0), QPageLayout::Point, QMarginsF(0, 0, 0, 0)));
        QPainter painter(&writer);
        painter.setRenderHint(QPainter::LosslessImageRendering);
        painter.scale(PdfDpi / 72.0, PdfDpi / 72.0);
        figure.paint(painter, size);
    }
    return withoutTime(buffer.data());
}

QByteArray svg(const Figure& figure, const QSizeF& size) {
    QBuffer buffer;
    buffer.open(QIODevice::WriteOnly);
    {
        QSvgGenerator generator;
        generator.setOutputDevice(&buffer);
        generator.setResolution(72); // units are points
        generator.setSize(QSize(static_cast<int>(std::ceil(size.width())), static_cast<int>(size.height())));
        generator.setViewBox(QRectF(QPointF(0, 0), size));
        generator.setTitle(figure.name());
        generator.setDescription(QStringLiteral("Keepsight"));
        QPainter painter(&generator);
        painter.fillRect(QRectF(QPointF(0, 0), size), Qt::white);
        figure.paint(painter, size);
    }
    return buffer.data();
}

QByteArray png(const Figure& figure, const QSizeF& size) {
    const double scale = PngDpi / 72.0;
    QImage image(QSize(static_cast<int>(std::lround(size.width() * scale)), static_cast<int>(std::lround(size.height() * scale))),
                 QImage::Format_RGB32);
    image.fill(Qt::white);
    {
        QPainter painter(&image);
        painter.setRenderHints(QPainter::Antialiasing | QPainter::TextAntialiasing);
        painter.scale(scale, scale);
        figure.paint(painter, size);
    }
    image.setDotsPerMeterX(static_cast<int>(std::lround(PngDpi / 0.0254)));
    image.setDotsPerMeterY(static_cast<int>(std::lround(PngDpi / 0.0254)));
    QBuffer buffer;
    buffer.open(QIODevice::WriteOnly);
    QImageWriter writer(&buffer, "png");
    if (!writer.write(image))
        throw EngineError("figure: PNG encoding of " + figure.name().toStdString() + " failed: " + writer.errorString().toStdString());
    return buffer.data();
}

} // namespace

FigureFormat figureFormat(const QString& nameOrSuffix) {
    QString name = nameOrSuffix.mid(nameOrSuffix.lastIndexOf(QLatin1Char('.')) + 1).toLower();
    std::string known;
    for (const FormatName& entry : Formats) {
        if (name == QLatin1String(entry.name)) return entry.format;
        known += (known.empty() ? "" : ", ") + std::string(entry.name);
    }
    throw UsageError("figure format: expected one of " + known + ", found '" + nameOrSuffix.toStdString() + "'");
}

void exportFigure(const Figure& figure, FigureFormat format, double widthInches, const QString& path) {
    if (!(widthInches >= 1 && widthInches <= 40))
        throw UsageError("figure width: expected 1 to 40 inches, found " + std::to_string(widthInches));
    const std::filesystem::path file(path.toStdString());
    const auto write = [&file](const QByteArray& bytes) {
        writeFileAtomically(file, std::string_view(bytes.constData(), static_cast<std::size_t>(bytes.size())));
    };
    switch (format) {
    case FigureFormat::pdf:
        return write(pdf(figure, pageSize(figure, widthInches)));
    case FigureFormat::svg:
        return write(svg(figure, pageSize(figure, widthInches)));
    case FigureFormat::png:
        return write(png(figure, pageSize(figure, widthInches)));
    case FigureFormat::csv:
        return writeFileAtomically(file, toCsv(figure.data()));
    case FigureFormat::npy:
        return writeFileAtomically(file, toNpy(figure.data()));
    case FigureFormat::json:
        return writeFileAtomically(file, toJson(figure.data()));
    }
}

} // namespace keepsight
