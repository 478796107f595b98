#include "widgets/results/results_view.h"

#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "widgets/results/results_model.h"

#include <QAction>
#include <QCheckBox>
#include <QClipboard>
#include <QFileDialog>
#include <QGuiApplication>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QLabel>
#include <QPushButton>
#include <QSortFilterProxyModel>
#include <QStackedWidget>
#include <QTabBar>
#include <QTableView>
#include <QVBoxLayout>
#include <algorithm>

namespace keepsight {
namespace {

// Missing values stay at the end whichever way the rest is sorted.
class MissingLast : public QSortFilterProxyModel {
public:
    using QSortFilterProxyModel::QSortFilterProxyModel;

protected:
    bool lessThan(const QModelIndex& a, const QModelIndex& b) const override {
        const QVariant x = a.data(ResultsModel::SortRole), y = b.data(ResultsModel::SortRole);
        if (x.isValid() != y.isValid()) return (sortOrder() == Qt::AscendingOrder) == x.isValid();
        if (x.typeId() == QMetaType::QString && y.typeId() == QMetaType::QString) return QString::localeAwareCompare(x.toString(), y.toString()) < 0;
        return x.toDouble() < y.toDouble();
    }
};

} // namespace

ResultsView::ResultsView(QWidget* parent) : TraceView(parent) {
    setAccessibleName(tr("Results"));
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(6, 6, 6, 6);
    column->setSpacing(4);

    auto* top = new QHBoxLayout;
    m_kinds = new QTabBar;
    m_kinds->setObjectName(QStringLiteral("kinds"));
    m_kinds->setDrawBase(false);
    m_kinds->setExpanding(false);
    m_kinds->setAccessibleName(tr("Kind of result"));
    top->addWidget(m_kinds);
    top->addStretch(1);
    m_differences = new QCheckBox(tr("Only &differences"));
    m_differences->setObjectName(QStringLiteral("differences"));
    m_differences->setToolTip(tr("Hides the columns in which every row has the same value"));
    top->addWidget(m_differences);
    m_copy = new QPushButton(tr("&Copy"));
    m_copy->setToolTip(tr("Copies the selected cells, or the whole table, separated by tabs (Ctrl+C)"));
    top->addWidget(m_copy);
    m_export = new QPushButton(tr("E&xport CSV…"));
    m_export->setToolTip(tr("Writes the rows of this tab, every field in full precision"));
    top->addWidget(m_export);
    column->addLayout(top);

    m_model = new ResultsModel(this);
    m_sorted = new MissingLast(this);
    m_sorted->setSourceModel(m_model);
    m_sorted->setDynamicSortFilter(true);
    m_table = new QTableView;
    m_table->setObjectName(QStringLiteral("table"));
    m_table->setAccessibleName(tr("Results"));
    m_table->setModel(m_sorted);
    m_table->setSortingEnabled(true);
    m_table->sortByColumn(-1, Qt::AscendingOrder);
    m_table->setAlternatingRowColors(true);
    m_table->setWordWrap(false);
    m_table->setShowGrid(false);
    m_table->setEditTriggers(QAbstractItemView::NoEditTriggers);
    m_table->setSelectionMode(QAbstractItemView::ExtendedSelection);
    m_table->verticalHeader()->hide();
    m_table->verticalHeader()->setSectionResizeMode(QHeaderView::Fixed);
    m_table->verticalHeader()->setDefaultSectionSize(m_table->fontMetrics().height() + 6);
    m_table->horizontalHeader()->setHighlightSections(false);
    m_table->horizontalHeader()->setSectionsMovable(true);
    m_table->setHorizontalScrollMode(QAbstractItemView::ScrollPerPixel);

    m_empty = new QLabel(tr("No results yet: a Needle, Suite or Score run fills this table."));
    m_empty->setAlignment(Qt::AlignCenter);
    m_empty->setWordWrap(true);
    m_empty->setForegroundRole(QPalette::PlaceholderText);
    m_pages = new QStackedWidget;
    m_pages->addWidget(m_empty);
    m_pages->addWidget(m_table);
    column->addWidget(m_pages, 1);
    m_status = new QLabel;
    m_status->setObjectName(QStringLiteral("status"));
    m_status->setWordWrap(true);
    m_status->hide();
    column->addWidget(m_status);

    auto* copy = new QAction(tr("Copy"), this);
    copy->setShortcut(QKeySequence::Copy);
    copy->setShortcutContext(Qt::WidgetWithChildrenShortcut);
    addAction(copy);
    m_table->addAction(copy);
    m_table->setContextMenuPolicy(Qt::ActionsContextMenu);
    connect(copy, &QAction::triggered, this, &ResultsView::copySelection);
    connect(m_copy, &QPushButton::clicked, this, &ResultsView::copySelection);
    connect(m_export, &QPushButton::clicked, this, &ResultsView::askExport);
    connect(m_differences, &QCheckBox::toggled, this, &ResultsView::applyColumns);
    connect(m_kinds, &QTabBar::currentChanged, this, &ResultsView::showKind);
    connect(m_table->selectionModel(), &QItemSelectionModel::currentRowChanged, this, [this](const QModelIndex& now) {
        if (!m_focus || !now.isValid()) return;
        const int lane = m_sorted->index(now.row(), 0).data(ResultsModel::SortRole).toInt();
        if (lane >= 0) m_focus->setLane(LaneIndex{lane});
    });
    setTrace(nullptr);
}

void ResultsView::follow(FocusModel& focus) { m_focus = &focus; }

std::string ResultsView::kind() const {
    return m_kinds->currentIndex() < 0 ? std::string() : m_kinds->tabData(m_kinds->currentIndex()).toString().toStdString();
}

void ResultsView::setTrace(std::shared_ptr<const Trace> trace) {
    m_trace = std::move(trace);
    const std::vector<std::string> kinds = m_trace ? ResultsModel::kinds(*m_trace) : std::vector<std::string>();
    const std::string before = kind();
    {
        const QSignalBlocker block(m_kinds);
        bool same = static_cast<int>(kinds.size()) == m_kinds->count();
        for (int i = 0; same && i < m_kinds->count(); ++i)
            same = m_kinds->tabData(i).toString().toStdString() == kinds[static_cast<std::size_t>(i)];
        if (!same) {
            while (m_kinds->count() > 0)
                m_kinds->removeTab(0);
            for (const std::string& each : kinds) {
                const int at = m_kinds->addTab({});
                m_kinds->setTabData(at, QString::fromStdString(each));
                if (each == before) m_kinds->setCurrentIndex(at);
            }
        }
        for (int i = 0; i < m_kinds->count(); ++i) {
            const std::string& each = kinds[static_cast<std::size_t>(i)];
            const auto count = std::ranges::count(m_trace->measurements, each, &Measurement::kind);
            const QString title = tr("%1 (%2)").arg(QString::fromStdString(each)).arg(count);
            if (m_kinds->tabText(i) != title) m_kinds->setTabText(i, title);
        }
    }
    showKind();
}

void ResultsView::showKind() {
    const int columnsBefore = m_model->columnCount();
    m_model->set(m_trace, kind());
    const bool any = m_model->rowCount() > 0;
    m_pages->setCurrentWidget(any ? static_cast<QWidget*>(m_table) : m_empty);
    m_copy->setEnabled(any);
    m_export->setEnabled(any);
    m_differences->setEnabled(any);
    applyColumns();
    if (any && columnsBefore != m_model->columnCount()) m_table->resizeColumnsToContents();
}

void ResultsView::applyColumns() {
    const std::vector<int> constant = m_differences->isChecked() ? m_model->constantColumns() : std::vector<int>();
    for (int column = 0; column < m_model->columnCount(); ++column)
        m_table->setColumnHidden(column, std::ranges::find(constant, column) != constant.end());
}

void ResultsView::setDifferencesOnly(bool on) { m_differences->setChecked(on); }

QString ResultsView::selectionAsTsv() const {
    QModelIndexList cells = m_table->selectionModel()->selectedIndexes();
    const QHeaderView* header = m_table->horizontalHeader();
    std::vector<int> rows, columns;
    for (const QModelIndex& cell : cells) {
        if (m_table->isColumnHidden(cell.column())) continue;
        if (std::ranges::find(rows, cell.row()) == rows.end()) rows.push_back(cell.row());
        if (std::ranges::find(columns, cell.column()) == columns.end()) columns.push_back(cell.column());
    }
    if (columns.empty()) { // nothing selected: all of it
        for (int row = 0; row < m_sorted->rowCount(); ++row)
            rows.push_back(row);
        for (int column = 0; column < m_sorted->columnCount(); ++column)
            if (!m_table->isColumnHidden(column)) columns.push_back(column);
    }
    std::ranges::sort(rows);
    std::ranges::sort(columns, {}, [header](int column) { return header->visualIndex(column); });
    const auto clean = [](QString text) { // a tab or a line break inside a cell would shift the rest
        for (const QChar separator : {QLatin1Char('\t'), QLatin1Char('\n'), QLatin1Char('\r')})
            text.replace(separator, QLatin1Char(' '));
        return text;
    };
    const bool all = cells.isEmpty();
    QStringList lines, line;
    for (const int column : columns)
        line << m_model->headerData(column, Qt::Horizontal, ResultsModel::ExactRole).toString();
    if (rows.size() > 1 || columns.size() > 1) lines << line.join(QLatin1Char('\t'));
    for (const int row : rows) {
        line.clear();
        for (const int column : columns) {
            const QModelIndex cell = m_sorted->index(row, column);
            line << (all || cells.contains(cell) ? clean(cell.data(ResultsModel::ExactRole).toString()) : QString());
        }
        lines << line.join(QLatin1Char('\t'));
    }
    return lines.join(QLatin1Char('\n'));
}

void ResultsView::copySelection() {
    if (m_model->rowCount() > 0) QGuiApplication::clipboard()->setText(selectionAsTsv());
}

void ResultsView::exportCsv(const QString& path) { writeFileAtomically(path.toStdString(), measurementsToCsv(m_model->rows())); }

void ResultsView::askExport() {
    const QString path = QFileDialog::getSaveFileName(this, tr("Export results"), QString::fromStdString(kind()) + QStringLiteral(".csv"), tr("CSV (*.csv)"));
    if (path.isEmpty()) return;
    try {
        exportCsv(path);
        m_status->setText(tr("Wrote %n row(s) to %1", nullptr, m_model->rowCount()).arg(path));
    } catch (const EngineError& error) {
        m_status->setText(QString::fromUtf8(error.what()));
    }
    m_status->show();
}

} // namespace keepsight
