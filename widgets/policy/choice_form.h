// A form for one entry of a registry and its parameters, built only from what the registry says: no entry is known by name.
#pragma once

#include "engine/data/policy_spec.h"
#include "widgets/policy/param_editor.h"

#include <QWidget>
#include <functional>
#include <map>
#include <string>
#include <vector>

class QComboBox;
class QFormLayout;
class QLabel;
class QPushButton;
class QToolButton;

namespace keepsight {

using ParamTexts = std::map<std::string, std::string>;

// What policies and quantizers have in common.
struct Choice {
    std::string id;
    std::vector<std::string> aliases;
    std::string summary, paper;
    QString kind; // a sentence behind the summary
    std::vector<ParamInfo> params;
};

class ChoiceForm : public QWidget {
    Q_OBJECT
public:
    struct Words { // about what is chosen
        QString id;    // object name of the chooser
        QString label; // with its mnemonic
        QString name, about, unknown, none, search;
    };
    // foldedFrom: a parameter that the entries of that many papers share is folded away while it has its default; 0: none is.
    ChoiceForm(std::vector<Choice> choices, const Words& words, int foldedFrom, QWidget* parent = nullptr);

    const std::string& id() const { return m_id; }
    const ParamTexts& params() const { return m_params; } // only what differs from the defaults
    // Shows a choice without emitting. Aliases are resolved; unknown parameters and values that do not parse fall back to the defaults;
    // an unknown id stays selected under its own name, without parameters to edit.
    void choose(const std::string& id, const ParamTexts& params);
    const Choice* choice() const; // nullptr: unknown
    bool isShared(const ParamInfo& param) const;
    static bool same(const std::vector<ParamInfo>& params, const ParamTexts& a, const ParamTexts& b); // however defaults are written out

    QComboBox* chooser() const { return m_chooser; }
    QComboBox* takeChooser(); // to stand elsewhere
    void setLazy() { m_lazy = true; } // editors are made when the form is first seen: a window with many closed forms opens faster
    // The reason why an entry cannot be chosen now, empty: it can. Asked for every entry, and again at each call of showRefusals.
    void setRefusals(std::function<QString(const std::string& id)> refusal);
    void showRefusals();

public Q_SLOTS:
    void resetToDefaults(); // parameters only; emits if anything changed

Q_SIGNALS:
    void changed();

protected:
    bool eventFilter(QObject* object, QEvent* event) override;
    void showEvent(QShowEvent* event) override;

private:
    struct Row {
        ParamEditor editor;
        QLabel* label = nullptr;
        bool folded = false;
    };
    void makeChooser();
    void makeSearchable();
    void chosen(int index);
    void build();
    void makeEditors();
    void edited();
    void markChanged();
    ParamTexts read() const;
    int indexOf(const QString& idOrAlias) const;

    std::vector<Choice> m_choices;
    Words m_words;
    std::map<std::pair<std::string, std::string>, int> m_shared; // name and help → how many papers
    int m_foldedFrom;
    std::string m_id;
    ParamTexts m_params;
    std::function<QString(const std::string&)> m_refusal;
    std::vector<Row> m_rows;
    bool m_building = false, m_foldOpen = false, m_selectOnRelease = false, m_lazy = false, m_made = false;
    QLabel* m_chooserLabel = nullptr;
    QComboBox* m_chooser = nullptr;
    QLabel* m_summary = nullptr;
    QWidget* m_body = nullptr;
    QToolButton* m_more = nullptr;
    QPushButton* m_reset = nullptr;
};

} // namespace keepsight
