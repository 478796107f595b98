// The measurements of one kind as a table: a row each, fields as columns in recorded order (of a suite: what it compares by first).
#pragma once

#include "engine/data/trace.h"

#include <QAbstractTableModel>
#include <memory>
#include <string>
#include <vector>

namespace keepsight {

class ResultsModel : public QAbstractTableModel {
    Q_OBJECT
public:
    static constexpr int SortRole = Qt::UserRole;     // number, or text; invalid: missing
    static constexpr int ExactRole = Qt::UserRole + 1; // full precision, for the clipboard

    using QAbstractTableModel::QAbstractTableModel;

    static std::vector<std::string> kinds(const Trace& trace); // in order of first appearance; windows of a suite and explanations are left out
    void set(std::shared_ptr<const Trace> trace, const std::string& kind); // rows that were only added are inserted, selections survive
    const std::vector<Measurement>& rows() const { return m_rows; }
    std::vector<int> constantColumns() const; // every row shows the same; none if there are fewer than two rows

    int rowCount(const QModelIndex& parent = {}) const override;
    int columnCount(const QModelIndex& parent = {}) const override;
    QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
    QVariant headerData(int section, Qt::Orientation orientation, int role = Qt::DisplayRole) const override;

private:
    const Measurement::Value* value(const QModelIndex& index) const;

    std::string m_kind;
    std::vector<Measurement> m_rows;
    std::vector<std::string> m_columns; // field names; column 0 of the table is the lane
};

// "tpot_ms" → {"tpot", "ms"}; bytes are shown in MB, seconds and milliseconds as they are.
struct FieldTitle { QString name, unit; };
FieldTitle fieldTitle(const std::string& field);
QString shownValue(const std::string& field, const Measurement::Value& value);
QString exactValue(const Measurement::Value& value);

} // namespace keepsight
