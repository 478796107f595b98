// The text of a run: samples, an editor, files, the chat frame, and how much of it is prefilled.
#pragma once

#include "engine/data/job.h"

#include <QWidget>

class QCheckBox;
class QComboBox;
class QLabel;
class QPlainTextEdit;
class QSlider;
class QSpinBox;
class QTimer;

namespace keepsight {

class PromptPanel : public QWidget {
    Q_OBJECT
public:
    explicit PromptPanel(QWidget* parent = nullptr);

    PromptSpec prompt() const;
    void setPrompt(const PromptSpec& prompt);
    double prefixRatio() const;
    void setPrefixRatio(double ratio);
    QString textFile() const { return m_file; } // the file the text came from, if it still is its text
    void loadFile(const QString& path);         // in the background; says failed() if it is not text
    void setTokenCount(int tokens);             // −1: unknown

Q_SIGNALS:
    void changed(); // at most every 300 ms while typing
    void failed(const QString& sentence);

private:
    void chooseSample(int index);
    void showPrefix();
    QComboBox* m_samples;
    QPlainTextEdit* m_edit;
    QCheckBox* m_chat;
    QSpinBox* m_percent;
    QSlider* m_slider;
    QLabel* m_count;
    QTimer* m_pause;
    QString m_file;
    std::optional<std::vector<TokenId>> m_ids; // of a loaded session whose prompt was ids; until the text is edited
    bool m_special = false, m_setting = false;
    int m_tokens = -1;
};

} // namespace keepsight
