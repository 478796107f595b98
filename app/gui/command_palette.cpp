#include "app/gui/command_palette.h"

#include <QAction>
#include <QHeaderView>
#include <QKeyEvent>
#include <QLineEdit>
#include <QTreeWidget>
#include <QVBoxLayout>

#include <algorithm>

namespace keepsight {

CommandPalette::CommandPalette(const QList<QAction*>& actions, QWidget* parent)
    : QDialog(parent, Qt::Popup | Qt::FramelessWindowHint), m_actions(actions), m_edit(new QLineEdit), m_list(new QTreeWidget) {
    setObjectName("commandPalette");
    setAccessibleName(tr("Command palette"));
    m_edit->setPlaceholderText(tr("Type a command"));
    m_edit->setAccessibleName(tr("Command"));
    m_list->setAccessibleName(tr("Matching commands"));
    m_list->setFocusPolicy(Qt::NoFocus);
    m_list->setUniformRowHeights(true);
    m_list->setRootIsDecorated(false);
    m_list->setHeaderHidden(true);
    m_list->setColumnCount(2);
    m_list->header()->setStretchLastSection(false);
    m_list->header()->setSectionResizeMode(0, QHeaderView::Stretch);
    m_list->header()->setSectionResizeMode(1, QHeaderView::ResizeToContents);
    m_list->setStyleSheet("QTreeWidget::item { padding: 3px 4px; }");
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(8, 8, 8, 8);
    column->addWidget(m_edit);
    column->addWidget(m_list);
    resize(520, 380);
    m_edit->installEventFilter(this);
    connect(m_edit, &QLineEdit::textChanged, this, &CommandPalette::refill);
    connect(m_list, &QTreeWidget::itemClicked, this, &CommandPalette::choose);
    refill();
    m_edit->setFocus();
}

int CommandPalette::fit(const QString& query, const QString& text) {
    int score = 0, from = 0;
    bool joined = false;
    for (const QChar c : query.toCaseFolded()) {
        if (c.isSpace()) {
            joined = false;
            continue;
        }
        const int at = static_cast<int>(text.toCaseFolded().indexOf(c, from));
        if (at < 0) return -1;
        const bool startsWord = at == 0 || !text[at - 1].isLetterOrNumber();
        score += (startsWord ? 6 : 0) + (joined && at == from ? 4 : 0) + 1;
        joined = true;
        from = at + 1;
    }
    return score;
}

void CommandPalette::refill() {
    struct Row {
        QAction* action;
        int score;
    };
    std::vector<Row> rows;
    for (QAction* action : m_actions) {
        const int score = fit(m_edit->text(), action->property("path").toString());
        if (score >= 0) rows.push_back({action, score});
    }
    std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.score > b.score; });
    m_list->clear();
    for (const Row& row : rows) {
        const QString keys = row.action->shortcut().toString(QKeySequence::NativeText);
        auto* item = new QTreeWidgetItem(m_list, {row.action->property("path").toString(), keys});
        item->setData(0, Qt::UserRole, QVariant::fromValue<QObject*>(row.action));
        if (!row.action->isEnabled()) item->setFlags(item->flags() & ~Qt::ItemIsEnabled);
    }
    for (int i = 0; i < m_list->topLevelItemCount(); ++i)
        if (m_list->topLevelItem(i)->flags() & Qt::ItemIsEnabled) {
            m_list->setCurrentItem(m_list->topLevelItem(i));
            break;
        }
}

void CommandPalette::choose() {
    if (auto* item = m_list->currentItem(); item && (item->flags() & Qt::ItemIsEnabled)) {
        m_chosen = qobject_cast<QAction*>(item->data(0, Qt::UserRole).value<QObject*>());
        accept();
    }
}

bool CommandPalette::eventFilter(QObject* object, QEvent* event) {
    if (event->type() == QEvent::KeyPress) {
        const int key = static_cast<QKeyEvent*>(event)->key();
        if (key == Qt::Key_Up || key == Qt::Key_Down || key == Qt::Key_PageUp || key == Qt::Key_PageDown) {
            const int step = key == Qt::Key_Up ? -1 : key == Qt::Key_Down ? 1 : key == Qt::Key_PageUp ? -8 : 8;
            const int row = m_list->indexOfTopLevelItem(m_list->currentItem());
            m_list->setCurrentItem(m_list->topLevelItem(std::clamp(row + step, 0, std::max(0, m_list->topLevelItemCount() - 1))));
            return true;
        }
        if (key == Qt::Key_Return || key == Qt::Key_Enter) {
            choose();
            return true;
        }
    }
    return QDialog::eventFilter(object, event);
}

} // namespace keepsight
