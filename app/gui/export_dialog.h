// A figure on its way to paper: width, format, a preview at that width, and the data beside it.
#pragma once

#include "widgets/base/figure.h"

#include <QDialog>
#include <QImage>

class QCheckBox;
class QComboBox;
class QDoubleSpinBox;
class QLabel;
class QPushButton;

namespace keepsight {

QImage figureImage(const Figure& figure, double widthInches, int dpi);
// "single", "text", "double" or inches, 1 … 20; throws UsageError.
double figureWidth(const QString& text);

class ExportDialog : public QDialog {
    Q_OBJECT
public:
    explicit ExportDialog(std::unique_ptr<Figure> figure, QWidget* parent = nullptr);
    double widthInches() const;
    FigureFormat format() const;
    // Writes the figure to `path` and the chosen data files beside it; tells exported() or shows the sentence in the dialog.
    void exportTo(const QString& path);

Q_SIGNALS:
    void exported(const QStringList& files);

private:
    void choosePath();
    void showPreview();
    std::shared_ptr<Figure> m_figure; // shared with the export that may outlive the dialog
    QComboBox *m_widths, *m_formats;
    QDoubleSpinBox* m_width;
    QCheckBox *m_csv, *m_npy, *m_json;
    QLabel *m_preview, *m_size, *m_message;
    QPushButton* m_export;
};

} // namespace keepsight
