#include "widgets/base/table_dialog.h"

#include <QClipboard>
#include <QDialogButtonBox>
#include <QGuiApplication>
#include <QLabel>
#include <QPushButton>
#include <QTableView>
#include <QVBoxLayout>
#include <cmath>

namespace keepsight {
namespace {

QString text(const std::string& s) { return QString::fromStdString(s); }

QString axisText(const PictureAxis& axis, std::size_t i) {
    if (i < axis.labels.size()) return text(axis.labels[i]);
    return QString::number(axis.first + static_cast<double>(i) * axis.step, 'g', 10);
}

QString axisTitle(const PictureAxis& axis) {
    return axis.unit.empty() ? text(axis.name) : QStringLiteral("%1 [%2]").arg(text(axis.name), text(axis.unit));
}

} // namespace

PictureTableModel::PictureTableModel(PictureData data, QObject* parent) : QAbstractTableModel(parent), m_data(std::move(data)) {
    if (m_data.shape.empty()) return;
    m_cols = m_data.shape.size() == 1 ? 1 : static_cast<int>(m_data.shape.back());
    m_rows = m_cols == 0 ? 0 : static_cast<int>(m_data.values.size()) / m_cols;
}

int PictureTableModel::rowCount(const QModelIndex& parent) const { return parent.isValid() ? 0 : m_rows; }
int PictureTableModel::columnCount(const QModelIndex& parent) const { return parent.isValid() ? 0 : m_cols; }

QVariant PictureTableModel::data(const QModelIndex& index, int role) const {
    if (!index.isValid() || index.row() >= m_rows || index.column() >= m_cols) return {};
    if (role == Qt::TextAlignmentRole) return QVariant::fromValue(Qt::AlignRight | Qt::AlignVCenter);
    if (role != Qt::DisplayRole) return {};
    const double value =
        m_data.values[static_cast<std::size_t>(index.row()) * static_cast<std::size_t>(m_cols) + static_cast<std::size_t>(index.column())];
    return std::isnan(value) ? QVariant() : QVariant(QString::number(value, 'g', 8));
}

QVariant PictureTableModel::headerData(int section, Qt::Orientation orientation, int role) const {
    if (role != Qt::DisplayRole || section < 0) return {};
    const auto i = static_cast<std::size_t>(section);
    if (orientation == Qt::Horizontal)
        return m_data.shape.size() > 1 && m_data.axes.size() == m_data.shape.size() ? axisText(m_data.axes.back(), i)
                                                                                    : text(m_data.valueName);
    if (i < m_data.x.size()) return QString::number(m_data.x[i], 'g', 10);
    if (m_data.axes.empty() || m_data.axes.size() != m_data.shape.size()) return section;
    if (m_data.shape.size() == 3)
        return QStringLiteral("%1 / %2").arg(axisText(m_data.axes[0], i / m_data.shape[1]), axisText(m_data.axes[1], i % m_data.shape[1]));
    return axisText(m_data.axes[0], i);
}

QDialog* showPictureTable(PictureData data, QWidget* parent) {
    auto* dialog = new QDialog(parent);
    dialog->setAttribute(Qt::WA_DeleteOnClose);
    dialog->setWindowTitle(text(data.name));
    QStringList caption;
    const QString value = data.unit.empty() ? text(data.valueName) : QStringLiteral("%1 [%2]").arg(text(data.valueName), text(data.unit));
    QStringList rows;
    if (!data.x.empty())
        rows << (data.xUnit.empty() ? text(data.xName) : QStringLiteral("%1 [%2]").arg(text(data.xName), text(data.xUnit)));
    else
        for (std::size_t i = 0; i + 1 < data.axes.size(); ++i)
            rows << axisTitle(data.axes[i]);
    if (data.axes.size() > 1)
        caption << PictureTableModel::tr("%1; rows: %2; columns: %3.")
                       .arg(value, rows.join(QStringLiteral(" / ")), axisTitle(data.axes.back()));
    for (const std::string& note : data.notes)
        caption << text(note);
    const std::string csv = toCsv(data);
    auto* label = new QLabel(caption.join(QLatin1Char('\n')));
    label->setWordWrap(true);
    label->setTextInteractionFlags(Qt::TextSelectableByMouse | Qt::TextSelectableByKeyboard);
    auto* table = new QTableView;
    table->setAccessibleName(dialog->windowTitle());
    table->setAccessibleDescription(caption.join(QLatin1Char(' ')));
    table->setModel(new PictureTableModel(std::move(data), table));
    auto* buttons = new QDialogButtonBox(QDialogButtonBox::Close);
    QPushButton* copy = buttons->addButton(PictureTableModel::tr("Copy as CSV"), QDialogButtonBox::ActionRole);
    QObject::connect(copy, &QPushButton::clicked, dialog, [csv] { QGuiApplication::clipboard()->setText(QString::fromStdString(csv)); });
    QObject::connect(buttons, &QDialogButtonBox::rejected, dialog, &QDialog::reject);
    auto* layout = new QVBoxLayout(dialog);
    layout->addWidget(label);
    layout->addWidget(table, 1);
    layout->addWidget(buttons);
    dialog->resize(760, 480);
    return dialog;
}

} // namespace keepsight
