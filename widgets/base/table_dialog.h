// The numbers of a picture as a table: sortable by eye, copyable, readable by screen readers.
#pragma once

#include "engine/data/picture.h"

#include <QAbstractTableModel>
#include <QDialog>

namespace keepsight {

// [rows, cols] as they are; [a, b, cols] with one row for each pair (a, b); curves with x in the row header. Missing values are empty.
class PictureTableModel : public QAbstractTableModel {
    Q_OBJECT
public:
    explicit PictureTableModel(PictureData data, QObject* parent = nullptr);
    int rowCount(const QModelIndex& parent = {}) const override;
    int columnCount(const QModelIndex& parent = {}) const override;
    QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
    QVariant headerData(int section, Qt::Orientation orientation, int role = Qt::DisplayRole) const override;

private:
    PictureData m_data;
    int m_rows = 0, m_cols = 0;
};

// Opens beside `parent`, deletes itself when closed.
QDialog* showPictureTable(PictureData data, QWidget* parent);

} // namespace keepsight
