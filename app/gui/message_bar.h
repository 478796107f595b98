// One sentence under the toolbar: an error, a notice, an offer. It never blocks, and stays until it is closed or replaced.
#pragma once

#include <QFrame>
#include <functional>

class QLabel;
class QPushButton;

namespace keepsight {

class MessageBar : public QFrame {
    Q_OBJECT
public:
    enum class Kind { notice, error };
    explicit MessageBar(QWidget* parent = nullptr);
    void tell(Kind kind, const QString& sentence);
    void offer(const QString& sentence, const QString& action, std::function<void()> accepted); // a button beside the sentence
    void offer(const QString& sentence, const QString& action, std::function<void()> accepted, std::function<void()> declined);
    void clear();
    QString text() const;
    Kind kind() const { return m_kind; }

private:
    void dress();
    QLabel* m_icon;
    QLabel* m_label;
    QPushButton* m_action;
    std::function<void()> m_accepted, m_declined;
    Kind m_kind = Kind::notice;
};

} // namespace keepsight
