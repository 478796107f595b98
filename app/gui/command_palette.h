// Ctrl+K: every action of the window by typing a part of its name.
#pragma once

#include <QDialog>
#include <QList>

class QAction;
class QLineEdit;
class QTreeWidget;

namespace keepsight {

class CommandPalette : public QDialog {
    Q_OBJECT
public:
    // `actions` with the path of the menus that lead to them ("Run ▸ Score").
    explicit CommandPalette(const QList<QAction*>& actions, QWidget* parent = nullptr);
    QAction* chosen() const { return m_chosen; }
    // How well `query` fits `text`: all its letters in order, better when they start words and follow each other; −1: not at all.
    static int fit(const QString& query, const QString& text);

protected:
    bool eventFilter(QObject* object, QEvent* event) override;

private:
    void refill();
    void choose();
    QList<QAction*> m_actions;
    QLineEdit* m_edit;
    QTreeWidget* m_list;
    QAction* m_chosen = nullptr;
};

} // namespace keepsight
