#include "widgets/policy/policy_form.h"

#include <QComboBox>
#include <QDoubleSpinBox>
#include <QLabel>
#include <QPushButton>
#include <QSignalSpy>
#include <QSpinBox>
#include <QtTest>

using namespace keepsight;

namespace {

std::vector<PolicyInfo> registry() {
    PolicyInfo full{"full", {"none"}, PolicyKind::evict, "Keeps every token.", "", {}, false};
    PolicyInfo window{"window", {"win"}, PolicyKind::evict, "Keeps what a window attends to.", "Window, arXiv:2404.14469", {}, true};
    window.params = {{"window", ParamInfo::Type::integer, "64", 1, 4096, {}, "tokens", "Queries that vote."},
                     {"theta", ParamInfo::Type::real, "0.001", 0, 1, {}, "", "A threshold."},
                     {"pool", ParamInfo::Type::choice, "avg", 0, 0, {"avg", "max"}, "", "How votes are pooled."}};
    return {full, window};
}

PolicySpec windowSpec() {
    PolicySpec spec;
    spec.id = "window";
    return spec;
}

} // namespace

class PolicyFormTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void everyParameterGetsTheEditorOfItsType() {
        PolicyForm form(registry());
        form.setSpec(windowSpec());
        auto* window = form.findChild<QSpinBox*>("window");
        QVERIFY(window);
        QCOMPARE(window->minimum(), 1);
        QCOMPARE(window->maximum(), 4096);
        QCOMPARE(window->value(), 64);
        QCOMPARE(window->suffix(), QString(" tokens"));
        auto* theta = form.findChild<QDoubleSpinBox*>("theta");
        QVERIFY(theta);
        QCOMPARE(theta->value(), 0.001);
        auto* pool = form.findChild<QComboBox*>("pool");
        QVERIFY(pool);
        QCOMPARE(pool->count(), 2);
        QCOMPARE(pool->currentText(), QString("avg"));
    }

    void labelsAreBuddiesAndEditorsCarryHelp() {
        PolicyForm form(registry());
        form.setSpec(windowSpec());
        for (const char* name : {"window", "theta", "pool"}) {
            auto* editor = form.findChild<QWidget*>(name);
            QVERIFY2(editor, name);
            const auto labels = form.findChildren<QLabel*>();
            QVERIFY2(std::any_of(labels.begin(), labels.end(), [&](QLabel* label) { return label->buddy() == editor; }), name);
            QVERIFY(!editor->accessibleName().isEmpty());
            QVERIFY(editor->toolTip().contains("Default"));
        }
        QVERIFY(form.findChild<QLabel*>("summary")->text().contains("https://arxiv.org/abs/2404.14469"));
    }

    void onlyChangedParametersAreInTheSpec() {
        PolicyForm form(registry());
        PolicySpec spec = windowSpec();
        spec.budget = Budget::removed(0.25);
        form.setSpec(spec);
        QCOMPARE(form.spec(), spec);

        QSignalSpy spy(&form, &PolicyForm::specChanged);
        form.findChild<QSpinBox*>("window")->setValue(16);
        form.findChild<QDoubleSpinBox*>("theta")->setValue(0.002);
        QCOMPARE(spy.count(), 2);
        const PolicySpec now = spy.last().first().value<PolicySpec>();
        QCOMPARE(now.text(), std::string("window:theta=0.002,window=16"));
        QCOMPARE(now.budget, spec.budget);

        form.findChild<QSpinBox*>("window")->setValue(64);
        QCOMPARE(form.spec().text(), std::string("window:theta=0.002"));
    }

    void aSpecComesBackAsItWasGiven_data() {
        QTest::addColumn<QString>("theta");
        QTest::newRow("finer than the editor shows") << "0.0001234";
        QTest::newRow("one") << "1";
        QTest::newRow("scientific") << "1e-5";
    }
    void aSpecComesBackAsItWasGiven() {
        QFETCH(QString, theta);
        PolicyForm form(registry());
        PolicySpec spec = windowSpec();
        spec.params["theta"] = theta.toStdString();
        form.setSpec(spec);
        QCOMPARE(form.spec().params.at("theta"), theta.toStdString());
    }

    void settingASpecIsSilent() {
        PolicyForm form(registry());
        QSignalSpy spy(&form, &PolicyForm::specChanged);
        PolicySpec spec = windowSpec();
        spec.params["window"] = "8";
        form.setSpec(spec);
        QCOMPARE(spy.count(), 0);
    }

    void badValuesFallBackToTheDefaults() {
        PolicyForm form(registry());
        PolicySpec spec = windowSpec();
        spec.params = {{"window", "many"}, {"theta", "nan"}, {"pool", "median"}, {"unheard", "1"}};
        form.setSpec(spec);
        QCOMPARE(form.spec(), windowSpec());
    }

    void anAliasIsResolvedAndAnUnknownPolicyStays() {
        PolicyForm form(registry());
        PolicySpec spec;
        spec.id = "win";
        form.setSpec(spec);
        QCOMPARE(form.spec().id, std::string("window"));
        spec.id = "from_the_future";
        spec.params["x"] = "1";
        form.setSpec(spec);
        QVERIFY(!form.info());
        QCOMPARE(form.spec(), spec);
    }

    void choosingAPolicyStartsFromItsDefaults() {
        PolicyForm form(registry());
        PolicySpec spec = windowSpec();
        spec.params["window"] = "8";
        form.setSpec(spec);
        QSignalSpy spy(&form, &PolicyForm::specChanged);
        auto* policy = form.findChild<QComboBox*>("policy");
        policy->setCurrentIndex(0);
        QCOMPARE(spy.count(), 1);
        QCOMPARE(spy.last().first().value<PolicySpec>().text(), std::string("full"));
        policy->setCurrentIndex(1);
        QCOMPARE(form.spec().text(), std::string("window"));
    }

    void resetEmitsOnceAndOnlyIfThereIsSomethingToReset() {
        PolicyForm form(registry());
        PolicySpec spec = windowSpec();
        spec.params = {{"window", "8"}, {"pool", "max"}};
        form.setSpec(spec);
        auto* reset = form.findChild<QPushButton*>("reset");
        QVERIFY(reset->isEnabled());
        QSignalSpy spy(&form, &PolicyForm::specChanged);
        reset->click();
        QCOMPARE(spy.count(), 1);
        QCOMPARE(form.spec(), windowSpec());
        QVERIFY(!reset->isEnabled());
        form.resetToDefaults();
        QCOMPARE(spy.count(), 1);
    }

    void theWheelScrollsPastEditorsWithoutFocus() {
        PolicyForm form(registry());
        form.setSpec(windowSpec());
        auto* window = form.findChild<QSpinBox*>("window");
        QWheelEvent wheel({5, 5}, window->mapToGlobal(QPointF(5, 5)), {}, {0, 120}, Qt::NoButton, Qt::NoModifier, Qt::NoScrollPhase, false);
        QCoreApplication::sendEvent(window, &wheel);
        QCOMPARE(window->value(), 64);
    }
};

QTEST_MAIN(PolicyFormTest)
#include "policy_form_test.moc"
