// Which selection an explanation is asked of, and what the Inspector says of the answer. No model.
#include "app/gui/why_block.h"
#include "tests/support/trace_builder.h"

#include <QLabel>
#include <QSignalSpy>
#include <QtTest>

using namespace keepsight;

class WhyTest : public QObject {
    Q_OBJECT

    std::shared_ptr<const Trace> m_trace = test::buildTrace({.mapBins = 0});
    static constexpr LayerIndex layer{1};
    static constexpr HeadIndex head{2};
    Focus at(int step, Position position, int lane = 1) const { return {LaneIndex(lane), Step(step), layer, head, position}; }
    std::span<const std::int32_t> evicted() const { return m_trace->lanes[1].retention.evictedAt(layer, head); }
    Position firstEvictedAt(int from, int to) const {
        for (Position p = 0; p < Position(evicted().size()); ++p)
            if (evicted()[std::size_t(p)] >= from && evicted()[std::size_t(p)] <= to) return p;
        return -1;
    }
    static Explanation dropped(Position position, Position lastKept) {
        Explanation e;
        e.position = position;
        e.layer = layer;
        e.head = head;
        e.step = Step{1};
        e.found = true;
        e.score = 0.25;
        e.cutoff = 0.5;
        e.margin = -0.25;
        e.rank = 40;
        e.candidates = 52;
        e.slots = 22;
        e.budget = 30;
        e.budgetNeeded = 48;
        e.lastKept = lastKept;
        e.note = "A note.";
        return e;
    }
    static QString value(const std::vector<WhyRow>& rows, const QString& name) {
        for (const WhyRow& row : rows)
            if (row.name == name) return row.value;
        return {};
    }

private Q_SLOTS:
    void initTestCase() {
        QLocale::setDefault(QLocale::c());
        qRegisterMetaType<ExplainRequest>();
    }

