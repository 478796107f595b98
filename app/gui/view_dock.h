// A view in the window: a dock with a one-line header that says what is shown of what.
#pragma once

#include "widgets/base/trace_view.h"

#include <QDockWidget>

class QLabel;

namespace keepsight {

class ElidingLabel;

class DockHeader : public QWidget {
    Q_OBJECT
public:
    explicit DockHeader(QWidget* parent = nullptr);
    void setTitle(const QString& title, const QString& detail); // the detail is elided when the dock is narrow
    void addButton(QWidget* button);
    QSize sizeHint() const override; // what the dock asks for; the layout's own hint changes with the buttons
    QSize minimumSizeHint() const override { return {60, sizeHint().height()}; }

protected:
    void paintEvent(QPaintEvent* event) override;

private:
    QLabel* m_title;
    ElidingLabel* m_detail;
};

class ViewDock : public QDockWidget {
    Q_OBJECT
public:
    ViewDock(const QString& id, const QString& title, TraceView* view, QWidget* parent = nullptr);
    QString id() const { return m_id; }
    TraceView* view() const { return m_view; }
    void setDetail(const QString& detail);
    void setTabbed(bool tabbed); // in a tab group the tab is the header

Q_SIGNALS:
    void exportRequested(keepsight::ViewDock* dock);

private:
    QString m_id;
    TraceView* m_view;
    DockHeader* m_header;
    QWidget* m_none; // stands in for the header inside a tab group
};

} // namespace keepsight
