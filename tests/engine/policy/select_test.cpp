#include "engine/data/error.h"
#include "engine/policy/policy.h"
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <QtTest>
#include <limits>

using namespace keepsight;

class SelectTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void keepsTheHighestScoresInAscendingOrder() {
        const at::Tensor scores = at::tensor({3.f, 9.f, 1.f, 7.f, 5.f}).view({1, 5});
        QCOMPARE(select(scores, {5}, {.keep = 3}).keep[0], (std::vector<std::int32_t>{1, 3, 4}));
    }
    void breaksTiesByTheLargerPosition() {
        QCOMPARE(select(at::ones({1, 6}), {6}, {.keep = 2}).keep[0], (std::vector<std::int32_t>{4, 5}));
    }
    void treatsNanAsWorst() {
        const at::Tensor scores = at::tensor({std::nanf(""), -1e30f, std::nanf(""), 0.f}).view({1, 4});
        QCOMPARE(select(scores, {4}, {.keep = 2}).keep[0], (std::vector<std::int32_t>{1, 3}));
    }
    void protectsByMaskNotByScore() {
        const at::Tensor scores = at::tensor({0.f, 0.f, 9.f, 8.f, 7.f, 0.f}).view({1, 6});
        QCOMPARE(select(scores, {6}, {.keep = 4, .protect = {.sinks = 1, .recent = 1}}).keep[0], (std::vector<std::int32_t>{0, 2, 3, 5}));
    }
    void clampsProtectionToTheBudgetAndSaysSo() {
        std::string notice;
        const Selection s = select(at::ones({1, 10}), {10}, {.keep = 3, .protect = {.sinks = 2, .recent = 6}}, &notice);
        QCOMPARE(s.keep[0], (std::vector<std::int32_t>{0, 1, 9}));
        QVERIFY(notice.find("1 of 6 recent") != std::string::npos);
        QCOMPARE(select(at::ones({1, 10}), {10}, {.keep = 1, .protect = {.sinks = 4, .recent = 4}}).keep[0], (std::vector<std::int32_t>{0}));
    }
    void handlesRaggedHeadsAndUndefinedScores() {
        const Selection s = select({}, {3, 6}, {.keep = 4, .protect = {.sinks = 1}});
        QCOMPARE(s.keep[0], (std::vector<std::int32_t>{0, 1, 2}));
        QCOMPARE(s.keep[1], (std::vector<std::int32_t>{0, 3, 4, 5}));
    }
    void resolvesBudgetsLikeKvpress() {
        QCOMPARE(Budget::removed(0.3).resolve(512), 358); // int(512 * (1 - 0.3))
        QCOMPARE(Budget::removed(0.9).resolve(10), 1);    // 10 · (1 − 0.9) floors to 0: clamped
        QCOMPARE(Budget::removed(0.0).resolve(7), 7);
        QCOMPARE(Budget::kept(128).resolve(4096), 128);
    }

    void refusesWrongSpecs_data() {
        QTest::addColumn<QString>("text");
        QTest::addColumn<QString>("says");
        QTest::newRow("unknown policy") << "snapvk" << "expected one of: full, window";
        QTest::newRow("unknown parameter") << "snapkv:windows=3" << "no parameter 'windows'; expected one of: window";
        QTest::newRow("out of range") << "snapkv:window=0" << "whole number from 1 to 4096, found '0'";
        QTest::newRow("not whole") << "snapkv:window=3.5" << "whole number";
        QTest::newRow("even kernel") << "snapkv:kernel=4" << "odd";
        QTest::newRow("choice") << "knorm:keep=middle" << "one of low, high";
        QTest::newRow("no value") << "knorm:keep" << "expected key=value";
        QTest::newRow("twice") << "knorm:keep=low,keep=high" << "given twice";
        QTest::newRow("dangling") << "knorm:" << "found nothing";
        QTest::newRow("full takes none") << "full:window=3" << "it takes none";
        QTest::newRow("every zero") << "tova:timing=every:0" << "one of prefill_end";
    }
    void refusesWrongSpecs() {
        QFETCH(QString, text);
        QFETCH(QString, says);
        try {
            parsePolicySpec(text.toStdString());
            QFAIL("accepted");
        } catch (const UsageError& e) {
            QVERIFY2(QString(e.what()).contains(says), e.what());
        }
    }
    void resolvesAliasesAndDropsDefaults() {
        QCOMPARE(parsePolicySpec("streaming:sinks=4").text(), std::string("streaming_llm"));
        QCOMPARE(parsePolicySpec("snapkv:window=32,pool=max").text(), std::string("snapkv:pool=max,window=32"));
        QCOMPARE(parsePolicySpec("fifo").id, std::string("window"));
    }
    void everyPolicyDescribesItself() {
        for (const PolicyEntry& entry : policyRegistry()) {
            QVERIFY2(!entry.info.summary.empty(), entry.info.id.c_str());
            for (const ParamInfo& p : entry.info.params) {
                QVERIFY2(!p.help.empty(), p.name.c_str());
                PolicySpec spec;
                spec.id = entry.info.id;
                spec.params[p.name] = p.initial;
                checkPolicySpec(spec); // the default is a legal value
            }
        }
    }
};

QTEST_APPLESS_MAIN(SelectTest)
#include "select_test.moc"