    void anEvictedTokenAsksTheSelectionThatDroppedIt() {
        const Position early = firstEvictedAt(1, 1), late = firstEvictedAt(3, 15);
        QVERIFY(early >= 0 && late >= 0);
        const WhyQuestion first = whyQuestion(*m_trace, at(12, early));
        QVERIFY(first.ask);
        QCOMPARE(first.ask->step, Step{1});
        QVERIFY(first.ask->fed.empty());
        QCOMPARE(first.ask->policy, m_trace->lanes[1].policy);
        const int step = evicted()[std::size_t(late)];
        const WhyQuestion then = whyQuestion(*m_trace, at(21, late));
        QVERIFY(then.ask);
        QCOMPARE(then.ask->step, Step{step});
        QCOMPARE(int(then.ask->fed.size()), step - 1);
        QCOMPARE(then.ask->fed.front(), m_trace->tokens[std::size_t(m_trace->prefillLength)].id);
    }
    void aHeldTokenAsksTheLastSelectionBeforeTheFocus() {
        const Position late = firstEvictedAt(10, 21);
        QVERIFY(late >= 0 && late < m_trace->prefillLength);
        QCOMPARE(whyQuestion(*m_trace, at(1, late)).ask->step, Step{1});
        const auto ask = whyQuestion(*m_trace, at(6, late)).ask; // every step evicts
        QVERIFY(ask && ask->step.value <= 6 && ask->step.value > 1);
        QCOMPARE(whyQuestion(*m_trace, at(21, 5, 0)).ask->step, Step{1}); // the full lane drops nothing
    }
    void whereNothingWasChosenThereIsASentence() {
        QVERIFY(!whyQuestion(*m_trace, at(0, 5)).ask);
        QVERIFY(whyQuestion(*m_trace, at(0, 5)).sentence.contains("step 0"));
        QVERIFY(whyQuestion(*m_trace, at(3, 75)).sentence.contains("not read yet"));
        QVERIFY(whyQuestion(*m_trace, at(21, 70, 0)).sentence.contains("last selection"));
        Trace bare;
        bare.lanes.resize(1);
        QVERIFY(!whyQuestion(bare, Focus{}).ask);
    }
    void runsAreToldApart() {
        auto other = std::make_shared<Trace>(*m_trace);
        other->run.jobJson += " ";
        QVERIFY(whyQuestion(*m_trace, at(21, 5)).ask != whyQuestion(*other, at(21, 5)).ask);
        QVERIFY(whyQuestion(*m_trace, at(21, 5)).ask == whyQuestion(*m_trace, at(21, 5)).ask);
    }
    void theAnswerIsToldInRows() {
        Explanation e = dropped(20, 33);
        QCOMPARE(whyVerdict(e), QString("Dropped: rank 40 for 22 places."));
        auto rows = whyRows(e, *m_trace, LaneIndex{1});
        QCOMPARE(value(rows, "Rank"), QString("40 of 52"));
        QCOMPARE(value(rows, "Cutoff"), QString("0.5 at rank 22"));
        QCOMPARE(value(rows, "Margin"), QString(QChar(0x2212)) + "0.25");
        QCOMPARE(value(rows, "Protected"), QString("no"));
        QVERIFY(value(rows, "Lost to").startsWith("33 "));
        QCOMPARE(value(rows, "Needs"), QString("48 tokens,\n20.0 % removed"));
        QCOMPARE(Budget::removed(0.2).resolve(60), 48);
        e.budgetNeeded = 20; // less than it had: scores that change with the budget
        QVERIFY(value(whyRows(e, *m_trace, LaneIndex{1}), "Needs").isEmpty());
        e.kept = true;
        e.rank = 0;
        e.protectedBy = "sink";
        QVERIFY(whyVerdict(e).contains("first tokens"));
        QVERIFY(value(whyRows(e, *m_trace, LaneIndex{1}), "Rank").isEmpty());
        e.found = false;
        QVERIFY(whyVerdict(e).contains("did not choose"));
    }
    void theNamedShareKeepsAtLeastTheNamedTokens() {
        Explanation e = dropped(20, 33);
        for (e.budgetNeeded = 31; e.budgetNeeded <= 60; ++e.budgetNeeded) {
            const QString share = value(whyRows(e, *m_trace, LaneIndex{1}), "Needs").section('\n', 1).section(' ', 0, 0);
            const int kept = Budget::removed(share.toDouble() / 100).resolve(60);
            QVERIFY2(kept >= e.budgetNeeded && kept <= e.budgetNeeded + 1, qPrintable(QString("%1: %2").arg(e.budgetNeeded).arg(share)));
        }
    }
    void theBlockAsksOnceAndWaitsQuietly() {
        WhyBlock block;
        QSignalSpy asked(&block, &WhyBlock::asked), gone(&block, &WhyBlock::dropped), wanted(&block, &WhyBlock::runWanted);
        block.setFocus(m_trace, at(21, firstEvictedAt(1, 1)));
        QVERIFY(block.text().contains("live run"));
        Q_EMIT block.findChild<QLabel*>("whySentence")->linkActivated("run");
        QCOMPARE(wanted.count(), 1);
        block.setSource(WhyBlock::Source::live);
        QCOMPARE(asked.count(), 1);
        QVERIFY(!block.text().contains("computing"));
        QTRY_VERIFY(block.text().contains("computing"));
        block.setFocus(m_trace, at(21, firstEvictedAt(1, 1))); // a snapshot of the same run
        QCOMPARE(asked.count(), 1);
        const auto answer = std::make_shared<const Explanation>(dropped(20, 33));
        block.answer(asked.last().at(0).toULongLong() + 1, answer, {}); // somebody else's
        QVERIFY(block.text().contains("computing"));
        block.answer(asked.last().at(0).toULongLong(), answer, {});
        QVERIFY2(block.text().contains("Rank: 40 of 52") && block.text().contains("A note."), qPrintable(block.text()));

        block.setFocus(m_trace, at(21, firstEvictedAt(3, 15)));
        QCOMPARE(asked.count(), 2);
        block.setSource(WhyBlock::Source::running); // a run began: the lane is not repeated beside it
        QCOMPARE(gone.count(), 1);
        QVERIFY(block.text().contains("when the run has ended"));
        block.setSource(WhyBlock::Source::live);
        QCOMPARE(asked.count(), 3);
        block.answer(asked.last().at(0).toULongLong(), nullptr, "The engine says why not.");
        QCOMPARE(block.text(), QString("The engine says why not."));
    }
};

QTEST_MAIN(WhyTest)
#include "why_test.moc"
