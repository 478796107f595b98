#include "app/gui/message_bar.h"

#include <QAccessible>
#include <QHBoxLayout>
#include <QLabel>
#include <QPushButton>
#include <QStyle>
#include <QToolButton>

namespace keepsight {

MessageBar::MessageBar(QWidget* parent) : QFrame(parent), m_icon(new QLabel), m_label(new QLabel), m_action(new QPushButton) {
    setObjectName("messageBar");
    setAccessibleName(tr("Message"));
    m_label->setWordWrap(true);
    m_label->setTextInteractionFlags(Qt::TextSelectableByMouse);
    m_label->setTextFormat(Qt::PlainText);
    auto* close = new QToolButton;
    close->setObjectName("messageClose");
    close->setAutoRaise(true);
    close->setText(QString(QChar(0x2715)));
    close->setToolTip(tr("Close this message"));
    close->setAccessibleName(tr("Close this message"));
    auto* row = new QHBoxLayout(this);
    row->setContentsMargins(10, 5, 6, 5);
    row->addWidget(m_icon);
    row->addWidget(m_label, 1);
    row->addWidget(m_action);
    row->addWidget(close);
    connect(close, &QToolButton::clicked, this, [this] {
        const auto declined = std::exchange(m_declined, {});
        clear();
        if (declined) declined();
    });
    connect(m_action, &QPushButton::clicked, this, [this] {
        const auto accepted = std::exchange(m_accepted, {});
        clear();
        if (accepted) accepted();
    });
    hide();
}

void MessageBar::tell(Kind kind, const QString& sentence) {
    m_kind = kind;
    m_accepted = m_declined = {};
    m_label->setText(sentence);
    m_action->hide();
    dress();
    show();
}

void MessageBar::offer(const QString& sentence, const QString& action, std::function<void()> accepted) {
    offer(sentence, action, std::move(accepted), {});
}

void MessageBar::offer(const QString& sentence, const QString& action, std::function<void()> accepted, std::function<void()> declined) {
    tell(Kind::notice, sentence);
    m_accepted = std::move(accepted);
    m_declined = std::move(declined);
    m_action->setText(action);
    m_action->show();
}

void MessageBar::clear() {
    m_accepted = m_declined = {};
    m_label->clear();
    hide();
}

QString MessageBar::text() const { return m_label->text(); }

void MessageBar::dress() {
    const auto icon = m_kind == Kind::error ? QStyle::SP_MessageBoxWarning : QStyle::SP_MessageBoxInformation;
    m_icon->setPixmap(style()->standardIcon(icon).pixmap(16, 16));
    setProperty("error", m_kind == Kind::error);
    style()->unpolish(this); // the style sheet colours by this property
    style()->polish(this);
    QAccessibleEvent event(this, QAccessible::Alert);
    QAccessible::updateAccessibility(&event);
}

} // namespace keepsight
