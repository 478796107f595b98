#include "app/gui/view_dock.h"

#include "app/gui/eliding_label.h"
#include "app/gui/theme.h"

#include <QFrame>
#include <QHBoxLayout>
#include <QLabel>
#include <QPainter>
#include <QToolButton>
#include <QVBoxLayout>

#include <algorithm>

namespace keepsight {

DockHeader::DockHeader(QWidget* parent) : QWidget(parent), m_title(new QLabel), m_detail(new ElidingLabel) {
    auto* row = new QHBoxLayout(this);
    row->setContentsMargins(8, 2, 4, 2);
    row->setSpacing(6);
    m_title->setProperty("role", "heading");
    m_title->setTextFormat(Qt::PlainText);
    m_title->setAttribute(Qt::WA_TransparentForMouseEvents); // the dock is dragged by its header
    row->addWidget(m_title);
    row->addWidget(m_detail, 1);
}

void DockHeader::setTitle(const QString& title, const QString& detail) {
    m_title->setText(title);
    m_detail->setText(detail);
}

QSize DockHeader::sizeHint() const { return {QWidget::sizeHint().width(), std::max(25, fontMetrics().height() + 10)}; }

void DockHeader::addButton(QWidget* button) { layout()->addWidget(button); }

void DockHeader::paintEvent(QPaintEvent*) {
    QPainter painter(this);
    painter.setPen(palette().color(QPalette::Mid));
    painter.setBrush(palette().color(QPalette::Midlight));
    painter.drawRect(rect().adjusted(0, 0, -1, -1));
}

ViewDock::ViewDock(const QString& id, const QString& title, TraceView* view, QWidget* parent)
    : QDockWidget(title, parent), m_id(id), m_view(view), m_header(new DockHeader(this)), m_none(new QWidget(this)) {
    setObjectName("dock-" + id);
    auto* frame = new QFrame;
    frame->setObjectName("viewFrame");
    auto* column = new QVBoxLayout(frame);
    column->setContentsMargins(1, 0, 1, 1);
    column->addWidget(view);
    setWidget(frame);
    view->setAccessibleName(title);
    auto* button = new QToolButton;
    button->setIcon(themedIcon("export"));
    button->setIconSize({14, 14});
    button->setAutoRaise(true);
    button->setToolTip(tr("Export this figure"));
    button->setAccessibleName(tr("Export %1").arg(title));
    connect(button, &QToolButton::clicked, this, [this] { Q_EMIT exportRequested(this); });
    m_header->addButton(button);
    m_header->setTitle(title, {});
    m_none->setFixedHeight(0);
    setTitleBarWidget(m_header);
}

void ViewDock::setDetail(const QString& detail) { m_header->setTitle(windowTitle(), detail); }

void ViewDock::setTabbed(bool tabbed) {
    QWidget* wanted = tabbed ? m_none : m_header;
    if (titleBarWidget() == wanted) return;
    setTitleBarWidget(wanted);
    m_header->setVisible(!tabbed);
}

} // namespace keepsight
