#include "widgets/results/results_model.h"

#include "widgets/lanes/lane_color.h"

#include <QLocale>
#include <algorithm>
#include <cmath>
#include <utility>

namespace keepsight {
namespace {

bool isBytes(const std::string& field) { return field == "bytes" || field.ends_with("_bytes") || field.find("_bytes_") != std::string::npos; }

bool isShare(const std::string& field) { return field.ends_with("ratio") || field.ends_with("share") || field.ends_with("score"); }

// Parts of a result and notes beside it, each of a kind of its own: they are read elsewhere, or not at all.
bool isShown(const std::string& kind) { return kind != "suite_window" && kind != "explain"; }

// A suite compares by these: they stand in front of the rest.
const std::vector<std::string>& leadingFields(const std::string& kind) {
    static const std::vector<std::string> suite{"policy", "quant", "compression_ratio", "ppl", "ppl_delta", "kv_bytes", "bits_per_value", "tpot_ms"}, none;
    return kind == "suite" ? suite : none;
}

QString shownReal(double value) {
    if (std::isnan(value)) return {};
    const double size = std::abs(value);
    if (value == std::round(value) && size < 1e9) return QLocale().toString(value, 'f', 0);
    if (size >= 1e6 || size < 1e-4) return QLocale().toString(value, 'e', 3);
    return QLocale().toString(value, 'f', size >= 1000 ? 1 : size >= 100 ? 2 : size >= 1 ? 3 : 4);
}

} // namespace

FieldTitle fieldTitle(const std::string& field) {
    const QString name = QString::fromStdString(field);
    if (isBytes(field)) return {field == "bytes" ? name : QString(name).remove(QStringLiteral("_bytes")), QStringLiteral("MB")};
    if (field.ends_with("_ms")) return {name.chopped(3), QStringLiteral("ms")};
    if (field.ends_with("_s")) return {name.chopped(2), QStringLiteral("s")};
    if (field == "compression_ratio") return {QStringLiteral("ratio"), {}}; // the tool tip has the long name
    if (field == "depth") return {name, QStringLiteral("%")};
    if (field == "length" || field == "budget" || field == "n_tokens") return {name, QStringLiteral("tokens")};
    return {name, {}};
}

QString exactValue(const Measurement::Value& value) {
    if (const auto* flag = std::get_if<bool>(&value)) return *flag ? QStringLiteral("true") : QStringLiteral("false");
    if (const auto* integer = std::get_if<std::int64_t>(&value)) return QString::number(*integer);
    if (const auto* real = std::get_if<double>(&value)) return std::isnan(*real) ? QString() : QString::number(*real, 'g', QLocale::FloatingPointShortest);
    if (const auto* text = std::get_if<std::string>(&value)) return QString::fromStdString(*text);
    if (const auto* list = std::get_if<std::vector<double>>(&value)) {
        QStringList parts;
        for (const double v : *list)
            parts << QString::number(v, 'g', QLocale::FloatingPointShortest);
        return parts.join(QLatin1Char(' '));
    }
    return {};
}

QString shownValue(const std::string& field, const Measurement::Value& value) {
    if (const auto* flag = std::get_if<bool>(&value)) return *flag ? ResultsModel::tr("yes") : ResultsModel::tr("no");
    if (const auto* integer = std::get_if<std::int64_t>(&value))
        return isBytes(field) ? QLocale().toString(static_cast<double>(*integer) / 1e6, 'f', 3) : QLocale().toString(static_cast<qlonglong>(*integer));
    if (const auto* real = std::get_if<double>(&value)) {
        if (isShare(field) && !std::isnan(*real)) return QLocale().toString(*real, 'g', 4);
        return isBytes(field) ? shownReal(*real / 1e6) : shownReal(*real);
    }
    if (const auto* list = std::get_if<std::vector<double>>(&value)) {
        constexpr std::size_t Most = 4; // the tooltip has them all
        QStringList parts;
        for (std::size_t i = 0; i < std::min(Most, list->size()); ++i)
            parts << shownReal((*list)[i]);
        return parts.join(QStringLiteral(", ")) + (list->size() > Most ? QStringLiteral(", …") : QString());
    }
    QString text = exactValue(value);
    return text.replace(QLatin1Char('\n'), QStringLiteral("⏎"));
}

std::vector<std::string> ResultsModel::kinds(const Trace& trace) {
    std::vector<std::string> out;
    for (const Measurement& row : trace.measurements)
        if (isShown(row.kind) && std::ranges::find(out, row.kind) == out.end()) out.push_back(row.kind);
    return out;
}

void ResultsModel::set(std::shared_ptr<const Trace> trace, const std::string& kind) {
    std::vector<Measurement> rows;
    std::vector<std::string> columns;
    if (trace)
        for (const Measurement& row : trace->measurements) {
            if (row.kind != kind) continue;
            rows.push_back(row);
            for (const auto& [name, unused] : row.fields)
                if (std::ranges::find(columns, name) == columns.end()) columns.push_back(name);
        }
    const std::vector<std::string>& leading = leadingFields(kind);
    std::ranges::stable_sort(columns, {}, [&](const std::string& name) { return std::ranges::find(leading, name) - leading.begin(); });
    const auto sameRow = [](const Measurement& a, const Measurement& b) {
        return a.lane == b.lane && std::ranges::equal(a.fields, b.fields, [](const auto& x, const auto& y) { return x.first == y.first && exactValue(x.second) == exactValue(y.second); });
    };
    const bool grown = kind == m_kind && columns == m_columns && rows.size() >= m_rows.size() &&
                       std::equal(m_rows.begin(), m_rows.end(), rows.begin(), sameRow);
    if (grown) {
        if (rows.size() == m_rows.size()) return;
        beginInsertRows({}, static_cast<int>(m_rows.size()), static_cast<int>(rows.size()) - 1);
        m_rows = std::move(rows);
        endInsertRows();
        return;
    }
    beginResetModel();
    m_kind = kind;
    m_rows = std::move(rows);
    m_columns = std::move(columns);
    endResetModel();
}

std::vector<int> ResultsModel::constantColumns() const {
    std::vector<int> out;
    if (m_rows.size() < 2) return out;
    for (int column = 0; column < columnCount(); ++column) {
        const QString first = data(index(0, column), ExactRole).toString();
        bool same = true;
        for (int row = 1; same && row < rowCount(); ++row)
            same = data(index(row, column), ExactRole).toString() == first;
        if (same) out.push_back(column);
    }
    return out;
}

int ResultsModel::rowCount(const QModelIndex& parent) const { return parent.isValid() ? 0 : static_cast<int>(m_rows.size()); }

int ResultsModel::columnCount(const QModelIndex& parent) const {
    return parent.isValid() || m_rows.empty() ? 0 : static_cast<int>(m_columns.size()) + 1;
}

const Measurement::Value* ResultsModel::value(const QModelIndex& index) const {
    return m_rows[static_cast<std::size_t>(index.row())].find(m_columns[static_cast<std::size_t>(index.column()) - 1]);
}

QVariant ResultsModel::data(const QModelIndex& index, int role) const {
    if (!index.isValid() || index.row() >= rowCount() || index.column() >= columnCount()) return {};
    if (index.column() == 0) {
        const LaneIndex lane = m_rows[static_cast<std::size_t>(index.row())].lane;
        if (role == SortRole) return lane.value;
        if (role == Qt::DisplayRole || role == ExactRole) return laneLetter(lane);
        return {};
    }
    const Measurement::Value* at = value(index);
    const std::string& field = m_columns[static_cast<std::size_t>(index.column()) - 1];
    const bool text = at && (std::holds_alternative<std::string>(*at) || std::holds_alternative<std::vector<double>>(*at));
    switch (role) {
    case Qt::DisplayRole: return at ? shownValue(field, *at) : QString();
    case Qt::ToolTipRole: {
        if (!at) return tr("%1: not measured").arg(QString::fromStdString(field));
        const QString exact = exactValue(*at);
        return exact.isEmpty() ? tr("%1: not measured").arg(QString::fromStdString(field)) : QString::fromStdString(field) + QStringLiteral(": ") + exact;
    }
    case ExactRole: return at ? exactValue(*at) : QString();
    case Qt::TextAlignmentRole: return QVariant::fromValue(Qt::AlignVCenter | (text ? Qt::AlignLeft : Qt::AlignRight));
    case SortRole:
        if (!at) return {};
        if (const auto* integer = std::get_if<std::int64_t>(at)) return static_cast<double>(*integer);
        if (const auto* real = std::get_if<double>(at)) return std::isnan(*real) ? QVariant() : QVariant(*real);
        if (const auto* flag = std::get_if<bool>(at)) return *flag ? 1.0 : 0.0;
        if (const auto* list = std::get_if<std::vector<double>>(at)) return list->empty() ? QVariant() : QVariant(list->front());
        if (const auto* string = std::get_if<std::string>(at)) return QString::fromStdString(*string);
        return {};
    default: return {};
    }
}

QVariant ResultsModel::headerData(int section, Qt::Orientation orientation, int role) const {
    if (orientation != Qt::Horizontal || section < 0 || section >= columnCount()) return QAbstractTableModel::headerData(section, orientation, role);
    if (section == 0) return role == Qt::DisplayRole ? tr("lane") : role == ExactRole ? QStringLiteral("lane") : QVariant();
    const std::string& field = m_columns[static_cast<std::size_t>(section) - 1];
    const FieldTitle title = fieldTitle(field);
    if (role == Qt::DisplayRole) return title.unit.isEmpty() ? title.name : QStringLiteral("%1 [%2]").arg(title.name, title.unit);
    if (role == ExactRole) return QString::fromStdString(field);
    if (role == Qt::ToolTipRole) return tr("Field %1; click to sort").arg(QString::fromStdString(field));
    return {};
}

} // namespace keepsight
