#include "widgets/lanes/lane_panel.h"

#include "widgets/base/focus_model.h"
#include "widgets/lanes/lane_color.h"

#include <QPushButton>
#include <QVBoxLayout>
#include <algorithm>

namespace keepsight {

LanePanel::LanePanel(std::vector<PolicyInfo> policies, QWidget* parent) : QWidget(parent), m_policies(std::move(policies)) {
    setAccessibleName(tr("Lanes"));
    m_column = new QVBoxLayout(this);
    m_column->setContentsMargins(0, 0, 0, 0);
    m_column->setSpacing(8);
    m_add = new QPushButton(tr("+ &Add lane"));
    m_add->setObjectName(QStringLiteral("addLane"));
    m_column->addWidget(m_add, 0, Qt::AlignLeft);
    m_column->addStretch(1);
    connect(m_add, &QPushButton::clicked, this, &LanePanel::addLane);
    for (const LaneSpec& lane : defaults())
        append(lane.policy);
    renumber();
}

void LanePanel::setQuantizers(std::vector<QuantInfo> quantizers, LaneEditor::Conflict conflict) {
    m_quantizers = std::move(quantizers);
    m_conflict = std::move(conflict);
    for (LaneEditor* editor : m_editors)
        editor->setQuantizers(m_quantizers, m_conflict);
}

std::vector<LaneSpec> LanePanel::defaults() const {
    std::vector<LaneSpec> out{{"A", PolicySpec{}}, {"B", PolicySpec{.id = "snapkv", .params = {}, .budget = Budget::removed(0.5)}}};
    // A registry without them (a test, a cut-down build): the first without and the first with a budget.
    const auto known = [this](const std::string& id) { return std::ranges::find(m_policies, id, &PolicyInfo::id) != m_policies.end(); };
    for (LaneSpec& lane : out) {
        if (known(lane.policy.id) || m_policies.empty()) continue;
        const bool budget = lane.label == "B";
        const auto found = std::ranges::find(m_policies, budget, &PolicyInfo::usesBudget);
        lane.policy.id = (found == m_policies.end() ? m_policies.front() : *found).id;
    }
    return out;
}

std::vector<LaneSpec> LanePanel::lanes() const {
    std::vector<LaneSpec> out;
    for (const LaneEditor* editor : m_editors)
        out.push_back({laneLetter(editor->lane()).toStdString(), editor->spec()});
    return out;
}

LaneEditor* LanePanel::editor(LaneIndex lane) const {
    const auto index = static_cast<std::size_t>(lane.value);
    return lane.value >= 0 && index < m_editors.size() ? m_editors[index] : nullptr;
}

void LanePanel::setLanes(const std::vector<LaneSpec>& lanes) {
    const std::vector<LaneSpec> before = this->lanes();
    std::vector<LaneSpec> wanted = lanes.empty() ? defaults() : lanes;
    if (wanted.size() > MaxLanes) wanted.resize(MaxLanes);
    while (m_editors.size() > wanted.size()) {
        m_editors.back()->deleteLater();
        m_editors.back()->hide();
        m_editors.pop_back();
    }
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (i == m_editors.size()) append(wanted[i].policy);
        else m_editors[i]->setSpec(wanted[i].policy);
    }
    renumber();
    if (before != this->lanes()) Q_EMIT lanesChanged();
}

void LanePanel::append(const PolicySpec& spec) {
    auto* editor = new LaneEditor(LaneIndex{static_cast<std::int32_t>(m_editors.size())}, m_policies);
    editor->setQuantizers(m_quantizers, m_conflict);
    editor->setSpec(spec);
    m_column->insertWidget(static_cast<int>(m_editors.size()), editor);
    m_editors.push_back(editor);
    const auto stale = [this] { showResults(); }; // the trace's numbers belong to the spec of before
    connect(editor, &LaneEditor::specChanged, this, stale);
    connect(editor, &LaneEditor::budgetDragged, this, stale);
    connect(editor, &LaneEditor::specChanged, this, &LanePanel::specChanged);
    connect(editor, &LaneEditor::budgetDragged, this, &LanePanel::budgetDragged);
    connect(editor, &LaneEditor::removeRequested, this, &LanePanel::removeLane);
    connect(editor, &LaneEditor::activated, this, [this](LaneIndex lane) {
        if (m_focus) m_focus->setLane(lane);
    });
}

void LanePanel::addLane() {
    if (m_editors.size() >= MaxLanes) return;
    append(m_editors.back()->spec());
    renumber();
    Q_EMIT lanesChanged();
}

void LanePanel::removeLane(LaneIndex lane) {
    LaneEditor* gone = editor(lane);
    if (!gone || m_editors.size() == 1) return;
    gone->hide();
    gone->deleteLater(); // it may be the sender
    m_editors.erase(m_editors.begin() + lane.value);
    m_trace.reset();     // its lanes are no longer these
    renumber();
    if (m_focus && m_focus->focus().lane.value >= static_cast<int>(m_editors.size()))
        m_focus->setLane(LaneIndex{static_cast<std::int32_t>(m_editors.size()) - 1});
    Q_EMIT lanesChanged();
}

void LanePanel::renumber() {
    for (std::size_t i = 0; i < m_editors.size(); ++i) {
        const LaneIndex lane{static_cast<std::int32_t>(i)};
        m_editors[i]->setLane(lane);
        m_editors[i]->setRemovable(m_editors.size() > 1);
        m_editors[i]->setFocused(m_focus && m_focus->focus().lane == lane);
    }
    m_add->setEnabled(m_editors.size() < MaxLanes);
    m_add->setToolTip(m_add->isEnabled() ? tr("Compares one more policy or budget on the same text") : tr("Four lanes are the most that can be compared"));
    showResults();
}

void LanePanel::setPromptTokens(int tokens) {
    m_promptTokens = tokens;
    showResults();
}

void LanePanel::setResults(std::shared_ptr<const Trace> trace) {
    m_trace = std::move(trace);
    showResults();
}

void LanePanel::showResults() {
    const bool stepped = m_trace && m_trace->prefillLength > 0 && m_trace->lastStep() >= 0; // a suite's windows are not the text's prefill
    const int tokens = stepped ? m_trace->prefillLength : m_promptTokens;
    for (LaneEditor* editor : m_editors) {
        editor->setPromptTokens(tokens);
        // Numbers of another policy or budget would be a lie under this heading.
        const auto index = static_cast<std::size_t>(editor->lane().value);
        const bool same = m_trace && index < m_trace->lanes.size() && editor->means(m_trace->lanes[index].policy);
        editor->setResults(same ? laneResults(*m_trace, editor->lane()) : LaneResults{});
    }
}

void LanePanel::follow(FocusModel& focus) {
    m_focus = &focus;
    connect(&focus, &FocusModel::changed, this, [this](const Focus& now, const Focus& before) {
        if (now.lane == before.lane) return;
        for (LaneEditor* editor : m_editors)
            editor->setFocused(editor->lane() == now.lane);
    });
    renumber();
}

} // namespace keepsight
