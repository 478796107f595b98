#include "app/gui/export_dialog.h"

#include "app/gui/settings.h"
#include "engine/data/error.h"

#include <QApplication>
#include <QCheckBox>
#include <QComboBox>
#include <QDialogButtonBox>
#include <QDir>
#include <QDoubleSpinBox>
#include <QFileDialog>
#include <QFileInfo>
#include <QFormLayout>
#include <QHBoxLayout>
#include <QLabel>
#include <QPainter>
#include <QPushButton>
#include <QVBoxLayout>

#include <algorithm>
#include <cmath>

namespace keepsight {

namespace {

constexpr double NarrowestInches = 1, WidestInches = 20;
struct NamedWidth {
    const char* name;
    double inches;
};
constexpr NamedWidth Widths[] = {{"single", SingleColumn}, {"text", TextWidth}, {"double", DoubleColumn}};
constexpr const char* Formats[] = {"pdf", "svg", "png", "csv", "npy", "json"};
constexpr int PreviewWidth = 460, PreviewHeight = 400;

} // namespace

double figureWidth(const QString& text) {
    for (const auto& w : Widths)
        if (text == w.name) return w.inches;
    bool ok = false;
    const double inches = text.toDouble(&ok);
    if (!ok || !(inches >= NarrowestInches && inches <= WidestInches))
        throw UsageError(QObject::tr("--width: expected single, text, double or inches from %1 to %2, found \"%3\".").arg(NarrowestInches).arg(WidestInches).arg(text).toStdString());
    return inches;
}

QImage figureImage(const Figure& figure, double widthInches, int dpi) {
    const double width = widthInches * 72;
    const QSizeF size(width, std::ceil(figure.sizeForWidth(width).height()));
    const double scale = dpi / 72.0;
    QImage image((size * scale).toSize(), QImage::Format_RGB32);
    image.fill(Qt::white);
    image.setDotsPerMeterX(int(std::lround(dpi / 0.0254)));
    image.setDotsPerMeterY(int(std::lround(dpi / 0.0254)));
    QPainter painter(&image);
    painter.setRenderHints(QPainter::Antialiasing | QPainter::TextAntialiasing);
    painter.scale(scale, scale);
    figure.paint(painter, size);
    return image;
}

ExportDialog::ExportDialog(std::unique_ptr<Figure> figure, QWidget* parent)
    : QDialog(parent), m_figure(std::move(figure)), m_widths(new QComboBox), m_formats(new QComboBox), m_width(new QDoubleSpinBox), m_csv(new QCheckBox("CSV")),
      m_npy(new QCheckBox("NPY")), m_json(new QCheckBox("JSON")), m_preview(new QLabel), m_size(new QLabel), m_message(new QLabel) {
    setWindowTitle(tr("Export %1").arg(m_figure->name()));
    const Settings settings;
    m_widths->setAccessibleName(tr("Width"));
    m_widths->addItem(tr("One column"), SingleColumn);
    m_widths->addItem(tr("Text width"), TextWidth);
    m_widths->addItem(tr("Two columns"), DoubleColumn);
    m_widths->addItem(tr("Other"), 0.0);
    m_width->setObjectName("inches");
    m_width->setAccessibleName(tr("Width in inches"));
    m_width->setRange(NarrowestInches, WidestInches);
    m_width->setDecimals(2);
    m_width->setSingleStep(0.25);
    m_width->setSuffix(tr(" in"));
    for (const char* f : Formats)
        m_formats->addItem(QString(f).toUpper(), f);
    m_formats->setAccessibleName(tr("Format"));
    m_formats->setCurrentIndex(std::max(0, m_formats->findData(settings.figureFormat())));
    m_preview->setAlignment(Qt::AlignCenter);
    m_preview->setMinimumSize(PreviewWidth + 20, PreviewHeight + 20);
    m_preview->setFrameShape(QFrame::StyledPanel);
    m_preview->setAccessibleName(tr("Preview of the figure"));
    m_size->setProperty("role", "quiet");
    m_message->setWordWrap(true);
    m_message->hide();

    auto* widthRow = new QHBoxLayout;
    widthRow->addWidget(m_widths, 1);
    widthRow->addWidget(m_width);
    auto* beside = new QHBoxLayout;
    for (auto* box : {m_csv, m_npy, m_json})
        beside->addWidget(box);
    beside->addStretch(1);
    auto* form = new QFormLayout;
    form->addRow(tr("Width"), widthRow);
    form->addRow(tr("Format"), m_formats);
    form->addRow(tr("Data beside it"), beside);
    form->addRow(m_size);
    auto* left = new QVBoxLayout;
    left->addLayout(form);
    left->addStretch(1);
    left->addWidget(m_message);
    auto* row = new QHBoxLayout;
    row->addLayout(left);
    row->addWidget(m_preview, 1);
    auto* buttons = new QDialogButtonBox(QDialogButtonBox::Cancel);
    m_export = buttons->addButton(tr("Export…"), QDialogButtonBox::AcceptRole);
    m_export->setDefault(true);
    auto* column = new QVBoxLayout(this);
    column->addLayout(row, 1);
    column->addWidget(buttons);

    connect(m_widths, &QComboBox::activated, this, [this](int i) {
        if (const double inches = m_widths->itemData(i).toDouble(); inches > 0) m_width->setValue(inches);
    });
    connect(m_width, &QDoubleSpinBox::valueChanged, this, [this](double inches) {
        const int named = m_widths->findData(inches);
        m_widths->setCurrentIndex(named >= 0 ? named : m_widths->count() - 1);
        showPreview();
    });
    connect(buttons, &QDialogButtonBox::rejected, this, &QDialog::reject);
    connect(m_export, &QPushButton::clicked, this, &ExportDialog::choosePath);
    m_width->setValue(settings.figureWidth());
    showPreview();
}

double ExportDialog::widthInches() const { return m_width->value(); }

FigureFormat ExportDialog::format() const { return figureFormat(m_formats->currentData().toString()); }

void ExportDialog::showPreview() {
    // As large as it fits: the text shows its true proportion to the page.
    const double ratio = devicePixelRatioF(), width = widthInches() * 72;
    const QSizeF page(width, std::ceil(m_figure->sizeForWidth(width).height()));
    const double zoom = std::min(PreviewWidth / page.width(), PreviewHeight / page.height());
    QImage image = figureImage(*m_figure, widthInches(), std::max(24, int(72 * zoom * ratio)));
    image.setDevicePixelRatio(ratio);
    m_preview->setPixmap(QPixmap::fromImage(image));
    m_size->setText(tr("%1 × %2 in on the page").arg(page.width() / 72, 0, 'f', 2).arg(page.height() / 72, 0, 'f', 2));
}

void ExportDialog::choosePath() {
    const QString suffix = m_formats->currentData().toString();
    const QString start = QDir(Settings().lastFolder()).filePath(m_figure->name() + "." + suffix);
    QString path = QFileDialog::getSaveFileName(this, windowTitle(), start, tr("%1 file (*.%2)").arg(suffix.toUpper(), suffix));
    if (path.isEmpty()) return;
    if (QFileInfo(path).suffix().isEmpty()) path += "." + suffix;
    exportTo(path);
}

void ExportDialog::exportTo(const QString& path) {
    QApplication::setOverrideCursor(Qt::WaitCursor);
    QStringList written;
    QString trouble;
    try {
        const auto write = [&](FigureFormat f, const QString& to) {
            if (written.contains(to)) return;
            exportFigure(*m_figure, f, widthInches(), to);
            written << to;
        };
        write(format(), path);
        const QString base = QFileInfo(path).path() + "/" + QFileInfo(path).completeBaseName();
        if (m_csv->isChecked()) write(FigureFormat::csv, base + ".csv");
        if (m_npy->isChecked()) write(FigureFormat::npy, base + ".npy");
        if (m_json->isChecked()) write(FigureFormat::json, base + ".json");
    } catch (const std::exception& e) {
        trouble = QString::fromUtf8(e.what());
    }
    QApplication::restoreOverrideCursor();
    m_message->setText(trouble);
    m_message->setVisible(!trouble.isEmpty());
    if (!trouble.isEmpty()) return;
    Settings settings;
    settings.setFigure(widthInches(), m_formats->currentData().toString());
    settings.setLastFolder(QFileInfo(path).absolutePath());
    Q_EMIT exported(written);
    accept();
}

} // namespace keepsight
