#include "widgets/policy/policy_form.h"
#include "widgets/policy/quant_form.h"

#include <QAbstractItemModel>
#include <QComboBox>
#include <QCompleter>
#include <QDoubleSpinBox>
#include <QLabel>
#include <QLineEdit>
#include <QPushButton>
#include <QSignalSpy>
#include <QSpinBox>
#include <QToolButton>
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

ParamInfo sinks() { return {"sinks", ParamInfo::Type::integer, "0", 0, 1048576, {}, "tokens", "First tokens that always stay."}; }
ParamInfo timing() { return {"timing", ParamInfo::Type::choice, "prefill_end", 0, 0, {"prefill_end", "each_step"}, "", "When."}; }

// One of every type, and what it shares with three others; a dozen small ones make the list long enough to search.
std::vector<PolicyInfo> longRegistry() {
    std::vector<PolicyInfo> out = registry();
    PolicyInfo all{"all", {}, PolicyKind::evict, "Has one of each.", "All, arXiv:1234.56789", {}, true};
    all.params = {{"kernel", ParamInfo::Type::integer, "5", 1, 255, {}, "tokens", "Width, odd.", true},
                  {"layers", ParamInfo::Type::reals, "", 0, 0.999, {}, "removed", "Shares by layer."},
                  {"text", ParamInfo::Type::file, "", 0, 0, {}, "", "A text."},
                  {"with", ParamInfo::Type::settings, "", 0, 0, {}, "", "Another's parameters."},
                  timing(), sinks(), {"pool", ParamInfo::Type::choice, "avg", 0, 0, {"avg", "max"}, "", "How votes are pooled."}};
    out.push_back(all);
    for (int i = 0; i < 12; ++i)
        out.push_back({"small" + std::to_string(i), {}, PolicyKind::evict, i == 7 ? "Drops by norm." : "Small.", "Paper " + std::to_string(i), {timing(), sinks()}, true});
    return out;
}

std::vector<QuantInfo> quantizers() {
    return {{"none", {"off"}, "Stores every value as it is.", "", {}},
            {"pack", {"packed"}, "Packs.", "Pack, arXiv:2402.02750", {{"bits", ParamInfo::Type::choice, "2", 0, 0, {"2", "4"}, "", "Bits."}}}};
}

