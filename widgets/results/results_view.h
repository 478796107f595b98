// Results: every measurement of the run as a sortable table, one tab per kind.
#pragma once

#include "widgets/base/trace_view.h"

#include <QString>

class QLabel;
class QPushButton;
class QCheckBox;
class QSortFilterProxyModel;
class QStackedWidget;
class QTabBar;
class QTableView;

namespace keepsight {

class ResultsModel;

class ResultsView : public TraceView {
    Q_OBJECT
public:
    explicit ResultsView(QWidget* parent = nullptr);
    void setTrace(std::shared_ptr<const Trace> trace) override;
    void follow(FocusModel& focus) override; // a selected row of a lane focuses that lane

    QString selectionAsTsv() const;          // selected cells with their header line, hidden columns left out, full precision
    void exportCsv(const QString& path);     // the rows of the shown kind, as recorded; throws EngineError

public Q_SLOTS:
    void copySelection();
    void setDifferencesOnly(bool on);        // hides columns whose values are all equal

private:
    void showKind();
    void applyColumns();
    void askExport();
    std::string kind() const;

    std::shared_ptr<const Trace> m_trace;
    FocusModel* m_focus = nullptr;
    ResultsModel* m_model = nullptr;
    QSortFilterProxyModel* m_sorted = nullptr;
    QTabBar* m_kinds = nullptr;
    QCheckBox* m_differences = nullptr;
    QPushButton* m_copy = nullptr;
    QPushButton* m_export = nullptr;
    QLabel* m_status = nullptr;
    QLabel* m_empty = nullptr;
    QTableView* m_table = nullptr;
    QStackedWidget* m_pages = nullptr;
};

} // namespace keepsight
