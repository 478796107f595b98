// Tokens: the text of the focused lane, each token coloured by how much of the cache still holds it at the focused step.
#pragma once

#include "widgets/base/trace_view.h"
#include "widgets/tokens/tokens_model.h"

class QCheckBox;
class QComboBox;
class QLabel;
class QStackedWidget;

namespace keepsight {

class TokensArea;
class TokensLegend;

class TokensView : public TraceView {
    Q_OBJECT
public:
    explicit TokensView(QWidget* parent = nullptr);
    void setTrace(std::shared_ptr<const Trace> trace) override;
    void follow(FocusModel& focus) override;
    std::unique_ptr<Figure> figure() const override;

    HoldingScope scope() const;
    void setScope(HoldingScope scope);

public Q_SLOTS:
    void showTable(); // the shares as a table, in a dialog

protected:
    void contextMenuEvent(QContextMenuEvent* event) override;

private:
    Focus focus() const;
    void refreshText();
    void refreshHolding();

    std::shared_ptr<const Trace> m_trace;
    FocusModel* m_focus = nullptr;
    QLabel* m_title = nullptr;
    QComboBox* m_scope = nullptr;
    QCheckBox* m_symbols = nullptr;
    TokensArea* m_area = nullptr;
    TokensLegend* m_legend = nullptr;
    QLabel* m_empty = nullptr;
    QStackedWidget* m_pages = nullptr;
};

} // namespace keepsight