PolicySpec spec(const char* id, std::map<std::string, std::string> params = {}) {
    PolicySpec out;
    out.id = id;
    out.params = std::move(params);
    return out;
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

    void listsOfNumbersAreTypedWhole() {
        PolicyForm form(longRegistry());
        form.setSpec(spec("all"));
        form.show();
        auto* layers = form.findChild<QLineEdit*>("layers");
        QVERIFY(layers);
        QVERIFY2(layers->placeholderText().contains("removed") && layers->placeholderText().contains('/'), qPrintable(layers->placeholderText()));
        QSignalSpy spy(&form, &PolicyForm::specChanged);
        layers->setFocus();
        QTest::keyClicks(layers, "0.3/0.7");
        QTest::keyClick(layers, Qt::Key_Return);
        QCOMPARE(form.spec().text(), std::string("all:layers=0.3/0.7"));
        QCOMPARE(spy.count(), 1);
        QTest::keyClicks(layers, "/"); // unfinished: the last whole list counts
        QCOMPARE(form.spec().text(), std::string("all:layers=0.3/0.7"));
        QTest::keyClick(layers, Qt::Key_Return);
        QCOMPARE(layers->text(), QString("0.3/0.7"));
        QTest::keyClicks(layers, "x/1.5"); // no such character; out of range
        QTest::keyClick(layers, Qt::Key_Return);
        QCOMPARE(layers->text(), QString("0.3/0.7"));
        QCOMPARE(spy.count(), 1);
        layers->clear();
        QTest::keyClick(layers, Qt::Key_Return);
        QCOMPARE(form.spec().text(), std::string("all"));
        form.setSpec(spec("all", {{"layers", "0.5/2"}}));
        QCOMPARE(form.spec(), spec("all"));
    }

    void filesAreTypedOrChosen() {
        PolicyForm form(longRegistry());
        form.setSpec(spec("all"));
        auto* text = form.findChild<QLineEdit*>("text");
        QVERIFY(text && text->isClearButtonEnabled());
        auto* browse = form.findChild<QToolButton*>("textBrowse");
        QVERIFY(browse && !browse->accessibleName().isEmpty());
        text->setText("/tmp/a b.txt");
        QTest::keyClick(text, Qt::Key_Return);
        QCOMPARE(form.spec(), spec("all", {{"text", "/tmp/a b.txt"}}));
    }

    void oddNumbersStayOdd() {
        PolicyForm form(longRegistry());
        form.setSpec(spec("all"));
        auto* kernel = form.findChild<QSpinBox*>("kernel");
        QVERIFY(kernel);
        kernel->stepUp();
        QCOMPARE(kernel->value(), 7);
        auto* line = kernel->findChild<QLineEdit*>();
        line->selectAll();
        QTest::keyClicks(line, "10");
        QTest::keyClick(kernel, Qt::Key_Return);
        QCOMPARE(kernel->value(), 11);
        form.setSpec(spec("all", {{"kernel", "8"}}));
        QCOMPARE(form.spec(), spec("all"));
    }

    void intervalsOfTheTimingAreTyped() {
        PolicyForm form(longRegistry());
        form.setSpec(spec("all"));
        form.show();
        auto* timing = form.findChild<QComboBox*>("timing");
        QVERIFY(timing && timing->isEditable());
        QSignalSpy spy(&form, &PolicyForm::specChanged);
        timing->setEditText("every:8");
        QTest::keyClick(timing->lineEdit(), Qt::Key_Return);
        QCOMPARE(form.spec().text(), std::string("all:timing=every:8"));
        QVERIFY(spy.count() >= 1);
        timing->setEditText("every:");
        QCOMPARE(form.spec().text(), std::string("all:timing=every:8"));
        QTest::keyClick(timing->lineEdit(), Qt::Key_Return);
        QCOMPARE(timing->currentText(), QString("every:8"));
        form.setSpec(spec("all", {{"timing", "decode:4"}}));
        QCOMPARE(form.spec().text(), std::string("all:timing=decode:4"));
    }

    void sharedParametersAreFoldedUntilChanged() {
        PolicyForm form(longRegistry());
        form.setSpec(spec("all"));
        form.show();
        auto* more = form.findChild<QToolButton*>("more");
        QVERIFY(more && !more->isChecked());
        QVERIFY(form.findChild<QSpinBox*>("kernel")->isVisible());
        QVERIFY(!form.findChild<QSpinBox*>("sinks")->isVisible());
        QVERIFY(more->text().contains("2")); // sinks and timing
        more->click();
        QVERIFY(form.findChild<QSpinBox*>("sinks")->isVisible());
        form.findChild<QSpinBox*>("sinks")->setValue(4);
        QVERIFY(more->text().contains("1 changed"));
        form.setSpec(spec("small0")); // too short to fold anything
        QVERIFY(!form.findChild<QToolButton*>("more"));
        QVERIFY(form.findChild<QSpinBox*>("sinks")->isVisible());
        form.setSpec(spec("all", {{"sinks", "4"}})); // said: shown among the others
        form.findChild<QToolButton*>("more")->setChecked(false);
        QVERIFY(form.findChild<QSpinBox*>("sinks")->isVisible());
    }

    void aLongListIsSearchedByAnyWord() {
        PolicyForm form(longRegistry());
        form.show();
        auto* chooser = form.findChild<QComboBox*>("policy");
        QVERIFY(chooser->isEditable());
        QSignalSpy spy(&form, &PolicyForm::specChanged);
        chooser->completer()->setCompletionPrefix("by norm");
        QCOMPARE(chooser->completer()->completionCount(), 1);
        QCOMPARE(chooser->completer()->currentCompletion(), QString("small7"));
        chooser->setEditText("by norm");
        QTest::keyClick(chooser->lineEdit(), Qt::Key_Return);
        QCOMPARE(form.spec().id, std::string("small7"));
        QCOMPARE(spy.count(), 1);
        chooser->setEditText("nothing of that kind");
        QTest::keyClick(chooser->lineEdit(), Qt::Key_Return);
        QCOMPARE(chooser->currentText(), QString("small7"));
        chooser->setEditText("win"); // an alias
        QTest::keyClick(chooser->lineEdit(), Qt::Key_Return);
        QCOMPARE(form.spec().id, std::string("window"));
        QVERIFY(!PolicyForm(registry()).findChild<QComboBox*>("policy")->isEditable());
    }

    void whatDoesNotGoTogetherIsGreyAndSaysWhy() {
        PolicyForm form(longRegistry());
        form.setRefusals([](const std::string& id) { return id == "small3" ? QString("It does not go with this.") : QString(); });
        auto* chooser = form.findChild<QComboBox*>("policy");
        const QModelIndex grey = chooser->model()->index(chooser->findText("small3"), 0), live = chooser->model()->index(chooser->findText("small4"), 0);
        QVERIFY(!(grey.flags() & Qt::ItemIsEnabled));
        QCOMPARE(grey.data(Qt::ToolTipRole).toString(), QString("It does not go with this."));
        QVERIFY(live.flags() & Qt::ItemIsEnabled);
        QSignalSpy spy(&form, &PolicyForm::specChanged);
        chooser->setEditText("small3"); // typed in full all the same
        QTest::keyClick(chooser->lineEdit(), Qt::Key_Return);
        QCOMPARE(form.spec().id, std::string("full"));
        QCOMPARE(chooser->currentText(), QString("full"));
        QCOMPARE(spy.count(), 0);
    }

    void quantizersHaveTheSameForm() {
        QuantForm form(quantizers());
        QCOMPARE(form.spec(), QuantSpec{});
        form.setSpec({"packed", {{"bits", "4"}}});
        QCOMPARE(form.spec(), (QuantSpec{"pack", {{"bits", "4"}}}));
        QSignalSpy spy(&form, &ChoiceForm::changed);
        form.findChild<QComboBox*>("bits")->setCurrentText("2");
        QCOMPARE(spy.count(), 1);
        QCOMPARE(form.spec().text(), std::string("pack"));
        QCOMPARE(form.parse("pack:bits=4"), (QuantSpec{"pack", {{"bits", "4"}}}));
    }

    void theSameSpecKeepsItsEditors() {
        PolicyForm form(longRegistry());
        form.setSpec(spec("all"));
        auto* kernel = form.findChild<QSpinBox*>("kernel");
        PolicySpec dragged = spec("all");
        dragged.budget = Budget::removed(0.7); // as at every step of a slider
        form.setSpec(dragged);
        QCOMPARE(form.findChild<QSpinBox*>("kernel"), kernel);
        QCOMPARE(form.spec().budget, Budget::removed(0.7));
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
