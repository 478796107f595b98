#include "app/gui/why_block.h"

#include "engine/engine.h"
#include "widgets/base/plot_view.h"

#include <QGridLayout>
#include <QLabel>
#include <QLocale>
#include <QVBoxLayout>
#include <algorithm>
#include <cmath>

namespace keepsight {

namespace {

constexpr int PatienceMs = 150; // what comes sooner needs no word that it is coming

QString number(double value) { return QString::number(value, 'g', 4).replace(QLatin1Char('-'), QChar(0x2212)); }

PolicyKind policyKind(const std::string& id) {
    const auto& all = Engine::policies();
    const auto found = std::ranges::find(all, id, &PolicyInfo::id);
    return found == all.end() ? PolicyKind::evict : found->kind;
}

QString tokens(int count) { return count == 1 ? WhyBlock::tr("1 token") : WhyBlock::tr("%1 tokens").arg(count); }

// The largest share removed, in tenths of a percent, that leaves at least `needed` of `seen` tokens.
double removedFor(int needed, int seen) {
    double tenths = std::floor(1000.0 * (1.0 - double(needed) / seen) + 1e-6);
    while (tenths > 0 && Budget::removed(tenths / 1000).resolve(seen) < needed)
        --tenths;
    return tenths / 10;
}

} // namespace

WhyQuestion whyQuestion(const Trace& trace, const Focus& focus) {
    const Lane& lane = trace.lanes.at(std::size_t(focus.lane.value));
    const Retention& r = lane.retention;
    if (lane.steps.empty() || r.layers() == 0) return {{}, WhyBlock::tr("This run did not record what is held.")};
    const Step step(std::clamp(focus.step.value, 0, int(lane.steps.size()) - 1));
    if (focus.position >= r.positionsAt(step)) return {{}, WhyBlock::tr("The token is not read yet at this step.")};
    if (step.value == 0) return {{}, WhyBlock::tr("At step 0 nothing has been chosen yet: the selection comes at step 1.")};

    const bool attends = policyKind(lane.policy.id) == PolicyKind::attend;
    if (attends && step.value == 1) return {{}, WhyBlock::tr("Everything stays stored. What is attended to is chosen anew at each later step.")};
    const auto evicted = r.evictedAt(focus.layer, focus.head);
    const int own = evicted[std::size_t(focus.position)], born = r.bornAt()[std::size_t(focus.position)];
    int at = attends ? step.value : own;
    if (!attends && own > step.value) { // held: the last selection of this head that dropped something tells why
        at = focus.position < trace.prefillLength ? 1 : 0;
        for (const int e : evicted)
            if (e <= step.value && e >= born) at = std::max(at, e);
        if (at == 0) return {{}, WhyBlock::tr("It was read after the last selection of this head: nothing has chosen about it yet.")};
    }
    ExplainRequest ask;
    ask.policy = lane.policy;
    ask.step = Step(at);
    ask.layer = focus.layer;
    ask.head = focus.head;
    ask.position = focus.position;
    ask.run = qHash(QByteArrayView(trace.run.jobJson.data(), qsizetype(trace.run.jobJson.size())));
    for (Position p = trace.prefillLength; int(ask.fed.size()) + 1 < at; ++p) {
        const TokenRecord* token = trace.tokenAt(focus.lane, p);
        if (!token) break;
        ask.fed.push_back(token->id);
    }
    return {ask, {}};
}

QString whyVerdict(const Explanation& e) {
    if (!e.found) return WhyBlock::tr("This selection did not choose about the token.");
    if (e.protectedBy == "sink") return WhyBlock::tr("Kept: one of the first tokens, which always stay.");
    if (e.protectedBy == "recent") return WhyBlock::tr("Kept: one of the newest tokens, which always stay.");
    if (!e.protectedBy.empty()) return WhyBlock::tr("Kept by the policy's own rule.");
    if (e.rank == 0) return e.kept ? WhyBlock::tr("Kept.") : WhyBlock::tr("Dropped.");
    if (e.stored) {
        const QString by = WhyBlock::tr("rank %1 for %2 places.").arg(e.rank).arg(e.slots);
        return (e.kept ? WhyBlock::tr("Attended to: ") : WhyBlock::tr("Passed over at this step: ")) + by;
    }
    const QString places = e.slots == 1 ? WhyBlock::tr("1 place") : WhyBlock::tr("%1 places").arg(e.slots);
    return (e.kept ? WhyBlock::tr("Kept: rank %1 for %2.") : WhyBlock::tr("Dropped: rank %1 for %2.")).arg(e.rank).arg(places);
}

std::vector<WhyRow> whyRows(const Explanation& e, const Trace& trace, LaneIndex lane) {
    std::vector<WhyRow> rows;
    const auto add = [&](const QString& name, const QString& value, const QString& help) { rows.push_back({name, value, help}); };
    add(WhyBlock::tr("Chosen at"), e.step.value <= 1 ? WhyBlock::tr("step 1 (prefill)") : WhyBlock::tr("step %1").arg(e.step.value),
        WhyBlock::tr("The selection that is explained; step 1 comes right after the prefill"));
    if (!e.found) return rows;
    if (!std::isnan(e.score)) add(WhyBlock::tr("Score"), number(e.score), WhyBlock::tr("As the policy ranks it: higher is kept"));
    if (e.rank > 0) add(WhyBlock::tr("Rank"), WhyBlock::tr("%1 of %2").arg(e.rank).arg(e.candidates), WhyBlock::tr("Among the tokens of this head that had to compete; 1 is the best"));
    if (!std::isnan(e.cutoff)) add(WhyBlock::tr("Cutoff"), WhyBlock::tr("%1 at rank %2").arg(number(e.cutoff)).arg(e.slots), WhyBlock::tr("Score of the last token that won a place"));
    if (!std::isnan(e.margin))
        add(WhyBlock::tr("Margin"), number(e.margin), e.kept ? WhyBlock::tr("Score less that of the best token that lost") : WhyBlock::tr("Score less the cutoff"));
    if (e.rank > 0 || !e.protectedBy.empty())
        add(WhyBlock::tr("Protected"),
            e.protectedBy.empty() ? WhyBlock::tr("no") : e.protectedBy == "sink" ? WhyBlock::tr("a first token") : e.protectedBy == "recent" ? WhyBlock::tr("a newest token") : WhyBlock::tr("by rule"),
            WhyBlock::tr("Protected tokens stay without competing"));
    if (e.lastKept >= 0 && e.lastKept != e.position)
        add(e.kept ? WhyBlock::tr("Last place") : WhyBlock::tr("Lost to"), WhyBlock::tr("%1 %2").arg(e.lastKept).arg(tokenText(trace, lane, e.lastKept)),
            WhyBlock::tr("The token that holds the last place"));
    const int seen = trace.prefillLength, had = trace.lanes[std::size_t(lane.value)].policy.budget.resolve(seen);
    // A policy whose scores change with its budget may also keep the token with less: that is not what would have helped.
    if (e.budgetNeeded > 0 && e.protectedBy.empty() && (e.kept || e.budgetNeeded > had)) {
        QString value = tokens(e.budgetNeeded);
        if (e.step.value <= 1 && seen > 0 && e.budgetNeeded <= seen)
            value += WhyBlock::tr(",\n%1 % removed").arg(QLocale().toString(removedFor(e.budgetNeeded, seen), 'f', 1));
        add(WhyBlock::tr("Needs"), value, WhyBlock::tr("The smallest budget that keeps the token: tokens per head, and the share of the prompt that is removed then"));
    }
    return rows;
}

WhyBlock::WhyBlock(QWidget* parent) : QWidget(parent), m_title(new QLabel(tr("Why"))), m_sentence(new QLabel), m_note(new QLabel), m_grid(new QGridLayout) {
    setAccessibleName(tr("Why the token was kept or dropped"));
    m_title->setProperty("role", "heading");
    m_sentence->setObjectName("whySentence");
    m_sentence->setWordWrap(true);
    m_sentence->setTextInteractionFlags(Qt::TextBrowserInteraction);
    m_note->setObjectName("whyNote");
    m_note->setWordWrap(true);
    m_note->setProperty("role", "quiet");
    m_note->setTextInteractionFlags(Qt::TextSelectableByMouse);
    m_grid->setColumnStretch(1, 1);
    m_grid->setHorizontalSpacing(8);
    m_grid->setVerticalSpacing(4);
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(4);
    column->addWidget(m_title);
    column->addWidget(m_sentence);
    column->addLayout(m_grid);
    column->addWidget(m_note);
    m_patience.setSingleShot(true);
    connect(&m_patience, &QTimer::timeout, this, [this] {
        if (m_waiting && m_asked)
            say(m_asked->step.value > 1 ? tr("computing%1 the lane is repeated up to step %2").arg(QChar(0x2026)).arg(m_asked->step.value) : tr("computing%1").arg(QChar(0x2026)));
    });
    connect(m_sentence, &QLabel::linkActivated, this, &WhyBlock::runWanted);
    say({});
}

void WhyBlock::setSource(Source source) {
    if (m_source == source) return;
    m_source = source;
    refresh();
}

void WhyBlock::setFocus(std::shared_ptr<const Trace> trace, const Focus& focus) {
    m_trace = std::move(trace);
    m_at = focus;
    refresh();
}

void WhyBlock::refresh() {
    const bool some = m_trace && m_at.position >= 0 && m_at.lane.value < int(m_trace->lanes.size());
    setVisible(some);
    const auto stop = [this] { // nothing is waited for any more
        m_asked.reset();
        m_patience.stop();
        if (std::exchange(m_waiting, false)) Q_EMIT dropped();
    };
    if (!some) return stop();
    const WhyQuestion question = whyQuestion(*m_trace, m_at);
    if (!question.ask) {
        stop();
        return say(question.sentence);
    }
    if (m_source == Source::replay) {
        stop();
        return say(tr("Explanations need a live run of this session:"), true);
    }
    const bool known = m_asked == question.ask;
    if (m_source == Source::running && question.ask->step.value > 1) {
        if (known && !m_waiting) return; // answered before the run began
        stop();
        return say(tr("Step %1 is explained when the run has ended.").arg(question.ask->step.value));
    }
    if (known) return;
    m_asked = question.ask;
    m_waiting = true;
    m_patience.start(PatienceMs);
    Q_EMIT asked(++m_ticket, *m_asked);
}

void WhyBlock::answer(quint64 ticket, const ExplanationPtr& explanation, const QString& reason) {
    if (ticket != m_ticket || !m_waiting) return;
    m_waiting = false;
    m_patience.stop();
    if (explanation && m_trace) tell(*explanation);
    else say(reason);
}

void WhyBlock::say(const QString& sentence, bool offer) {
    m_sentence->setText(offer ? QStringLiteral("%1 <a href=\"run\">%2</a>").arg(sentence.toHtmlEscaped(), tr("Run it").toHtmlEscaped()) : sentence.toHtmlEscaped());
    for (const auto& [name, value] : m_rows) {
        name->hide();
        value->hide();
        value->clear();
    }
    m_note->hide();
    m_note->clear();
}

void WhyBlock::tell(const Explanation& explanation) {
    const std::vector<WhyRow> rows = whyRows(explanation, *m_trace, m_at.lane);
    say(whyVerdict(explanation));
    while (m_rows.size() < rows.size()) {
        auto *name = new QLabel, *value = new QLabel;
        name->setProperty("role", "quiet");
        value->setWordWrap(true);
        value->setTextFormat(Qt::PlainText);
        value->setTextInteractionFlags(Qt::TextSelectableByMouse);
        const int at = m_grid->rowCount();
        m_grid->addWidget(name, at, 0, Qt::AlignTop);
        m_grid->addWidget(value, at, 1, Qt::AlignTop);
        m_rows.emplace_back(name, value);
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto& [name, value] = m_rows[i];
        name->setText(rows[i].name);
        value->setText(rows[i].value);
        value->setAccessibleName(rows[i].name);
        name->setToolTip(rows[i].help);
        value->setToolTip(rows[i].help);
        name->show();
        value->show();
    }
    m_note->setText(QString::fromStdString(explanation.note));
    m_note->setVisible(!explanation.note.empty());
}

QString WhyBlock::text() const {
    QStringList lines{m_sentence->text()};
    for (const auto& [name, value] : m_rows)
        if (!value->text().isEmpty()) lines << name->text() + QStringLiteral(": ") + value->text();
    if (!m_note->text().isEmpty()) lines << m_note->text();
    return lines.join(QLatin1Char('\n'));
}

} // namespace keepsight
